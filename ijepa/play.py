"""Random play of a game on disk: eight players, their frames, the memory beside each frame, and checksums over both.

Frames are [210, 160] uint8 grey, not resized: the labels are exact to a pixel.
Source: Anand et al. 2019; reference code: atariari/benchmark/episodes.py.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_checked, write_checked
from common.program import RunError
from common.seeding import derive_seed
from common.workers import end_with_parent
from ijepa.games import HEIGHT, WIDTH

PLAYERS = 8
CHUNK = 256  # frames of which a checksum is made at once


@dataclass(frozen=True)
class Play:
    """What one player left: frames [T, 210, 160] uint8 (mapped from disk), memory [T, 128] uint8, digests [T] of the
    frames, and where its episodes begin."""

    frames: np.ndarray
    ram: np.ndarray
    digest: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Player:
    """One of the eight: what it plays, how long, and where its files are."""

    folder: Path
    game: str
    purpose: str
    number: int
    steps: int
    seed: int

    @property
    def frames_path(self) -> Path:
        """Frames as an .npy file."""
        return self.folder / f"{self.purpose}-{self.number}.npy"

    @property
    def facts_path(self) -> Path:
        """Memory, digests, starts and the checksum of the frames; written last."""
        return self.folder / f"{self.purpose}-{self.number}.npz"

    @property
    def identity(self) -> str:
        """All that its play depends on."""
        return f"{self.game} {self.purpose} player {self.number}, {self.steps} steps, seed {self.seed}"

    def load(self) -> Play:
        """What it left. Raises ValueError or OSError if that is not there, damaged, or of other settings."""
        with np.load(io.BytesIO(read_checked(self.facts_path, self.identity)), allow_pickle=False) as file:
            facts = {name: file[name] for name in file.files}
        frames = np.load(self.frames_path, mmap_mode="r", allow_pickle=False)
        if frames.shape != (self.steps, HEIGHT, WIDTH) or checksum(frames) != int(facts["checksum"]):
            raise ValueError(f"{self.frames_path} is damaged: its checksum differs")
        return Play(frames, facts["ram"], facts["digest"], facts["starts"])


def players(folder: Path, game: str, purpose: str, steps: int, seed: int) -> list[Player]:
    """The eight, who share `steps` steps."""
    return [Player(folder, game, purpose, k, steps // PLAYERS, seed) for k in range(PLAYERS)]


def checksum(frames: np.ndarray) -> int:
    """CRC-32 of all frames."""
    crc = 0
    for k in range(0, len(frames), CHUNK):
        crc = zlib.crc32(frames[k : k + CHUNK].tobytes(), crc)
    return crc


def check_emulator() -> None:
    """Raises ValueError in one line if this machine has no emulator."""
    try:
        importlib.import_module("ijepa.env")
    except ImportError as error:
        raise ValueError(f"a game needs ale_py ({error}); pip install ale-py") from error


def collect(folder: Path, game: str, purpose: str, steps: int, seed: int, workers: int) -> None:
    """Let eight players take `steps` steps in all of uniform random actions (never the first one, no-op).

    A player depends on (seed, purpose, player) alone and is not played again if its files are there, whole and its own.
    Deviation D8: the authors play with seeds 42 to 49 and one stream of actions, alike for encoder and probes.
    Raises RunError if a process dies, ValueError if there is something to play and no emulator.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [player for player in players(folder, game, purpose, steps, seed) if not _is_there(player)]
    if jobs:
        check_emulator()
    if workers < 2 or len(jobs) < 2:
        for job in jobs:
            _play(job)
        return
    try:
        context = get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), context, end_with_parent) as pool:
            list(pool.map(_play, jobs))
    except BrokenProcessPool as error:
        raise RunError(f"a process that plays {game} died") from error


def load(folder: Path, game: str, purpose: str, steps: int, seed: int) -> list[Play]:
    """What the eight players left, player by player. Raises ValueError if some of it is damaged."""
    return [player.load() for player in players(folder, game, purpose, steps, seed)]


def _is_there(player: Player) -> bool:
    if not player.facts_path.exists():
        return False
    try:
        player.load()
    except (ValueError, OSError) as error:
        print(f"warning: {error}; it is played again", file=sys.stderr)
        return False
    return True


def _play(player: Player) -> None:
    """One player's steps, on disk. Raises OSError that names the file if they cannot be written."""
    temporary = player.frames_path.with_name(f".{player.frames_path.name}.tmp")
    try:
        facts = _write_frames(player, temporary)
        os.replace(temporary, player.frames_path)
        content = io.BytesIO()
        np.savez(content, **facts)
        write_checked(player.facts_path, content.getvalue(), player.identity)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(player.frames_path)) from error


def _write_frames(player: Player, path: Path) -> dict[str, Any]:
    """Plays, and returns what is kept beside the frames.

    The frame of a step that ends an episode is the first of the next one, with the memory of the step that ended it;
    frames before the first step are not kept. Source: reference code.
    """
    from ijepa.env import Game  # here, since whoever only reads play needs no emulator

    steps, words = player.steps, (player.purpose, player.number)
    rng = np.random.default_rng(derive_seed(player.seed, "player", *words))
    game = Game(player.game, derive_seed(player.seed, "emulator", *words) % 2**31, rng)
    game.reset()
    facts: dict[str, Any] = {
        "ram": np.zeros((steps, 128), np.uint8),
        "digest": np.zeros(steps, np.int64),
        "starts": np.zeros(steps, bool),
    }
    facts["starts"][0] = True
    check = 0
    # Written and not mapped: on a full disk a write is an error with a name, a mapped one a dead process without any.
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (steps, HEIGHT, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        for t in range(steps):
            is_done = game.step(int(rng.integers(1, len(game.actions))))
            facts["ram"][t] = game.ram
            if is_done:
                game.reset()
                facts["starts"][t] = True
            frame = game.frame.tobytes()
            file.write(frame)
            check = zlib.crc32(frame, check)
            facts["digest"][t] = int.from_bytes(hashlib.blake2b(frame, digest_size=8).digest(), "little") >> 1
        file.flush()
        os.fsync(file.fileno())
    return facts | {"starts": np.flatnonzero(facts["starts"]), "checksum": np.uint32(check)}
