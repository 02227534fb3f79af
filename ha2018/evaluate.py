"""The paper's test: the controller plays fresh episodes of the real game; Doom's has only dreamt of it before.

    python -m ha2018.evaluate --preset cpu --seed 0            the run of that preset and seed
    python -m ha2018.evaluate --random uniform                 a random policy, without any run

Writes record.json, curves.png and video.webm into the run folder.
Source: paper, tables 1 and 2; reference code: model.py of each task.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from common import run as runs
from common.config import parse, user_error
from common.curves import draw_curves
from common.program import program
from common.record import close, curve, of_run, sample, without_run
from common.seeding import derive_seed
from ha2018 import pictures, screen
from ha2018.agent import Agent, WorldModel, load_agent, load_world_model
from ha2018.config import CAPS, PRESETS, TASKS, Config
from ha2018.dream import rollout_returns
from ha2018.processes import Games
from ha2018.random_play import RANDOM_POLICIES, random_return
from ha2018.rollout import open_games, real_returns

TEST_SETTINGS = ("device", "test_episodes", "test_games", "workers")
SWEEP_EPISODES = 16  # of each sweep, to choose the best
PUBLISHED_STEPS = 64 * 16 * 1000  # of the environment per published generation of CarRacing


def play(agent: Agent, seeds: Sequence[int], games: Games) -> list[float]:
    """Returns of the agent in the real game, one episode a seed."""
    returns, _ = real_returns(agent, seeds, games, title="real game")
    return returns.tolist()


def random_returns(policy: str, seeds: Sequence[int], games: Games, task: str) -> list[float]:
    """Returns of a random policy in the real game, one episode a seed."""
    return list(games.each([partial(random_return, task=task, policy=policy, seed=seed) for seed in seeds]))


def fresh_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds of episodes that nothing was trained on."""
    return [derive_seed(seed, "test", k) % 2**31 for k in range(episodes)]


def without_looking(agent: Agent, config: Config, seeds: Sequence[int], period: int) -> dict[str, np.ndarray]:
    """The actions [E, T] of what needs no eyes in Take Cover: fixed policies, the best sweep, C with its eyes shut."""
    policies = {
        **screen.STEADY_POLICIES,
        "uniform random": screen.FIXED_POLICIES["uniform"],
        "best blind sweep": screen.SWEEP_POLICIES[period],
    }
    actions = {name: screen.table(policy, seeds, config.max_steps) for name, policy in policies.items()}
    return actions | {"C blind": screen.blind_actions(agent, seeds, config.max_steps)}


def dream_test(model: WorldModel, agent: Agent, config: Config) -> list[float]:
    """Returns of the agent over as many fresh episodes of the dream as the test in the game has."""
    seeds = fresh_seeds(config.seed, config.test_episodes)
    params = agent.params.expand(len(seeds), -1)
    dream = model.memory, model.first_frames, params, seeds, 1, config.temperature, config.max_steps, model.dtype
    return rollout_returns(*dream)[:, 0].tolist()


def protocol(config: Config) -> str:
    """The name of the test; the published ones are doom-100, at most 2100 tics, and carracing-100, at most 1000."""
    shorter = "" if config.max_steps == CAPS[config.task] else f"-cap{config.max_steps}"
    return f"{protocol_name(config)}-{config.test_episodes}{shorter}"


def claim(config: Config) -> str:
    """The word that tells apart the records of one task: what C sees and dreams, and whether M was trained."""
    if config.task == "doom":
        word = "dream-transfer" + ("" if config.temperature == 1.15 else f"-tau{config.temperature:.2f}")
    else:
        hidden = f"-hidden{config.controller_hidden}" if config.controller_hidden else ""
        word = f"real-{config.controller_inputs}{hidden}"
    return word + ("-untrained" if config.memory_updates == 0 else "")


def protocol_name(config: Config) -> str:
    """The word that protocols of this task begin with."""
    return "doom" if config.task == "doom" else "carracing"


def unit(config: Config) -> str:
    """What a return counts."""
    return "tics survived" if config.task == "doom" else "return"


def random_policies(task: str) -> list[str]:
    """The names of the random policies of a task."""
    return [*RANDOM_POLICIES[task]]


