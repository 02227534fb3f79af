"""V and M of another run, for a controller of its own: how a sweep over C's settings shares one world model.

What is taken over becomes part of the new run as if it had been trained there: checkpoints, first frames, log, clock.
M is taken over if its settings are the same; else it is trained here, on the latents of that run, which come along.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from common import checkpoint
from common.config import user_error
from common.files import read_checked, write_checked
from common.run import Run, read_metrics, run_config
from ha2018 import data, encoding
from ha2018.config import Config

# What frames, V and first frames depend on, and what M does. The seed may differ: then it is that of C alone.
VISION_SETTINGS = [
    *("task", "longest_hold", "vary_hold", "episodes", "holdout_episodes", "min_frames"),
    *("z_size", "kl_tolerance", "vision_epochs", "vision_updates", "vision_batch", "vision_lr", "precision"),
    "first_frames",
]
MEMORY_SETTINGS = [
    *("hidden_size", "mixtures", "memory_epochs", "memory_updates", "memory_batch", "memory_length"),
    *("memory_lr", "memory_lr_end", "memory_lr_decay", "gradient_clip", "restart_weight"),
]
ROLES = ("train", "holdout")


def check(source: Path, config: Config) -> None:
    """One line and exit code 2 unless `source` is a run whose V is finished and was made with these settings."""
    info = Run.load("ha2018", source)
    settings = VISION_SETTINGS + ["max_steps"] * (config.task == "car")  # there it is the length of the data
    theirs = run_config(Config, info)
    changed = _differences(settings, theirs, config)
    if changed:
        user_error(f"--model-from {source}: V was made with other settings: {', '.join(changed)}")
    if not encoding.is_encoded(source):
        user_error(f"--model-from {source}: its V is not finished; the same train command goes on there")
    identity = info["meta"]["identity"]
    _, frames = encoding.load_first_frames(source, identity, torch.device("cpu"))
    checkpoint.load_final(source / "vision", data.vision_updates(theirs, frames), identity=identity)
    if takes_memory(theirs, config):
        checkpoint.load_final(source / "memory", encoding.memory_updates(theirs, frames), identity=identity)
    elif config.memory_updates != 0:
        for role, episodes in zip(ROLES, (config.episodes, config.holdout_episodes), strict=True):
            if not encoding.has_latents(source, role, episodes):
                user_error(f"--model-from {source}: M is to be trained anew, but the latents are not there")


def adopt(run: Run, source: Path, config: Config) -> None:
    """Make V, and M if its settings are the same, those of `source`. Killed at any moment, it is done again whole."""
    info = Run.load("ha2018", source)
    theirs = info["meta"]["identity"]
    first_frames = read_checked(source / encoding.FIRST_FRAMES, encoding.first_frames_identity(theirs))
    if encoding.is_encoded(run.folder):
        ours = read_checked(run.folder / encoding.FIRST_FRAMES, encoding.first_frames_identity(run.identity))
        if ours != first_frames:
            user_error(f"{run.folder} has a world model of its own; choose another folder with --run")
        return
    if (run.folder / "frames").exists():
        user_error(f"{run.folder} has frames of its own; choose another folder with --run")
    is_memory_taken = takes_memory(run_config(Config, info), config)
    stages = ["vision", "memory"] if is_memory_taken else ["vision"]
    for stage in stages:
        checkpoint.copy(source / stage, run.folder / stage, run.identity)
    if not is_memory_taken and config.memory_updates != 0:
        _copy_latents(run, source, theirs, config)
    run.replace_log(line for line in read_metrics(source) if line["stage"].split()[0] in stages)
    for name in ("collect", "encode", *stages):
        run.add_seconds(info["stage_seconds"].get(name, 0.0) - run.stage_seconds.get(name, 0.0), name)
    # The last of all: it says that V is finished.
    write_checked(run.folder / encoding.FIRST_FRAMES, first_frames, encoding.first_frames_identity(run.identity))


def _copy_latents(run: Run, source: Path, theirs: str, config: Config) -> None:
    (run.folder / "latents").mkdir(exist_ok=True)
    for role, episodes in zip(ROLES, (config.episodes, config.holdout_episodes), strict=True):
        for number in range(encoding.latents_files(episodes)):
            content = read_checked(
                encoding.latents_path(source, role, number), encoding.latents_identity(theirs, role, number)
            )
            path = encoding.latents_path(run.folder, role, number)
            write_checked(path, content, encoding.latents_identity(run.identity, role, number))


def takes_memory(theirs: Config, config: Config) -> bool:
    """Whether M of a run with the config `theirs` is what these settings would train."""
    return not _differences(MEMORY_SETTINGS, theirs, config)


def _differences(names: Iterable[str], theirs: Config, config: Config) -> list[str]:
    pairs = {name: (getattr(theirs, name), getattr(config, name)) for name in names}
    return [f"{name} (was {old}, now {new})" for name, (old, new) in pairs.items() if old != new]
