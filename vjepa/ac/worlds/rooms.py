"""Two rooms and a door: Two Rooms of EB-JEPA (arXiv 2602.03604) and Wall of DINO-WM (arXiv 2411.04983).

Coordinates are pixels, x = column, y = row; pixel centres lie at whole numbers. Shapes: B episodes or trajectories,
T states. state (x, y) [..., 2], layout (x of the wall, y of the door) [..., 2], action (dx, dy) [..., 2].
The world where data are made stops a dot that would hit a wall; the one where plans are tested pushes it off the wall.
Source: facebookresearch/eb_jepa and gaoyuezhou/dino_wm, whose code made the published numbers; first in PLDM
(arXiv 2502.14819).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common import eager
from vjepa.ac.worlds import sweep
from vjepa.ac.worlds.sampling import truncated_normal, uniform, von_mises
from vjepa.ac.worlds.world import generator_of

SIZE = 65
LOW, HIGH = 4, 60  # the border lines, on both axes
DOOR = 4  # half the height of the door
RADIUS = 4.5
STEP_MEAN, STEP_STD, STEP_LOW, STEP_HIGH = 1.0, 0.4, 0.2, 1.8
CONCENTRATION = 5.0  # of the change of direction from step to step
DOOR_STD = 1.4
CLEARANCE = 0.3  # at least so far from a wall after a push
START_EDGE = 0.01


@dataclass(frozen=True)
class Rooms:
    """One variant. wall_x, door_y: inclusive ranges of whole numbers that a layout is drawn from.

    half: of the wall's thickness, in pixels to each side of its middle column. gain: pixels per unit of action.
    has_noise: whether the push off a wall is random, or half a pixel along both axes. is_rgb: white with a red dot, or
    the two channels dot and wall.
    """

    name: str
    wall_x: tuple[int, int] = (32, 32)
    door_y: tuple[int, int] = (18, 18)
    half: int = 1
    dot_std: float = 1.3
    gain: float = 1.0
    has_noise: bool = True
    is_rgb: bool = False
    cross_share: float = 0.35
    state_size: int = 2
    action_size: int = 2
    radius: float = RADIUS
    still: float = RADIUS / 4  # ours: a step shorter than this is standing still

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        return 3 if self.is_rgb else 2, SIZE, SIZE

    # --- layouts, starts and goals ------------------------------------------------------------------------------------

    def layouts(self, count: int, generator: torch.Generator) -> Tensor:
        """Walls and doors [count, 2], each of the layouts equally likely."""
        parts = [
            torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)
            for low, high in (self.wall_x, self.door_y)
        ]
        return torch.stack(parts, -1).float()

    def episode(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Start and goal in different rooms, two standard deviations of the dot away from every wall."""
        generator = generator_of(seed, "episode")
        layout = self.layouts(1, generator)[0]
        u = torch.rand(5, generator=generator)
        margin, wall = 2 * self.dot_std, float(layout[0])
        low, high = LOW + margin, HIGH - margin
        faces = wall - self.half - margin, wall + self.half + margin
        left = torch.stack([low + u[0] * (faces[0] - low), low + u[1] * (high - low)])
        right = torch.stack([faces[1] + u[2] * (high - faces[1]), low + u[3] * (high - low)])
        start, goal = (left, right) if u[4] < 0.5 else (right, left)
        return start, goal, layout

    # --- data ---------------------------------------------------------------------------------------------------------

    def trajectories(self, count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Walks for training: states [count, steps + 1, 2], actions [count, steps, 2], layouts [count, 2].

        A share of them is led through the door. Consumes `generator`, on whose device all is made.
        """
        layout = self.layouts(count, generator)
        start = self._starts(layout, generator)
        turn = uniform(0, 2 * math.pi, (count,), generator)
        actions = walk(turn, steps, generator)
        through, through_start = self._through_door(layout, steps, generator)
        is_through = torch.rand(count, generator=generator, device=generator.device) < self.cross_share
        actions = torch.where(is_through[:, None, None], through, actions)
        state = torch.where(is_through[:, None], through_start, start)
        # Some hundred small operations a step: on a GPU they are made one, on a CPU the compiler would take longer.
        step = _compiled(self) if state.device.type == "cuda" else self.step_stopping
        states = [state]
        for t in range(steps):
            state = step(state, actions[:, t], layout)
            states.append(state)
        return torch.stack(states, 1), actions, layout

    def random_actions(self, episodes: int, steps: int, generator: torch.Generator) -> Tensor:
        """[episodes, steps, 2]: the walk of the training data."""
        return walk(uniform(0, 2 * math.pi, (episodes,), generator), steps, generator)

    def _starts(self, layout: Tensor, generator: torch.Generator) -> Tensor:
        """Anywhere between the borders, but not in the wall: from there, x is drawn again in one of the rooms."""
        count = len(layout)
        x, y, again, side = (torch.rand(count, generator=generator, device=generator.device) for _ in range(4))
        x, y = LOW + x * (HIGH - LOW), LOW + y * (HIGH - LOW)
        wall, door = layout.unbind(-1)
        left = LOW + again * (wall - self.half - LOW)
        right = wall + self.half + again * (HIGH - wall - self.half)
        is_inside = ((x - wall).abs() <= self.half) & ((y - door).abs() > DOOR)
        return torch.stack([torch.where(is_inside, torch.where(side < 0.5, left, right), x), y], -1)

    def _through_door(self, layout: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions [B, steps, 2] that meet a point in the door, and where they start [B, 2].

        One walk away from that point is turned round to lead to it, a second one, in the opposite direction, goes on;
        half of the whole is walked backwards.
        """
        count, device = len(layout), layout.device
        wall, door = layout.unbind(-1)
        x = uniform(wall - self.half, wall + self.half, (count,), generator)
        y = truncated_normal(door, DOOR_STD, door - DOOR, door + DOOR, (count,), generator)
        met = torch.randint(1, steps + 1, (count,), generator=generator, device=device)
        angle = math.pi + uniform(-math.pi / 4, math.pi / 4, (count,), generator)
        away, onwards = walk(angle, steps, generator), walk(angle + math.pi, steps, generator)
        t = torch.arange(steps, device=device)
        backwards = met[:, None] - 1 - t
        is_before = backwards >= 0
        index = torch.where(is_before, backwards, -backwards)[..., None].expand(-1, -1, 2)
        actions = torch.where(is_before[..., None], -away.gather(1, index), onwards.gather(1, index))
        is_reversed = torch.rand(count, generator=generator, device=device) < 0.5
        actions = torch.where(is_reversed[:, None, None], -actions.flip(1), actions)
        met = torch.where(is_reversed, steps - met, met)
        before = (self.gain * actions * (t < met[:, None])[..., None]).sum(1)
        start = torch.stack([x, y], -1) - before
        return actions, start.clamp(LOW + START_EDGE, HIGH - START_EDGE)

    def step_stopping(self, state: Tensor, action: Tensor, layout: Tensor) -> Tensor:
        """The next state [B, 2] in the world of the data: a step that touches a border or the wall is not made."""
        p, q = state, state + self.gain * action
        is_stopped = torch.zeros(len(p), dtype=torch.bool, device=p.device)
        for line in (LOW, HIGH):
            is_stopped |= (torch.sign(p - line) * torch.sign(q - line) <= 0).any(-1)
        wall, door = layout.unbind(-1)
        for face in (wall - self.half, wall + self.half):
            is_across = torch.sign(p[:, 0] - face) * torch.sign(q[:, 0] - face) < 0
            is_stopped |= is_across & ((_meet(p, q, 0, face) - door).abs() > DOOR)
        for sign in (-1, 1):
            is_stopped |= self._meets_jamb(p, q, wall, door, sign)
        return torch.where(is_stopped[:, None], p, q)

    # --- the world of the test ----------------------------------------------------------------------------------------

    def step(self, state: Tensor, action: Tensor, layout: Tensor, noise: Tensor) -> Tensor:
        """The next state [E, 2]: at a wall, the point where the step meets it, and a push away from it.

        noise [E, 2] of a standard normal; without `has_noise` it is not looked at.
        """
        p, q = state, state + self.gain * action
        push = 0.5 * noise if self.has_noise else torch.full_like(p, 0.5)
        wall, door = layout.unbind(-1)
        left = torch.where(wall > p[:, 0], torch.full_like(wall, LOW), wall + self.half)
        right = torch.where(wall > p[:, 0], wall - self.half, torch.full_like(wall, HIGH))
        has_door = wall > p[:, 0]  # on the right side; else on the left
        inf = torch.full_like(p[:, 0], torch.inf)

        hits, distances = [], []  # of two equally near, that of the rows counts, as in the published code
        for axis, lines in ((0, (left, right)), (1, (LOW, HIGH))):
            at, is_hit = torch.zeros_like(p), torch.zeros_like(has_door)
            for k, line in enumerate(lines):
                line = torch.as_tensor(line, dtype=p.dtype, device=p.device).expand_as(wall)
                other = _meet(p, q, axis, line)
                is_across = torch.sign(p[:, axis] - line) * torch.sign(q[:, axis] - line) <= 0
                if axis == 0:
                    is_door = (has_door if k else ~has_door) & ((other - door).abs() <= DOOR)
                    is_across &= ~is_door
                point = torch.stack([line, other] if axis == 0 else [other, line], -1)
                at = torch.where((is_across & ~is_hit)[:, None], point, at)
                is_hit |= is_across
            hits.append((axis, at))
            distances.append(torch.where(is_hit, (p - at).norm(dim=-1), inf))
        is_vertical = distances[0] < distances[1]
        is_hit = torch.minimum(*distances) < torch.inf

        off_wall, off_border = (_pushed(p, at, push, axis) for axis, at in hits)
        found = torch.where(is_vertical[:, None], off_wall, off_border)
        low = torch.stack([left, torch.full_like(left, LOW)], -1)
        high = torch.stack([right, torch.full_like(right, HIGH)], -1)
        found = torch.where(found <= low, low + CLEARANCE, found)
        found = torch.where(found >= high, high - CLEARANCE, found)
        after = torch.where(is_hit[:, None], found, q)
        for sign in (-1, 1):  # a jamb stands before every other wall
            at = torch.stack([_meet(p, q, 1, door + sign * DOOR), door + sign * DOOR], -1)
            is_jamb = self._meets_jamb(p, q, wall, door, sign)
            after = torch.where(is_jamb[:, None], _pushed(p, at, push, 1), after)
        return after

    def _meets_jamb(self, p: Tensor, q: Tensor, wall: Tensor, door: Tensor, sign: int) -> Tensor:
        """Whether steps p -> q leave the door through its lower (-1) or upper (1) end in y."""
        line = door + sign * DOOR
        is_outwards = (sign * (p[:, 1] - line) < 0) & (sign * (q[:, 1] - line) > 0)
        return is_outwards & ((_meet(p, q, 1, line) - wall).abs() <= self.half)

    # --- pictures and the audit ---------------------------------------------------------------------------------------

    def render(self, state: Tensor, layout: Tensor) -> Tensor:
        """Pictures [..., C, 65, 65], uint8: dot and walls as channels, or in colour."""
        pixels = torch.arange(SIZE, device=state.device, dtype=state.dtype)
        x, y = (torch.exp(-((pixels - state[..., k, None]) ** 2) / (2 * self.dot_std**2)) for k in (0, 1))
        dot = ((255 * y)[..., :, None] * x[..., None, :]).to(torch.uint8)  # [..., row, column], rounded down
        walls = self.walls(layout).expand(dot.shape)
        if not self.is_rgb:
            return torch.stack([dot, 255 * walls.to(torch.uint8)], -3)
        white = torch.full_like(dot, 255)
        colours = torch.stack([white, white - dot, white - dot], -3)
        return torch.where(walls[..., None, :, :], torch.zeros_like(colours), colours)

    def walls(self, layout: Tensor) -> Tensor:
        """Where there is wall, [..., 65, 65]: borders of one pixel, and the middle wall with its door."""
        pixels = torch.arange(SIZE, device=layout.device)
        is_border = (pixels == LOW) | (pixels == HIGH)
        wall, door = layout[..., 0, None, None], layout[..., 1, None, None]
        in_wall = (pixels - wall).abs() <= self.half
        in_door = (pixels[:, None] - door).abs() <= DOOR
        return (in_wall & ~in_door) | is_border | is_border[:, None]

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """A step without walls, [..., 2]."""
        return state + self.gain * action

    def scaled(self, state: Tensor) -> Tensor:
        """From pixels to [-1, 1] between the borders."""
        return (state - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)

    def to_pixels(self, state: Tensor) -> Tensor:
        """Column and row of the picture, [..., 2]."""
        return state

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        """Pixels between two dots, [...]."""
        return (state - goal).norm(dim=-1)

    def crosses(self, before: Tensor, after: Tensor, layout: Tensor) -> Tensor:
        """Whether a step [..., 2] -> [..., 2] goes through the middle wall or over a border, [...]."""
        wall, door = layout.unbind(-1)
        inf, zero = torch.full_like(wall, torch.inf), torch.zeros_like(wall)
        boxes = (
            (wall - self.half, -inf, wall + self.half, door - DOOR),
            (wall - self.half, door + DOOR, wall + self.half, inf),
            (-inf, -inf, zero + LOW, inf),
            (zero + HIGH, -inf, inf, inf),
            (-inf, -inf, inf, zero + LOW),
            (-inf, zero + HIGH, inf, inf),
        )
        corners = torch.stack([torch.stack(box, -1) for box in boxes], -2)  # [..., 6, 4]
        return sweep.crosses(before, after, corners[..., :2], corners[..., 2:])


@functools.cache
def _compiled(rooms: Rooms) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return eager.compiled("a step of the rooms", rooms.step_stopping, dynamic=False)


def walk(angle: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Actions [B, steps, 2] that begin in direction angle [B], in radians, and turn a little from step to step."""
    shape = len(angle), steps
    turns = von_mises(CONCENTRATION, shape, generator)
    turns[:, 0] = angle
    length = truncated_normal(STEP_MEAN, STEP_STD, STEP_LOW, STEP_HIGH, shape, generator)
    angles = turns.cumsum(1)
    return length[..., None] * torch.stack([angles.cos(), angles.sin()], -1)


def _meet(p: Tensor, q: Tensor, axis: int, line: Tensor) -> Tensor:
    """The other coordinate [B] where the lines p -> q meet `line` [B] on `axis`; that of p if they run along it."""
    d = q - p
    is_flat = d[:, axis] == 0
    share = torch.where(is_flat, 0, (line - p[:, axis]) / torch.where(is_flat, 1, d[:, axis]))
    return p[:, 1 - axis] + share * d[:, 1 - axis]


def _pushed(p: Tensor, at: Tensor, push: Tensor, axis: int) -> Tensor:
    """The point `at` of a wall [B, 2] and a push, whose part along `axis` leads back to the side of p."""
    signs = torch.ones_like(p)
    signs[:, axis] = torch.sign(p[:, axis] - at[:, axis])
    folded = push.clone()
    folded[:, axis] = push[:, axis].abs()
    return at + signs * folded


TWO_ROOMS = Rooms("two-rooms")
TWO_ROOMS_RANDOM = Rooms("two-rooms-random", wall_x=(20, 44), door_y=(10, 54))
# Deviation D10: the released walks are a file; how many of them are led through the door is not said.
WALL = Rooms("wall", door_y=(10, 10), half=3, dot_std=1.7, gain=2.0, has_noise=False, is_rgb=True)
