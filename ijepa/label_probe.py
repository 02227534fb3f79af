"""What frozen features say of labels: linear probe, k nearest neighbours, and a probe on 1 % of the labels.

Shapes: T images, L layers, D width, K classes. Features [T, L, D] of the last four blocks, averaged over patches.
Source: paper, appendix A.1 (ImageNet-1K linear) and A.2 (transfer).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from common.seeding import derive_seed

# Reference learning rates for a batch of 256. LARS: the paper's for ImageNet; its steps are too small for small data.
REFERENCE_LR = {"lars": (0.01, 0.05, 0.001), "sgd": (0.01, 0.1, 1.0)}
WEIGHT_DECAY = (0.0005, 0.0)
LR_STEP, LR_FACTOR = 15, 0.1  # epochs
MOMENTUM, TRUST = 0.9, 0.001
HELD_OUT = 10  # one in so many training images chooses between the probes
NEIGHBOURS, TEMPERATURE = 20, 0.07
CHUNK = 1024  # test images at a time
SEVERAL = {2: "last two", 3: "last three", 4: "last four"}
LOW_SHOT_SHARE = 0.01


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step for each matrix is scaled by |w| / |gradient|. Source: You et al. 2017."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update; 1-D parameters are neither decayed nor scaled."""
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update.add(p, alpha=group["weight_decay"])
                    size, norm = p.norm(), update.norm()
                    update = update * torch.where((size > 0) & (norm > 0), TRUST * size / norm, 1.0)
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.mul_(MOMENTUM).add_(update), alpha=group["lr"])


@dataclass(frozen=True)
class Choice:
    """One probe of the sweep."""

    layers: int
    has_norm: bool
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        head = "batch norm + linear" if self.has_norm else "linear"
        layers = f"{self.layers} layers" if self.layers > 1 else "layer"
        return f"{head} on the last {layers}, lr {self.lr}, weight decay {self.weight_decay}"


@dataclass(frozen=True)
class Sweep:
    """The probes that are tried on an encoder: the product of these; all of the paper's unless fewer are asked for.

    layers: "last", "several" or "both"; heads: whether there is a batch norm before the linear layer; lr: reference
    learning rates for a batch of 256, none: those of the optimiser.
    """

    layers: str = "both"
    heads: tuple[bool, ...] = (False, True)
    lr: tuple[float, ...] | None = None
    weight_decay: tuple[float, ...] = WEIGHT_DECAY

    def of(self, optimizer: str, depth: int) -> dict[str, list[Choice]]:
        """By name the probes on the last layer, and on all of `depth` layers: "last four", of one layer "last"."""
        places = {1: "last", depth: SEVERAL.get(depth, "last")}
        if self.layers != "both":
            layers = 1 if self.layers == "last" else depth
            places = {layers: places[layers]}
        rates = REFERENCE_LR[optimizer] if self.lr is None else self.lr
        return {
            name: [Choice(layers, *rest) for rest in product(self.heads, rates, self.weight_decay)]
            for layers, name in places.items()
        }


EVERY = Sweep()


@dataclass(frozen=True)
class Recipe:
    """How probes are trained: "lars" or "sgd", passes over the images, images per update, where, and which ones.

    Features stay where they are, once; batches of them go to the device.
    """

    optimizer: str
    epochs: int
    batch: int
    device: torch.device = torch.device("cpu")
    sweep: Sweep = EVERY

    def fits(self, depth: int) -> list[int]:
        """The layers of each probe that is trained on an encoder of `depth` layers; the best of a sweep comes twice."""
        return [
            choice.layers
            for choices in self.sweep.of(self.optimizer, depth).values()
            for choice in (*choices, choices[0])
        ]


def inputs(features: Tensor, layers: int) -> Tensor:
    """The last `layers` of features [T, L, D], concatenated: [T, layers*D]. No copy of the last one, or of all."""
    return features[:, -layers:].flatten(1)


