"""What the frozen target encoder knows: linear probes on labels, or on the memory of a game (AtariARI).

    python -m ijepa.evaluate --preset cpu --seed 0             the run of that preset and seed
    python -m ijepa.evaluate --controls --task pong            majority and random-CNN, without any run
    python -m ijepa.evaluate --run FOLDER --without-controls   a run alone
    python -m ijepa.evaluate --run FOLDER --export FILE        its weights as an official checkpoint, no test

Writes record.json, curves.png and pictures into the run folder.
Source: paper, appendix A.2; Anand et al. 2019 (AtariARI).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import run as runs
from common.config import parse, user_error
from common.program import program
from common.record import close, curve, of_run, sample
from ijepa import data, games, known, label_probe, official, pictures, play, readout
from ijepa.build import STAGE, load_model, new_model
from ijepa.config import PRESETS, TASKS, Config
from ijepa.data import Images, Labelled, Splits
from ijepa.features import LAYERS, encode, pooled_layers
from ijepa.game_probe import STANDARDISED, GameTest, game_record, record_of_controls
from ijepa.games import GAMES
from ijepa.jepa import JEPA
from ijepa.label_probe import EVERY, Recipe, Sweep

TEST_SETTINGS = ("device", "workers", "data")
# What the score of labelled images averages. Of drawn shapes, colour is no test, and the distance to the border is that
# of one shape that looks like the others.
SCORED = ("class", "number")
HEADS = {"linear": (False,), "norm": (True,), "both": EVERY.heads}
THUMBNAIL = 16  # pixels a side of the control without an encoder
WORTH_A_LINE = 60.0  # seconds that probes will take


def claim(config: Config) -> str:
    """The word that tells apart the records of one task: the kind of probe, and the masks and targets of ablations.

    Behind it, where nothing was trained here, whose weights they are.
    """
    word = "probe-f1" if config.task in GAMES else "probe-accuracy"
    masking = "" if config.masking == "multi-block" else f"-{config.masking}"
    target = "" if config.target == "ema" else f"-{config.target}"
    weights = "" if config.is_trained else "-official" if config.init_from else "-untrained"
    return word + masking + target + weights


def protocol(config: Config) -> str:
    """The name of the test."""
    return STANDARDISED if config.task in GAMES else f"{config.task}-linear"


# --- labels -----------------------------------------------------------------------------------------------------------


class Cost:
    """What probes on labels will cost, said before they begin, and their time once a first epoch has been made."""

    def __init__(
        self, recipe: Recipe, shape_of: Mapping[str, tuple[int, int]], train: Labelled, test: Labelled
    ) -> None:
        """shape_of: layers and width of the features of each encoder."""
        factors = {name: sum(_is_probed(factor, name) for factor in train.factors) for name in shape_of}
        layers = [k for name, (depth, _) in shape_of.items() for k in recipe.fits(depth) * factors[name]]
        self.epochs, self.weight = 0, recipe.epochs * sum(layers)
        self.first_weight, self.started = layers[0], 0.0
        memory = 4 * (len(train) + len(test)) * max(map(math.prod, shape_of.values())) / 1e9
        encoders = "encoder" if len(shape_of) == 1 else "encoders"
        print(
            f"probes on labels: {len(layers)} fits of {recipe.epochs} epochs on {len(train):,} images for "
            f"{len(shape_of)} {encoders}, whose features take up to {memory:.2g} GB of memory, one after the other",
            flush=True,
        )

    def begin(self) -> None:
        """The features of an encoder are there."""
        self.started = time.monotonic()

    def after_epoch(self) -> None:
        """Of the first probe: wider ones take no more than as many times as long as they have layers."""
        self.epochs += 1
        if self.epochs == 1:
            seconds = (time.monotonic() - self.started) / self.first_weight * self.weight
            if seconds > WORTH_A_LINE:
                print(
                    f"probes on labels: about {seconds / 3600:.1f} h at the pace of a first epoch; "
                    "--probe-lr and others choose fewer",
                    flush=True,
                )


def _is_probed(factor: str, name: str) -> bool:
    """Whether there is a probe on a factor: all are told of I-JEPA, of its controls those of the score."""
    return factor in SCORED or name == "I-JEPA"


def label_record(
    config: Config, splits: Splits, model: JEPA, device: torch.device, has_controls: bool = True, sweep: Sweep = EVERY
) -> dict[str, Any]:
    """Probes of a finished run on labels and their controls; the mean over the factors SCORED, others beside it."""
    name_of_test = protocol(config)
    encoders: dict[str, Callable[[Tensor], Tensor]] = {"I-JEPA": partial(pooled_layers, model.target_encoder)}
    if has_controls:
        untrained = new_model(config, data.channels(splits)).target_encoder.to(device).eval()
        encoders |= {"untrained encoder": partial(pooled_layers, untrained), "pixels": _thumbnails}
    recipe = Recipe(config.linear_optimizer, config.linear_epochs, config.linear_batch_size, device, sweep)
    depth = min(LAYERS, len(model.encoder.blocks))
    train, test = data.labelled(splits)
    shapes = {"pixels": (1, train.channels * THUMBNAIL**2)}
    cost = Cost(recipe, {name: shapes.get(name, (depth, model.encoder.size.width)) for name in encoders}, train, test)
    probed = {name: _label_probes(part, splits, config, recipe, name, cost) for name, part in encoders.items()}
    ours, words = probed.pop("I-JEPA")
    return {
        **sample(readout.grouped(ours["best"]), name_of_test),
        "metric": "top-1 accuracy",
        "unit": "%",
        "policy": words,
        "controls": {name: sample(readout.grouped(hits["best"]), name_of_test) for name, (hits, _) in probed.items()},
        "measurements": {
            name: sample(readout.grouped(right), f"{config.task}-probe-part")
            for name, right in ours.items()
            if name != "best"
        },
    }


def _label_probes(
    encode_batch: Callable[[Tensor], Tensor], splits: Splits, config: Config, recipe: Recipe, name: str, cost: Cost
) -> tuple[dict[str, np.ndarray], str]:
    """Hits on the test images in percent by the name of the probe, and which one was best for each factor.

    The features of one encoder are gone when those of the next are made.
    """
    train_images, test_images = data.labelled(splits)
    train, train_rows = encode(encode_batch, train_images, config, recipe.device, f"{name}, train")
    test, test_rows = encode(encode_batch, test_images, config, recipe.device, f"{name}, test")
    train_labels, test_labels = (
        torch.from_numpy(part.labels[rows]) for part, rows in ((train_images, train_rows), (test_images, test_rows))
    )
    cost.begin()
    hits: dict[str, list[np.ndarray]] = {}
    words = []
    for k, factor in enumerate(train_images.factors):
        if not _is_probed(factor, name):
            continue
        x = train, train_labels[:, k], test, test_labels[:, k]
        probes = label_probe.linear_probe(*x, recipe, config.seed, cost.after_epoch)
        parts = {kind: right for kind, (right, _) in probes.items()}
        words.append(f"{factor}: {probes['best'][1]}")
        if name == "I-JEPA":
            parts["nearest neighbours"] = label_probe.nearest_neighbours(*x, recipe.device)
            parts["1 % of the labels"] = label_probe.low_shot(*x, config.seed)
            hits[f"factor {factor}"] = [parts["best"]]
        for kind, right in parts.items() if factor in SCORED else ():
            hits.setdefault(kind, []).append(right)
    return {kind: 100 * np.mean(right, axis=0) for kind, right in hits.items()}, "; ".join(words)


def _thumbnails(images: Tensor) -> Tensor:
    """The control without an encoder: images [B, C, H, W] averaged to 16 x 16 pixels, [B, 1, C*256]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)[:, None]


