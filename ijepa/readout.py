"""The classes of small real images, read in four ways from frozen features: of an encoder, and of its controls.

An average over patches drowns what single patches hold. So each encoder is read by the mean of its tokens and by 256
principal components of all its tokens side by side, and either by a linear probe and by its nearest neighbours.
Shapes: T images, B of a batch, L layers, N patches, D width, K numbers of all tokens of an image.
Source: paper, appendix A.2 (the linear probe on the mean); the others are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.record import sample
from common.seeding import derive_seed
from ijepa import label_probe
from ijepa.ablations import TOKENS as ABLATED
from ijepa.build import mask_config, new_model, new_schedule
from ijepa.collapse import constant_error
from ijepa.config import Config
from ijepa.crops import centred, to_input
from ijepa.data import Images, Labelled, Splits, labelled
from ijepa.features import encode, pooled_and_tokens
from ijepa.jepa import JEPA, distance, predict, select, targets
from ijepa.label_probe import EVERY, Recipe, Sweep
from ijepa.masks import sample_masks
from ijepa.nature_cnn import SmallCNN
from ijepa.supervised import supervised_encoder

TASKS = ("digits", "fashion")
COMPONENTS = 256
FITTED = 2000  # training images, at most, that the principal components are of
GROUPS = 100

MEAN, COMPONENT = "mean of tokens", f"{COMPONENTS} components of all tokens"
LINEAR, NEIGHBOURS = "linear", "nearest neighbours"
READOUTS = tuple(f"{how}, {what}" for how in (LINEAR, NEIGHBOURS) for what in (MEAN, COMPONENT))
SCORE = READOUTS[0]  # the paper's, and that of the record; the others stand beside it
OURS, UNTRAINED, PIXELS = "I-JEPA", "untrained encoder", "pixels"
RANDOM, SUPERVISED = "random convolutions", "supervised encoder"
RENEWED = 95.0  # percent of the target encoder: three time constants of the moving average

# images [B, C, H, W], normalised -> what is averaged over patches [B, L, D], and all numbers side by side [B, K]
View = Callable[[Tensor], tuple[Tensor, Tensor]]


# --- what is read -----------------------------------------------------------------------------------------------------


def pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images themselves: pixels are not averaged, so all of them stand in both places."""
    flat = images.flatten(1)
    return flat[:, None], flat


def convolutions(network: SmallCNN, images: Tensor) -> tuple[Tensor, Tensor]:
    """The map of a convolutional network: averaged over its places, and as it is."""
    found = network(images)
    return found.mean((2, 3))[:, None], found.flatten(1)


def views(config: Config, model: JEPA, images: Labelled, device: torch.device, has_controls: bool) -> dict[str, View]:
    """An encoder after its training and, with controls, what it is compared with."""
    found: dict[str, View] = {OURS: partial(pooled_and_tokens, model.target_encoder)}
    if has_controls:
        untrained = new_model(config, images.channels).target_encoder.to(device).eval()
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "random convolutions"))
        found[UNTRAINED] = partial(pooled_and_tokens, untrained)
        found |= {PIXELS: pixels, RANDOM: partial(convolutions, SmallCNN(images.channels, generator).to(device))}
        if config.supervised_updates:
            found[SUPERVISED] = partial(pooled_and_tokens, supervised_encoder(config, images, device))
    return found


@dataclass(frozen=True)
class Features:
    """Of T images: the mean over tokens [T, L, D], components of all tokens [T, 1, 256], and classes [T]."""

    mean: Tensor
    components: Tensor
    labels: Tensor


def features_of(
    view: View, splits: Splits, config: Config, device: torch.device, name: str
) -> tuple[Features, Features]:
    """Features of the images that probes learn from and are tested on, centred and divided by one number.

    The components are those of some training images: all tokens of all images need not lie in memory.
    """
    train, test = labelled(splits)
    some, _ = encode(lambda images: view(images)[1], Thinned(train, FITTED), config, device, f"{name}, components")
    centre, axes = (part.to(device) for part in principal_axes(some, COMPONENTS))

    def both(images: Tensor) -> Tensor:
        mean, tokens = view(images)
        shapes.append(mean.shape[1:])
        return torch.cat([mean.flatten(1), (tokens - centre) @ axes], 1)

    shapes: list[torch.Size] = []
    found = []
    for part, word in ((train, "train"), (test, "test")):
        numbers, rows = encode(both, part, config, device, f"{name}, {word}")
        mean, components = numbers.split((shapes[0].numel(), axes.shape[1]), 1)
        found.append((mean.unflatten(1, shapes[0]), components[:, None], torch.from_numpy(part.labels[rows, 0])))
    (mean, components, labels), (test_mean, test_components, test_labels) = found
    mean, test_mean = _scaled(mean, test_mean)
    components, test_components = _scaled(components, test_components)
    return Features(mean, components, labels), Features(test_mean, test_components, test_labels)


