"""What a world is to the agent, and what several worlds need.

Images [H, W, C] uint8; rewards are raw sums over repeated actions; actions as in `ActionSpace`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamerv3.spaces import ActionSpace, ObsSpace

Array = NDArray[Any]
IMAGE_SIZE = 64  # rows and columns, where no other is asked for


class WorldError(ValueError):
    """A world that this machine cannot make; the message is one line."""


@dataclass(frozen=True)
class Step:
    """What a world answers. is_terminal: the episode ended for good; is_last: it ended, also by a time limit.

    info: numbers of a finished episode for the log.
    """

    obs: Mapping[str, Array]
    reward: float = 0.0
    is_last: bool = False
    is_terminal: bool = False
    info: Mapping[str, float] | None = None


class World(Protocol):
    """One environment. `reset(seed)` makes an episode deterministic given its actions."""

    spaces: dict[str, ObsSpace]
    actions: ActionSpace

    def reset(self, seed: int) -> Step:
        """Start the episode `seed`."""

    def step(self, action: Array) -> Step:
        """One agent step, i.e. all repeats of the action."""

    def close(self) -> None:
        """Free what the world holds."""


def need(module: str, requirement: str) -> Any:
    """The imported module, or a line that says why not, and how to install it if it is not there at all."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        is_there = importlib.util.find_spec(module.split(".")[0]) is not None
        remedy = "" if is_there else f"; pip install {requirement}"
        raise WorldError(f"{module} cannot be imported ({error}){remedy}") from error


def rescale(action: Array, low: Array, high: Array) -> Array:
    """From [-1, 1], clipped, to [low, high]."""
    return low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)


def resized(image: Array, size: int) -> Array:
    """An image [H, W] or [H, W, 3] uint8, bilinear with Pillow's filter, as [size, size, ...]."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
