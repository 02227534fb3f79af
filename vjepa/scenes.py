"""A side view of a small world where things keep their laws, and pairs of videos of which one breaks them.

Every scene has two variants A and B that differ in what moves, and moments at which both have the same frame, because
it is hidden. A possible video is one variant throughout; an impossible one changes the variant at these moments.
So both members of a pair are made of the same halves with the same noise, and all halves occur as often in possible as
in impossible videos: no frame, and no half, gives anything away.
Lengths are in sides of the frame, x to the right, y downwards. L frames a video.
Source: Garrido et al. 2025 (protocol of IntPhys); the scenes are ours.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from vjepa.shapes import draw_shape
from vjepa.statistics import IMAGENET, Statistics

BLOCKS = ("permanence", "continuity", "constancy", "solidity", "gravity")
STRETCH = 1.5  # a video in clips
HUES = 12  # even ones are for training, odd ones for the test
FLOOR, WALL = 0.92, 0.06
NOISE = 5  # what is added to each pixel of each frame lies between plus and minus this, of 255

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mover:
    """What moves: its middle at each frame [L, 2], its kind of shape and its colour."""

    path: np.ndarray
    kind: int
    colour: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Two variants, `cuts` between which they may be exchanged, and what stands in front of and behind the movers."""

    variants: tuple[Mover | None, Mover | None]
    cuts: tuple[int, ...]
    radius: float
    occluders: tuple[Box, ...]
    walls: tuple[Box, ...]
    colours: tuple[np.ndarray, np.ndarray, np.ndarray]  # of the ground, the occluders, the walls and the floor


def length_of(frames: int) -> int:
    """L: the frames of a video for clips of so many, an even number."""
    return int(frames * STRETCH / 2) * 2


