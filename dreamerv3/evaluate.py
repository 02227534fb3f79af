"""The last training episodes, and fresh ones beside uniform random play; the training curve; films of the imagination.

    python -m dreamerv3.evaluate --preset cpu --seed 0            the run of that preset and seed
    python -m dreamerv3.evaluate --run FOLDER --unfinished        as far as it has come, also while it trains

Writes record.json, curves.png, latents.png and video.webm into the run folder.
The published numbers are returns of the last training episodes: the record holds ours as a measurement under that
protocol, and its value is the return of fresh episodes.
Source: paper, Methods ("Benchmarks"); reference code: the policy always samples, there is no greedy mode.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from common import run as runs
from common.config import parse, user_error
from common.curves import draw_curves
from common.program import program
from common.record import close, curve, of_run, sample
from common.seeding import derive_seed
from dreamerv3 import pictures
from dreamerv3.agent import STAGE, Agent, load_agent, seen
from dreamerv3.config import PRESETS, TASKS, Config
from dreamerv3.env import Worlds, make_world
from dreamerv3.interface import WorldError

Array = np.ndarray[Any, Any]
Act = Callable[[dict[str, Array], int], Array]

TEST_SETTINGS = ("device", "test_episodes")
# Environment frames per point of the published curves.
BINS = {"dmc_proprio": 10_000, "dmc_vision": 20_000, "atari100k": 10_000, "atari57": 4_000_000}


def play(worlds: Worlds, act: Act) -> list[float]:
    """The return of one episode in each world: act(rows, step) -> actions [W] or [W, A]."""
    count = len(worlds.worlds)
    returns: dict[int, float] = {}
    shape = (count,) if worlds.actions.is_discrete else (count, worlds.actions.size)
    actions, number = np.zeros(shape, np.int64 if worlds.actions.is_discrete else np.float32), 0
    with runs.progress_bar(count, "test", unit="episode") as bar:
        while len(returns) < count:
            rows = worlds.step(actions)
            for episode in worlds.finished:
                if episode.env not in returns:
                    returns[episode.env] = episode.total
                    bar.update()
            actions = act(rows, number)
            number += 1
    return [returns[k] for k in range(count)]


def agent_policy(agent: Agent, count: int, seed: int) -> Act:
    """The agent's own policy on `count` worlds, sampled from streams by (seed, step)."""
    state, action = agent.world.rssm.initial_state(count), torch.zeros(0)

    def act(rows: dict[str, Array], number: int) -> Array:
        nonlocal state, action
        device = state.h.device
        generator = torch.Generator().manual_seed(derive_seed(seed, "test act", number))
        uniform, noise = agent.draw_act_noise(count, generator)
        if number == 0:
            shape = (count,) if agent.actions.is_discrete else (count, agent.actions.size)
            action = torch.zeros(shape, dtype=torch.int64 if agent.actions.is_discrete else torch.float32)
        obs, is_first = seen(rows, device)
        state, action = agent.act(state, action.to(device), obs, is_first, uniform.to(device), noise.to(device))
        return action.cpu().numpy()

    return act


def random_policy(worlds: Worlds, seed: int) -> Act:
    """Uniform over the actions, or over [-1, 1] in every dimension, from streams by (seed, step)."""

    def act(rows: dict[str, Array], number: int) -> Array:
        rng = np.random.default_rng(derive_seed(seed, "test random", number))
        count, actions = len(rows["reward"]), worlds.actions
        if actions.is_discrete:
            return rng.integers(actions.size, size=count)
        return rng.uniform(-1, 1, (count, actions.size)).astype(np.float32)

    return act


def protocol(config: Config) -> str:
    """The name of the test of fresh episodes; the world's own, all of their length."""
    return f"{config.benchmark}-episodes"


def training_protocol(config: Config) -> str:
    """The name of the published test: the training episodes that end in the last bin of the curve."""
    return f"{config.benchmark}-training"


def claim(config: Config, preset: str) -> str:
    """The word that tells apart the records of one task: what of budget and robustness is not the preset's.

    The learning rate by size is named in every preset: runs of `night` without it are the control.
    """
    found = PRESETS[preset]
    usual = {**found.values, **found.by_task.get(config.task, {})}
    parts = {
        f"frames{config.plan.env_frames}": config.env_frames != usual.get("env_frames"),
        f"free{config.free_nats:g}": config.free_nats != Config.free_nats,
        "no-symlog": not config.use_symlog,
        "lr-by-size": config.lr_by_size,
        "no-two-hot": not config.use_two_hot,
        f"ratio{config.plan.train_ratio:g}": config.train_ratio not in (0, usual.get("train_ratio")),
        "untrained": config.plan.train_ratio == 0,
    }
    return "-".join(["learns", *(word for word, is_changed in parts.items() if is_changed)])


