"""A few episodes of random play as one shard file. Free of torch, which game processes need not import.

Shapes: T time, A action size; frames [T, 64, 64, 3] uint8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.numpy

from common.seeding import derive_seed

SHARD_EPISODES = 8

Episode = tuple[np.ndarray, np.ndarray]  # frames [T, 64, 64, 3] and actions [T] or [T, A]
Play = Callable[[Any, int], Episode]  # of a game and the seed of an episode


def play_shard(game: Any, play: Play, min_frames: int, seed: int, png_level: int, number: int) -> bytes:
    """Shard `number`: of its SHARD_EPISODES episodes those with more than `min_frames` frames.

    Tensors png and offset hold the frames one after another, action what was done at each, length the episodes.
    """
    pngs, actions, lengths = [], [np.zeros(0, np.float32)], []
    for k in range(number * SHARD_EPISODES, (number + 1) * SHARD_EPISODES):
        frames, moves = play(game, derive_seed(seed, "collect", k) % 2**31)
        if len(frames) > min_frames:
            pngs += [_encode_png(frame, png_level) for frame in frames]
            actions.append(moves)
            lengths.append(len(frames))
    tensors = {
        "png": np.concatenate([np.zeros(0, np.uint8), *pngs]),
        "offset": np.cumsum([0, *(len(png) for png in pngs)], dtype=np.int64),
        "action": np.concatenate(actions if not lengths else actions[1:]),
        "length": np.array(lengths, np.int64),
    }
    return safetensors.numpy.save(tensors)


def lengths_of(path: Path) -> list[int]:
    """The lengths of the episodes in a shard, in frames, without reading the rest. Raises ValueError for no shard."""
    return _tensor(path, "length", np.int64).tolist()


def frame_positions(path: Path) -> np.ndarray:
    """Where in the file each frame begins, and the last one ends: [frames + 1] int64."""
    return _tensor(path, "offset", np.int64) + _place(path, "png")[0]


def _tensor(path: Path, name: str, dtype: Any) -> np.ndarray:
    begin, end = _place(path, name)
    return np.fromfile(path, dtype, (end - begin) // np.dtype(dtype).itemsize, offset=begin)


def _place(path: Path, name: str) -> tuple[int, int]:
    """First byte of a tensor in a safetensors file and the one behind its last."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size) if size < 10_000 else b"")
    begin, end = header[name]["data_offsets"]
    return 8 + size + begin, 8 + size + end


def _encode_png(frame: np.ndarray, level: int) -> np.ndarray:
    # The filter makes files 6 % larger than the default, in half of its time.
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
    ok, png = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not ok:
        raise RuntimeError("OpenCV cannot encode PNG")
    return png.reshape(-1)
