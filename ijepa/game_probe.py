"""The memory of a game, probed in I-JEPA, in the same encoder untrained, in AtariARI's random network, and guessed.

Shapes: T frames, D features. Source: Anand et al. 2019 (AtariARI).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import run as runs
from common.record import sample, without_run
from common.seeding import derive_seed
from ijepa import data, games, play, ram_probe
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.features import encode, pooled_layers
from ijepa.jepa import JEPA
from ijepa.nature_cnn import NatureCNN
from ijepa.vit import VisionTransformer

RESAMPLES = 2000
# AtariARI probes features as they are; ours are standardised first (Deviation D7), which is another protocol.
RAW = "atariari-f1"
STANDARDISED = f"{RAW}-standardised"


class GameTest:
    """One game's probes: the same splits, draws and first weights for every encoder."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Plays the game first where that has not been done. Raises ValueError if it was played too little."""
        self.config, self.folder = config, folder
        settings = folder, config.task, "probe", config.probe_env_steps, config.seed
        play.collect(*settings, config.workers)
        self.plays = play.load(*settings)
        self.data = ram_probe.split(self.plays, games.variables(config.task))

    def majority(self) -> np.ndarray:
        """Tables of hits, as `ram_probe.counts`, of the control without an encoder."""
        return ram_probe.counts(ram_probe.majority(self.data))

    def random_cnn(self) -> Tensor:
        """Features [T, 256] of all frames by AtariARI's convolutional network with its first weights."""
        cnn = NatureCNN(torch.Generator().manual_seed(derive_seed(self.config.seed, "random-cnn")))
        parts = [part for one in self.plays for part in np.array_split(one.frames, -(-len(one.frames) // 256))]
        features = []
        with torch.no_grad(), runs.progress_bar(len(parts), "random-cnn", unit="batch") as bar:
            for part in parts:
                features.append(cnn(torch.from_numpy(np.array(part))[:, None].float() / 255))
                bar.update()
        return torch.cat(features)

    def encoder(self, encoder: VisionTransformer, device: torch.device, name: str) -> Tensor:
        """Features [T, 4*D] of all frames: the last four blocks, averaged over patches, concatenated."""
        statistics = data.frame_statistics(data.pretraining_play(self.folder, self.config), self.config)
        frames = data.Frames(self.plays, statistics)
        features, _ = encode(partial(pooled_layers, encoder), frames, self.config, device, name)
        return features.flatten(1)

    def standardised(self, features: Tensor) -> Tensor:
        """features [T, D] with mean 0 and standard deviation 1 over the training frames.

        Deviation D7: the paper's "batch norm + linear". AtariARI probes its 256 numbers as they are; they are so small
        that its probes stop early, and the same numbers standardised score several times as much.
        """
        train = features[torch.from_numpy(self.data.train.rows)]
        return (features - train.mean(0)) / train.std(0).clamp(min=1e-6)

    def probe(self, features: Tensor, name: str) -> np.ndarray:
        """Tables of hits of linear probes on features [T, D] of all frames."""
        with runs.progress_bar(self.config.probe_epochs, f"probe {name}", unit="epoch") as bar:
            predictions = ram_probe.train_probes(
                lambda part: features[torch.from_numpy(part.rows)],
                self.data,
                self.config.probe_epochs,
                self.config.seed,
                bar.update,
            )
        return ram_probe.counts(predictions)

    def sample(self, tables: np.ndarray, name: str) -> dict[str, Any]:
        """The score in percent under the protocol `name`; its values are the influences of the test episodes."""
        return sample(100 * ram_probe.influences(tables, self.data.variables), name)

    def details(self, tables: np.ndarray, name: str) -> dict[str, dict[str, Any]]:
        """F1 in percent of every category and variable."""
        f1 = ram_probe.weighted_f1(tables.sum(0))
        named = ram_probe.category_means(f1, self.data.variables)
        named |= {variable.name: f1[k] for k, variable in enumerate(self.data.variables)}
        return {part: sample([100 * float(value)], f"{name}-part") for part, value in named.items()}


def game_record(
    config: Config, folder: Path, model: JEPA, device: torch.device, has_controls: bool = True
) -> dict[str, Any]:
    """The probes of a finished run and their controls."""
    test = GameTest(folder / "play", config)
    features, controls = {"I-JEPA": test.encoder(model.target_encoder, device, "I-JEPA")}, {}
    if has_controls:
        untrained = new_model(config, 1).target_encoder.to(device).eval()
        features["untrained encoder"] = test.encoder(untrained, device, "untrained")
        features["random-cnn, standardised"] = test.random_cnn()
        controls["random-cnn"] = test.probe(features["random-cnn, standardised"], "random-cnn")
    controls |= {name: test.probe(test.standardised(x), name) for name, x in features.items()}
    if has_controls:
        controls["majority"] = test.majority()
    ours = controls.pop("I-JEPA")
    low, high = ram_probe.bootstrap(ours, test.data.variables, RESAMPLES, config.seed)
    name = STANDARDISED
    interval = {"interval low": sample([100 * low], f"{name}-part")}
    interval |= {"interval high": sample([100 * high], f"{name}-part")}
    return {
        **test.sample(ours, name),
        "metric": "F1",
        "unit": "%",
        "policy": "target encoder, last four blocks averaged over patches",
        "controls": {
            k: test.sample(tables, RAW if k in ("random-cnn", "majority") else name) for k, tables in controls.items()
        },
        "measurements": interval | test.details(ours, name),
    }


def record_of_controls(config: Config, folder: Path) -> dict[str, Any]:
    """Random-CNN and majority on a game, as record.json: the calibration of the benchmark."""
    start = time.monotonic()
    test = GameTest(folder / "play", config)
    cnn = test.probe(test.random_cnn(), "random-cnn")
    return without_run("ijepa", "calibration", config, start) | {
        "claim": "control-random-cnn",
        **test.sample(cnn, RAW),
        "metric": "F1",
        "unit": "%",
        "policy": "random-cnn",
        "budget": {"env_frames": games.REPEAT * config.probe_env_steps, "updates": 0},
        "controls": {"majority": test.sample(test.majority(), RAW)},
        "measurements": test.details(cnn, RAW),
    }