def record_of_run(info: dict[str, Any], agent: Agent, config: Config, steps: int, updates: int) -> dict[str, Any]:
    """The test of a run with its control, as record.json; what came after its `steps` agent steps has no part in it."""
    start, plan = time.monotonic(), config.plan
    # Deviation D9: fresh episodes too; the published numbers are those of training episodes, see `measurements`.
    indices = range(config.test_episodes)
    with Worlds(lambda: make_world(config), indices, config.seed, "test") as worlds:
        returns = play(worlds, agent_policy(agent, config.test_episodes, config.seed))
    with Worlds(lambda: make_world(config), indices, config.seed, "test random") as worlds:
        random = play(worlds, random_policy(worlds, config.seed))
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    metrics = [line for line in runs.read_metrics(info["folder"]) if line["step"] <= steps]
    name = protocol(config)
    returned, last = training_curve(metrics, BINS.get(config.benchmark, 10_000))
    curves = {"training return": returned}
    lines = [line for line in metrics if line["stage"] == STAGE]
    for key, unit in (("loss_dyn", "nats"), ("loss_reward", "nats"), ("return_scale", "return"), ("entropy", "nats")):
        curves[key.removeprefix("loss_").replace("_", " ")] = curve(lines, key, "update", unit, x="updates")
    curves = {label: points for label, points in curves.items() if points["x"]}
    measurements = {"last training episodes": sample(last, training_protocol(config))} if last else {}
    if config.benchmark == "crafter" and last:
        measurements["crafter score"] = sample([crafter_score(metrics)], "crafter-score")
    return of_run(info) | {
        "claim": claim(config, info["meta"]["preset"]),
        **sample(returns, name),
        "metric": "return",
        "unit": "return",
        "policy": f"sampled, after {updates} updates; edition {config.edition}",
        "budget": {"env_frames": steps * plan.envs * plan.action_repeat, "updates": updates},
        "controls": {
            "uniform random": sample(random, name),
            "twice uniform random": sample([2 * value for value in random], name),
        },
        "measurements": measurements,
        "curves": curves,
        "parameters": agent.parameter_counts(),
        "finished": steps == plan.steps,
    }


def crafter_score(metrics: Sequence[dict[str, Any]]) -> float:
    """exp(mean_i ln(1 + s_i)) - 1 over the success rates s_i of the achievements in percent, all training episodes.

    Source: Hafner 2021 (Crafter), which defines the score.
    """
    episodes = [line for line in metrics if line["stage"] == f"{STAGE} episode"]
    names = [name for name in episodes[0] if name.startswith("achievement ")]
    rates = [100 * float(np.mean([line[name] for line in episodes])) for name in names]
    return math.exp(float(np.mean(np.log1p(rates)))) - 1


def training_curve(metrics: Sequence[dict[str, Any]], width: int) -> tuple[dict[str, Any], list[float]]:
    """Mean return of the training episodes that end in each bin of `width` frames, as the published curves have it.

    x is the upper edge of the bin; bins without an end are left out. Also the returns in the last bin.
    """
    bins: dict[int, list[float]] = {}
    for line in metrics:
        if line["stage"] == f"{STAGE} episode":
            bins.setdefault(-(-int(line["env_frames"]) // width) * width, []).append(line["total"])
    edges = sorted(bins)
    values = [float(np.mean(bins[edge])) for edge in edges]
    returned = {"x": edges, "y": values, "x_unit": "environment frame", "y_unit": "return"}
    return returned, bins[edges[-1]] if edges else []


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m dreamerv3.evaluate", description=__doc__ or "", extra=_add_options
    )
    info, config = runs.run_under_test("dreamerv3", Config, config, options, TEST_SETTINGS)
    folder = info["folder"]
    device = runs.usable_device(config.device)
    runs.seed_everything(config.seed, config.device)
    try:
        with Worlds(lambda: make_world(config), [0], config.seed, "film") as worlds:
            agent, steps, updates = load_agent(info, config, worlds, device, is_final=not options.unfinished)
            record = record_of_run(info, agent, config, steps, updates)
            draw_curves(record, folder / "curves.png")
            pictures.film(agent, worlds, agent_policy(agent, 1, config.seed), config, folder)
    except WorldError as error:
        user_error(str(error))
    close(record, folder)
    if not record["finished"]:
        print(f"unfinished: {steps} of {config.plan.steps} steps")


def _add_options(parser: argparse.ArgumentParser) -> None:
    words = "test the newest checkpoint of a run that has not ended; its record says so"
    parser.add_argument("--unfinished", action="store_true", help=words)


if __name__ == "__main__":
    program(main)
