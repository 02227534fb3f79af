"""Where digits will be: maps of their middles read from predicted tokens, the further ahead the harder.

Shapes: n clips, T time steps of U frames, 8 x 8 cells, D width. A cell of the map is a token of its time step.
Source: EB-JEPA's video example, in its manner: there a convolutional network rolls out frame by frame, here a predictor
is asked for all later steps at once, and average precision is that of each clip, not of all clips together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.seeding import derive_seed
from vjepa.config import Config
from vjepa.digits import MAP, Digits
from vjepa.features import encode
from vjepa.jepa import JEPA, predict, targets
from vjepa.masks import past_and_future
from vjepa.vit import Grid

SEEN = 1  # time steps: two frames, as in the example
EPOCHS, BATCH, LR = 10, 64, 3e-3


def fits(grid: Grid) -> bool:
    """Whether tokens are the cells of the map."""
    return grid[1:] == (MAP, MAP) and grid[0] > SEEN


def measure(
    models: Mapping[str, JEPA], train: Digits, test: Digits, config: Config, device: torch.device
) -> dict[str, np.ndarray]:
    """Average precision in percent of each test clip [n] by what is measured and of whom ("" for the first model).

    For each model a linear map of its tokens is learnt on true tokens, and tested on those of later steps that it
    predicts ("expected", and at each step), on true ones ("seen"), and on those of the last step seen ("copied").
    """
    found: dict[str, np.ndarray] = {}
    for place, (name, model) in enumerate(models.items()):
        end = f", {name}" if place else ""
        read = encode(partial(targets, model.target_encoder), train, config, device, f"{name}, digits, train")
        head = train_head(read, cells(train, config.tubelet), config.seed)
        real = encode(partial(targets, model.target_encoder), test, config, device, f"{name}, digits, test")
        expected = encode(partial(_expected, model), test, config, device, f"{name}, digits, expected")
        border = SEEN * MAP * MAP
        copied = real[:, :border][:, -MAP * MAP :].repeat(1, model.encoder.grid[0] - SEEN, 1)
        truth = cells(test, config.tubelet)[:, border:]
        parts = {"seen": real[:, border:], "expected": expected, "copied": copied}
        tables = {word: by_depth(apply(head, tokens), truth) for word, tokens in parts.items()}
        found |= {f"digits {word}{end}": table.mean(1) for word, table in tables.items()}
        found |= {
            f"digits expected {(k + 1) * config.tubelet} frames ahead{end}": tables["expected"][:, k]
            for k in range(truth.shape[1] // MAP**2)
        }
    return found


def train_head(tokens: Tensor, cells: Tensor, seed: int) -> nn.Module:
    """A linear map from tokens [n, N, D] to the chance of each frame that a digit's middle lies there, [n, N, U]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "digit head"))
    head = nn.Linear(tokens.shape[2], cells.shape[2])
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=0.0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(tokens), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(head(tokens[rows]), cells[rows]).backward()
            optimizer.step()
    return head


@torch.no_grad()
def apply(head: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Scores [n, N, U]."""
    return torch.cat([head(part) for part in tokens.split(BATCH)])


def by_depth(scores: Tensor, cells: Tensor) -> np.ndarray:
    """Average precision in percent of each clip and time step: scores and cells [n, K*64, U] -> [n, K]."""
    shape = (len(scores), -1, MAP * MAP * scores.shape[2])
    flat, truth = scores.reshape(shape).numpy(), cells.reshape(shape).numpy() > 0
    rows = [[average_precision(*step) for step in zip(*clip, strict=True)] for clip in zip(flat, truth, strict=True)]
    return 100 * np.array(rows)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision at each true place, scores from high to low; equal scores in the order of their places.

    Raises ValueError if nothing is true.
    """
    if not truth.any():
        raise ValueError("average precision of no true place")
    right = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(right)[right] / (np.flatnonzero(right) + 1)).mean())


def cells(clips: Digits, tubelet: int) -> Tensor:
    """The maps of clips as tokens have them: [n, T*64, U]."""
    maps = torch.from_numpy(clips.maps).float()  # [n, F, 64]
    return maps.unflatten(1, (-1, tubelet)).transpose(2, 3).flatten(1, 2)


def _expected(model: JEPA, clips: Tensor) -> Tensor:
    """Predictions [b, N - seen, D] of all steps after the first."""
    masks = past_and_future(model.encoder.grid, SEEN, len(clips)).to(clips.device)
    return predict(model, clips, masks)[0]
