"""CarRacing: gymnasium's own physics, and a painter that draws each frame at the size in which it is looked at.

gymnasium paints every polygon of the track on 1000 x 800 pixels and shrinks them to 96 x 96. Here only the polygons in
view are painted, four times finer than they are shown, and averaged; the bar below is gymnasium's own.

Shapes: frames [96, 96, 3] uint8 RGB, whose rows 0 to 83 are the scene; actions [3]: steering in [-1, 1], gas and brake
in [0, 1]; polygons [N, vertices, 2] in metres.
Source: reference code, carracing/env.py; gymnasium, CarRacing-v3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it advertises itself on stdout
import pygame
from gymnasium.envs.box2d import car_racing
from gymnasium.envs.box2d.car_dynamics import (
    HULL_POLY1,
    HULL_POLY2,
    HULL_POLY3,
    HULL_POLY4,
    SIZE,
    WHEEL_R,
    WHEEL_W,
    WHEEL_WHITE,
)
from gymnasium.envs.box2d.car_racing import GRASS_DIM, PLAYFIELD, SCALE, STATE_H, STATE_W, WINDOW_H, WINDOW_W, ZOOM

from ha2018.env import preprocess

MAX_STEPS = 1000
SCENE_ROWS = 84  # of 96; the bar with the indicators is below
FINE = 4  # painted pixels per pixel of a frame, each way
SHIFT = 6  # fractional bits of painted coordinates
STRIPE = 1.2  # radians of a wheel's circumference that are white
Colour = tuple[int, int, int]


def _eight(vertices: Sequence[tuple[float, float]]) -> np.ndarray:
    """A polygon in metres with its last vertex repeated up to eight, so that all parts of the car fit one array."""
    return SIZE * np.array([*vertices, *[vertices[-1]] * (8 - len(vertices))])


WHEEL = _eight([(-WHEEL_W, WHEEL_R), (WHEEL_W, WHEEL_R), (WHEEL_W, -WHEEL_R), (-WHEEL_W, -WHEEL_R)])
HULL = [_eight(part) for part in (HULL_POLY1, HULL_POLY2, HULL_POLY3, HULL_POLY4)]


class Physics(car_racing.CarRacing):
    """gymnasium's environment as it is, but for its painter: `step` returns None in the place of a frame."""

    car: Any  # the types of these are too narrow there
    road: Any
    surf: Any

    def _render(self, mode: str) -> None:
        pass


class CarRacing:
    """CarRacing-v3 as one episode at a time: reward -0.1 a step and 1000 / tiles for each new tile, -100 off the field.

    Deviation D9: the camera turns with the hull; that of 2018 turned with the velocity, which differs in a slide.
    Deviation D10: edges are smooth, as gymnasium's are today; those of 2018 were painted at 96 x 96 without averaging.
    `reset(seed)` makes an episode deterministic given its actions.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self.max_steps = max_steps

    def reset(self, seed: int) -> None:
        """Start the episode `seed` on its own track. It may go on after its end, as it does in the data collection."""
        self.physics = Physics(lap_complete_percent=1.0)  # physics of its own, as if no other episode had been before
        self.physics.reset(seed=seed)
        self._painter: Painter | None = None
        self.steps = 0

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """One step of 1/50 s. Returns the reward and whether the episode is over: off the field, all tiles, time."""
        _, reward, terminated, _, _ = self.physics.step(action)
        self.steps += 1
        return float(reward), bool(terminated) or self.steps >= self.max_steps

    @property
    def painter(self) -> Painter:
        """The painter of this episode's track; an episode that nobody looks at has none."""
        if self._painter is None:
            self._painter = Painter(self.physics)
        return self._painter

    @property
    def frame(self) -> np.ndarray:
        """The frame as gymnasium shows it: [96, 96, 3] uint8."""
        return np.concatenate([self.painter.scene(), self.painter.bar()])

    def observe(self) -> np.ndarray:
        """What V sees of the current frame: [64, 64, 3] uint8."""
        return preprocess(self.painter.scene(), SCENE_ROWS)

    def close(self) -> None:
        """Nothing is held open; all games are closed alike."""


