"""AtariARI's linear probes: what a frozen encoder knows of the memory of a game, measured as F1.

Shapes: T frames, D features, V variables (bytes of memory), 256 classes (the values of a byte), E test episodes.
Source: Anand et al. 2019; reference code: atariari/benchmark/{episodes,probe,utils,categorization}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from common.seeding import derive_seed
from ijepa.games import Variable
from ijepa.play import Play

BATCH = 64  # frames per update, and the length that an episode must exceed
CLASSES = 256
LEAST_ENTROPY = 0.6  # nats
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.8  # of the episodes, up to which
LR, LEAST_LR, ADAM_EPS = 3e-4, 1e-5, 1e-5
LR_FACTOR, LR_PATIENCE, STOP_PATIENCE = 0.2, 5, 15  # epochs without a better validation accuracy


# --- episodes and their splits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Frames of one split: rows [T] of all frames, grouped by episode with lengths [E], and labels [T, V]."""

    rows: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def batches(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One epoch: positions [K, 64] in `rows` and their episodes [K, 64], with K = floor(T / 64).

        An episode is drawn uniformly, then a frame in it: frames of short episodes come more often. The test too is
        such a draw and not a sweep. Source: reference code.
        """
        count = len(self.rows) // BATCH
        episode = rng.integers(len(self.lengths), size=(count, BATCH))
        starts = np.cumsum(self.lengths) - self.lengths
        return starts[episode] + (rng.random((count, BATCH)) * self.lengths[episode]).astype(np.int64), episode


@dataclass(frozen=True)
class ProbeData:
    """The three splits and the variables that passed the entropy filter."""

    train: Part
    validation: Part
    test: Part
    variables: tuple[Variable, ...]


def entropy(values: np.ndarray) -> float:
    """Of the empirical distribution of whole numbers [T], in nats."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())


def split(plays: Sequence[Play], variables: Sequence[Variable]) -> ProbeData:
    """Episodes longer than 64 frames, split 70 / 10 / 20 by their place in the list, player after player.

    Variables with less than 0.6 nats over all of them are dropped; so are test frames that are the same, byte by byte,
    as a train or validation frame, and test episodes that are left with one frame. Raises ValueError if a split has no
    episode, or the test not one batch.
    """
    ram, digest = (np.concatenate([getattr(play, name) for play in plays]) for name in ("ram", "digest"))
    first = np.cumsum([0, *(len(play.ram) for play in plays)])
    episodes = [
        np.arange(first[k] + start, first[k] + end)
        for k, play in enumerate(plays)
        for start, end in zip(play.starts, [*play.starts[1:], len(play.ram)], strict=True)
        if end - start > BATCH
    ]
    ends = [int(share * len(episodes)) for share in (0.0, TRAIN_SHARE, VALIDATION_SHARE, 1.0)]
    groups = [episodes[a:b] for a, b in pairwise(ends)]
    if not all(groups):
        raise ValueError(f"{len(episodes)} episodes of more than {BATCH} steps are too few to split; play more frames")
    every = np.concatenate(episodes)
    kept = tuple(v for v in variables if entropy(ram[every, v.index]) >= LEAST_ENTROPY)
    known = np.unique(digest[np.concatenate([*groups[0], *groups[1]])])
    groups[2] = [rows for rows in (rows[~np.isin(digest[rows], known)] for rows in groups[2]) if len(rows) > 1]
    if sum(map(len, groups[2])) <= BATCH or not kept:
        raise ValueError(f"no {BATCH} test frames or no variable is left; play more frames")
    columns = [v.index for v in kept]
    train, validation, test = (
        Part(np.concatenate(group), np.array([len(rows) for rows in group]), ram[np.concatenate(group)][:, columns])
        for group in groups
    )
    return ProbeData(train, validation, test, kept)


# --- probes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """Of test frames: predicted and true bytes [n, V], and the episode [n] of each frame."""

    predicted: np.ndarray
    truth: np.ndarray
    episode: np.ndarray


class Plateau:
    """When to lower the learning rate and when to stop, by the validation accuracy of one variable."""

    def __init__(self) -> None:
        self.lr, self.is_done = LR, False
        self._best_for_lr = self._best_for_stop = -np.inf
        self._bad_for_lr = self._bad_for_stop = 0

    def update(self, accuracy: float) -> None:
        """After an epoch, as torch's ReduceLROnPlateau (relative threshold 1e-4) and the authors' EarlyStopping do."""
        if accuracy > self._best_for_lr * (1 + 1e-4) or self._best_for_lr < 0:
            self._best_for_lr, self._bad_for_lr = accuracy, 0
        else:
            self._bad_for_lr += 1
        if self._bad_for_lr > LR_PATIENCE:
            self.lr, self._bad_for_lr = max(LEAST_LR, LR_FACTOR * self.lr), 0
        if accuracy > self._best_for_stop:
            self._best_for_stop, self._bad_for_stop = accuracy, 0
        else:
            self._bad_for_stop += 1
        self.is_done |= self._bad_for_stop >= STOP_PATIENCE


class Probes:
    """One linear classifier of 256 classes per variable, each with its own Adam; calculated as one matrix product."""

    def __init__(self, features: int, variables: int, generator: torch.Generator) -> None:
        """torch's own initialisation of a linear layer. Consumes `generator`."""
        bound = features**-0.5
        weight = torch.empty(variables, CLASSES, features).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(variables, CLASSES).uniform_(-bound, bound, generator=generator)
        self.weights = [nn.Parameter(w) for w in weight]
        self.biases = [nn.Parameter(b) for b in bias]
        groups = [{"params": pair} for pair in zip(self.weights, self.biases, strict=True)]
        self.optimizer = torch.optim.Adam(groups, lr=LR, eps=ADAM_EPS, fused=True)

    @torch.no_grad()
    def logits(self, x: Tensor, active: Sequence[int]) -> Tensor:
        """x [B, D] -> [B, active variables, 256]."""
        weight, bias = (torch.cat([group[v] for v in active]) for group in (self.weights, self.biases))
        return torch.addmm(bias, x, weight.t()).unflatten(1, (len(active), CLASSES))

    @torch.no_grad()
    def step(self, x: Tensor, labels: Tensor, active: Sequence[int]) -> None:
        """One update on x [B, D], labels [B, active]: cross-entropy, whose gradient is the softmax minus the truth."""
        gradient = self.logits(x, active).softmax(-1)
        gradient.scatter_add_(2, labels[..., None], torch.full((*labels.shape, 1), -1.0))
        gradient /= len(x)
        by_weight = (gradient.flatten(1).t() @ x).unflatten(0, (len(active), CLASSES))
        by_bias = gradient.sum(0)
        for parameter in (*self.weights, *self.biases):
            parameter.grad = None
        for k, v in enumerate(active):
            self.weights[v].grad, self.biases[v].grad = by_weight[k], by_bias[k]
        self.optimizer.step()


def train_probes(
    features: Callable[[Part], Tensor], data: ProbeData, epochs: int, seed: int, on_epoch: Callable[[], object]
) -> Predictions:
    """Trains the probes on frozen features(part) [T, D] and returns the predictions of the last weights on the test.

    Source: reference code; the weights at the end count, not those of the best validation.
    """
    rng = np.random.default_rng(derive_seed(seed, "probe batches"))
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe weights"))
    inputs = {name: features(getattr(data, name)) for name in ("train", "validation", "test")}
    labels = {name: torch.from_numpy(getattr(data, name).labels.astype(np.int64)) for name in inputs}
    probes = Probes(inputs["train"].shape[1], len(data.variables), generator)
    plateaus = [Plateau() for _ in data.variables]
    for _ in range(epochs):
        active = [v for v, plateau in enumerate(plateaus) if not plateau.is_done]
        if not active:
            break
        for positions in torch.from_numpy(data.train.batches(rng)[0]):
            probes.step(inputs["train"][positions], labels["train"][positions][:, active], active)
        positions = torch.from_numpy(data.validation.batches(rng)[0]).flatten()
        predicted = probes.logits(inputs["validation"][positions], active).argmax(-1)
        accuracies = (predicted == labels["validation"][positions][:, active]).double().mean(0)
        for v, accuracy in zip(active, accuracies.tolist(), strict=True):
            plateaus[v].update(accuracy)
            probes.optimizer.param_groups[v]["lr"] = plateaus[v].lr
        on_epoch()
    positions, episode = (torch.from_numpy(part).flatten() for part in data.test.batches(rng))
    every = list(range(len(data.variables)))
    predicted = torch.cat([probes.logits(inputs["test"][rows], every).argmax(-1) for rows in positions.split(1024)])
    return Predictions(predicted.numpy(), labels["test"][positions].numpy(), episode.numpy())


def majority(data: ProbeData) -> Predictions:
    """The control without an encoder: always the most frequent training value of each variable.

    Unlike the probes, it meets every test frame once. Source: reference code, atariari/methods/majority.py.
    """
    values = np.array([np.bincount(column, minlength=CLASSES).argmax() for column in data.train.labels.T])
    truth = data.test.labels.astype(np.int64)
    episode = np.repeat(np.arange(len(data.test.lengths)), data.test.lengths)
    return Predictions(np.broadcast_to(values, truth.shape), truth, episode)


# --- scores -----------------------------------------------------------------------------------------------------------


def counts(predictions: Predictions) -> np.ndarray:
    """[E, V, 3, 256]: per test episode, variable and byte: hits, predicted, true."""
    episodes = int(predictions.episode.max()) + 1
    variables = predictions.truth.shape[1]
    tables = np.zeros((3, episodes, variables, CLASSES))
    place = predictions.episode[:, None], np.arange(variables)[None]
    np.add.at(tables[1], (*place, predictions.predicted), 1)
    np.add.at(tables[2], (*place, predictions.truth), 1)
    np.add.at(tables[0], (*place, predictions.truth), predictions.predicted == predictions.truth)
    return tables.transpose(1, 2, 0, 3)


def weighted_f1(tables: np.ndarray) -> np.ndarray:
    """tables [..., 3, 256] of hits, predicted, true -> F1 [...], the mean over classes weighted by the true counts."""
    hits, predicted, true = np.moveaxis(tables, -2, 0)
    f1 = 2 * hits / np.maximum(predicted + true, 1)
    return (f1 * true).sum(-1) / np.maximum(true.sum(-1), 1)


def category_means(f1: np.ndarray, variables: Sequence[Variable]) -> dict[str, np.ndarray]:
    """f1 [..., V] -> the mean over the variables of each category [...]; one variable may count in two or none."""
    names = sorted({name for variable in variables for name in variable.categories})
    return {
        name: f1[..., [k for k, variable in enumerate(variables) if name in variable.categories]].mean(-1)
        for name in names
    }


def category_average(tables: np.ndarray, variables: Sequence[Variable]) -> np.ndarray:
    """The published score: tables [..., V, 3, 256] -> mean over categories of the mean over their variables [...]."""
    return np.mean(list(category_means(weighted_f1(tables), variables).values()), axis=0)


def influences(tables: np.ndarray, variables: Sequence[Variable]) -> np.ndarray:
    """One number for each test episode [E] whose mean is the score of all: score + (E - 1) (mean F_-e - F_-e).

    F_-e is the score without episode e. F1 is no mean over episodes; these jackknife values are, and their spread is
    that of the score, so that an interval over them is one over episodes.
    """
    score = category_average(tables.sum(0), variables)
    if len(tables) == 1:
        return score[None]
    without = category_average(tables.sum(0) - tables, variables)
    return score + (len(tables) - 1) * (without.mean() - without)


def bootstrap(tables: np.ndarray, variables: Sequence[Variable], resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of the score over resampled test episodes."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    picks = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), size=resamples)
    scores = [category_average(np.tensordot(pick, tables, 1), variables) for pick in picks]
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)
