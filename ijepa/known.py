"""How much of what is hidden follows from the context at all: a ridge regression in the place of the predictor.

With one draw of masks for all images, it tells the target tokens from what the encoder makes of the context:

    R² = 1 - sum |y - told(x)|² / sum |y - mean(y)|²

y: target tokens of the target encoder at all hidden places. x: 256 principal components of all context tokens side by
side. mean(y): that of each place over the images that the regression learns from. Sums are over test images, places,
channels and draws of masks. 0 and less: no more than where a patch is; 1: all of it. A low number on the encoder before
its training says that images have little to predict; a high one after it, on a task whose probes have become worse,
that the tokens of all places have come to say the same.
Shapes: T images, n images to learn from, Kc and Kt patches of a context and of all targets, D width. Source: ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.record import sample
from common.seeding import derive_seed
from ijepa.build import mask_config, new_model
from ijepa.config import Config
from ijepa.data import Images
from ijepa.features import encode
from ijepa.jepa import JEPA, targets
from ijepa.masks import sample_masks
from ijepa.readout import COMPONENTS, UNTRAINED, Thinned, grouped, principal_axes

DRAWS = 2  # of masks
FITTED, TESTED = 1000, 500  # images, at most
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the ridge regression, beside the mean diagonal of x.T @ x
HELD_OUT = 10  # one in so many images to learn from chooses the penalty
KNOWN = "known from the context"
PROTOCOL = "known-from-context"


def measure(
    config: Config, model: JEPA, train: Images, test: Images, device: torch.device, has_controls: bool
) -> dict[str, dict[str, Any]]:
    """R² in percent after the training and, with controls, of the same networks before it, as a record has them."""
    models = {KNOWN: model}
    if has_controls:
        models[f"{KNOWN}, {UNTRAINED}"] = new_model(config, train.channels).to(device).eval()
    found = {name: known_share(one, train, test, config, device, name) for name, one in models.items()}
    return {name: sample(grouped(values), PROTOCOL) for name, values in found.items()}


def known_share(
    model: JEPA, train: Images, test: Images, config: Config, device: torch.device, name: str
) -> np.ndarray:
    """A number for each test image [T] float64 whose mean is R² in percent; 0 where all targets are constants."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "known masks"))
    masks_of = mask_config(config, model.encoder.grid)
    draws = [sample_masks(masks_of, 1, k, generator).to(device) for k in range(DRAWS)]
    places = [(masks.context[0], torch.cat(masks.target, 1).unique()) for masks in draws]

    def seen_and_hidden(images: Tensor) -> Tensor:
        tokens = targets(model.target_encoder, images)
        parts = [
            (model.encoder(images, [context.expand(len(images), -1)]), tokens[:, hidden]) for context, hidden in places
        ]
        return torch.cat([part.flatten(1) for pair in parts for part in pair], 1)

    few = Thinned(train, FITTED), Thinned(test, TESTED)
    numbers = [
        encode(seen_and_hidden, part, config, device, f"{name}, {word}")[0]
        for part, word in zip(few, ("train", "test"), strict=True)
    ]
    width = model.encoder.size.width
    sizes = [width * len(part.flatten()) for pair in places for part in pair]
    parts = [part.split(sizes, 1) for part in numbers]
    sums = [errors(*(part[k] for part in parts for k in (2 * draw, 2 * draw + 1))) for draw in range(DRAWS)]
    error, spread = (np.sum(one, axis=0) for one in zip(*sums, strict=True))
    if spread.mean() <= 1e-9 * width * sum(len(hidden) for _, hidden in places):  # a normalised token has a square of D
        return np.zeros(len(error))
    return 100 * (1 - error / spread.mean())


def errors(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors [T] of the ridge regression on test images, and of the mean over the images learnt from.

    x [n, Kc*D] and y [n, Kt*D], learnt from; x_test [T, Kc*D] and y_test [T, Kt*D]. Every tenth image to learn from
    chooses the penalty; then all are used.
    """
    centre, axes = principal_axes(x, COMPONENTS)
    seen, asked = (x - centre) @ axes, (x_test - centre) @ axes
    chooses = torch.arange(len(x)) % HELD_OUT == 0
    choices = [
        float(_squares(_told(seen[~chooses], y[~chooses], seen[chooses], penalty) - y[chooses]).sum())
        for penalty in PENALTIES
    ]
    told = _told(seen, y, asked, PENALTIES[int(np.argmin(choices))])
    return _squares(told - y_test), _squares(y_test - y.mean(0))


def _told(x: Tensor, y: Tensor, asked: Tensor, penalty: float) -> Tensor:
    """Ridge regression beside the means: x [n, c], y [n, K] and asked [T, c] -> [T, K].

    The share of each image in each answer comes first, [T, n]: there are far more numbers to tell than images.
    """
    centre, mean = x.mean(0), y.mean(0)
    x, asked = (x - centre).double(), (asked - centre).double()
    gram = x.T @ x
    gram.diagonal().add_(penalty * gram.diagonal().mean().clamp(min=1e-12))
    return (asked @ torch.linalg.solve(gram, x.T)).float() @ (y - mean) + mean


def _squares(x: Tensor) -> np.ndarray:
    """x [T, K] -> the sum of squares of each row, [T] float64."""
    return x.square().sum(1).double().numpy()
