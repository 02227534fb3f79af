"""The memory of a game, probed in I-JEPA, in the same encoder untrained, in AtariARI's random network, and guessed.

Shapes: T frames, D features. Source: Anand et al. 2019 (AtariARI).
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from ijepa.features import encode, pooled_and_tokens, pooled_layers
from ijepa.jepa import JEPA
from ijepa.nature_cnn import NatureCNN
from ijepa.readout import COMPONENTS, FITTED, OURS, UNTRAINED, Thinned, principal_axes
from ijepa.vit import VisionTransformer

RESAMPLES = 2000
# AtariARI probes features as they are; ours are standardised first (Deviation D7), which is another protocol.
RAW = "atariari-f1"
STANDARDISED = f"{RAW}-standardised"
# The forms of features in the matrix, beside those that stand in every record.
ALL_RAW, ALL_COMPONENTS = "raw", f"{COMPONENTS} components of all tokens"
RANDOM = "random-cnn"


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
        return self._by_cnn(self.cnn, RANDOM)

    def random_cnn_components(self) -> Tensor:
        """Components [T, 256] of the map of that network, of which its features are a linear layer."""
        layers = self.cnn.layers[:-1]
        every = max(1, sum(len(one.frames) for one in self.plays) // FITTED)
        mean, axes = principal_axes(self._by_cnn(layers, f"{RANDOM}, components", every), COMPONENTS)
        return self._by_cnn(lambda frames: (layers(frames) - mean) @ axes, f"{RANDOM}, components")

    @property
    def cnn(self) -> NatureCNN:
        """The network of AtariARI with the weights of this seed."""
        return NatureCNN(torch.Generator().manual_seed(derive_seed(self.config.seed, "random-cnn")))

    def _by_cnn(self, network: Callable[[Tensor], Tensor], name: str, every: int = 1) -> Tensor:
        """What a network makes of one in `every` frames, [T, D]."""
        shown = [one.frames[::every] for one in self.plays]
        parts = [part for frames in shown for part in np.array_split(frames, -(-len(frames) // 256))]
        features = []
        with torch.no_grad(), runs.progress_bar(len(parts), name, unit="batch") as bar:
            for part in parts:
                features.append(network(torch.from_numpy(np.array(part))[:, None].float() / 255))
                bar.update()
        return torch.cat(features)

    def frames(self) -> data.Frames:
        """What an encoder sees."""
        statistics = data.frame_statistics(data.pretraining_play(self.folder, self.config), self.config)
        return data.Frames(self.plays, statistics)

    def images(self) -> tuple[Thinned, Thinned]:
        """The frames that probes learn from and are tested on."""
        frames = self.frames()
        train, test = (Thinned(frames, len(part.rows), part.rows) for part in (self.data.train, self.data.test))
        return train, test

    def encoder(self, encoder: VisionTransformer, device: torch.device, name: str) -> Tensor:
        """Features [T, 4*D] of all frames: the last four blocks, averaged over patches, concatenated."""
        features, _ = encode(partial(pooled_layers, encoder), self.frames(), self.config, device, name)
        return features.flatten(1)

    def encoder_components(self, encoder: VisionTransformer, device: torch.device, name: str) -> Tensor:
        """Components [T, 256] of all tokens of the last block; their axes are those of some frames."""
        frames, name = self.frames(), f"{name}, components"
        few = Thinned(frames, FITTED)
        some, _ = encode(lambda batch: pooled_and_tokens(encoder, batch)[1], few, self.config, device, name)
        mean, axes = (part.to(device) for part in principal_axes(some, COMPONENTS))
        features, _ = encode(
            lambda batch: (pooled_and_tokens(encoder, batch)[1] - mean) @ axes, frames, self.config, device, name
        )
        return features

    def standardised(self, features: Tensor) -> Tensor:
        """features [T, D] with mean 0 and standard deviation 1 over the training frames.

        Deviation D7: the paper's "batch norm + linear". AtariARI probes its 256 numbers as they are; they are so small
        that its probes stop early, and the same numbers standardised score several times as much.
        """
        train = features[torch.from_numpy(self.data.train.rows)]
        return (features - train.mean(0)) / train.std(0).clamp(min=1e-6)

    def scaled(self, features: Tensor) -> Tensor:
        """features [T, D] without their mean, over one number: the deviation of all, over the training frames."""
        train = features[torch.from_numpy(self.data.train.rows)]
        return (features - train.mean(0)) / (train - train.mean(0)).square().mean().sqrt().clamp(min=1e-6)

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
        """F1 in percent of every category and variable, each by its name."""
        f1 = ram_probe.weighted_f1(tables.sum(0))
        named = ram_probe.category_means(f1, self.data.variables)
        named |= {variable.name: f1[k] for k, variable in enumerate(self.data.variables)}
        return {part: sample([100 * float(value)], f"{name}-part") for part, value in named.items()}

    def by_variable(self, tables: np.ndarray, name: str) -> dict[str, Any]:
        """F1 in percent of every variable, in the order in which `details` names them."""
        return sample(100 * ram_probe.weighted_f1(tables.sum(0)), f"{name}-part")


def game_record(
    test: GameTest,
    model: JEPA,
    device: torch.device,
    has_controls: bool = True,
    has_matrix: bool = False,
) -> dict[str, Any]:
    """The probes of a finished run and their controls; with the matrix, also those of other forms of the features."""
    config = test.config
    encoders = {OURS: model.target_encoder}
    features, controls = {OURS: test.encoder(model.target_encoder, device, OURS)}, {}
    if has_controls:
        encoders[UNTRAINED] = new_model(config, 1).target_encoder.to(device).eval()
        features[UNTRAINED] = test.encoder(encoders[UNTRAINED], device, "untrained")
        features[f"{RANDOM}, standardised"] = test.random_cnn()
        controls[RANDOM] = test.probe(features[f"{RANDOM}, standardised"], RANDOM)
    controls |= {name: test.probe(test.standardised(x), name) for name, x in features.items()}
    if has_controls:
        controls["majority"] = test.majority()
    forms: dict[str, np.ndarray] = {}
    if has_matrix:
        for name, encoder in encoders.items():
            forms[f"{name}, {ALL_RAW}"] = test.probe(features[name], f"{name}, raw")
            forms[f"{name}, {ALL_COMPONENTS}"] = test.probe(
                test.scaled(test.encoder_components(encoder, device, name)), f"{name}, components"
            )
        forms[f"{RANDOM}, {ALL_COMPONENTS}"] = test.probe(
            test.scaled(test.random_cnn_components()), f"{RANDOM}, components"
        )
    ours = controls.pop(OURS)
    low, high = ram_probe.bootstrap(ours, test.data.variables, RESAMPLES, config.seed)
    interval = {
        f"interval {word}": sample([100 * end], f"{STANDARDISED}-part") for word, end in (("low", low), ("high", high))
    }
    protocols = {name: RAW if name in (RANDOM, "majority") else STANDARDISED for name in controls}
    measured = {
        name: test.sample(tables, RAW if name.endswith(ALL_RAW) else f"{RAW}-components")
        for name, tables in forms.items()
    }
    every = {name: (tables, protocols[name]) for name, tables in controls.items()}
    every |= {name: (tables, measured[name]["protocol"]) for name, tables in forms.items()}
    variables = {
        f"by variable, {name}": test.by_variable(tables, protocol) for name, (tables, protocol) in every.items()
    }
    return {
        **test.sample(ours, STANDARDISED),
        "metric": "F1",
        "unit": "%",
        "policy": "target encoder, last four blocks averaged over patches",
        "controls": {name: test.sample(tables, protocols[name]) for name, tables in controls.items()},
        "measurements": interval | test.details(ours, STANDARDISED) | measured | variables,
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
