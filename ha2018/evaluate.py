"""The paper's test: the controller that was evolved in the dream plays fresh episodes of the real game.

    python -m ha2018.evaluate --preset cpu --seed 0            the run of that preset and seed
    python -m ha2018.evaluate --random uniform                 a random policy, without any run

Writes record.json, curves.png and video.webm into the run folder.
Source: paper, section 4, table 2; reference code: model.py (doomrnn).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from common import run as runs
from common.config import from_dict, parse, to_dict, user_error
from common.seeding import derive_seed
from ha2018 import data, pictures
from ha2018.agent import Agent
from ha2018.config import PRESETS, TASKS, Config
from ha2018.controller import doom_action
from ha2018.dream import rollout_returns
from ha2018.env import RANDOM_POLICIES, Worlds, button, random_return
from ha2018.memory import State
from ha2018.vision import sample_z


@torch.no_grad()
def play(agent: Agent, seeds: Sequence[int], max_steps: int, games: int) -> list[float]:
    """Returns of the agent in the real game, one episode a seed, `games` of them side by side.

    C acts on [z_t, c, h] with the state from before z_t; M is advanced with [z_t, a_t, restart_t]; then the game moves.
    z is sampled, from a stream of its own for each seed.
    """
    returns = np.zeros(len(seeds))
    waiting = list(range(len(seeds)))[::-1]
    bar = runs.progress_bar(len(seeds), "real game", unit="episode")
    with Worlds(min(games, len(seeds)), max_steps) as worlds, bar:
        episode = [waiting.pop() for _ in worlds.games]  # what each game is playing
        obs = worlds.reset([(k, seeds[e]) for k, e in enumerate(episode)])
        noise = {e: torch.Generator().manual_seed(seeds[e]) for e in episode}
        active = list(range(len(worlds.games)))
        state, restart = agent.memory.initial_state(len(active)), torch.ones(len(active), device=agent.device)
        while active:
            mu, logvar = agent.vae.encode(data.to_images(np.stack(obs), agent.device))
            draws = [torch.randn(mu.shape[1], generator=noise[episode[k]]) for k in active]
            z = sample_z(mu, logvar, torch.stack(draws).to(agent.device))
            action = doom_action(agent.params, torch.cat([z, state.c, state.h], dim=1))
            state = agent.memory.step(z, action[:, None], restart, state)
            answers = worlds.step([(k, button(a)) for k, a in zip(active, action.tolist(), strict=True)])
            restart = torch.zeros_like(restart)
            obs, keep = [], []
            for row, (k, (frame, reward, done)) in enumerate(zip(active, answers, strict=True)):
                returns[episode[k]] += reward
                if done:
                    bar.update()
                    if not waiting:
                        continue
                    episode[k] = e = waiting.pop()
                    noise[e] = torch.Generator().manual_seed(seeds[e])
                    frame, restart[row] = worlds.reset([(k, seeds[e])])[0], 1
                    state.c[row], state.h[row] = 0, 0  # C acts before M has dropped them
                obs.append(frame)
                keep.append(row)
            if len(keep) < len(active):
                active = [active[row] for row in keep]
                state, restart = State(state.c[keep], state.h[keep]), restart[keep]
    return returns.tolist()


def random_returns(policy: str, seeds: Sequence[int], max_steps: int, games: int) -> list[float]:
    """Returns of a random policy in the real game, one episode a seed."""
    with Worlds(min(games, len(seeds)), max_steps) as worlds:
        return worlds.each([partial(random_return, policy=policy, seed=seed) for seed in seeds])


def fresh_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of episodes that nothing was trained on."""
    return [derive_seed(seed, "test", k) % 2**31 for k in range(episodes)]


def dream_test(agent: Agent, config: Config) -> list[float]:
    """Returns of the agent over as many fresh episodes of the dream as the test in the game has."""
    seeds = fresh_seeds(config.seed, config.test_episodes)
    params = agent.params.expand(len(seeds), -1)
    return rollout_returns(agent.memory, agent.bank, params, seeds, 1, config.temperature, config.max_steps)[
        :, 0
    ].tolist()


def protocol(config: Config) -> str:
    """The name of the test; the published one is doom-100, with at most 2100 tics."""
    return f"doom-{config.test_episodes}" + ("" if config.max_steps == 2100 else f"-cap{config.max_steps}")


def sample(values: Sequence[float], name: str) -> dict[str, Any]:
    """A control or measurement as it stands in a record."""
    return {
        "value": float(np.mean(values)),
        "values": list(values),
        "episodes": len(values),
        "protocol": name,
    }


