"""What else could be the target. The method is `train.micro_step`; nothing here is needed for it.

Shapes: B images, N patches, D width of a token, P patch side.
Source: paper, table 7 (pixels); the encoder in place of its moving average, with and without gradient: ours.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ijepa.jepa import JEPA, distance, normalise, predict, select, targets
from ijepa.masks import Masks

Step = Callable[[JEPA, Tensor, list[Tensor], list[Tensor]], list[Tensor]]


def online_tokens(model: JEPA, images: Tensor) -> Tensor:
    """The encoder's own tokens [B, N, D] in place of those of its moving average, no gradient."""
    return targets(model.encoder, images)


def attached_tokens(model: JEPA, images: Tensor) -> Tensor:
    """The encoder's own tokens [B, N, D] with gradient: nothing is left to hold a collapse up."""
    return normalise(model.encoder(images))


def pixel_tokens(model: JEPA, images: Tensor) -> Tensor:
    """The pixels of each patch, normalised: images [B, C, H, W] -> [B, N, C*P*P], no gradient. Table 7."""
    return normalise(F.pixel_unshuffle(images, model.encoder.patch).flatten(2).transpose(1, 2))


TOKENS = {"online": online_tokens, "attached": attached_tokens, "pixels": pixel_tokens}
TARGETS = ("ema", *TOKENS)


def step_towards(target: str) -> Step:
    """`train.micro_step` with one of TOKENS as the target."""
    tokens_of = TOKENS[target]

    def ablated_step(model: JEPA, images: Tensor, context: list[Tensor], target: list[Tensor]) -> list[Tensor]:
        masks = Masks(context, target)
        tokens = tokens_of(model, images)
        return [distance(predict(model, images, masks), select(tokens, masks)), tokens]

    return ablated_step
