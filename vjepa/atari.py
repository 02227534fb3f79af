"""Clips of Atari games under random play, whose positions and velocities stand in the memory of the console.

Frames are the whole screen in grey, scaled to a square. Source of the bytes: Anand et al. 2019, arXiv 1906.08226.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from common.run import progress_bar
from vjepa.statistics import IMAGENET, Statistics

REPEAT = 4  # raw frames that an action is held; of the last two the brighter pixel is kept, since games blink
STEPS_PER_CLIP = 4  # of play, so that clips begin at places of their own
LONGEST_STEP = 24  # pixels in which something moves; more is a jump to another place: a new serve
MOST_NOOPS = 30  # raw frames without action at the beginning of a game


@dataclass(frozen=True)
class Memory:
    """The emulator's name of a game, what moves in it by the byte of its place, and the bytes that are 0 where it is
    not there."""

    rom: str
    places: dict[str, int]
    shown: tuple[str, ...] = ()


GAMES = {
    "pong": Memory("pong", {"ball x": 49, "ball y": 54, "player y": 51, "enemy y": 50}, ("ball x", "ball y")),
    "breakout": Memory("breakout", {"ball x": 99, "ball y": 101, "player x": 72}, ("ball x", "ball y")),
    "boxing": Memory("boxing", {"player x": 32, "player y": 34, "enemy x": 33, "enemy y": 35}),
}
TASKS = tuple(f"atari-{game}" for game in GAMES)


class AtariClips:
    """Clips [F, side, side, 1] from one long random play, in which everything is on the screen at the end.

    states [N, 2 S]: the S places at the last frame in pixels of the console, then how far each came since the frame
    before, which the last frame alone does not show.
    """

    channels = 1

    def __init__(
        self, game: str, side: int, frames: int, count: int, seed: int, statistics: Statistics = IMAGENET[1]
    ) -> None:
        """`side` in pixels; `count` clips of so many `frames`, one for each action. Raises ValueError if a game ends
        too soon for a clip, or has no ROM here."""
        self.side, self.frames, self.count, self.statistics = side, frames, count, statistics
        memory = GAMES[game]
        self.screens, places, first = play(game, side, STEPS_PER_CLIP * count + frames, seed)
        last = ends(places, first, memory, frames)
        if len(last) == 0:
            raise ValueError(f"frames: no play of {game} shows {frames} frames in a row")
        rng = np.random.default_rng([seed, 1])
        self.last = np.sort(rng.choice(last, count, replace=len(last) < count))
        self.states = np.concatenate([places[self.last], places[self.last] - places[self.last - 1]], 1)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, the same at each call."""
        end = int(self.last[index]) + 1
        return self.screens[end - self.frames : end, ..., None]


def ends(places: np.ndarray, first: np.ndarray, memory: Memory, frames: int) -> np.ndarray:
    """Where clips may end: steps behind `frames` of one game, at which everything is there and nothing has jumped.

    places [T, S] float; first [T]: the step at which the game of each step began.
    """
    number = np.arange(len(places))
    step = np.abs(np.diff(places, axis=0, prepend=places[:1])).max(1)
    shown = [list(memory.places).index(name) for name in memory.shown]
    is_there = (places[:, shown] > 0).all(1)
    is_there &= np.roll(is_there, 1)
    return np.flatnonzero((number - first >= frames - 1) & (number > 0) & (step <= LONGEST_STEP) & is_there)


def play(game: str, side: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random play: screens [T, side, side] uint8, places [T, S] float32, and where each step's game began, [T].

    Minimal actions, none sticky; the emulator is imported here, since no other task needs it.
    Raises ValueError without the emulator or the game.
    """
    try:
        ale: Any = importlib.import_module("ale_py")
    except ImportError as error:
        raise ValueError(f"task: atari-{game} needs the package ale-py ({error})") from error
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    path = ale.roms.get_rom_path(GAMES[game].rom)
    if path is None:
        raise ValueError(f"task: there is no ROM of {game}")
    console = ale.ALEInterface()
    console.setInt("random_seed", seed % 2**31)
    console.setFloat("repeat_action_probability", 0.0)
    console.loadROM(path)
    actions, rng = list(console.getMinimalActionSet()), np.random.default_rng([seed, 0])
    height, width = console.getScreenDims()
    raw = np.zeros((2, height, width), np.uint8)
    bytes_of = list(GAMES[game].places.values())
    screens, places = np.empty((steps, side, side), np.uint8), np.empty((steps, len(bytes_of)), np.float32)
    first = np.zeros(steps, np.int64)
    began, is_over = 0, True
    with progress_bar(steps, f"play of {game}", unit="step") as bar:
        for number in range(steps):
            if is_over:
                console.reset_game()
                for _ in range(rng.integers(MOST_NOOPS + 1)):
                    console.act(ale.Action.NOOP)
                began = number
            action = actions[rng.integers(len(actions))]
            for k in range(REPEAT):
                console.act(action)
                if k >= REPEAT - 2:
                    console.getScreenGrayscale(raw[k - REPEAT])
            screens[number] = cv2.resize(raw.max(0), (side, side), interpolation=cv2.INTER_AREA)
            places[number], first[number] = console.getRAM()[bytes_of], began
            is_over = console.game_over()
            bar.update()
    return screens, places, first
