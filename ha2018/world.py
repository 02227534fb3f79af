"""V and M of another run, for a controller of its own: how a sweep over C's settings shares one world.

What is taken over becomes part of the new run as if it had been trained there: checkpoints, latents, log and clock are
copied, the frames are linked. M is taken over if its settings are the same; else it is trained here on those latents.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import checkpoint
from common.config import to_dict, user_error
from common.files import atomic_write
from common.run import Run
from ha2018.config import Config

# Settings that frames and V, and those that M, depend on. The seed may differ: then it is that of C alone.
VISION_SETTINGS = [
    *("task", "longest_hold", "vary_hold", "episodes", "holdout_episodes", "min_frames"),
    *("z_size", "kl_tolerance", "vision_epochs", "vision_updates", "vision_batch", "vision_lr", "precision"),
]
MEMORY_SETTINGS = [
    *("hidden_size", "mixtures", "memory_epochs", "memory_updates", "memory_batch", "memory_length"),
    *("memory_lr", "memory_lr_end", "memory_lr_decay", "gradient_clip", "restart_weight"),
]
LATENTS = ("latents.safetensors", "latents_holdout.safetensors")


def check(source: Path, config: Config) -> None:
    """One line and exit code 2 unless `source` is a run whose V is finished and was made with these settings."""
    info = Run.load("ha2018", source)
    settings = VISION_SETTINGS + ["max_steps"] * (config.task == "car")  # there it is the length of the data
    changed = _differences(settings, info["config"], config)
    if changed:
        user_error(f"--world-from {source}: V was made with other settings: {', '.join(changed)}")
    if not all((source / name).exists() for name in ("frames", *LATENTS)):
        user_error(f"--world-from {source}: its V and latents are not finished; the same train command goes on there")
    if _takes_memory(info["config"], config) and not _memory_is_finished(source, config):
        user_error(f"--world-from {source}: its M is not finished; the same train command goes on there")


def adopt(run: Run, source: Path, config: Config) -> None:
    """Make V, and M if its settings are the same, those of `source`. Killed at any moment, it is done again whole."""
    frames = run.folder / "frames"
    if frames.exists():
        if frames.resolve() != (source / "frames").resolve():
            user_error(f"{run.folder} has frames of its own; choose another folder with --run")
        return
    info = Run.load("ha2018", source)
    stages = ["vision", "memory"] if _takes_memory(info["config"], config) else ["vision"]
    for stage in stages:
        shutil.rmtree(run.folder / stage, ignore_errors=True)
        shutil.copytree(source / stage, run.folder / stage)
    for name in LATENTS:
        atomic_write(run.folder / name, (source / name).read_bytes())
    lines = (source / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if any(line.startswith(f'{{"stage": "{stage}'.encode()) for stage in stages)]
    atomic_write(run.metrics_path, b"".join(kept))
    for name in ("collect", "encode", *stages):
        run.add_seconds(info["stage_seconds"].get(name, 0.0) - run.stage_seconds.get(name, 0.0), name)
    frames.symlink_to(os.path.relpath((source / "frames").resolve(), run.folder.resolve()), target_is_directory=True)


def _takes_memory(theirs: dict[str, Any], config: Config) -> bool:
    return not _differences(MEMORY_SETTINGS, theirs, config)


def _memory_is_finished(source: Path, config: Config) -> bool:
    """The held-out losses of M are logged at its last checkpoint; an M that is not trained has none."""
    if config.memory_updates == 0:
        return checkpoint.load_latest(source / "memory") is not None
    return b'{"stage": "memory holdout"' in (source / "metrics.jsonl").read_bytes()


def _differences(names: Iterable[str], theirs: dict[str, Any], config: Config) -> list[str]:
    ours = to_dict(config)
    return [f"{name} (was {theirs.get(name)}, now {ours[name]})" for name in names if theirs.get(name) != ours[name]]
