"""The losses of V-JEPA 2-AC: teacher forcing over the clip, and a short rollout of its own predictions.

Shapes: B clips, T frames, P patches a frame, D encoder width.
Source: V-JEPA 2, Eq. 2 to 4; reference code: app/vjepa_droid/train.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vjepa.ac.predictor import ACPredictor, Memory
from vjepa.jepa import normalise  # every target, and every prediction before it is used or compared


@dataclass(frozen=True)
class Predictions:
    """teacher_forced [B, (T - 1)*P, D]: frames 2 to T. rollout [B, steps*P, D]: frames 2 to steps + 1."""

    teacher_forced: Tensor
    rollout: Tensor


def predictions(predictor: ACPredictor, z: Tensor, actions: Tensor, states: Tensor, steps: int) -> Predictions:
    """z [B, T*P, D] normalised, actions [B, T - 1, A], states [B, T, .] or more frames of them.

    The rollout begins with the first teacher-forced prediction and goes on from [z_1, predictions so far] with the true
    states and actions; its gradient flows through the predictions. steps: at least 1.
    Deviation D1: the predicted frame 2 is fed, as the text has it; the code behind the released weights fed frame 3.
    """
    patches, frames = predictor.patches, actions.shape[1]
    forced = normalise(predictor(z[:, : frames * patches], actions, states[:, :frames]))
    rolled = [forced[:, :patches]]
    for step in range(1, steps):
        fed = torch.cat([z[:, :patches], *rolled], 1)
        predicted = normalise(predictor(fed, actions[:, : step + 1], states[:, : step + 1]))
        rolled.append(predicted[:, -patches:])
    return Predictions(forced, torch.cat(rolled, 1))


def ac_losses(predictor: ACPredictor, z: Tensor, actions: Tensor, states: Tensor, steps: int) -> dict[str, Tensor]:
    """Mean L1 distances over clips, tokens and channels of both kinds of prediction; the loss is their sum."""
    found = predictions(predictor, z, actions, states, steps)
    later = z[:, predictor.patches :]
    return {
        "loss_teacher_forcing": F.l1_loss(found.teacher_forced, later[:, : found.teacher_forced.shape[1]]),
        "loss_rollout": F.l1_loss(found.rollout, later[:, : found.rollout.shape[1]]),
    }


def roll_out(predictor: ACPredictor, z: Tensor, actions: Tensor, states: Iterable[Tensor]) -> Iterator[Tensor]:
    """Predictions of frames 2 to H + 1, each [B, P, D], from its own predecessor.

    z [B, P, D] normalised: the present; actions [B, H, A]; states: before each action, [B, .]. What was read once stays
    in a memory of keys and values.
    """
    memory = Memory()
    for action, state in zip(actions.unbind(1), states, strict=True):
        z = normalise(predictor.extend(z, action[:, None], state[:, None], memory))
        yield z


def energy(z: Tensor, goal: Tensor) -> Tensor:
    """The mean absolute difference [...] of latents [..., P, D], both normalised: what a plan makes small (Eq. 5)."""
    return (z - goal).abs().mean((-2, -1))
