"""Plan to goals: success on the published test episodes, beside a random policy, with an audit of every episode.

    python -m vjepa.ac.evaluate --preset cpu --seed 0          the run of that preset and seed
    python -m vjepa.ac.evaluate --run FOLDER --planner cem     another planner for the same networks

Writes record.json, traces.npz (the states of every episode), curves.png and pictures into the run folder.
Source: EB-JEPA (arXiv 2602.03604); DINO-WM, section 4; V-JEPA 2, section 3.2.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import run as runs
from common.config import parse, to_dict, user_error
from common.curves import draw_curves
from common.files import atomic_write
from common.program import program
from common.provenance import git_revision
from common.record import close, curve, of_run, sample
from vjepa.ac import audit, pictures
from vjepa.ac.build import PRETRAINING, STAGES, Model, imagination_of, load_models
from vjepa.ac.config import PRESETS, TASKS, Config
from vjepa.ac.play import judged_every, play_all
from vjepa.ac.worlds.catalogue import new_world
from vjepa.ac.worlds.world import Episodes, World, new_episodes, seeds_of_test

TEST_SETTINGS = (
    *("device", "planner", "samples", "iterations", "elites", "horizon", "execute", "std", "most", "has_mean"),
    *("objective", "episodes", "budget", "judged"),
)
RANDOM_EPISODES = 100  # of the floor, whose own noise would else be as large as what it is compared with
TRACES = "traces.npz"


def protocol(config: Config) -> str:
    """The name of the test: world, budget in its steps, and when the goal counts."""
    return f"{config.task}-{config.budget}-{config.judged}"


def claim(config: Config) -> str:
    """The word that tells apart the records of one task: family, ablations, planner, and whether it was trained."""
    word = "plan-success" if config.model == "recipe" else "plan-success-ac"
    for name in ("variance", "covariance", "similarity", "inverse_dynamics"):
        if config.model == "recipe" and getattr(config, name) == 0:
            word += f"-no-{name.replace('_', '-')}"
    if config.model == "vjepa2-ac":
        word += "" if config.init_from or config.encoder_updates else "-untrained-encoder"
        word += "" if config.rollout_steps > 1 else "-no-rollout-loss"
    known = TASKS[config.task]
    planner, objective = known.get("planner", "mppi"), known.get("objective", "sum")
    word += "" if config.planner == planner else f"-{config.planner}"
    word += "" if config.objective == objective else f"-{config.objective}"
    return word + ("" if config.updates else "-untrained")


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tested:
    """The part of a record that the episodes give, the episodes, and their traces [checkpoints, E, T + 1, S]."""

    record: dict[str, Any]
    episodes: Episodes
    traces: Tensor


def to_device(episodes: Episodes, device: torch.device) -> Episodes:
    """The same on a device."""
    start, goal, layout = (part.to(device) for part in (episodes.start, episodes.goal, episodes.layout))
    return Episodes(start, goal, layout, episodes.seeds)


def test(models: Sequence[tuple[int, Model]], world: World, config: Config, device: torch.device, kept: Path) -> Tested:
    """All episodes with each of the networks, and the random policy on as many and more.

    kept: a folder where finished episodes of these networks wait for an interrupted test to go on.
    """
    name, every = protocol(config), judged_every(config)
    episodes = new_episodes(world, seeds_of_test(config.episodes))
    here, traces, seconds = to_device(episodes, device), [], 0.0
    for updates, model in models:
        imagination = imagination_of(model, world, config)
        trace, spent = play_all(imagination, world, here, config, f"test after {updates}", kept / str(updates))
        traces.append(trace)
        seconds += spent
    found = [audit.judge(world, episodes, trace, judged_every=every) for trace in traces]
    floor_episodes = new_episodes(world, seeds_of_test(max(config.episodes, RANDOM_EPISODES)))
    floor_trace = audit.play_random(world, floor_episodes, config.budget)
    floor = audit.judge(world, floor_episodes, floor_trace, judged_every=every)

    def share(parts: Sequence[Tensor]) -> dict[str, Any]:
        return sample(100 * torch.cat([part.float() for part in parts]).numpy(), name)

    def mean(parts: Sequence[Tensor]) -> dict[str, Any]:
        return sample(torch.cat([part.float() for part in parts]).numpy(), f"{name}-part")

    record = {
        **share([one.is_reached for one in found]),
        "metric": "success",
        "unit": "%",
        "controls": {"random policy": share([floor.is_reached])},
        "measurements": {
            "strict success": share([one.is_strict for one in found]),
            "strict success of the random policy": share([floor.is_strict]),
            "solved at the start": share([floor.is_solved]),
            "steps through a wall": mean([one.crossings for one in found]),
            "distance when judged": mean([one.distance for one in found]),
            "distance of the random policy": mean([floor.distance]),
            "steps of the world": mean([one.steps for one in found]),
            "seconds an episode": sample([seconds / (len(models) * config.episodes)], f"{name}-part"),
        },
    }
    return Tested(record, episodes, torch.stack(traces))


def record_of_run(
    info: dict[str, Any], config: Config, models: Sequence[tuple[int, Model]], tested: Tested
) -> dict[str, Any]:
    """The test of a finished run as record.json."""
    lines = [line for line in runs.read_metrics(info["folder"]) if line["stage"] == STAGES[config.model]]
    names = {
        "recipe": {
            "prediction": ("prediction", "mean squared error"),
            "variance term": ("variance", "mean of what is missing to 1"),
            "guessed actions": ("inverse_dynamics", "mean squared error"),
            "place read from a picture": ("probe", "squared error / variance"),
        },
        "vjepa2-ac": {
            "teacher forcing": ("loss_teacher_forcing", "mean absolute error"),
            "rollout": ("loss_rollout", "mean absolute error"),
        },
    }[config.model]
    curves = {title: curve(lines, key, "update", unit) for title, (key, unit) in names.items()}
    if config.encoder_updates:
        first = [line for line in runs.read_metrics(info["folder"]) if line["stage"] == PRETRAINING]
        curves["encoder: spread of features"] = curve(first, "spread", "update", "std over tokens")
    model, steps = models[0][1], config.batch_size * config.updates
    walked = config.trajectories or steps
    # The probe is a watch: neither predictions nor plans ask it.
    counted = {name: part for name, part in model.named_children() if name != "probe"}
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in counted.items()}
    checkpoints = ", ".join(str(updates) for updates, _ in models)
    return of_run(info) | tested.record | {
        "claim": claim(config),
        "protocol": protocol(config),
        "policy": (
            f"{config.planner}, {config.samples} samples, {config.iterations} iterations, horizon {config.horizon}, "
            f"{config.execute} executed, after {checkpoints} updates"
        ),
        "budget": {
            "env_frames": walked * config.trajectory_steps,
            "updates": config.updates,
            "windows": steps,
            "encoder_updates": config.encoder_updates,
            "rollouts": config.samples * config.iterations,
        },
        "curves": {title: points for title, points in curves.items() if points["x"]},
        "parameters": parts,
    }  # fmt: skip


def keep_traces(folder: Path, tested: Tested) -> None:
    """The states of every episode, with goals and layouts, as traces.npz."""
    parts = (tested.traces, tested.episodes.goal, tested.episodes.layout)
    states, goals, layouts = (part.numpy() for part in parts)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, states=states, goals=goals, layouts=layouts, seeds=np.array(tested.episodes.seeds))
    atomic_write(folder / TRACES, buffer.getvalue())


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m vjepa.ac.evaluate", description=__doc__ or "")
    try:
        info, config = runs.run_under_test("vjepa", Config, config, options, TEST_SETTINGS)
        device = runs.usable_device(config.device)
        runs.seed_everything(config.seed, config.device)
        world = new_world(config.task)
        models = load_models(info, config, world, device)
        start = time.monotonic()
        # Of another planner or code, finished episodes are no part of this test.
        words = json.dumps([to_dict(config), git_revision()])
        kept = info["folder"] / f"test-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
        tested = test(models, world, config, device, kept)
        info["stage_seconds"]["test"] = time.monotonic() - start
        info["wall_seconds"] += info["stage_seconds"]["test"]
        record = record_of_run(info, config, models, tested)
        keep_traces(info["folder"], tested)
        draw_curves(record, info["folder"] / "curves.png")
        here = to_device(tested.episodes, device)
        pictures.show(models[0][1], world, here, tested.traces[0].to(device), config, info["folder"])
    except ValueError as error:
        user_error(str(error))
    close(record, info["folder"])
    shutil.rmtree(kept)


if __name__ == "__main__":
    program(main)
