"""Own frame data: a folder that `python -m diamond.convert` wrote, for training, and its last videos for the test.

data.json: {"format": 1, "image_size", "actions", "videos": [{"name", "frames", "action"}]}. `action` holds one whole
number below `actions` for every frame of the video but the last: what was done between this frame and the next. Beside
it lies a file 00000.frames, 00001.frames, ... for each video: frames [N, 3, H, W] uint8, a checksum behind them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from common.config import user_error
from common.files import read_checked
from diamond.config import Config

if TYPE_CHECKING:
    from diamond.env import Answer

FORMAT = 1
INDEX = "data.json"
HELD_OUT = 10  # the last of so many videos are kept for the test, at least one


def frames_name(number: int) -> str:
    """The file of a video's frames."""
    return f"{number:05d}.frames"


@dataclass
class Recordings:
    """Converted videos: frames of each, and its actions [frames - 1]. A `Game` that nobody can play."""

    folder: Path
    image_size: int
    actions: int
    counts: tuple[int, ...]
    action: tuple[NDArray[np.int64], ...]
    names: tuple[str, ...] = ()  # actions have numbers only

    @property
    def tested(self) -> int:
        """How many of the videos, the last ones, are kept for the test."""
        return max(1, len(self.counts) // HELD_OUT)

    @property
    def steps(self) -> int:
        """Steps to train on; the last frame of a video has none."""
        return sum(self.counts[: -self.tested]) - (len(self.counts) - self.tested)

    def frames(self, number: int) -> NDArray[np.uint8]:
        """Frames [N, 3, H, W] of a video; one line and exit code 2 if its file is damaged."""
        return _frames(self.folder / frames_name(number), self.counts[number], self.image_size)

    def reset(self, seed: int) -> NoReturn:
        raise ValueError("recorded videos cannot be played")

    def step(self, action: int) -> Answer:
        raise ValueError("recorded videos cannot be played")

    def close(self) -> None:
        pass


@functools.lru_cache(maxsize=1)
def _frames(path: Path, count: int, size: int) -> NDArray[np.uint8]:
    try:
        content = read_checked(path, path.name)
    except (OSError, ValueError) as error:
        user_error(f"data: {error}; convert the videos again")
    return np.frombuffer(content, np.uint8).reshape(count, 3, size, size)


@functools.cache
def load(folder: str, history: int) -> Recordings:
    """The recordings of --data; one line and exit code 2 if there are none, or too few for a test."""
    path = Path(folder) / INDEX
    if not folder:
        user_error("task own needs --data FOLDER, which python -m diamond.convert writes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            user_error(f"data: {path} has format {content['format']}, this program reads {FORMAT}; convert again")
        videos = content["videos"]
        action = tuple(np.array(video["action"], np.int64) for video in videos)
        counts = tuple(int(video["frames"]) for video in videos)
        found = Recordings(Path(folder), int(content["image_size"]), int(content["actions"]), counts, action)
        is_whole = all(
            len(some) == count - 1 and 0 <= some.min() <= some.max() < found.actions
            for some, count in zip(action, counts, strict=True)
        )
    except FileNotFoundError:
        user_error(f"data: {path} does not exist; python -m diamond.convert writes it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        user_error(f"data: {path} is damaged ({' '.join(str(error).split())}); convert the videos again")
    if not is_whole or len(counts) < 2:
        user_error(f"data: {path} is damaged; convert the videos again")
    short = [k for k in range(len(counts) - found.tested, len(counts)) if counts[k] <= history]
    if short:
        name = videos[short[0]]["name"]
        user_error(
            f"data: {name}, kept for the test, has {counts[short[0]]} frames, no more than the history {history}"
        )
    return found


def fitted(config: Config, chosen: frozenset[str]) -> Config:
    """The config of task own with the size of its frames, and with no more steps than there are.

    One line and exit code 2 if `chosen`, what the user set, has another size, or if a file is damaged.
    """
    found = load(config.data, config.history)
    if "image_size" in chosen and config.image_size != found.image_size:
        user_error(f"data: its frames have {found.image_size} rows, not {config.image_size}; convert with --size")
    for number in range(len(found.counts)):
        found.frames(number)  # a damaged file is found before there is a run
    steps = min(config.env_steps, found.steps)
    return replace(config, image_size=found.image_size, env_steps=steps, collect_first=steps, collect_most=steps)
