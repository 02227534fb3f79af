"""A few episodes of random play as the bytes of one shard file. Free of torch, which game processes need not import.

Shapes: T time, A action size; frames [T, 64, 64, 3] uint8.
"""

from collections.abc import Callable
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


def _encode_png(frame: np.ndarray, level: int) -> np.ndarray:
    # The filter makes files 6 % larger than the default, in half of its time.
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
    ok, png = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    if not ok:
        raise RuntimeError("OpenCV cannot encode PNG")
    return png.reshape(-1)
