"""An Atari game with its memory beside each frame, as AtariARI plays it. Imported by whoever plays, and by nobody else.

Frames are [210, 160] uint8 grey, not resized: the labels are exact to a pixel.
Source: Anand et al. 2019; reference code: atariari/benchmark/{envs,episodes}.py.
"""

from __future__ import annotations

import cv2
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms

from ijepa.games import GAMES, HEIGHT, REPEAT, WIDTH

MOST_NOOPS = 30  # raw frames without action after a true reset


class Game:
    """One game: actions held for 4 frames, episodes that end with a life, FIRE pressed at their beginning.

    No sticky actions, the minimal action set. `frame` is grey, the pixelwise maximum of the last two raw frames; `ram`
    is the memory after the last. The random numbers of no-ops come from `rng`.
    """

    def __init__(self, name: str, seed: int, rng: np.random.Generator) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale = ALEInterface()
        self._ale.setInt("random_seed", seed)
        self._ale.setFloat("repeat_action_probability", 0.0)
        path = roms.get_rom_path(GAMES[name])
        assert path is not None
        self._ale.loadROM(path)
        self.actions = list(self._ale.getMinimalActionSet())
        self._rng = rng
        self._lives = 0
        self._is_over = True
        self._screens = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
        if self._ale.getScreenDims() != (HEIGHT, WIDTH):
            raise RuntimeError(f"{name} has a screen of {self._ale.getScreenDims()}, expected {(HEIGHT, WIDTH)}")

    @property
    def frame(self) -> np.ndarray:
        """[210, 160] uint8, with OpenCV's weights of red, green and blue."""
        return cv2.cvtColor(self._screens.max(axis=0), cv2.COLOR_RGB2GRAY)

    @property
    def ram(self) -> np.ndarray:
        """[128] uint8."""
        return self._ale.getRAM()

    def reset(self) -> None:
        """Begin an episode: after a lost life one step without action, after the last a new game."""
        self._begin()
        if Action.FIRE in self.actions:
            for k in (self.actions.index(Action.FIRE), 2):
                if self.step(k):
                    self._begin()

    def step(self, action: int) -> bool:
        """Hold action number `action` of the minimal set. Returns whether the episode is over."""
        for k in range(REPEAT):
            self._ale.act(self.actions[action])
            if k >= REPEAT - 2:
                self._ale.getScreenRGB(self._screens[k - REPEAT + 2])
            if self._ale.game_over():
                break
        self._is_over = self._ale.game_over()
        lives = self._ale.lives()
        is_life_lost = 0 < lives < self._lives
        self._lives = lives
        return self._is_over or is_life_lost

    def _begin(self) -> None:
        if not self._is_over:
            self.step(0)
            return
        self._ale.reset_game()
        for _ in range(self._rng.integers(1, MOST_NOOPS + 1)):
            self._ale.act(Action.NOOP)
            if self._ale.game_over():
                self._ale.reset_game()
        self._is_over, self._lives = False, self._ale.lives()
        self._ale.getScreenRGB(self._screens[0])
        self._screens[1] = self._screens[0]
