"""What a planner asks of a world: states as arrays, one step of many episodes at once, pictures, and the test.

Shapes: E episodes, S numbers of a state, A of an action, L of a layout (walls, doors); C x H x W pictures, uint8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.seeding import derive_seed


@dataclass(frozen=True)
class Episodes:
    """start, goal [E, S]; layout [E, L]; seeds: one an episode, from which alone its random numbers come."""

    start: Tensor
    goal: Tensor
    layout: Tensor
    seeds: tuple[int, ...]

    def select(self, index: slice) -> Episodes:
        """Some of them."""
        return Episodes(self.start[index], self.goal[index], self.layout[index], self.seeds[index])


class World(Protocol):
    """A world without a memory of its own: all there is to know stands in state and layout."""

    @property
    def name(self) -> str:
        """Its task."""
        ...

    @property
    def state_size(self) -> int:
        """S."""
        ...

    @property
    def action_size(self) -> int:
        """A."""
        ...

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        ...

    @property
    def radius(self) -> float:
        """Nearer than this, the goal is reached."""
        ...

    @property
    def still(self) -> float:
        """A step shorter than this is standing still; ours."""
        ...

    def episode(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """start [S], goal [S] and layout [L] of one test episode."""
        ...

    def step(self, state: Tensor, action: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
        """state [E, S], action [E, A], layout [E, L], noise [E, 2] of a standard normal -> the next state [E, S]."""
        ...

    def render(self, state: Tensor, layout: Tensor) -> Tensor:
        """state [..., S], layout [..., L] -> pictures [..., C, H, W], uint8."""
        ...

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """Where a step [..., A] from [..., S] would lead if there were no walls, [..., S]."""
        ...

    def scaled(self, state: Tensor) -> Tensor:
        """States [..., S] in about [-1, 1], for a network."""
        ...

    def to_pixels(self, state: Tensor) -> Tensor:
        """Column and row of the picture for states [..., S], [..., 2]."""
        ...

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        """[..., S], [..., S] -> [...], in the world's unit of length; below `radius` the goal is reached."""
        ...

    def crosses(self, before: Tensor, after: Tensor, layout: Tensor) -> Tensor:
        """Whether a step [..., S] -> [..., S] goes through a wall, [...]."""
        ...

    def trajectories(self, count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Training data: states [count, steps + 1, S], actions [count, steps, A], layouts [count, L]."""
        ...

    def random_actions(self, episodes: int, steps: int, generator: torch.Generator) -> Tensor:
        """[episodes, steps, A]: the random policy, without a look at the state."""
        ...


def new_episodes(world: World, seeds: tuple[int, ...]) -> Episodes:
    """Test episodes, each from its own seed."""
    drawn = [world.episode(seed) for seed in seeds]
    start, goal, layout = (torch.stack(part) for part in zip(*drawn, strict=True))
    return Episodes(start, goal, layout, seeds)


def seeds_of_test(count: int) -> tuple[int, ...]:
    """The seeds of a test's episodes: the same for every run, as in the published protocols.

    Deviation D7: published episodes come from one generator, in which each depends on those before it.
    """
    return tuple(derive_seed(0, "test episode", k) for k in range(count))


def generator_of(seed: int, *keys: int | str) -> torch.Generator:
    """A generator on the CPU for one purpose of one episode."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))
