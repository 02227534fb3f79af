"""What a plan looks like: what happened, what was imagined, and the energy of the first action."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vjepa.ac.build import Model
from vjepa.ac.config import Config
from vjepa.ac.worlds.world import World


def show(model: Model, world: World, traces: Tensor, config: Config, folder: Path) -> None:
    """The pictures of a run."""