class Painter:
    """Paints one track and the car on it.

    The colours are those that survive pygame's shrinking, which loses a level or two to rounding. A touched tile loses
    its shade, as in gymnasium. Skid marks are not part of a frame, there neither.
    """

    def __init__(self, physics: Physics) -> None:
        self.physics = physics
        field = [[(PLAYFIELD, PLAYFIELD), (PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, PLAYFIELD)]]
        grass = [
            [(x + GRASS_DIM, y), (x, y), (x, y + GRASS_DIM), (x + GRASS_DIM, y + GRASS_DIM)]
            for x in GRASS_DIM * np.arange(-20, 20, 2)
            for y in GRASS_DIM * np.arange(-20, 20, 2)
        ]
        road = [polygon for polygon, _ in physics.road_poly]  # the tiles, and after some of them their kerb
        paint = [colour for _, colour in physics.road_poly]
        self.polygons = np.array([*field, *grass, *road], np.float64)  # in the order in which they are painted
        self.centres = self.polygons.mean(axis=1)
        self.radii = np.linalg.norm(self.polygons - self.centres[:, None], axis=2).max(axis=1)
        self.colours = [_shown(colour) for colour in (physics.bg_color, *[physics.grass_color] * len(grass), *paint)]
        # gymnasium changes the colour of a touched tile in place: its colours become rows of one array to look at.
        first = 1 + len(grass)
        self.tile_polygons = [first + k for k, colour in enumerate(paint) if isinstance(colour, np.ndarray)]
        self.tiles = np.stack([tile.color for tile in physics.road])
        for tile, row in zip(physics.road, self.tiles, strict=True):
            tile.color = row
        self.painted = self.tiles[:, 0].copy()
        self.fine = np.empty((SCENE_ROWS * FINE, STATE_W * FINE, 3), np.uint8)

    def scene(self) -> np.ndarray:
        """Rows 0 to 83 of the current frame: [84, 96, 3] uint8."""
        self._notice_touched_tiles()
        matrix, offset = self._camera()
        middle = self.centres @ matrix + offset
        reach = self.radii * np.linalg.norm(matrix, axis=0).max() + 1
        height, width = self.fine.shape[:2]
        x, y = middle[:, 0], middle[:, 1]
        seen = np.flatnonzero((x > -reach) & (x < width + reach) & (y > -reach) & (y < height + reach))
        self.fine.fill(0)
        self._fill(self.polygons[seen] @ matrix + offset, [self.colours[k] for k in seen.tolist()])
        parts, colours = self._car()
        self._fill(parts @ matrix + offset, colours)
        # Two halvings are the same average as one quartering, and much faster.
        half = cv2.resize(self.fine, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        return cv2.resize(half, (STATE_W, SCENE_ROWS), interpolation=cv2.INTER_AREA)

    def bar(self) -> np.ndarray:
        """Rows 84 to 95 of the current frame, with gymnasium's own indicators and score: [12, 96, 3] uint8."""
        physics, window = self.physics, _window()
        physics.surf = window
        physics._render_indicators(WINDOW_W, WINDOW_H)
        text = _font().render(f"{physics.reward:04.0f}", True, (255, 255, 255), (0, 0, 0))
        window.blit(text, text.get_rect(center=(60, WINDOW_H - WINDOW_H * 2.5 / 40)))
        top = WINDOW_H * SCENE_ROWS // STATE_H
        bar = window.subsurface((0, top, WINDOW_W, WINDOW_H - top))
        small = pygame.transform.smoothscale(bar, (STATE_W, STATE_H - SCENE_ROWS))
        return pygame.surfarray.array3d(small).swapaxes(0, 1)

    def _camera(self) -> tuple[np.ndarray, np.ndarray]:
        """metres [..., 2] @ matrix [2, 2] + offset [2] = (column, row) on the fine picture, counted to pixel centres.

        The hull stands a quarter above the lower edge and looks up; in the first second the camera comes nearer.
        """
        physics, hull = self.physics, self.physics.car.hull
        zoom = 0.1 * SCALE * max(1 - physics.t, 0) + ZOOM * SCALE * min(physics.t, 1)
        per_column, per_row = FINE * STATE_W / WINDOW_W, FINE * STATE_H / WINDOW_H
        cos, sin = zoom * math.cos(hull.angle), zoom * math.sin(hull.angle)
        matrix = np.array([[cos * per_column, sin * per_row], [sin * per_column, -cos * per_row]])
        place = np.array([WINDOW_W / 2 * per_column, WINDOW_H * 3 / 4 * per_row])
        return matrix, place - 0.5 - np.array([hull.position.x, hull.position.y]) @ matrix

    def _notice_touched_tiles(self) -> None:
        for k in np.flatnonzero(self.tiles[:, 0] != self.painted):
            self.colours[self.tile_polygons[k]] = _shown(self.tiles[k])
            self.painted[k] = self.tiles[k, 0]

    def _car(self) -> tuple[np.ndarray, list[Colour]]:
        """Polygons [n, 8, 2] of the wheels, the white on their treads, and the hull, in metres, with their colours."""
        car = self.physics.car
        black, white, red = _shown(car.wheels[0].color), _shown(WHEEL_WHITE), _shown([255 * c for c in car.hull.color])
        bodies, parts, colours = [*car.wheels], [WHEEL] * 4, [black] * 4
        for wheel in car.wheels:
            edges = _tread(wheel.phase)
            if edges is not None:
                bodies.append(wheel)
                parts.append(WHEEL * np.array([[1, edges[0]]] * 2 + [[1, -edges[1]]] * 6))
                colours.append(white)
        bodies, parts, colours = bodies + [car.hull] * 4, parts + HULL, colours + [red] * 4
        angles = np.array([body.angle for body in bodies])
        cos, sin = np.cos(angles), np.sin(angles)
        turn = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)  # [n, 2, 2]
        places = np.array([(body.position.x, body.position.y) for body in bodies])
        return np.stack(parts) @ turn + places[:, None], colours

    def _fill(self, polygons: np.ndarray, colours: Sequence[Colour]) -> None:
        points = np.rint(polygons * (1 << SHIFT)).astype(np.int32)
        for k, colour in enumerate(colours):
            cv2.fillConvexPoly(self.fine, points[k], colour, cv2.LINE_8, SHIFT)


