"""The games: Atari as the 100k benchmark has it, a small pixel game, and a video that only a coin can foretell.

Frames are [3, size, size] uint8, rewards raw sums over the repeats of an action.
Source: paper, Appendix; reference code: envs/atari_preprocessing.py, env.py.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from common.config import user_error
from diamond import data
from diamond.config import Config

Frame = NDArray[np.uint8]

REPEAT = 4
NOOPS = 30
ATARI_FRAMES = 108_000  # raw frames of a game


@dataclass(frozen=True)
class Answer:
    """What a game says to an action: the frame behind it, whether the game is over for good or was cut short, and
    whether a life was lost."""

    frame: Frame
    reward: float
    is_over: bool
    is_cut: bool = False
    lost_life: bool = False


class Game(Protocol):
    """One game; `reset(seed)` makes all that follows depend on the actions alone."""

    actions: int
    names: tuple[str, ...]  # of the actions, as the Arcade Learning Environment calls them

    def reset(self, seed: int) -> Frame:
        """Start the game `seed`."""

    def step(self, action: int) -> Answer:
        """One decision, i.e. all repeats of the action."""

    def close(self) -> None:
        """Free what the game holds."""


class Atari:
    """A game of the Arcade Learning Environment: RGB, maximum of the last two screens, no sticky actions."""

    def __init__(self, name: str, size: int) -> None:
        try:
            gymnasium, ale = importlib.import_module("gymnasium"), importlib.import_module("ale_py")
        except ImportError as error:
            user_error(f"Atari games need gymnasium and ale-py ({error}); pip install gymnasium ale-py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
        gymnasium.register_envs(ale)
        words = "".join(word.capitalize() for word in name.split("_"))
        options: dict[str, Any] = {"frameskip": 1, "repeat_action_probability": 0.0, "full_action_space": False}
        try:
            self._env = gymnasium.make(
                f"ALE/{words}-v5", max_num_frames_per_episode=ATARI_FRAMES, disable_env_checker=True, **options
            )
        except (gymnasium.error.Error, OSError, RuntimeError) as error:
            user_error(f"the game {name} cannot be made, its ROM may be missing: {' '.join(str(error).split())}")
        self._ale, self._size = self._env.unwrapped.ale, size
        self.actions = int(self._env.action_space.n)
        self.names = tuple(self._env.unwrapped.get_action_meanings())

    def reset(self, seed: int) -> Frame:
        """The screen after 1 to 30 raw frames without action; no fire, the agent must learn to press it."""
        screen, _ = self._env.reset(seed=seed)
        for _ in range(int(np.random.default_rng(seed).integers(1, NOOPS + 1))):
            screen, _, terminated, truncated, _ = self._env.step(0)
            if terminated or truncated:
                screen, _ = self._env.reset()
        self._lives, self._screens = self._ale.lives(), [screen] * 2
        return self._small(screen)

    def step(self, action: int) -> Answer:
        """Four raw frames, fewer where the game ends. The maximum is taken before the frame is made smaller."""
        total = 0.0
        for number in range(REPEAT):
            screen, reward, is_over, is_cut, _ = self._env.step(action)
            total += float(reward)
            # A raw frame that ends the game has no screen here: that of the decision before stays in its place, as in
            # the reference code.
            if is_over or is_cut:
                break
            if number >= REPEAT - 2:
                self._screens[number % 2] = screen
        lives = self._ale.lives()
        # The counter is only lowered: after a bonus life the next loss goes unnoticed, as in the reference code.
        lost_life = lives < self._lives
        self._lives = min(self._lives, lives)
        return Answer(self._small(np.max(self._screens, axis=0)), total, bool(is_over), bool(is_cut), lost_life)

    def close(self) -> None:
        self._env.close()

    def _small(self, screen: Frame) -> Frame:
        size = (self._size, self._size)
        return np.ascontiguousarray(cv2.resize(screen, size, interpolation=cv2.INTER_AREA).transpose(2, 0, 1))


class Catch:
    """A ball falls from the top in any column; a paddle of two cells catches it or not: 1 or -1, and the end.

    A cell is two pixels wide and high, and the paddle can reach every ball.
    """

    names: tuple[str, ...] = ("LEFT", "NOOP", "RIGHT")
    actions = 3
    CELL = 2

    def __init__(self, size: int) -> None:
        self._cells = size // self.CELL

    def reset(self, seed: int) -> Frame:
        rng = np.random.default_rng(seed)
        self.ball, self.row = int(rng.integers(self._cells)), 0
        self.paddle = int(rng.integers(self._cells - 1))
        return self._draw()

    def step(self, action: int) -> Answer:
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self._cells - 2))
        self.row += 1
        is_over = self.row == self._cells - 1
        is_caught = self.ball - self.paddle in (0, 1)
        return Answer(self._draw(), (1.0 if is_caught else -1.0) if is_over else 0.0, is_over)

    def close(self) -> None:
        pass

    def _draw(self) -> Frame:
        cells = np.full((3, self._cells, self._cells), 32, np.uint8)
        cells[:, -1, self.paddle : self.paddle + 2] = np.array([[64], [160], [224]], np.uint8)
        cells[:, self.row, self.ball] = (240, 208, 64)
        return cells.repeat(self.CELL, 1).repeat(self.CELL, 2)


class Coin:
    """No game but a video: a square rests in the middle and jumps left or right by a fair coin, every other frame."""

    names: tuple[str, ...] = ("NOOP",)
    actions = 1
    LENGTH = 100  # frames of an episode

    def __init__(self, size: int) -> None:
        self._size = size

    def reset(self, seed: int) -> Frame:
        self._coins = np.random.default_rng(seed).integers(2, size=self.LENGTH + 1)
        self._time = 0
        return self._draw()

    def step(self, action: int) -> Answer:
        self._time += 1
        return Answer(self._draw(), 0.0, is_over=False, is_cut=self._time == self.LENGTH)

    def close(self) -> None:
        pass

    def _draw(self) -> Frame:
        place = 1 + (2 * int(self._coins[self._time]) - 1) * (self._time % 2)
        frame = np.full((3, self._size, self._size), 32, np.uint8)
        frame[:, *self.square(place)] = 224
        return frame

    def square(self, place: int) -> tuple[slice, slice]:
        """Rows and columns of the square at the left (0), in the middle (1), or at the right (2).

        It is so small that the highest level of noise hides on which side it is: else a network learns at that level
        to read off the side, and little about a start that is undecided.
        """
        side, quarter = self._size // 8, self._size // 4
        top, left = (self._size - side) // 2, (self._size - side) // 2 + (place - 1) * quarter
        return slice(top, top + side), slice(left, left + side)


def new_game(config: Config) -> Game:
    """The game of a task; one line and exit code 2 if this machine cannot make it."""
    if config.is_recorded:
        return data.load(config.data, config.history)
    if config.game == "catch":
        return Catch(config.image_size)
    if config.game == "coin":
        return Coin(config.image_size)
    return Atari(config.game, config.image_size)