def record_of_run(info: dict[str, Any], model: WorldModel, agent: Agent, config: Config) -> dict[str, Any]:
    """The test of a finished run with its controls, as record.json."""
    seeds = fresh_seeds(config.seed, config.test_episodes)
    start = time.monotonic()
    with open_games(config, min(config.test_games, len(seeds))) as games:
        returns = play(agent, seeds, games)
        controls = {
            f"{name} random": sample(random_returns(name, seeds, games, config.task), protocol(config))
            for name in random_policies(config.task)
            if name != "none"
        }
        dream = {}
        if config.task == "doom":
            period = screen.best_sweep(config, games, min(SWEEP_EPISODES, len(seeds)))
            actions = without_looking(agent, config, seeds, period)
            for name, own in actions.items():
                if name not in controls:
                    controls[name] = sample(screen.game_returns(own, seeds, games), protocol(config))
            found = {"return": dream_test(model, agent, config)}
            found |= screen.dream_returns(actions, seeds, model, config.temperature)
            dream = {f"dream {name}": sample(values, "doom-dream") for name, values in found.items()}
            dream["period of the best blind sweep"] = sample([period], "doom-screen")
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    metrics = runs.read_metrics(info["folder"])
    last = {line["stage"]: line for line in metrics}
    holdout = {
        f"{stage} {name}": sample([line[name]], f"{protocol_name(config)}-holdout")
        for stage, line in last.items()
        if stage.endswith("holdout")
        for name in line.keys() - {"stage", "step", "wall"}
    }
    memory_updates = last["memory"]["step"] if "memory" in last else 0
    budget = {
        "env_frames": model.frames + sum(line.get("env_frames", 0) for line in metrics),
        "updates": last["vision"]["step"] + memory_updates,
        "vision_updates": last["vision"]["step"],
        "memory_updates": memory_updates,
        "generations": last["controller"]["step"],
        "rollouts": last["controller"]["step"] * config.population * config.rollouts,
        "episodes_collected": config.episodes,
    }
    return of_run(info) | {
        "claim": claim(config),
        **sample(returns, protocol(config)),
        "metric": "return",
        "unit": unit(config),
        "policy": f"CMA mean of the best {'dream' if config.task == 'doom' else 'real'} trial, z sampled",
        "budget": budget,
        "controls": controls,
        "measurements": {**dream, **dict(sorted(holdout.items()))},
        "curves": _curves(metrics, config),
        "parameters": agent.parameters(),
    }


def _curves(metrics: Sequence[dict[str, Any]], config: Config) -> dict[str, Any]:
    """What was learnt, against updates and generations."""
    where, short = ("dream", "tics") if config.task == "doom" else ("real", "return")
    curves = {
        f"{where} population mean": _curve(metrics, "controller", "pop_mean", "generation", short),
        f"{where} trial": _curve(metrics, "controller trial", f"{where}_return", "generation", short),
        "V reconstruction": _curve(metrics, "vision", "reconstruction", "update", "squared error per image"),
    }
    if config.task == "car":
        curves |= {"population mean at equal steps": population_at_equal_steps(metrics)}
    if config.memory_updates != 0:
        curves |= {"M z nll": _curve(metrics, "memory", "z_nll", "update", "nats per latent dimension")}
    if config.memory_updates != 0 and config.task == "doom":
        curves |= {"M restart loss": _curve(metrics, "memory", "restart", "update", "nats")}
    return {name: curve for name, curve in curves.items() if curve["x"]}


def population_at_equal_steps(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The population mean of each generation, at what it and those before had spent.

    x counts in published generations of PUBLISHED_STEPS environment steps, so that both runs share an axis.
    """
    curve = _curve(metrics, "controller", "pop_mean", "generation", "return")
    spent = np.cumsum([line["env_frames"] for line in metrics if line["stage"] == "controller"])
    return curve | {"x": [round(float(spent[step - 1]) / PUBLISHED_STEPS, 4) for step in curve["x"]]}


def record_of_random(policy: str, config: Config) -> dict[str, Any]:
    """A random policy in the real game, as record.json: the calibration of the game against the published numbers."""
    start = time.monotonic()
    seeds = fresh_seeds(config.seed, config.test_episodes)
    with open_games(config, min(config.test_games, len(seeds))) as games:
        returns = random_returns(policy, seeds, games, config.task)
    kept = [value for value in returns if value > config.min_frames]
    return without_run("ha2018", "calibration", config, start) | {
        "claim": f"random-{policy}",
        **sample(returns, protocol(config)),
        "metric": "return",
        "unit": unit(config),
        "policy": f"{policy} random",
        "measurements": {"kept length": sample(kept, "doom-collect")} if kept and config.task == "doom" else {},
    }


def _curve(metrics: Sequence[dict[str, Any]], stage: str, name: str, x_unit: str, y_unit: str) -> dict[str, Any]:
    """One metric of one stage."""
    return curve((line for line in metrics if line["stage"] == stage), name, x_unit, y_unit)


def _options(parser: argparse.ArgumentParser) -> None:
    names = sorted({name for policies in RANDOM_POLICIES.values() for name in policies})
    parser.add_argument("--random", choices=names, help="test this random policy instead of a run")


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
        if options.random not in random_policies(config.task):
            allowed = ", ".join(random_policies(config.task))
            user_error(f"--random {options.random}: task {config.task} has {allowed}")
        options.preset = f"random-{options.random}"
        folder = runs.run_folder("ha2018", config, options)
        if (folder / "config.json").exists():
            user_error(f"{folder} holds a training run; choose another folder for a random policy with --run")
        runs.usable_device(config.device)  # the record names it
        try:  # before minutes are spent on the test
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            user_error(f"{folder} cannot be a folder for the record: {error.strerror}")
        record = record_of_random(options.random, config)
    else:
        info, config = runs.run_under_test("ha2018", Config, config, options, TEST_SETTINGS)
        folder = info["folder"]
        model = load_world_model(folder, config, runs.usable_device(config.device))
        agent = load_agent(folder, model, config)
        runs.seed_everything(config.seed, config.device)
        record = record_of_run(info, model, agent, config)
        draw_curves(record, folder / "curves.png")
        pictures.film(model, agent, config, fresh_seeds(config.seed, 1)[0], folder / "video.webm")
    close(record, folder)


if __name__ == "__main__":
    program(main)
