"""Three ways to read numbers from frozen tokens: their mean, what they say one by one, and an attentive probe.

Shapes: n clips, N tokens, D width, S numbers to read. Source: V-JEPA, section 4 and appendix D (attentive probe); the
ridge regressions are ours: a mean over tokens drowns what single tokens hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.seeding import derive_seed
from vjepa.jepa import Schedule, parameter_groups, set_schedule
from vjepa.probe import AttentiveProbe, new_probe

READOUTS = ("mean of tokens", "256 components of all tokens", "attentive probe")
COMPONENTS = 256
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of ridge regressions, in clips
HELD_OUT = 10  # one in so many training clips chooses the penalty
CLIP_NORM, WEIGHT_DECAY_END = 1.0, 1e-6
CHUNK = 256

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How an attentive probe is trained: passes over the clips, clips per update, rate and decay at first, where."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    depth: int
    heads: int
    device: torch.device = torch.device("cpu")


def read_all(train: Tensor, wanted: Tensor, test: Tensor, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Predictions [n', S] for test tokens [n', N, D] by each of READOUTS, learnt from [n, N, D] and wanted [n, S]."""
    mean, std = wanted.mean(0), wanted.std(0).clamp(min=1e-6)
    y = (wanted - mean) / std
    pooled = ridge(train.mean(1), y, test.mean(1))
    components = ridge(*_components(train.flatten(1), y, test.flatten(1)))
    probe = train_probe(train, y, F.mse_loss, y.shape[1], recipe, seed)
    return dict(zip(READOUTS, (part * std + mean for part in (pooled, components, apply(probe, test))), strict=True))


def fit(predicted: Tensor, true: Tensor) -> np.ndarray:
    """A number for each clip [n] float64 whose mean is R² in percent, averaged over the S numbers: [n, S] twice.

    R² = 1 - sum of squared errors / sum of squared distances from the mean; 0 for whoever says the mean.
    """
    error = (predicted - true).double().square()
    spread = (true - true.mean(0)).double().square().mean(0)
    return (100 * (1 - (error / spread).mean(1))).numpy()


# --- ridge regressions ------------------------------------------------------------------------------------------------


def ridge(train: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Predictions [n', S] of a ridge regression on standardised features [n, D]; y [n, S] standardised.

    Every tenth clip chooses the penalty; then all clips are used.
    """
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    x, x_test = ((part - mean).double() / std for part in (train, test))
    chooses = torch.arange(len(x)) % HELD_OUT == 0
    errors = [
        (_solved(x[~chooses], y[~chooses], penalty, x[chooses]) - y[chooses]).square().mean() for penalty in PENALTIES
    ]
    return _solved(x, y, PENALTIES[int(torch.stack(errors).argmin())], x_test).float()


def _solved(x: Tensor, y: Tensor, penalty: float, asked: Tensor) -> Tensor:
    """Ridge without an intercept beside the mean of y."""
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return asked @ torch.linalg.solve(gram, x.T @ (y - y.mean(0)).to(x.dtype)) + y.mean(0)


def _components(train: Tensor, y: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first principal components of train [n, D], at most 256 and n - 1, of both; from the n x n products."""
    mean = train.mean(0)
    x = train - mean
    values, vectors = torch.linalg.eigh((x @ x.T).double())
    count = min(COMPONENTS, len(x) - 1)
    scale = values[-count:].clamp(min=1e-9).sqrt()
    axes = x.T @ (vectors[:, -count:] / scale).float()
    return x @ axes, y, (test - mean) @ axes


# --- the attentive probe ----------------------------------------------------------------------------------------------


def train_probe(tokens: Tensor, y: Tensor, loss: Loss, outputs: int, recipe: Recipe, seed: int) -> AttentiveProbe:
    """An attentive probe with so many outputs on tokens [n, N, D] and what `loss` compares with its outputs, [n, ...].

    AdamW; the rate falls to 0 as half a cosine, weight decay to 1e-6; gradients are clipped at 1. Nothing is augmented.
    Source: V-JEPA, appendix D; reference code.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "attentive probe"))
    probe = new_probe(tokens.shape[2], recipe.heads, outputs, recipe.depth, recipe.depth == 1, generator)
    probe.to(recipe.device)
    batch = min(recipe.batch_size, len(tokens))
    per_epoch = len(tokens) // batch
    schedule = probe_schedule(recipe, recipe.epochs * per_epoch)
    optimizer = torch.optim.AdamW(parameter_groups([probe]))
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(tokens), generator=generator)
        for k in range(per_epoch):
            rows = order[k * batch : (k + 1) * batch]
            update = epoch * per_epoch + k
            probe_step(probe, optimizer, tokens[rows], y[rows], loss, schedule, update, recipe.device)
    return probe.eval()


def probe_schedule(recipe: Recipe, updates: int) -> Schedule:
    """Half a cosine to 0, without a warm-up."""
    lr, decay = recipe.lr, recipe.weight_decay
    return Schedule(updates, 0, 1.0, lr, lr, 0.0, decay, min(decay, WEIGHT_DECAY_END), 1.0, 1.0)


def probe_step(
    probe: AttentiveProbe,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    y: Tensor,
    loss: Loss,
    schedule: Schedule,
    update: int,
    device: torch.device,
) -> None:
    """One update of a probe on frozen tokens [b, N, D] and y [b, ...]."""
    set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
    optimizer.zero_grad(set_to_none=True)
    loss(probe(tokens.to(device)), y.to(device)).backward()
    torch.nn.utils.clip_grad_norm_(probe.parameters(), CLIP_NORM)
    optimizer.step()


@torch.no_grad()
def apply(probe: AttentiveProbe, tokens: Tensor) -> Tensor:
    """The outputs [n, K] of a probe on tokens [n, N, D], on the CPU."""
    device = probe.linear.weight.device
    return torch.cat([probe(part.to(device)).cpu() for part in tokens.split(CHUNK)])
