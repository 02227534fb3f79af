"""Bouncing shapes: generated clips whose positions and velocities are known.

A clip is a function of the seed and its number; nothing is stored.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb

import cv2
import numpy as np

from vjepa.statistics import IMAGENET, Statistics

GROUND = (20, 90)  # lowest and highest of a channel, of 255
GRAIN = 4  # standard deviation of the ground's pixels; it stays where it is
SHIFT = 4  # bits of a pixel that OpenCV draws with
# Of the side: one to two patches of a sixth across.
RADIUS = (0.1, 0.18)
SPEED = (0.02, 0.06)  # of the side, a frame
HUES = ((-0.08, 0.12), (0.45, 0.65))  # red to yellow, and cyan to blue: even where forms are too small to be told


class Shapes:
    """Clips [F, side, side, 3] of a warm disc and a cold square that fly straight on and bounce off the borders.

    states [N, 8]: x and y of disc and square at the last frame, in sides, then their velocities there, in hundredths of
    a side a frame, which no single frame shows.
    """

    channels = 3

    def __init__(self, side: int, frames: int, count: int, seed: int, statistics: Statistics = IMAGENET[3]) -> None:
        """`side` in pixels; `count` clips of so many `frames`."""
        self.side, self.frames, self.count, self.seed, self.statistics = side, frames, count, seed, statistics
        self.states = np.stack([self._state(index) for index in range(count)]).astype(np.float32)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, the same at each call."""
        draws = np.random.default_rng([self.seed, index])
        paths, radii = self._motion(draws)
        grain = draws.normal(0, GRAIN, (self.side, self.side, 3))
        ground = (draws.integers(*GROUND, 3) + grain).clip(0, 255).astype(np.uint8)
        colours = [np.round(255 * np.array(hsv_to_rgb(draws.uniform(*hues) % 1, 0.8, 1.0))) for hues in HUES]
        clip = np.empty((self.frames, self.side, self.side, 3), np.uint8)
        for number in range(self.frames):
            image = ground.copy()
            for kind in range(2):
                draw_shape(image, kind, paths[number, kind] * self.side, radii[kind] * self.side, colours[kind])
            clip[number] = image
        return clip

    def _motion(self, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Centres [F, 2 objects, 2] and radii [2], in sides."""
        radii = draws.uniform(*RADIUS, 2)
        room = 1 - 2 * radii[:, None]
        start = radii[:, None] + room * draws.uniform(0, 1, (2, 2))
        angle, speed = draws.uniform(0, 2 * np.pi, 2), draws.uniform(*SPEED, 2)
        velocity = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        straight = start + np.arange(self.frames + 1)[:, None, None] * velocity
        return bounced(straight - radii[:, None], room) + radii[:, None], radii

    def _state(self, index: int) -> np.ndarray:
        paths, _ = self._motion(np.random.default_rng([self.seed, index]))
        last, after = paths[self.frames - 1], paths[self.frames]
        return np.concatenate([last.flatten(), 100 * (after - last).flatten()])


def bounced(straight: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Where something is that would be at `straight` if no walls at 0 and `room` had thrown it back."""
    folded = np.mod(straight, 2 * room)
    return np.where(folded > room, 2 * room - folded, folded)


def draw_shape(image: np.ndarray, kind: int, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """A disc (0), a square (1), a triangle (2) or a diamond (3) into image [H, W, 3], at fractions of pixels."""
    count, turn = {0: (32, 0.0), 1: (4, np.pi / 4), 2: (3, -np.pi / 2), 3: (4, 0.0)}[kind]
    angles = turn + np.arange(count) * 2 * np.pi / count
    corners = centre - 0.5 + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = np.round((1 << SHIFT) * corners).astype(np.int32)
    cv2.fillPoly(image, [points], colour.tolist(), cv2.LINE_AA, SHIFT)
