"""The real games and their frames: the official preprocessing, Doom Take Cover, and the official random policies.

Shapes: frames [H, W, 3] uint8 RGB; observations [64, 64, 3] uint8; actions are scalars in [-1, 1] for Doom.
The engine is imported where a game is made: preprocessing needs none.
Source: paper, section 4 and appendix; reference code: doomreal.py, carracing/env.py.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from common.program import RunError

OBS_SIZE = 64
NOTHING, MOVE_RIGHT, MOVE_LEFT = 0, 1, 2  # actions of VizdoomTakeCover-v1, which counts its buttons from the last
BUTTON_THRESHOLD = 0.3333  # not one third: reference code, doomreal.py

# One process may start many games; the working directory belongs to all of its threads.
_START = threading.Lock()


def stretch_and_resize(frame: np.ndarray, rows: int) -> np.ndarray:
    """The first `rows` rows, contrast stretched per frame and resized to 64 x 64 (aspect not kept).

    frame [H, W, 3] uint8. The smallest value of the cropped frame becomes 0, the largest 255, rounded half up;
    then Pillow's anti-aliased bilinear resize. Returns [64, 64, 3] uint8.
    Source: reference code, which calls scipy.misc.imresize on a float image.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or not 0 < rows <= frame.shape[0] or frame.dtype != np.uint8:
        raise ValueError(f"frame: expected uint8 [>= {rows}, W, 3], got {frame.dtype} {list(frame.shape)}")
    pixels = frame[:rows]
    low, high = int(pixels.min()), int(pixels.max())
    # A byte has 256 values: a table of the official arithmetic is exact, and faster than arithmetic on every pixel.
    values = np.arange(256) / 255.0
    scale = 255.0 / (values[high] - values[low] if high > low else 1.0)
    table = np.clip(np.floor((values - values[low]) * scale + 0.5), 0, 255).astype(np.uint8)
    stretched = cv2.LUT(pixels, table)
    return np.asarray(Image.fromarray(stretched).resize((OBS_SIZE, OBS_SIZE), Image.Resampling.BILINEAR))


def preprocess(frame: np.ndarray, rows: int) -> np.ndarray:
    """What V sees of a frame: `stretch_and_resize`, then every value minus one, 0 becoming 255.

    frame [H, W, 3] uint8; rows to keep from the top: 84 of 96 for CarRacing, 5/6 of the height for Doom (drops the
    status bar). Returns [64, 64, 3] uint8.
    Source: reference code: ((1 - x) * 255).round().astype(uint8) applied to bytes wraps around to x + 255 (mod 256).
    """
    return stretch_and_resize(frame, rows) + np.uint8(255)


def button(action: float) -> int:
    """The button of a scalar action in [-1, 1]: left below -0.3333, right above 0.3333, else nothing."""
    if action < -BUTTON_THRESHOLD:
        return MOVE_LEFT
    return MOVE_RIGHT if action > BUTTON_THRESHOLD else NOTHING


def command(action: Any) -> Any:
    """What a game is told for an action, a scalar or [A]: a button of Take Cover, or CarRacing's three numbers."""
    return button(float(np.ravel(action)[0])) if np.size(action) == 1 else action


class TakeCover:
    """Doom Take Cover as in 2018: reward 1 per tic, one tic per step, skill 4, at most `max_steps` tics.

    Deviation D1: frames are rendered at 160 x 120 with the status bar, the same framing as 640 x 480.
    Deviation D2: today's vizdoom, set to what gym-doom of 2017 really ran (it asked for skill 5 and got 4).
    `reset(seed)` makes an episode deterministic given its actions. Must be closed.
    """

    def __init__(self, max_steps: int = 2100) -> None:
        import gymnasium
        import vizdoom.gymnasium_wrapper  # registers the Vizdoom* environments

        self._faults = vizdoom.ViZDoomUnexpectedExitException, vizdoom.ViZDoomErrorException
        self._scratch = tempfile.TemporaryDirectory(prefix="take-cover-")
        self._rows = 100  # 400 of 480
        self._env = gymnasium.make(
            "VizdoomTakeCover-v1",
            disable_env_checker=True,
            screen_resolution="RES_160X120",
            render_hud=True,
            render_weapon=False,
            render_crosshair=False,
            render_decals=False,
            render_particles=False,
            episode_start_time=14,
            episode_timeout=max_steps,
            doom_skill=4,
            doom_config_path=str(Path(self._scratch.name) / "vizdoom.ini"),
        )
        with _START:  # the engine leaves a folder in the working directory of the moment it is started in
            before = os.getcwd()
            os.chdir(self._scratch.name)
            try:
                self._env.reset(seed=0)
            finally:
                os.chdir(before)

    def reset(self, seed: int) -> None:
        """Start the episode `seed`."""
        self.frame = self._guard(self._env.reset, seed=seed)[0]["screen"]

    def step(self, button: int) -> tuple[float, bool]:
        """One tic with `button`. Returns the reward (1) and whether the episode is over."""
        screen, reward, terminated, truncated, _ = self._guard(self._env.step, button)
        self.frame = screen["screen"]  # all zeros once the episode is over: the game has no screen any more
        return float(reward), bool(terminated or truncated)

    def observe(self) -> np.ndarray:
        """What V sees of the current frame: [64, 64, 3] uint8."""
        return preprocess(self.frame, self._rows)

    def close(self) -> None:
        self._env.close()
        self._scratch.cleanup()

    def _guard(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A game process that dies is named instead of leaving a riddle of the engine's."""
        try:
            return call(*args, **kwargs)
        except self._faults as error:
            raise RunError(f"the Take Cover game process died: {error}") from error


class Game(Protocol):
    """One episode of a real game at a time. A command is a button of Take Cover or an action [3] of CarRacing."""

    def reset(self, seed: int) -> None: ...
    def step(self, command: Any) -> tuple[float, bool]: ...
    def observe(self) -> np.ndarray: ...
    def close(self) -> None: ...


def new_game(task: str, max_steps: int) -> Game:
    """A game of the task, whose engine is imported now; its episodes end after `max_steps`. Must be closed."""
    if task == "doom":
        return TakeCover(max_steps)
    from ha2018.racing import CarRacing

    return CarRacing(max_steps)
