"""PointMaze in the U-shaped maze, with the physics of gymnasium-robotics and a renderer of its own.

Shapes: E episodes, B trajectories. state (x, y, vx, vy) [..., 4] in cells, origin in the middle of the maze, y upwards;
action: force [..., 2] in [-1, 1]; a layout has no numbers.
MuJoCo's pictures come at 24 a second on software rendering, these at thousands: walls from the maze's map, a green dot.
Source: DINO-WM (arXiv 2411.04983), appendix A.1. Deviation D5: origin in the middle and a goal radius of 0.45 are
those of gymnasium-robotics; D4RL's maze, which DINO-WM used, has its origin in a corner and 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vjepa.ac.worlds import sweep
from vjepa.ac.worlds.sampling import uniform
from vjepa.ac.worlds.world import generator_of

SIZE = 64  # pixels of a picture
CELLS = ((1, 1, 1, 1, 1), (1, 0, 0, 0, 1), (1, 1, 1, 0, 1), (1, 0, 0, 0, 1), (1, 1, 1, 1, 1))  # 1: wall; row 0 above
ROWS, COLUMNS = len(CELLS), len(CELLS[0])
DOT = 0.1  # radius of the ball in the physics
DRAWN = 0.2  # and of its picture, in cells
SPEED = 5.226  # largest start velocity, cells a second
SECONDS = 0.01  # of a step
WALL_COLOUR, FLOOR_COLOUR, DOT_COLOUR = (90, 110, 160), (235, 230, 220), (20, 170, 60)


class PointMaze:
    """The world. One simulator serves all episodes, since a state says all that the physics needs.

    Raises ValueError if gymnasium-robotics is not there.
    """

    name = "pointmaze"
    state_size = 4
    action_size = 2
    picture_shape = (3, SIZE, SIZE)
    radius = 0.45
    still = 0.05

    def __init__(self) -> None:
        self._simulator: Any = None

    @property
    def simulator(self) -> Any:
        """The point of gymnasium-robotics, made when it is first needed: its import takes a second."""
        if self._simulator is None:
            try:
                import gymnasium
                import gymnasium_robotics  # type: ignore[import-untyped]
            except ImportError as error:
                raise ValueError(
                    f"task pointmaze needs gymnasium-robotics ({error}): pip install gymnasium-robotics"
                ) from error
            gymnasium.register_envs(gymnasium_robotics)
            maze: Any = gymnasium.make("PointMaze_UMaze-v3").unwrapped
            self._simulator = maze.point_env
            self._simulator.reset(seed=0)
        return self._simulator

    def episode(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two random states of the U; the start moves, the goal is a place."""
        generator = generator_of(seed, "episode")
        start, goal = self._states(1, generator)[0], self._states(1, generator)[0]
        goal[2:] = 0
        return start, goal, torch.zeros(0)

    def trajectories(self, count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random forces: states [count, steps + 1, 4], actions [count, steps, 2], layouts [count, 0]."""
        state = self._states(count, generator)
        actions = self.random_actions(count, steps, generator)
        layout = torch.zeros(count, 0, device=generator.device)
        states = [state]
        for t in range(steps):
            state = self.step(state, actions[:, t], layout, torch.zeros_like(actions[:, t]))
            states.append(state)
        return torch.stack(states, 1), actions, layout

    def random_actions(self, episodes: int, steps: int, generator: torch.Generator) -> Tensor:
        """[episodes, steps, 2], uniform in [-1, 1]."""
        return uniform(-1, 1, (episodes, steps, 2), generator)

    def step(self, state: Tensor, action: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
        """The next state [E, 4], a hundredth of a second later; noise is not looked at."""
        point, found = self.simulator, []
        for row, force in zip(state.cpu().double().numpy(), action.cpu().double().numpy(), strict=True):
            point.set_state(row[:2], row[2:])
            point.step(np.clip(force, -1, 1))
            found.append(np.concatenate([point.data.qpos, point.data.qvel]))
        return torch.from_numpy(np.stack(found)).to(state)

    def render(self, state: Tensor, layout: Tensor) -> Tensor:
        """Pictures [..., 3, 64, 64], uint8, y upwards; the edge of the dot is one pixel soft."""
        unit = COLUMNS / SIZE
        at = (torch.arange(SIZE, device=state.device, dtype=state.dtype) + 0.5) * unit
        ground = torch.tensor(_ground(), dtype=state.dtype, device=state.device)
        dx = at - COLUMNS / 2 - state[..., 0, None]
        dy = ROWS / 2 - at - state[..., 1, None]
        distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
        alpha = ((DRAWN - distance) / unit + 0.5).clamp(0, 1)[..., None, :, :]
        dot = ground.new_tensor(DOT_COLOUR)[:, None, None]
        return (alpha * dot + (1 - alpha) * ground).round().to(torch.uint8)

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """A hundredth of a second of free flight, [..., 4]: the place moves on, the force is not known to change it."""
        return torch.cat([state[..., :2] + SECONDS * state[..., 2:], state[..., 2:]], -1)

    def scaled(self, state: Tensor) -> Tensor:
        """Places by half the width of the U, velocities by the largest at a start."""
        return state / state.new_tensor([1.5, 1.5, SPEED, SPEED])

    def to_pixels(self, state: Tensor) -> Tensor:
        """Column and row of the picture, [..., 2]."""
        cells = torch.stack([COLUMNS / 2 + state[..., 0], ROWS / 2 - state[..., 1]], -1)
        return cells * (SIZE / COLUMNS) - 0.5

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        """Cells between two places, [...]."""
        return (state[..., :2] - goal[..., :2]).norm(dim=-1)

    def crosses(self, before: Tensor, after: Tensor, layout: Tensor) -> Tensor:
        """Whether the middle of the ball goes through a wall, [...]: the physics does not allow it."""
        corners = torch.tensor([_corner(row, column) for row, column in _cells(1)], device=before.device)
        return sweep.crosses(before[..., :2], after[..., :2], corners.to(before), (corners + 1).to(before))

    def _states(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 4]: a place in a free cell, the ball whole inside, and a velocity up to SPEED on each axis."""
        free = torch.tensor([_corner(row, column) for row, column in _cells(0)], device=generator.device)
        cell = torch.randint(len(free), (count,), generator=generator, device=generator.device)
        place = free[cell] + uniform(DOT, 1 - DOT, (count, 2), generator)
        return torch.cat([place, uniform(-SPEED, SPEED, (count, 2), generator)], -1)


def _cells(kind: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(ROWS) for column in range(COLUMNS) if CELLS[row][column] == kind]


def _corner(row: int, column: int) -> tuple[float, float]:
    """The lower left corner of a cell."""
    return column - COLUMNS / 2, ROWS / 2 - row - 1


def _ground() -> np.ndarray:
    """The maze without the dot, [3, SIZE, SIZE]."""
    rows = np.arange(SIZE) * ROWS // SIZE
    cells = np.array(CELLS)[rows][:, rows]
    return np.where(cells[..., None] == 1, WALL_COLOUR, FLOOR_COLOUR).transpose(2, 0, 1)
