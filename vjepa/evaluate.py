"""What the frozen target encoder knows: where things are and how they move, what is possible, or the labels of videos.

    python -m vjepa.evaluate --preset cpu --seed 0             the run of that preset and seed
    python -m vjepa.evaluate --run FOLDER --without-controls   a run alone
    python -m vjepa.evaluate --run FOLDER --export FILE        its weights as an official checkpoint, no test

Writes record.json, curves.png, pictures and a film into the run folder.
Source: V-JEPA, section 4 and appendix D; Garrido et al. 2025 (intuitive physics).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import run as runs
from common.config import parse, user_error
from common.program import program
from common.record import close, curve, of_run, sample
from common.seeding import derive_seed
from vjepa import data, detection, label_probe, official, physics, pictures, rollout, scenes
from vjepa.ac import evaluate as plan
from vjepa.ac.handover import is_ac
from vjepa.build import STAGE, load_model, new_model
from vjepa.config import PRESETS, TASKS, Config
from vjepa.data import GENERATED, Splits, State
from vjepa.digits import Digits
from vjepa.features import Encode, encode, last_frame, pixel_features
from vjepa.jepa import JEPA
from vjepa.readout import READOUTS, Recipe, fit, read_all

TEST_SETTINGS = ("device", "workers", "data", "test_data")
GROUPS = 50
READ = READOUTS[0]  # what the score is read from; the two other ways stand beside it
UNTRAINED, PIXELS, STILL = "untrained encoder", "pixels", "last frame alone"


def claim(config: Config) -> str:
    """The word that tells apart the records of one task: what is tested, and the masks and targets of ablations.

    Of labelled videos, how many clips and views too, in which the published tests of data sets differ. Behind it, where
    nothing was trained here, whose weights they are.
    """
    clips = f"{config.probe_segments}x{config.probe_views}"
    word = "velocity-r2" if config.task in GENERATED else f"probe-accuracy-{clips}"
    if config.task == "physics":
        word = "physics-accuracy"
    masking = "" if config.masking == "multi-block" else f"-{config.masking}"
    target = "" if config.target == "ema" else f"-{config.target}"
    weights = "" if config.updates else "-official" if config.init_from else "-untrained"
    return word + masking + target + weights


def protocol(config: Config) -> str:
    """The name of the test."""
    if config.task == "physics":
        return "violation-of-expectation"
    if config.task in GENERATED:
        return f"{world(config)}-mean-r2"
    return f"{config.task}-attentive-{config.probe_segments}x{config.probe_views}"


def world(config: Config) -> str:
    """The word of a task's world in the names of its tests: all games have one."""
    return config.task.partition("-")[0]


def recipe_of(config: Config, device: torch.device, heads: int) -> Recipe:
    """How attentive probes are trained."""
    return Recipe(
        config.probe_epochs, config.probe_batch_size, config.probe_lr, config.probe_weight_decay, config.probe_depth,
        heads, device,
    )  # fmt: skip


# --- where things are and how they move -------------------------------------------------------------------------------


def state_record(
    config: Config, splits: Splits, model: JEPA, device: torch.device, has_controls: bool = True
) -> dict[str, Any]:
    """Velocities and positions read from the tokens of a finished run, and of its controls, in three ways."""
    encoders: dict[str, Encode] = {"V-JEPA": model.target_encoder}
    models = {"V-JEPA": model}
    if has_controls:
        models[UNTRAINED] = new_model(config, splits.pretrain.channels).to(device).eval()
        encoders |= {
            UNTRAINED: models[UNTRAINED].target_encoder,
            PIXELS: partial(pixel_features, model.encoder),
            STILL: partial(last_frame, model.target_encoder),
        }
    assert isinstance(splits.train, State)
    assert isinstance(splits.test, State)
    true = torch.from_numpy(splits.test.states)
    places = true.shape[1] // 2  # positions stand before velocities
    names = {"velocity": slice(places, None), "position": slice(0, places)}
    fits: dict[str, dict[str, np.ndarray]] = {}
    for name, encode_batch in encoders.items():
        train, test = (
            encode(encode_batch, part, config, device, f"{name}, {word}")
            for part, word in ((splits.train, "train"), (splits.test, "test"))
        )
        heads = model.encoder.size.heads if train.shape[2] % model.encoder.size.heads == 0 else 4
        recipe = recipe_of(config, device, heads)
        read = read_all(train, torch.from_numpy(splits.train.states), test, recipe, config.seed)
        fits[name] = {
            f"{what}, {how}": fit(predicted[:, part], true[:, part])
            for how, predicted in read.items()
            for what, part in names.items()
        }
    headline = f"velocity, {READ}"
    ours = fits["V-JEPA"]
    controls = {name: parts[headline] for name, parts in fits.items() if name != "V-JEPA"}
    measurements = {
        key if name == "V-JEPA" else f"{key}, {name}": sample(_grouped(values), f"{world(config)}-readout")
        for name, parts in fits.items()
        for key, values in parts.items()
        if (name, key) != ("V-JEPA", headline)
    }
    if isinstance(splits.train, Digits) and isinstance(splits.test, Digits) and detection.fits(model.encoder.grid):
        if config.target == "ema":  # a predictor of pixels expects no tokens that a place could be read from
            precisions = detection.measure(models, splits.train, splits.test, config, device)
            measurements |= {key: sample(_grouped(values), "digits-detection") for key, values in precisions.items()}
        precisions = rollout.measure(models, splits.train, splits.test, config, device)
        measurements |= {key: sample(_grouped(values), "digits-rollout") for key, values in precisions.items()}
    return {
        **sample(_grouped(ours[headline]), protocol(config)),
        "metric": "R²",
        "unit": "%",
        "policy": "velocities from the mean of the target encoder's tokens",
        "controls": {name: sample(_grouped(values), protocol(config)) for name, values in controls.items()},
        "measurements": measurements,
    }