def new_scene(block: str, length: int, draws: np.random.Generator, *, is_test: bool) -> Scene:
    """A scene of one of BLOCKS. Consumes `draws`. Raises ValueError for another block."""
    radius = draws.uniform(0.055, 0.065)
    hues = draws.integers(HUES // 2, size=4)
    shades = ((0.3, 0.35), (0.4, 0.65), (0.2, 0.5))
    ground, front, back = (_colour(hue, *shade, is_test) for hue, shade in zip(hues[:3], shades, strict=True))
    colours = (ground, front, back)
    another = hues[3] + 1 + draws.integers(HUES // 2 - 1)  # never the same one
    bright, other = (_colour(hue, 0.9, 1.0, is_test) for hue in (hues[3], another))
    kind, second = draws.permutation(4)[:2]
    times = np.arange(length) - length // 2
    speed = draws.uniform(1.05, 1.2) / length * (1 if draws.random() < 0.5 else -1)
    height = draws.uniform(0.5, 0.75)
    middle = draws.uniform(0.45, 0.55)
    across = np.stack([middle + speed * times, np.full(length, height)], 1)
    cut = length // 2
    screen = (middle - 0.16, height - 0.15, middle + 0.16, FLOOR)
    if block == "permanence":  # something comes out, or it was never there
        return Scene((Mover(across, kind, bright), None), (cut,), radius, (screen,), (), colours)
    if block == "constancy":  # it keeps its shape, or its colour
        changed = Mover(across, second, bright) if draws.random() < 0.5 else Mover(across, kind, other)
        return Scene((Mover(across, kind, bright), changed), (cut,), radius, (screen,), (), colours)
    if block == "continuity":  # between two screens it is seen, on its way from one to the other
        delay = round(0.24 / abs(speed))  # whole frames, so that it stands behind the middle of a screen at the cuts
        places = [middle + side * delay * abs(speed) for side in (-1, 1)]
        screens = tuple((place - 0.12, height - 0.15, place + 0.12, FLOOR) for place in places)
        cuts = (cut - delay, cut + delay)
        return Scene((Mover(across, kind, bright), None), cuts, radius, screens, (), colours)
    if block == "solidity":  # it comes back from a wall, on the side it came from
        distance = radius + WALL / 2
        away = middle - distance - abs(speed) * np.abs(times)
        left = np.stack([away, across[:, 1]], 1)
        right = left * (-1, 1) + (2 * middle, 0)
        wall = (middle - WALL / 2, 0.2, middle + WALL / 2, FLOOR)
        screen = (middle - 0.23, height - 0.15, middle + 0.23, FLOOR)
        return Scene(
            (Mover(left, kind, bright), Mover(right, kind, bright)), (cut,), radius, (screen,), (wall,), colours
        )
    if block == "gravity":  # what falls in comes out below, what is thrown up comes out above
        top, hidden = 0.1, 0.5
        g = 2 * (hidden - top) / cut**2
        fall = np.sqrt(2 * (FLOOR - radius - top) / g)  # frames from the top to the floor, where it bounces
        down = top + g / 2 * ((np.arange(length) + fall) % (2 * fall) - fall) ** 2
        up = top + g / 2 * ((2 * cut - np.arange(length) + fall) % (2 * fall) - fall) ** 2
        paths = [np.stack([np.full(length, middle), y], 1) for y in (down, up)]
        band = (middle - 0.25, hidden - 0.15, middle + 0.25, hidden + 0.15)
        movers = Mover(paths[0], kind, bright), Mover(paths[1], kind, bright)
        return Scene(movers, (cut,), radius, (band,), (), colours)
    raise ValueError(f"a block is one of {', '.join(BLOCKS)}, not {block!r}")


def video(scene: Scene, side: int, order: tuple[int, ...], noise: np.ndarray) -> np.ndarray:
    """[L, side, side, 3] uint8: variant order[0] up to the first cut, then order[1], and so on.

    noise [L, side, side, 3]: added to every frame. Raises ValueError if there is not one part more than cuts.
    """
    if len(order) != len(scene.cuts) + 1:
        raise ValueError(f"{len(scene.cuts)} cuts make {len(scene.cuts) + 1} parts, not {len(order)}")
    frames = np.empty(noise.shape, np.uint8)
    for number in range(len(noise)):
        variant = order[sum(number >= cut for cut in scene.cuts)]
        frames[number] = (_frame(scene, side, scene.variants[variant], number) + noise[number]).clip(0, 255)
    return frames


def pair_orders(scene: Scene, first: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The possible and the impossible order of variants that begin with `first`."""
    parts = len(scene.cuts) + 1
    return (first,) * parts, tuple(first if part % 2 == 0 else 1 - first for part in range(parts))


def pair(block: str, side: int, frames: int, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair `number` of a block: a possible and an impossible video, each [L, side, side, 3] uint8.

    Two pairs share a scene: one begins with variant A, the other with B.
    """
    length = length_of(frames)
    draws = np.random.default_rng([seed, BLOCKS.index(block), number // 2])
    scene = new_scene(block, length, draws, is_test=True)
    noise = _noise(draws, length, side)
    possible, impossible = (video(scene, side, order, noise) for order in pair_orders(scene, number % 2))
    return possible, impossible


class Scenes:
    """Possible videos for training: clips [F, side, side, 3], of all blocks, also with nothing to hide behind."""

    channels = 3

    def __init__(self, side: int, frames: int, count: int, seed: int, statistics: Statistics = IMAGENET[3]) -> None:
        """`side` in pixels; `count` clips of so many `frames`, each from a video half as long again."""
        self.side, self.frames, self.count, self.seed, self.statistics = side, frames, count, seed, statistics

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, the same at each call."""
        draws = np.random.default_rng([self.seed, index])
        length = length_of(self.frames)
        scene = new_scene(BLOCKS[draws.integers(len(BLOCKS))], length, draws, is_test=False)
        variant = int(draws.integers(2))
        if draws.random() < 0.3:
            scene = Scene(scene.variants, scene.cuts, scene.radius, (), scene.walls, scene.colours)
        start = int(draws.integers(length - self.frames + 1))
        noise = _noise(draws, length, self.side)
        order = (variant,) * (len(scene.cuts) + 1)
        return video(scene, self.side, order, noise)[start : start + self.frames]


def _frame(scene: Scene, side: int, mover: Mover | None, number: int) -> np.ndarray:
    """One frame without noise, [side, side, 3] uint8."""
    ground, front, back = scene.colours
    image = np.empty((side, side, 3), np.uint8)
    image[:] = ground
    _fill(image, (0, FLOOR, 1, 1), back)
    for wall in scene.walls:
        _fill(image, wall, back)
    if mover is not None:
        draw_shape(image, mover.kind, mover.path[number] * side, scene.radius * side, mover.colour)
    for screen in scene.occluders:
        _fill(image, screen, front)
    return image


def _fill(image: np.ndarray, box: Box, colour: np.ndarray) -> None:
    left, top, right, bottom = (round(edge * len(image)) for edge in box)
    cv2.rectangle(image, (left, top), (right - 1, bottom - 1), colour.tolist(), cv2.FILLED)


def _noise(draws: np.random.Generator, length: int, side: int) -> np.ndarray:
    return draws.integers(-NOISE, NOISE, (length, side, side, 3), np.int16, endpoint=True)


def _colour(hue: int, saturation: float, value: float, is_test: bool) -> np.ndarray:
    """[3] uint8 of one of HUES / 2 hues, which training and test do not share."""
    place = (2 * hue + int(is_test)) % HUES / HUES
    return np.round(255 * np.array(colorsys.hsv_to_rgb(place, saturation, value))).astype(np.uint8)