# --- records ----------------------------------------------------------------------------------------------------------


def record_of_run(
    info: dict[str, Any],
    config: Config,
    splits: Splits | None,
    model: JEPA,
    updates: int,
    device: torch.device,
    has_controls: bool = True,
    has_matrix: bool = False,
    sweep: Sweep = EVERY,
) -> dict[str, Any]:
    """The test of a finished run, with its controls or without, as record.json."""
    start = time.monotonic()
    images: tuple[Images, Images]
    if splits is None:
        game = GameTest(info["folder"] / "play", config)
        images = game.images()
        tested = game_record(game, model, device, has_controls, has_matrix)
    elif config.task in readout.TASKS:
        tested = readout.record(config, splits, model, updates, device, protocol(config), has_controls, sweep)
    else:
        tested = label_record(config, splits, model, device, has_controls, sweep)
    if sweep != EVERY:
        tested["policy"] += "; of a sweep that was chosen"
    if splits is not None:
        images = data.labelled(splits)
    tested["measurements"] |= known.measure(config, model, *images, device, has_controls)
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    metrics = [line for line in runs.read_metrics(info["folder"]) if line["stage"] == STAGE]
    names = {
        "loss": ("loss", "smooth L1"),
        "loss beside a constant": ("vs_constant", "loss / loss of a constant per place"),
        "feature spread": ("std", "std over images / size"),
        "effective rank": ("rank", "directions"),
    }
    curves = {title: curve(metrics, key, "update", unit) for title, (key, unit) in names.items()}
    frames = games.REPEAT * (config.env_steps + config.probe_env_steps) if splits is None else 0
    return (
        of_run(info)
        | tested
        | {
            "claim": claim(config),
            "budget": {"env_frames": frames, "updates": updates, "images": updates * config.batch_size},
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
    group.add_argument("--controls", action="store_true", help="majority and random-CNN on a game, without a run")
    words = "the run alone; each control takes as long as its own test"
    group.add_argument("--without-controls", action="store_true", help=words)
    words = "games: also probes on raw features and on components of all tokens; twice the time"
    parser.add_argument("--matrix", action="store_true", help=words)
    words = "which probes on labels are tried, in place of all"
    probes = parser.add_argument_group("probes on labels", words)
    words = "of the last layer, of several together, or both"
    probes.add_argument("--probe-layers", choices=("last", "several", "both"), default=EVERY.layers, help=words)
    words = "with a batch norm before the linear layer, without one, or both"
    probes.add_argument("--probe-head", choices=tuple(HEADS), default="both", help=words)
    words = "learning rates for a batch of 256"
    probes.add_argument("--probe-lr", type=float, nargs="+", metavar="LR", help=words)
    probes.add_argument("--probe-weight-decay", type=float, nargs="+", metavar="DECAY", default=EVERY.weight_decay)
    words = "write the weights of a run in the format of the official checkpoints, and test nothing"
    group.add_argument("--export", type=Path, metavar="FILE", help=words)


def _sweep(options: argparse.Namespace) -> Sweep:
    """The probes that were asked for; one line and exit code 2 for those that cannot be."""
    rates, decays = options.probe_lr, options.probe_weight_decay
    if any(not 0 < rate < math.inf for rate in rates or ()):
        user_error("--probe-lr: learning rates are above 0")
    if any(not 0 <= decay < math.inf for decay in decays):
        user_error("--probe-weight-decay: it is at least 0")
    return Sweep(options.probe_layers, HEADS[options.probe_head], None if rates is None else (*rates,), (*decays,))


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m ijepa.evaluate", description=__doc__ or "", extra=_options
    )
    sweep = _sweep(options)
    try:
        if sweep != EVERY and (options.controls or options.export is not None):
            user_error("--probe-...: nothing is tried on labels here")
        if options.controls and options.matrix:
            user_error("--matrix is of a run, with its controls")
        if options.controls:
            if config.task not in GAMES:
                user_error(f"--controls is for games, not for task {config.task}")
            play.check_emulator()
            options.preset = "control-random-cnn"
            folder = runs.run_folder("ijepa", config, options)
            if (folder / "config.json").exists():
                user_error(f"{folder} holds a training run; choose another folder for controls with --run")
            record = record_of_controls(config, folder)
        else:
            info, config = runs.run_under_test("ijepa", Config, config, options, TEST_SETTINGS)
            folder = info["folder"]
            device = runs.usable_device(config.device)
            splits = data.load_splits(config)
            model, updates = load_model(folder, config, data.channels(splits), device, info["meta"]["identity"])
            if options.export is not None:
                images = config.env_steps if splits is None else len(splits.pretrain)
                export(options.export, folder, model, updates * config.batch_size // images)
                return
            runs.seed_everything(config.seed, config.device)
            if options.matrix and (splits is not None or options.without_controls):
                user_error("--matrix is of the run of a game, with its controls")
            if sweep != EVERY and splits is None:
                user_error("--probe-...: a game has no labels, its probes are AtariARI's")
            is_compared = not options.without_controls
            record = record_of_run(info, config, splits, model, updates, device, is_compared, options.matrix, sweep)
            pictures.draw_pictures(record, config, folder, splits, model, device)
    except ValueError as error:
        user_error(str(error))
    close(record, folder)


if __name__ == "__main__":
    program(main)
