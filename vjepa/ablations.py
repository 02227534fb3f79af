"""What else could be the target. The method is `train.micro_step`; nothing here is needed for it.

Shapes: B clips, N tokens, D width of a token. Source: V-JEPA, table 1 (pixels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vjepa.jepa import JEPA, distance, normalise, predict, select
from vjepa.masks import Masks
from vjepa.vit import tubelets

TARGETS = ("ema", "pixels")

Step = Callable[[JEPA, Tensor, list[Tensor], list[Tensor]], list[Tensor]]


@torch.no_grad()
def pixel_tokens(model: JEPA, clips: Tensor) -> Tensor:
    """The pixels of each tubelet, normalised: clips [B, C, F, H, W] -> [B, N, C*U*P*P]."""
    return normalise(tubelets(clips, model.encoder.tubelet, model.encoder.patch))


def pixel_step(model: JEPA, clips: Tensor, context: list[Tensor], target: list[Tensor]) -> list[Tensor]:
    """`train.micro_step` with pixels as the target: a predictor of pixels of equal size."""
    masks = Masks(context, target)
    tokens = pixel_tokens(model, clips)
    return [distance(predict(model, clips, masks), select(tokens, masks)), tokens]
