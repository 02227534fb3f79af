"""TwoRoom as in stable-worldmodel, the world of LeWM (arXiv 2603.19312): 224 x 224 pixels, a wall with one door.

Shapes: E episodes, B trajectories. state (x, y) [..., 2] in pixels; layout [..., 1] is the y of the door's middle.
Source: galilai-group/stable-worldmodel: stable_worldmodel/envs/two_room, and docs/baselines.md for the test.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.ac.worlds import sweep
from vjepa.ac.worlds.sampling import uniform
from vjepa.ac.worlds.world import generator_of

SIZE = 224
BORDER, THICKNESS = 10, 4  # first pixel of the border lines, and their number
WALL, HALF = 112, 5
DOOR_HALF, DOOR_MARGIN = 14, 1.75
DOT = 7.0  # radius of the agent, and standard deviation of its picture
SPEED = 5.0  # pixels a step
PUSH = 0.5
FREE_LOW, FREE_HIGH = 14.0, 209.0  # starts and goals
WALK_LOW, WALK_HIGH = 14 + DOT, SIZE - 14 - DOT
NEAR_DOOR = 10.5
ACTION_NOISE, REPEAT = 2.0, 0.05
WALK, AHEAD = 92, 25  # steps of a walk that a test episode is cut from, and from its start to its goal


@dataclass(frozen=True)
class TwoRoom:
    """The world with a vertical wall and its door at a fixed height."""

    name: str = "tworoom-swm"
    door: float = 49.0
    state_size: int = 2
    action_size: int = 2
    picture_shape: tuple[int, int, int] = (3, SIZE, SIZE)
    radius: float = 16.0
    still: float = 4.0

    def episode(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two states of a walk of the expert, 25 steps apart. LeWM's own test has 100, and a budget of 150.

        Deviation D7: of a walk that is drawn for it, not of one that was learnt from.
        """
        generator = generator_of(seed, "episode")
        first = int(torch.randint(WALK - AHEAD + 1, (), generator=generator))
        states, _, layout = self.trajectories(1, first + AHEAD, generator)
        return states[0, first], states[0, -1], layout[0]

    def trajectories(self, count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """An expert with noise: states [count, steps + 1, 2], actions [count, steps, 2], layouts [count, 1].

        It walks to the door, then to the goal; at the goal, a new one is drawn, so that all are of one length.
        Deviation D6: the released data end an episode at its goal.
        """
        device = generator.device
        layout = torch.full((count, 1), self.door, device=device)
        state, goal = self._places(count, generator)
        states, actions = [state], []
        last = torch.zeros_like(state)
        for _ in range(steps):
            _, fresh = self._places(count, generator)
            goal = torch.where((self.distance(state, goal) < self.radius)[:, None], fresh, goal)
            noise = ACTION_NOISE * torch.randn(count, 2, generator=generator, device=device)
            wanted = (self._expert(state, goal) + noise).clamp(-1, 1)
            is_repeated = torch.rand(count, generator=generator, device=device) < REPEAT
            last = torch.where(is_repeated[:, None], last, wanted)
            state = self.step(state, last, layout, noise)
            states.append(state)
            actions.append(last)
        return torch.stack(states, 1), torch.stack(actions, 1), layout

    def _expert(self, state: Tensor, goal: Tensor) -> Tensor:
        """Unit vectors [B, 2] to the goal, or to the door where the wall is between."""
        door = state.new_tensor([WALL, self.door])
        is_other = (state[:, 0] < WALL) != (goal[:, 0] < WALL)
        is_far = (state - door).norm(dim=-1) > NEAR_DOOR
        target = torch.where((is_other & is_far)[:, None], door, goal)
        return torch.nn.functional.normalize(target - state, dim=-1)

    def random_actions(self, episodes: int, steps: int, generator: torch.Generator) -> Tensor:
        """[episodes, steps, 2], uniform in the square of allowed actions."""
        return uniform(-1, 1, (episodes, steps, 2), generator)

    def step(self, state: Tensor, action: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
        """The next state [E, 2]; noise is not looked at."""
        q = self.advance(state, action)
        is_left = state[:, 0] < WALL
        face = torch.where(is_left, WALL - HALF - DOT, WALL + HALF + DOT)
        is_beyond = torch.where(is_left, q[:, 0] > face, q[:, 0] < face)
        in_door = (q[:, 1] - layout[:, 0]).abs() <= DOOR_HALF - DOOR_MARGIN
        x = torch.where(is_beyond & ~in_door, face + torch.where(is_left, -PUSH, PUSH), q[:, 0])
        return torch.stack([x, q[:, 1]], -1)

    def render(self, state: Tensor, layout: Tensor) -> Tensor:
        """Pictures [..., 3, 224, 224], uint8: black walls on white, the agent red and soft at its edge."""
        pixels = torch.arange(SIZE, device=state.device, dtype=state.dtype)
        is_border = torch.zeros(SIZE, dtype=torch.bool, device=state.device)
        is_border[BORDER : BORDER + THICKNESS] = True
        is_border[SIZE - BORDER - THICKNESS : SIZE - BORDER] = True
        in_wall = (pixels - WALL).abs() <= HALF
        in_door = (pixels[:, None] - layout[..., 0, None, None]).abs() <= DOOR_HALF
        walls = (in_wall & ~in_door) | is_border | is_border[:, None]
        x, y = (torch.exp(-((pixels - state[..., k, None]) ** 2) / (2 * DOT**2)) for k in (0, 1))
        alpha = y[..., :, None] * x[..., None, :]  # [..., row, column]
        ground = torch.where(walls, 0.0, 255.0).to(alpha.dtype)
        red, rest = alpha * 255 + (1 - alpha) * ground, (1 - alpha) * ground
        return torch.stack([red, rest, rest], -3).to(torch.uint8)

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """A step without the middle wall, [..., 2]."""
        return (state + SPEED * action.clamp(-1, 1)).clamp(WALK_LOW, WALK_HIGH)

    def scaled(self, state: Tensor) -> Tensor:
        """From pixels to [-1, 1] over the picture."""
        return state / (SIZE / 2) - 1

    def to_pixels(self, state: Tensor) -> Tensor:
        """Column and row of the picture, [..., 2]."""
        return state

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        """Pixels between two agents, [...]."""
        return (state - goal).norm(dim=-1)

    def crosses(self, before: Tensor, after: Tensor, layout: Tensor) -> Tensor:
        """Whether the middle of the agent goes through the wall, [...]."""
        door = layout[..., 0]
        inf, left, right = torch.full_like(door, torch.inf), WALL - HALF, WALL + HALF
        low = torch.stack([torch.stack([torch.full_like(door, left), y], -1) for y in (-inf, door + DOOR_HALF)], -2)
        high = torch.stack([torch.stack([torch.full_like(door, right), y], -1) for y in (door - DOOR_HALF, inf)], -2)
        return sweep.crosses(before, after, low, high)

    def _places(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and goals [count, 2] in the free square; a start in the wall moves to the nearer room."""
        start, goal = (uniform(FREE_LOW, FREE_HIGH, (count, 2), generator) for _ in range(2))
        x = start[:, 0]
        is_inside = (x - WALL).abs() < HALF + DOT
        x = torch.where(is_inside, torch.where(x < WALL, WALL - HALF - DOT - PUSH, WALL + HALF + DOT + PUSH), x)
        return torch.stack([x, start[:, 1]], -1).clamp(WALK_LOW, WALK_HIGH), goal
