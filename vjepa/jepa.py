"""The method: targets, predictions, their distance, the moving target encoder, and the schedules of both generations.

Shapes: B clips, N tokens, D width, M kinds of masks, Kc and Kt tokens of a context and a target.
Source: V-JEPA, section 3 and appendix C; V-JEPA 2, section 2; reference code: app/vjepa/train.py, src/utils/.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.masks import Masks
from vjepa.predictor import Predictor, initialise_predictor
from vjepa.vit import VideoTransformer, gather_tokens, initialise

TARGET_EPS = 1e-5
DECAYS = ("cosine", "linear")


class JEPA(nn.Module):
    """Encoder, predictor and target encoder; the last begins as a copy of the first and has no gradient."""

    def __init__(self, encoder: VideoTransformer, predictor: Predictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)


def new_jepa(encoder: VideoTransformer, predictor: Predictor, generator: torch.Generator) -> JEPA:
    """The three networks at the initialisation of the released trainings. Consumes `generator`."""
    is_scaled = encoder.positions == "rotary"
    initialise(encoder, generator, list(encoder.blocks) if is_scaled else ())
    initialise_predictor(predictor, generator)
    return JEPA(encoder, predictor)


# --- targets and predictions ------------------------------------------------------------------------------------------


def normalise(tokens: Tensor) -> Tensor:
    """Layer norm over the last axis without gain and bias, eps 1e-5: what the loss compares with."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=TARGET_EPS)


@torch.no_grad()
def targets(target_encoder: VideoTransformer, clips: Tensor) -> Tensor:
    """What is to be predicted: the target encoder on full clips [B, C, F, H, W] -> [B, N, D], normalised, no gradient.

    The tokens have passed two layer norms: the encoder's own with its gain and bias, and one without.
    """
    return normalise(target_encoder(clips))


def select(tokens: Tensor, masks: Masks) -> list[Tensor]:
    """tokens [B, N, D] at the targets of each kind of masks, M of [B, Kt, D]."""
    return [gather_tokens(tokens, mask) for mask in masks.target]


def predict(model: JEPA, clips: Tensor, masks: Masks) -> list[Tensor]:
    """clips [B, C, F, H, W] -> predictions [B, Kt, D] for each of M kinds of masks, from their contexts alone.

    V-JEPA has a mask token for each kind; V-JEPA 2 one for all, since there is one length of clips. With gradient.
    """
    has_own_tokens = model.predictor.positions == "sincos"
    return [
        model.predictor(model.encoder(clips, context), context, target, kind if has_own_tokens else 0)
        for kind, (context, target) in enumerate(zip(masks.context, masks.target, strict=True))
    ]


def distance(predictions: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """L1: the mean over clips, tokens and channels, then over the kinds of masks. Scalar. Source: V-JEPA, Eq. 1."""
    losses = [F.l1_loss(ours, theirs) for ours, theirs in zip(predictions, wanted, strict=True)]
    return torch.stack(losses).mean()


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
    decay: how the learning rate falls in the last `anneal` updates of the layout, as half a cosine or linearly; between
    warm-up and those it is constant. clip: largest norm of a gradient, from update `clip_from` on.
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
    decay: str = "cosine"
    anneal: int | None = None  # all updates after the warm-up
    clip: float | None = None
    clip_from: int = 0

    @property
    def total(self) -> int:
        """T: the updates the schedules are laid out for."""
        return int(self.stretch * self.updates)

    def lr_at(self, update: int) -> float:
        """Warm-up, constant, fall. The counter is raised before its use: update 0 has k = 1."""
        k = update + 1
        if k < self.warmup:
            return self.lr_start + k / self.warmup * (self.lr - self.lr_start)
        anneal = self.total - self.warmup if self.anneal is None else self.anneal
        progress = max(0.0, (k - self.total + anneal) / max(1, anneal))
        if self.decay == "linear":
            return self.lr + progress * (self.lr_end - self.lr)
        return max(self.lr_end, self.lr_end + (self.lr - self.lr_end) * _half_cosine(progress))

    def weight_decay_at(self, update: int) -> float:
        """Half a cosine from start to end, not beyond the end. V-JEPA's text says linear; V-JEPA 2's is constant."""
        share = _half_cosine((update + 1) / max(1, self.total))
        value = self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * share
        if self.weight_decay_end >= self.weight_decay:
            return min(value, self.weight_decay_end)
        return max(value, self.weight_decay_end)

    def momentum_at(self, update: int) -> float:
        """Linear; V-JEPA 2's is constant."""
        return self.momentum + update * (self.momentum_end - self.momentum) / (self.updates * self.stretch)

    def clip_at(self, update: int) -> float | None:
        """The largest norm of a gradient, or none."""
        return self.clip if update >= self.clip_from else None


def _half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Two groups a module: what decays, and biases and 1-D tensors, which do not. Mask tokens decay."""
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


def clip_gradients(model: JEPA, most: float) -> None:
    """Shortens the gradients of encoder and predictor, each by itself, to the norm `most` where they are longer."""
    for module in (model.encoder, model.predictor):
        nn.utils.clip_grad_norm_(module.parameters(), most)