def _tread(phase: float) -> tuple[float, float] | None:
    """Where the white part of a wheel turned by `phase` begins and ends on its visible half, in radii; None if hidden.

    The white part covers the angles phase to phase + STRIPE; those with a positive sine lie on the lower half.
    """
    begin, end = math.cos(phase), math.cos(phase + STRIPE)
    begin_hidden, end_hidden = math.sin(phase) > 0, math.sin(phase + STRIPE) > 0
    if begin_hidden and end_hidden:
        return None
    return (math.copysign(1, begin) if begin_hidden else begin), (math.copysign(1, end) if end_hidden else end)


def _shown(colour: Sequence[float]) -> Colour:
    """What a plain area of a colour becomes in gymnasium's frame: fractions cut off, then shrunk."""
    red, green, blue = (_level_shown(int(value)) for value in colour)
    return red, green, blue


@cache
def _level_shown(level: int) -> int:
    """The level that a plain area of that level becomes when pygame shrinks 1000 x 800 pixels to 96 x 96."""
    area = pygame.Surface((WINDOW_W, WINDOW_H))
    area.fill((level, level, level))
    return int(pygame.transform.smoothscale(area, (STATE_W, STATE_H)).get_at((48, 48)).r)


@cache
def _window() -> pygame.Surface:
    """What gymnasium's bar is painted on; every bar covers the one before."""
    return pygame.Surface((WINDOW_W, WINDOW_H))


@cache
def _font() -> pygame.font.Font:
    pygame.font.init()
    return pygame.font.Font(pygame.font.get_default_font(), 42)