def _grouped(values: np.ndarray) -> np.ndarray:
    """One value a clip, or where it divides, the means of 50 groups, whose mean is the same: records stay small."""
    return values.reshape(GROUPS, -1).mean(1) if len(values) > GROUPS and len(values) % GROUPS == 0 else values


# --- what is possible -------------------------------------------------------------------------------------------------


def physics_record(config: Config, model: JEPA, device: torch.device, has_controls: bool = True) -> dict[str, Any]:
    """Pairs of videos of which the impossible one surprises more: a finished run, and its controls."""
    seed = derive_seed(config.seed, "pairs")
    subjects = {"V-JEPA": physics.subject_of(model, config.target)}
    if has_controls:
        untrained = new_model(config, 3).to(device).eval()
        subjects |= {UNTRAINED: physics.subject_of(untrained, config.target)}
        subjects |= {"copy of the last frame": physics.copy_of(model)}
    surprises = physics.measure(subjects, model.encoder, config, seed, device)
    fixed = physics.fixed_context(model.encoder.grid)
    name, frames = protocol(config), (fixed + 1) * config.tubelet
    hits = {who: physics.hits(table) for who, table in surprises.items()}
    measurements: dict[str, dict[str, Any]] = {}
    for who, table in hits.items():
        end = "" if who == "V-JEPA" else f", {who}"
        measurements |= {
            f"{word}{end}": sample(_grouped(values), f"{name}-part")
            for word, values in physics.details(table, config.tubelet, fixed).items()
        }
    return {
        **sample(_grouped(hits["V-JEPA"].mean[:, fixed].mean(0)), name),
        "metric": "accuracy",
        "unit": "%",
        "policy": f"mean surprise after {frames} frames, mean over {len(scenes.BLOCKS)} blocks",
        "controls": {
            who: sample(_grouped(table.mean[:, fixed].mean(0)), name) for who, table in hits.items() if who != "V-JEPA"
        },
        "measurements": measurements,
    }


# --- records ----------------------------------------------------------------------------------------------------------


def record_of_run(
    info: dict[str, Any],
    config: Config,
    splits: Splits,
    model: JEPA,
    updates: int,
    device: torch.device,
    has_controls: bool = True,
) -> dict[str, Any]:
    """The test of a finished run, with its controls or without, as record.json."""
    start = time.monotonic()
    if config.task == "physics":
        tested = physics_record(config, model, device, has_controls)
    elif config.task in GENERATED:
        tested = state_record(config, splits, model, device, has_controls)
    else:
        tested = label_probe.record(config, splits, model, device, protocol(config), has_controls)
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    metrics = [line for line in runs.read_metrics(info["folder"]) if line["stage"] == STAGE]
    names = {
        "loss": ("loss", "L1"),
        "loss beside a constant": ("vs_constant", "loss / loss of a constant per place"),
        "feature spread": ("std", "std over clips / size"),
        "effective rank": ("rank", "directions"),
    }
    curves = {title: curve(metrics, key, "update", unit) for title, (key, unit) in names.items()}
    return (
        of_run(info)
        | tested
        | {
            "claim": claim(config),
            "budget": {"env_frames": 0, "updates": updates, "clips": updates * config.batch_size},
            "curves": {title: points for title, points in curves.items() if points["x"]},
            "parameters": {
                "encoder": sum(p.numel() for p in model.encoder.parameters()),
                "predictor": sum(p.numel() for p in model.predictor.parameters()),
            },
        }
    )


def export(path: Path, folder: Path, model: JEPA, epochs: int) -> None:
    """Writes the weights of a run as an official checkpoint; one line and exit code 2 if there is no place for it."""
    losses = [line["loss"] for line in runs.read_metrics(folder) if line["stage"] == STAGE]
    try:
        official.export(path, model, epochs, losses[-1] if losses else math.nan)
    except OSError as error:
        user_error(f"--export: {error}")
    print(f"exported: {path}")


def _options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    words = "the run alone; each control takes as long as its own test"
    group.add_argument("--without-controls", action="store_true", help=words)
    words = "write the weights of a run in the format of the official checkpoints, and test nothing"
    group.add_argument("--export", type=Path, metavar="FILE", help=words)


def main(argv: Sequence[str] | None = None) -> None:
    if is_ac(argv):
        plan.main(argv)
        return
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m vjepa.evaluate", description=__doc__ or "", extra=_options
    )
    try:
        info, config = runs.run_under_test("vjepa", Config, config, options, TEST_SETTINGS)
        folder = info["folder"]
        device = runs.usable_device(config.device)
        splits = data.load_splits(config)
        channels = splits.pretrain.channels
        model, updates = load_model(folder, config, channels, device, info["meta"]["identity"])
        if options.export is not None:
            export(options.export, folder, model, updates * config.batch_size // len(splits.pretrain))
            return
        runs.seed_everything(config.seed, config.device)
        record = record_of_run(info, config, splits, model, updates, device, not options.without_controls)
        pictures.draw_pictures(record, config, folder, splits, model, device)
    except ValueError as error:
        user_error(str(error))
    close(record, folder)


if __name__ == "__main__":
    program(main)
