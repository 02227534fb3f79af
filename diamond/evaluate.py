"""The test of a run: fresh games under the sampling policy, and imagined videos beside real ones.

    python -m diamond.evaluate --preset cpu --seed 0            the run of that preset and seed

Writes record.json, curves.png, steps.png and video.webm into the run folder. A run of an agent is judged by its games,
a run of a video by its drift.
Source: paper, sections 4.1 and 5.1; reference code: the policy always samples, without epsilon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common import run as runs
from common.config import parse
from common.curves import draw_curves
from common.program import program
from common.record import close, curve, of_run, sample
from common.seeding import derive_seed
from diamond import pictures, rollouts
from diamond.actor_critic import ActorCritic
from diamond.agent import STAGE, Agent, load_agent
from diamond.collect import as_obs
from diamond.config import GAMES, PRESETS, TASKS, Config
from diamond.data import Recordings
from diamond.env import REPEAT, Frame, Game, new_game
from diamond.imagination import pick
from diamond.replay import Replay

TEST_SETTINGS = ("device", "test_games", "test_rollouts", "test_length", "sampler_steps", "sampler_order")
DENOISING_STEPS = (1, 3, 10)
COINS = 200  # jumps of the coin that are imagined

Act = Callable[[Frame, float], int]


def play(game: Game, new_act: Callable[[], Act], config: Config, purpose: str) -> list[float]:
    """Raw scores of `test_games` fresh games; a lost life ends nothing. new_act() → act(frame, uniform) → action."""
    scores = []
    with runs.progress_bar(config.test_games, purpose, unit="game") as bar:
        for k in range(config.test_games):
            rng = np.random.default_rng(derive_seed(config.seed, purpose, "act", k))
            frame, score, is_last, act = game.reset(derive_seed(config.seed, "test", k) % 2**31), 0.0, False, new_act()
            while not is_last:
                answer = game.step(act(frame, rng.random()))
                frame, score, is_last = answer.frame, score + answer.reward, answer.is_over or answer.is_cut
            scores.append(score)
            bar.update()
            bar.set_postfix(score=f"{np.mean(scores):.1f}", refresh=False)
    return scores


def policy_act(policy: ActorCritic, device: torch.device) -> Act:
    """The policy from the start of a game; its state lasts the whole game."""
    state = policy.initial_state(1)

    @torch.no_grad()
    def act(frame: Frame, uniform: float) -> int:
        nonlocal state
        logits, _, state = policy(as_obs([frame], device), state)
        return int(pick(logits, torch.tensor([uniform], device=device)))

    return act


def protocol(config: Config) -> str:
    """The name of the test."""
    if config.is_video:
        return f"drift-{config.test_length}"
    return "catch-games" if config.game == "catch" else "atari100k-games"


def claim(config: Config) -> str:
    """The word that tells apart the records of one task: what the run shows, and what it lacks."""
    parts = {
        "video": config.is_video,
        "agent": not config.is_video,
        "ddpm": config.diffusion == "ddpm",
        "real": not config.is_imagined,
        "official": config.init_from is not None,
        f"steps{config.sampler_steps}": config.sampler_steps != Config.sampler_steps,
    }
    words = [word for word, is_so in parts.items() if is_so]
    if not config.is_video and config.is_imagined and config.denoiser_updates == 0 and config.actor_critic_updates:
        words.append("world")
    judges_denoiser = config.is_video or words[-1] == "world"
    updates = config.denoiser_updates if judges_denoiser else config.actor_critic_updates
    return "-".join(words if updates else [*words, "untrained"])


def success(scores: Sequence[float], config: Config) -> list[float]:
    """Scores as they are judged: of Catch the share of balls caught, in percent."""
    return [100.0 * (score > 0) for score in scores] if config.game == "catch" else list(scores)


def tested_games(agent: Agent, game: Game, config: Config, device: torch.device) -> dict[str, Any]:
    """The part of the record that is about the agent."""
    policy, count = agent.actor_critic, game.actions
    scores = success(play(game, lambda: policy_act(policy, device), config, "test"), config)
    random = success(play(game, lambda: lambda _, uniform: int(uniform * count), config, "test random"), config)
    name = protocol(config)
    is_catch = config.game == "catch"
    controls = {"uniform random": sample(random, name)}
    if is_catch:
        controls["nine of ten"] = sample([90.0], name)
    return {
        **sample(scores, name),
        "metric": "balls caught" if is_catch else "score",
        "unit": "%" if is_catch else "score",
        "controls": controls,
    }


def tested_videos(
    agent: Agent, videos: rollouts.Videos, replay: Replay, config: Config, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Samples of the drift in levels by denoising steps, floors, and the curves over time."""
    name, history = f"drift-{config.test_length}", config.history
    measured, curves = {}, {}
    for steps in dict.fromkeys((*DENOISING_STEPS, config.sampler_steps)):
        each, over_time = rollouts.drift(videos, rollouts.imagine(agent, videos, steps, config, device), history)
        words = f"drift, {steps} step{'s' if steps > 1 else ''}"
        measured[words] = sample(each, name)
        points = [{"step": t + 1, "drift": float(value)} for t, value in enumerate(over_time)]
        curves[words] = curve(points, "drift", "imagined frame", "levels of 255")
    mean = rollouts.mean_frame(replay.frames[: replay.count])
    floors = {
        "copy of the last frame": rollouts.copies(videos, history),
        "mean frame": rollouts.constant(videos, mean),
    }
    found = {words: sample(rollouts.drift(videos, frames, history)[0], name) for words, frames in floors.items()}
    return measured, found, curves


