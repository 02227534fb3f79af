"""Random play of Atari games with the memory beside each frame, as AtariARI collects it, and what it leaves on disk.

Frames are [210, 160] uint8 grey, not resized: the labels are exact to a pixel.
Source: Anand et al. 2019; reference code: atariari/benchmark/{envs,episodes}.py.
"""

import hashlib
import io
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms

from common.files import atomic_write
from common.seeding import derive_seed
from ijepa.games import GAMES

PLAYERS = 8
HEIGHT, WIDTH = 210, 160
MOST_NOOPS = 30  # raw frames without action after a true reset
REPEAT = 4  # raw frames an action is held


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


@dataclass(frozen=True)
class Play:
    """What one player left: frames [T, 210, 160] uint8 (mapped from disk), memory [T, 128] uint8, digests [T] of the
    frames, and where its episodes begin."""

    frames: np.ndarray
    ram: np.ndarray
    digest: np.ndarray
    starts: np.ndarray


def collect(folder: Path, game: str, purpose: str, steps: int, seed: int, workers: int) -> None:
    """Let eight players take `steps` steps in all of uniform random actions (never the first one, no-op).

    A player depends on (seed, purpose, player) alone and is not played again if its files are there.
    Deviation D8: the authors play with seeds 42 to 49 and one stream of actions, alike for encoder and probes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder, game, purpose, k, steps // PLAYERS, seed)
        for k in range(PLAYERS)
        if not _paths(folder, purpose, k)[1].exists()
    ]
    if workers < 2 or len(jobs) < 2:
        for job in jobs:
            _play(job)
        return
    try:
        with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
            list(pool.map(_play, jobs))
    except BrokenProcessPool as error:
        raise RuntimeError(f"a process that plays {game} died") from error


def load(folder: Path, purpose: str) -> list[Play]:
    """What the eight players left, player by player."""
    plays = []
    for player in range(PLAYERS):
        frames, facts = _paths(folder, purpose, player)
        with np.load(facts, allow_pickle=False) as file:
            plays.append(Play(np.load(frames, mmap_mode="r"), file["ram"], file["digest"], file["starts"]))
    return plays


def _paths(folder: Path, purpose: str, player: int) -> tuple[Path, Path]:
    return folder / f"{purpose}-{player}.npy", folder / f"{purpose}-{player}.npz"


def _play(job: tuple[Path, str, str, int, int, int]) -> None:
    """One player's steps. The frame of a step that ends an episode is the first of the next one, with the memory of the
    step that ended it; frames before the first step are not kept. Source: reference code."""
    folder, name, purpose, player, steps, seed = job
    rng = np.random.default_rng(derive_seed(seed, "player", purpose, player))
    game = Game(name, derive_seed(seed, "emulator", purpose, player) % 2**31, rng)
    game.reset()
    path, facts_path = _paths(folder, purpose, player)
    temporary = path.with_name(f".{path.name}.tmp")
    frames = np.lib.format.open_memmap(temporary, "w+", np.uint8, (steps, HEIGHT, WIDTH))
    facts: dict[str, Any] = {
        "ram": np.zeros((steps, 128), np.uint8),
        "digest": np.zeros(steps, np.int64),
        "starts": np.zeros(steps, bool),
    }
    facts["starts"][0] = True
    for t in range(steps):
        is_done = game.step(int(rng.integers(1, len(game.actions))))
        facts["ram"][t] = game.ram
        if is_done:
            game.reset()
            facts["starts"][t] = True
        frame = game.frame
        frames[t] = frame
        facts["digest"][t] = int.from_bytes(hashlib.blake2b(frame.tobytes(), digest_size=8).digest(), "little") >> 1
    frames.flush()
    del frames
    os.replace(temporary, path)
    facts["starts"] = np.flatnonzero(facts["starts"])
    content = io.BytesIO()
    np.savez(content, **facts)
    atomic_write(facts_path, content.getvalue())