def record_of_run(info: dict[str, Any], agent: Agent, config: Config) -> dict[str, Any]:
    """The test of a finished run with its controls, as record.json."""
    seeds = fresh_seeds(config.seed, config.test_episodes)
    start = time.monotonic()
    returns = play(agent, seeds, config.max_steps, config.test_games)
    controls = {
        f"{name} random": sample(random_returns(name, seeds, config.max_steps, config.test_games), protocol(config))
        for name in ("uniform", "held")
    }
    dream = sample(dream_test(agent, config), "doom-dream")
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    metrics = runs.read_metrics(info["folder"])
    last = {line["stage"]: line for line in metrics}
    holdout = {
        f"{stage} {name}": sample([line[name]], "doom-holdout")
        for stage, line in last.items()
        if stage.endswith("holdout")
        for name in line.keys() - {"stage", "step", "wall"}
    }
    budget = {
        "env_frames": agent.frames,
        "updates": last["vision"]["step"] + last["memory"]["step"],
        "vision_updates": last["vision"]["step"],
        "memory_updates": last["memory"]["step"],
        "generations": last["controller"]["step"],
        "rollouts": last["controller"]["step"] * config.population * config.rollouts,
        "episodes_collected": config.episodes,
    }
    return runs.record_template(info) | {
        "suite": info["meta"]["preset"],
        "claim": "dream-transfer",
        **sample(returns, protocol(config)),
        "metric": "return",
        "unit": "tics survived",
        "policy": "CMA mean of the best dream trial, z sampled",
        "budget": budget,
        "controls": controls,
        "measurements": {"dream return": dream, **dict(sorted(holdout.items()))},
        "curves": {
            "dream population mean": _curve(metrics, "controller", "pop_mean", "generation", "tics"),
            "dream trial": _curve(metrics, "controller trial", "dream_return", "generation", "tics"),
            "V reconstruction": _curve(metrics, "vision", "reconstruction", "update", "squared error per image"),
            "M z nll": _curve(metrics, "memory", "z_nll", "update", "nats per latent dimension"),
            "M restart loss": _curve(metrics, "memory", "restart", "update", "nats"),
        },
        "parameters": agent.parameters(),
        "finished": True,
    }


def record_of_random(policy: str, config: Config) -> dict[str, Any]:
    """A random policy in the real game, as record.json: the calibration of the world against the published numbers."""
    start = time.monotonic()
    seeds = fresh_seeds(config.seed, config.test_episodes)
    returns = random_returns(policy, seeds, config.max_steps, config.test_games)
    kept = [value for value in returns if value > config.min_frames]
    return {
        "schema": 1,
        "paper": "ha2018",
        "suite": "calibration",
        "claim": f"random-{policy}",
        "task": config.task,
        "preset": "calibration",
        "seed": config.seed,
        **sample(returns, protocol(config)),
        "metric": "return",
        "unit": "tics survived",
        "policy": f"{policy} random",
        "budget": {"env_frames": 0, "updates": 0},
        "controls": {},
        "measurements": {"kept length": sample(kept, "doom-collect")} if kept else {},
        "curves": {},
        "wall_seconds": round(time.monotonic() - start, 1),
        "stage_seconds": {},
        "device": runs.describe_device("cpu"),
        "parameters": {},
        "revision": runs.git_revision(),
        "packages": runs.package_versions(),
        "config": to_dict(config),
        "command": runs.command_line(),
        "finished": True,
    }


def _curve(metrics: Sequence[dict[str, Any]], stage: str, name: str, x_unit: str, y_unit: str) -> dict[str, Any]:
    """One metric of one stage, thinned to at most 200 points."""
    lines = [line for line in metrics if line["stage"] == stage]
    lines = lines[:: -(-len(lines) // 200)]
    return {
        "x": [x["step"] for x in lines],
        "y": [x[name] for x in lines],
        "x_unit": x_unit,
        "y_unit": y_unit,
    }


def _with_test_settings(config: Config, changed: Mapping[str, Any]) -> Config:
    """The config of a run with what the command line says of the test; what belongs to training is refused."""
    wrong = sorted(set(changed) - {"device", "test_episodes", "test_games"})
    if wrong:
        user_error(f"{', '.join(wrong)}: fixed by the run in --run; a test takes device, test_episodes, test_games")
    return replace(config, **changed)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", choices=sorted(RANDOM_POLICIES), help="test this random policy instead of a run")


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config,
        TASKS,
        PRESETS,
        argv,
        prog="python -m ha2018.evaluate",
        description=__doc__ or "",
        extra=_options,
    )
    if options.random:
        options.preset = f"random-{options.random}"
        folder = runs.run_folder("ha2018", config, options)
        if (folder / "config.json").exists():
            user_error(f"{folder} holds a training run; choose another folder for a random policy with --run")
        record = record_of_random(options.random, config)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = runs.run_folder("ha2018", config, options)
        info = runs.Run.load("ha2018", folder)
        config = from_dict(Config, info["config"])
        if options.run is not None:
            config = _with_test_settings(config, options.changed)
        agent = Agent(folder, config, runs.usable_device(config.device))
        runs.seed_everything(config.seed, config.device)
        record = record_of_run(info, agent, config)
        pictures.draw_curves(record, folder / "curves.png")
        pictures.film(agent, config, fresh_seeds(config.seed, 1)[0], folder / "video.webm")
    runs.write_record(folder / "record.json", record)
    print(f"{record['policy']}: {record['value']:.1f} {record['unit']} over {record['episodes']} episodes")
    for name, control in record["controls"].items():
        print(f"{name}: {control['value']:.1f}")
    print(f"record: {folder / 'record.json'}")


if __name__ == "__main__":
    main()
