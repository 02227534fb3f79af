"""What a planner asks of a world model: the present and the goal as latents, and the cost of sequences of actions.

Both families of models stand behind the same two questions. Shapes: E episodes, S samples, H model steps, A numbers of
a model's action (those of `frame_skip` steps of the world), C x H x W pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.ac.losses import energy, roll_out
from vjepa.ac.predictor import ACPredictor
from vjepa.ac.recipe import RecipeModel, to_input
from vjepa.ac.worlds.world import World
from vjepa.jepa import normalise
from vjepa.statistics import IMAGENET
from vjepa.vit import VideoTransformer

MEAN, STD = IMAGENET[3].mean.tolist(), IMAGENET[3].std.tolist()


class ACModel(nn.Module):
    """A frozen encoder and the predictor that learns on it."""

    def __init__(self, encoder: VideoTransformer, predictor: ACPredictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder.requires_grad_(False), predictor


class Imagination(Protocol):
    """A world model as planners see it."""

    def encode(self, pictures: Tensor) -> Tensor:
        """pictures [E, C, H, W] uint8 -> latents [E, ...]."""
        ...

    def dream(self, latents: Tensor, states: Tensor, actions: Tensor) -> Iterator[Tensor]:
        """R rollouts: latents [R, ...], states [R, .], actions [R, H, A] -> H times the latents that follow."""
        ...

    def apart(self, latents: Tensor, goals: Tensor) -> Tensor:
        """How far latents [E, S, ...] are from goals [E, ...], [E, S]."""
        ...


@dataclass(frozen=True)
class RecipeImagination:
    """The end-to-end recipe: distances are mean squares."""

    model: RecipeModel
    side: int

    def encode(self, pictures: Tensor) -> Tensor:
        """-> [E, D]."""
        return self.model.encoder(to_input(resized(pictures, self.side)))

    def dream(self, latents: Tensor, states: Tensor, actions: Tensor) -> Iterator[Tensor]:
        """-> H times [R, D]; the states are not asked for."""
        return self.model.predict(latents, actions)

    def apart(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Mean squared difference."""
        return (latents - goals[:, None]).square().mean(-1)


@dataclass(frozen=True)
class ACImagination:
    """V-JEPA 2-AC: a frozen encoder of single pictures, and a predictor whose states are advanced by arithmetic."""

    model: ACModel
    world: World
    side: int

    def encode(self, pictures: Tensor) -> Tensor:
        """-> patches [E, P, D], normalised."""
        return encode_pictures(self.model.encoder, pictures, self.side)

    def dream(self, latents: Tensor, states: Tensor, actions: Tensor) -> Iterator[Tensor]:
        """-> H times [R, P, D]."""
        return roll_out(self.model.predictor, latents, actions, told_states(self.world, states, actions))

    def apart(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Mean absolute difference: the energy of V-JEPA 2-AC."""
        return energy(latents, goals[:, None])


def in_colour(pictures: Tensor) -> Tensor:
    """Pictures [..., 3, H, W] as they are; dot and walls as channels, [..., 2, H, W], become red and black on white."""
    if pictures.shape[-3] == 3:
        return pictures
    dot, walls = pictures.unbind(-3)
    white = 255 - walls
    return torch.stack([white, torch.minimum(white, 255 - dot), torch.minimum(white, 255 - dot)], -3)


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures [..., C, H, W] uint8 -> [..., C, side, side]: averages where they shrink, bilinear where they grow."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    flat = pictures.reshape(-1, *pictures.shape[-3:]).float()
    if side < pictures.shape[-1]:
        found = F.adaptive_avg_pool2d(flat, side)
    else:
        found = F.interpolate(flat, (side, side), mode="bilinear")
    return found.reshape(*pictures.shape[:-2], side, side)


def normalised_pictures(pictures: Tensor, side: int) -> Tensor:
    """Pictures [..., C, H, W] uint8 -> [..., 3, side, side], less ImageNet's mean, by its deviation."""
    x = resized(in_colour(pictures), side).float() / 255
    mean, std = (x.new_tensor(part)[:, None, None] for part in (MEAN, STD))
    return (x - mean) / std


@torch.no_grad()
def encode_pictures(encoder: VideoTransformer, pictures: Tensor, side: int) -> Tensor:
    """Single pictures [..., 3, H, W] uint8 -> patches [..., P, D], normalised, no gradient.

    Each picture is doubled into a clip of a tubelet's length: the encoder never sees motion here. Source: V-JEPA 2,
    section 3.1; reference code: app/vjepa_droid/train.py.
    """
    frames = normalised_pictures(pictures, side).reshape(-1, 3, side, side)
    tokens = normalise(encoder(frames[:, :, None].expand(-1, -1, encoder.tubelet, -1, -1)))
    return tokens.reshape(*pictures.shape[:-3], *tokens.shape[1:])


def told_states(world: World, states: Tensor, actions: Tensor) -> Iterator[Tensor]:
    """What the predictor is told of the state before each action: states [R, .], actions [R, H, A] -> H times [R, .].

    Deviation D9: advanced as if there were no walls, as the arm's is without a look at the table. In about [-1, 1].
    """
    for action in actions.unbind(1):
        yield world.scaled(states)
        for part in action.split(world.action_size, -1):
            states = world.advance(states, part)


def cost_of(
    imagination: Imagination, present: Tensor, state: Tensor, goal: Tensor, objective: str
) -> Callable[[Tensor], Tensor]:
    """The cost of actions [E, S, H, A] -> [E, S]: how far what is imagined is from the goal.

    present, goal [E, ...] latents, state [E, .]. objective: "sum" over all states, the present too (Two Rooms), or
    "last".
    """

    def cost(actions: Tensor) -> Tensor:
        shape = actions.shape[:2]
        latents, states = (part.repeat_interleave(shape[1], 0) for part in (present, state))
        total = imagination.apart(present[:, None], goal).expand(shape)
        for dreamt in imagination.dream(latents, states, actions.flatten(0, 1)):
            distance = imagination.apart(dreamt.unflatten(0, shape), goal)
            total = distance if objective == "last" else total + distance
        return total

    return cost