def principal_axes(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean [K] of x [n, K] and its first principal axes [K, c], c = count or fewer: at most n - 1, and K."""
    mean = x.mean(0)
    x = x - mean
    count = min(count, len(x) - 1, x.shape[1])
    if x.shape[1] <= len(x):
        return mean, torch.linalg.eigh((x.T @ x).double()).eigenvectors[:, -count:].float()
    values, vectors = torch.linalg.eigh((x @ x.T).double())
    return mean, x.T @ (vectors[:, -count:] / values[-count:].clamp(min=1e-9).sqrt()).float()


def _scaled(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both [T, ...], without the mean of the training images, over the deviation of all its numbers together."""
    mean = train.mean(0)
    size = (train - mean).square().mean().sqrt().clamp(min=1e-9)
    return (train - mean) / size, (test - mean) / size


class Thinned:
    """At most `count` of some images, or of those that `rows` [K] names, evenly spaced."""

    def __init__(self, images: Images, count: int, rows: np.ndarray | None = None) -> None:
        self.images, self.channels, self.statistics = images, images.channels, images.statistics
        rows = np.arange(len(images)) if rows is None else rows
        self.rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> np.ndarray:
        return self.images.read(int(self.rows[index]))


# --- how it is read ---------------------------------------------------------------------------------------------------


def read_all(train: Features, test: Features, recipe: Recipe, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Hits on the test images in percent [T] by each of READOUTS, and which probe on the mean was best, in words."""
    hits: dict[str, np.ndarray] = {}
    words = ""
    for what, x, asked in (
        (MEAN, train.mean, test.mean),
        (COMPONENT, train.components, test.components),
    ):
        given = x, train.labels, asked, test.labels
        best, choice = label_probe.linear_probe(*given, recipe, seed)["best"]
        words = words or choice
        hits[f"{LINEAR}, {what}"] = 100 * best
        hits[f"{NEIGHBOURS}, {what}"] = 100 * label_probe.nearest_neighbours(*given, recipe.device)
    return hits, words


# --- whether it has learnt to predict ---------------------------------------------------------------------------------


@torch.no_grad()
def saved_error(model: JEPA, images: Images, config: Config, device: torch.device) -> np.ndarray:
    """Percent of the error of one constant for each place that the predictor saves, a number for each test batch.

    0 and less: it knows where a patch is and nothing of what its image shows. The constant is that of the batch itself.
    """
    size = min(config.micro_batch_size, len(images))
    masks_of = mask_config(config, model.encoder.grid)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "test masks"))
    tokens_of = ABLATED.get(config.target, lambda model, inputs: targets(model.target_encoder, inputs))
    found = []
    for k in range(len(images) // size):
        shown = np.stack([centred(images.read(row), config) for row in range(k * size, (k + 1) * size)])
        inputs = to_input(torch.from_numpy(shown), images.statistics, device)
        masks = sample_masks(masks_of, size, k, generator).to(device)
        tokens = tokens_of(model, inputs)
        loss = distance(predict(model, inputs, masks), select(tokens, masks))
        found.append(100 * (1 - float(loss / constant_error(tokens, masks.target).clamp(min=1e-12))))
    return np.array(found)


def renewed_share(config: Config, updates: int) -> float:
    """Percent of the weights of the target encoder that are no longer its first ones: 1 less all momenta multiplied."""
    schedule = new_schedule(config, updates)
    return 100 * (1 - float(np.prod([schedule.momentum_at(update) for update in range(updates)])))


# --- the record -------------------------------------------------------------------------------------------------------


def record(
    config: Config,
    splits: Splits,
    model: JEPA,
    updates: int,
    device: torch.device,
    protocol: str,
    has_controls: bool = True,
    sweep: Sweep = EVERY,
) -> dict[str, Any]:
    """All read-outs of a finished run and of its controls; the score is the linear probe on the mean of tokens."""
    recipe = Recipe(config.linear_optimizer, config.linear_epochs, config.linear_batch_size, device, sweep)
    train, test = labelled(splits)
    hits: dict[str, dict[str, np.ndarray]] = {}
    words = {}
    for name, view in views(config, model, train, device, has_controls).items():
        hits[name], words[name] = read_all(*features_of(view, splits, config, device, name), recipe, config.seed)
    protocols = {readout: protocol.replace(LINEAR, readout.split(",")[0].split()[-1]) for readout in READOUTS}
    saved = saved_error(model, test, config, device)
    watched = f"{config.task}-watch"
    measurements = {
        f"{readout}, {name}" if name != OURS else readout: sample(grouped(values), protocols[readout])
        for name, parts in hits.items()
        for readout, values in parts.items()
        if readout != SCORE
    }
    measurements |= {
        "error saved": sample(saved, watched),
        "error saved, constant": sample(np.zeros(len(saved)), watched),
        "target renewed": sample([renewed_share(config, updates)], watched),
        "target renewed, asked for": sample([RENEWED], watched),
    }
    return {
        **sample(grouped(hits[OURS][SCORE]), protocols[SCORE]),
        "metric": "top-1 accuracy",
        "unit": "%",
        "policy": words[OURS],
        "controls": {
            name: sample(grouped(parts[SCORE]), protocols[SCORE]) for name, parts in hits.items() if name != OURS
        },
        "measurements": measurements,
    }


def grouped(values: np.ndarray) -> np.ndarray:
    """One value an image, or where it divides, the means of 100 groups, whose mean is the same: records stay small."""
    return values.reshape(GROUPS, -1).mean(1) if len(values) > GROUPS and len(values) % GROUPS == 0 else values
