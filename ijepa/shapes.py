"""Drawn images with known factors: class, number, colour and place of the shapes in them.

An image is a function of the seed and its number; nothing is stored.
"""

from __future__ import annotations

import cv2
import numpy as np

from ijepa.statistics import IMAGENET, Statistics

COLOURS = np.array([(214, 62, 60), (238, 170, 44), (80, 176, 84), (64, 140, 214), (150, 88, 190), (236, 236, 236)])
CLASSES = 5  # circle, triangle, square, star, cross
MOST = 5
DISTANCES = 4
# Of the side: two to three patches across, so that a patch shows an edge of a shape, and a hidden block part of one.
RADIUS = (0.12, 0.2)


class Shapes:
    """Images [side, side, 3] of 1 to 5 shapes of one class and one colour on a soft background.

    labels [N, 4]: class, number - 1, colour, and the quarter of the distances to the border that the first one is in.
    """

    channels = 3
    factors: tuple[str, ...] = ("class", "number", "colour", "distance")

    def __init__(self, side: int, count: int, seed: int, statistics: Statistics = IMAGENET[3]) -> None:
        """`side` in pixels; `count` images; `statistics`: to normalise by."""
        self.statistics = statistics
        self.side, self.count, self.seed = side, count, seed
        self.labels = np.stack([self._labels(self._rng(k)) for k in range(count)])

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> np.ndarray:
        rng = self._rng(index)
        kind, number, colour, distance = self._labels(rng)
        low, high = rng.integers(10, 110, (2, 3))
        slope = np.linspace(0, 1, self.side)[:, None, None]
        image = np.broadcast_to(low + (high - low) * slope, (self.side, self.side, 3))
        image = np.ascontiguousarray(np.rot90(image, int(rng.integers(4))) + rng.normal(0, 6, image.shape))
        for k in range(number + 1):
            radius = self.side * rng.uniform(*RADIUS)
            centre = rng.uniform(radius, self.side - radius, 2)
            if k == 0:
                centre = self._at_distance(rng, distance)
            tint = np.clip(COLOURS[colour] + rng.normal(0, 10, 3), 0, 255)
            points = np.round(16 * _outline(kind, centre, radius, rng.uniform(0, 2 * np.pi))).astype(np.int32)
            cv2.fillPoly(image, [points], tint.tolist(), cv2.LINE_AA, 4)
        return np.clip(image, 0, 255).astype(np.uint8)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, index])

    def _labels(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, (CLASSES, MOST, len(COLOURS), DISTANCES))

    def _at_distance(self, rng: np.random.Generator, quarter: int) -> np.ndarray:
        """A centre whose distance to the nearest border lies in that quarter of all possible ones."""
        inset = self.side / 2 * (quarter + rng.uniform(0.1, 0.9)) / DISTANCES
        along = rng.uniform(inset, self.side - inset)
        return np.roll([along, inset if rng.random() < 0.5 else self.side - inset], rng.integers(2))


def _outline(kind: int, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """Corners [n, 2] of a shape of that class."""
    if kind == 4:
        arm = 0.32
        quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
        turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.arange(4) * np.pi / 2]
        corners = np.concatenate([quarter @ matrix.T for matrix in turns])
    else:
        count = {0: 32, 1: 3, 2: 4, 3: 10}[kind]
        angles = np.arange(count) * 2 * np.pi / count
        reach = np.where(np.arange(count) % 2 == 1, 0.4, 1.0) if kind == 3 else np.ones(count)
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return centre + radius * corners @ rotation.T
