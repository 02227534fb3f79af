"""The worlds by the name of their task."""

from __future__ import annotations

from collections.abc import Callable

from vjepa.ac.worlds.pointmaze import PointMaze
from vjepa.ac.worlds.rooms import TWO_ROOMS, TWO_ROOMS_RANDOM, WALL
from vjepa.ac.worlds.tworoom import TwoRoom
from vjepa.ac.worlds.world import World

WORLDS: dict[str, Callable[[], World]] = {
    "two-rooms": lambda: TWO_ROOMS,
    "two-rooms-random": lambda: TWO_ROOMS_RANDOM,
    "wall": lambda: WALL,
    "tworoom-swm": TwoRoom,
    "pointmaze": PointMaze,
}


def new_world(task: str) -> World:
    """The world of a task."""
    return WORLDS[task]()