def tested_coin(agent: Agent, config: Config, device: torch.device) -> dict[str, Any]:
    """Whether imagined jumps are choices, and of which side; by denoising steps, and by the strength of the noise that
    they begin with. Source: paper, section 5.2; the strength is ours."""
    found = {}
    for steps in dict.fromkeys((*DENOISING_STEPS, config.sampler_steps)):
        words = f"{steps} step{'s' if steps > 1 else ''}"
        for noise, start_std in (("", 1.0), (", full noise", config.sampler.sigma_max)):
            choices = rollouts.coin_choices(agent, steps, config, device, COINS, start_std=start_std)
            is_rarer = choices < 0 if (choices < 0).sum() < (choices > 0).sum() else choices > 0
            found[f"decision, {words}{noise}"] = sample(100 * np.abs(choices), "coin-choices")
            found[f"to the rarer side, {words}{noise}"] = sample(100 * is_rarer, "coin-choices")
    found["one in four"] = sample([25.0], "coin-choices")
    return found


def record_of_run(
    info: dict[str, Any], agent: Agent, state: Mapping[str, Any], videos: rollouts.Videos, game: Game, config: Config
) -> dict[str, Any]:
    """The test of a finished run with its controls, as record.json."""
    begun, device = time.monotonic(), torch.device(config.device)
    replay = Replay(info["folder"] / "replay-0", config.env_steps, config.image_size)
    replay.restore(state["count"])
    drifts, floors, curves = tested_videos(agent, videos, replay, config, device)
    measurements = {**drifts, **floors}
    if config.is_video:
        steps = config.sampler_steps
        head = drifts[f"drift, {steps} step{'s' if steps > 1 else ''}"] | {"metric": "drift", "unit": "levels of 255"}
        head["controls"] = floors
        measurements = {name: value for name, value in measurements.items() if name not in floors}
        if config.game == "coin":
            measurements |= tested_coin(agent, config, device)
        policy = f"videos imagined in {steps} denoising steps a frame"
    else:
        head, policy = tested_games(agent, game, config, device), "sampled"
    lines = runs.read_metrics(info["folder"])
    played = [line for line in lines if line["stage"] == f"{STAGE} game"]
    if played and not config.is_video:
        curves = {"score while collecting": curve(played, "score", "decision", "score", x="env_steps"), **curves}
    losses = [line for line in lines if "denoiser/loss" in line]
    if losses:
        curves["denoising loss"] = curve(losses, "denoiser/loss", "update of all networks", "squared error")
    info["stage_seconds"]["test"] = time.monotonic() - begun
    info["wall_seconds"] += info["stage_seconds"]["test"]
    repeats = REPEAT if config.game in GAMES else 1
    return of_run(info) | {
        "claim": claim(config),
        **head,
        "policy": policy,
        "protocol": protocol(config),
        "budget": {"env_steps": replay.count, "env_frames": replay.count * repeats, "updates": int(state["updates"])},
        "measurements": measurements,
        "curves": curves,
        "parameters": agent.parameter_counts(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m diamond.evaluate", description=__doc__ or "")
    info, config = runs.run_under_test("diamond", Config, config, options, TEST_SETTINGS)
    folder, device = info["folder"], runs.usable_device(config.device)
    runs.seed_everything(config.seed, config.device)
    game = new_game(config)
    agent, state = load_agent(info, config, game.actions, device)
    if isinstance(game, Recordings):
        videos = rollouts.recorded(game, config)
    else:
        videos = rollouts.held_out(game, agent.actor_critic, config, device)
    record = record_of_run(info, agent, state, videos, game, config)
    draw_curves(record, folder / "curves.png", from_zero=True)
    pictures.draw_steps(agent, videos, config, folder / "steps.png")
    pictures.film(agent, videos, config, folder)
    close(record, folder)


if __name__ == "__main__":
    program(main)