def train_probe(
    features: Tensor,
    labels: Tensor,
    rows: Tensor,
    choice: Choice,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[], object] = int,
) -> nn.Module:
    """One linear probe on the `rows` [n] of features [T, D'] and labels [T]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "label probe"))
    linear = nn.Linear(features.shape[1], int(labels[rows].max()) + 1)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    probe = nn.Sequential(nn.BatchNorm1d(features.shape[1]), linear) if choice.has_norm else linear
    probe.to(recipe.device)
    batch = min(recipe.batch, len(rows))
    lr, parameters = choice.lr * batch / 256, list(probe.parameters())
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "lars":
        optimizer = LARS(parameters, lr, choice.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr, MOMENTUM, weight_decay=choice.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, LR_STEP, LR_FACTOR)
    for _ in range(recipe.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for part in order[: len(order) // batch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(probe(features[part].to(recipe.device)), labels[part].to(recipe.device)).backward()
            optimizer.step()
        scheduler.step()
        after_epoch()
    return probe.eval()


@torch.no_grad()
def correct(probe: nn.Module, features: Tensor, labels: Tensor, rows: Tensor) -> np.ndarray:
    """1 where the most likely class is the label, else 0, of the `rows` [n] of features [T, D']: [n] float64."""
    device = next(probe.parameters()).device
    classes = torch.cat([probe(features[part].to(device)).argmax(1).cpu() for part in rows.split(CHUNK)])
    return (classes == labels[rows]).double().numpy()


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    recipe: Recipe,
    seed: int,
    after_epoch: Callable[[], object] = int,
) -> dict[str, tuple[np.ndarray, str]]:
    """Hits [T] on the test images of the best probe, and in words which: "last" layer, "last four", and "best".

    Of an encoder with fewer blocks, as many as there are: "last three". after_epoch() is called when a probe has seen
    all images once.

    Deviation D5: every tenth training image chooses between the probes; the paper does not say what did. Features are
    those of unchanged images; the paper trains its probe on random crops and flips.
    """
    every, tested = torch.arange(len(train)), torch.arange(len(test))
    chooses = every % HELD_OUT == 0
    scores: dict[Choice, float] = {}
    hits: dict[str, tuple[np.ndarray, str]] = {}
    for name, sweep in recipe.sweep.of(recipe.optimizer, train.shape[1]).items():
        layers = sweep[0].layers
        x = inputs(train, layers)
        for choice in sweep:
            probe = train_probe(x, train_labels, every[~chooses], choice, recipe, seed, after_epoch)
            scores[choice] = float(correct(probe, x, train_labels, every[chooses]).mean())
        best = max(sweep, key=lambda choice: scores[choice])
        probe = train_probe(x, train_labels, every, best, recipe, seed, after_epoch)
        hits[name] = correct(probe, inputs(test, layers), test_labels, tested), str(best)
    layers = max(scores, key=lambda choice: scores[choice]).layers
    hits["best"] = hits[SEVERAL.get(layers, "last")]
    return hits


def nearest_neighbours(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, device: torch.device
) -> np.ndarray:
    """Hits [T] of a vote of the 20 nearest training images by cosine, weighted with exp(cosine / 0.07).

    On the last layer. The usual protocol of this family; I-JEPA's paper has no such number.
    """
    known, asked = (F.normalize(inputs(x, 1).to(device), dim=1) for x in (train, test))
    classes, hits = int(train_labels.max()) + 1, []
    for part, labels in zip(asked.split(CHUNK), test_labels.split(CHUNK), strict=True):
        cosine, rows = (part @ known.t()).topk(min(NEIGHBOURS, len(known)))
        weights = (cosine / TEMPERATURE).exp().cpu()
        votes = torch.zeros(len(part), classes).scatter_add_(1, train_labels[rows.cpu()], weights)
        hits.append(votes.argmax(1) == labels)
    return torch.cat(hits).double().numpy()


def low_shot(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int) -> np.ndarray:
    """Hits [T] of a logistic regression on 1 % of the training labels, at least one of each class; last layer.

    Deviation D11: the paper fine-tunes I-JEPA on them.
    """
    rng = np.random.default_rng(derive_seed(seed, "low shot"))
    labels = train_labels.numpy()
    rows = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == k))[: max(1, round(LOW_SHOT_SHARE * (labels == k).sum()))]
            for k in np.unique(labels)
        ]
    )
    x = inputs(train, 1)[rows]
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are the protocol
        model.fit(((x - mean) / std).numpy(), labels[rows])
    classes = model.predict(((inputs(test, 1) - mean) / std).numpy())
    return np.asarray(classes == test_labels.numpy(), np.float64)
