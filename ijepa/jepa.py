"""The method: targets, predictions, their distance, the moving target encoder, and the schedules.

Shapes: B images, N patches, D width, E context masks, M target masks, Kc and Kt patches of a context and a target.
Source: paper, section 3 and appendix A.1; reference code: src/train.py, src/utils/schedulers.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa.masks import Masks
from ijepa.predictor import Predictor, initialise_predictor, repeat_chunks
from ijepa.vit import VisionTransformer, gather_tokens, initialise

TARGET_EPS = 1e-5


class JEPA(nn.Module):
    """Encoder, predictor and target encoder; the last begins as a copy of the first and has no gradient."""

    def __init__(self, encoder: VisionTransformer, predictor: Predictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)


def new_jepa(encoder: VisionTransformer, predictor: Predictor, generator: torch.Generator) -> JEPA:
    """The three networks at the initialisation of the released training. Consumes `generator`."""
    initialise(encoder, generator)
    initialise_predictor(predictor, generator)
    return JEPA(encoder, predictor)


# --- targets and predictions ------------------------------------------------------------------------------------------


def normalise(tokens: Tensor) -> Tensor:
    """Layer norm over the last axis without gain and bias, eps 1e-5: what the loss compares with."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=TARGET_EPS)


def select(tokens: Tensor, masks: Masks) -> Tensor:
    """tokens [B, N, D] -> [M*E*B, Kt, D] at the targets, in the row order of the predictions."""
    return repeat_chunks(gather_tokens(tokens, masks.target), len(masks.target), len(masks.context))


@torch.no_grad()
def targets(target_encoder: VisionTransformer, images: Tensor) -> Tensor:
    """What is to be predicted: the target encoder on full images [B, C, H, W] -> [B, N, D], normalised, no gradient.

    The tokens have passed two layer norms: the encoder's own with its gain and bias, and one without.
    """
    return normalise(target_encoder(images))


def predict(model: JEPA, images: Tensor, masks: Masks) -> Tensor:
    """images [B, C, H, W] -> predictions [M*E*B, Kt, D] from the context patches alone; with gradient."""
    return model.predictor(model.encoder(images, masks.context), masks.context, masks.target)


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 with beta 1, the mean over rows, patches and channels. Scalar.

    Source: reference code. The text has the squared L2 distance summed over the patches of a block.
    """
    return F.smooth_l1_loss(prediction, target)


# --- the moving target ------------------------------------------------------------------------------------------------


@torch.no_grad()
def update_target(target_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """theta_bar <- m theta_bar + (1 - m) theta for every parameter."""
    torch._foreach_lerp_(list(target_encoder.parameters()), list(encoder.parameters()), 1 - momentum)


# --- schedules --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Learning rate, weight decay and target momentum of every update, counted from 0.

    updates: of the whole training. stretch: the schedules are laid out for `stretch` times as many and cut.
    """

    updates: int
    warmup: int
    stretch: float
    lr_start: float
    lr: float
    lr_end: float
    weight_decay: float
    weight_decay_end: float
    momentum: float
    momentum_end: float

    @property
    def total(self) -> int:
        """T: the updates the schedules are laid out for."""
        return int(self.stretch * self.updates)

    def lr_at(self, update: int) -> float:
        """Linear warm-up, then half a cosine. The counter is raised before its use: update 0 has k = 1."""
        k = update + 1
        if k < self.warmup:
            return self.lr_start + k / self.warmup * (self.lr - self.lr_start)
        progress = (k - self.warmup) / max(1, self.total - self.warmup)
        return max(self.lr_end, self.lr_end + (self.lr - self.lr_end) * _half_cosine(progress))

    def weight_decay_at(self, update: int) -> float:
        """Half a cosine from start to end, not beyond the end. The text says linear."""
        value = self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * _half_cosine(
            (update + 1) / self.total
        )
        if self.weight_decay_end >= self.weight_decay:
            return min(value, self.weight_decay_end)
        return max(value, self.weight_decay_end)

    def momentum_at(self, update: int) -> float:
        """Linear."""
        return self.momentum + update * (self.momentum_end - self.momentum) / (self.updates * self.stretch)


def _half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Two groups a module: what decays, and biases and 1-D tensors, which do not. The mask token decays."""
    groups: list[dict[str, Any]] = []
    for decays in (True, False):
        for module in modules:
            parts = [p for name, p in module.named_parameters() if (p.ndim > 1 and "bias" not in name) == decays]
            groups.append({"params": parts, "decays": decays})
    return groups


def new_optimizer(model: JEPA) -> torch.optim.AdamW:
    """AdamW with torch's default betas and eps; learning rate and weight decay come from `set_schedule`."""
    return torch.optim.AdamW(parameter_groups([model.encoder, model.predictor]), fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Before an update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
