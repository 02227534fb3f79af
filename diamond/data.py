"""Recorded play: a folder that `python -m diamond.convert` or `python -m diamond.recorder` wrote.

data.json: {"format": 1, "image_size", "actions", "tested", "game", "videos": [{"name", "frames", "action"}]}. `action`
holds one whole number below `actions` for every frame of the video but the last: what was done between this frame and
the next. The last `tested` videos are kept for the test. `game` is that which was played, "" for videos from elsewhere.
Beside it lies a file 00000.frames, 00001.frames, ... for each video: frames [N, 3, H, W] uint8, a checksum behind them.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from common.config import user_error
from common.files import atomic_write, read_checked, write_checked
from diamond.config import Config

if TYPE_CHECKING:
    from diamond.env import Answer

FORMAT = 1
INDEX = "data.json"
HELD_OUT = 10  # the last of so many videos are kept for the test, at least one


@dataclass(frozen=True)
class Video:
    """Frames [N, 3, H, W] uint8 and the actions between them, [N - 1]."""

    name: str
    frames: NDArray[np.uint8]
    action: NDArray[np.int64]


def frames_name(number: int) -> str:
    """The file of a video's frames."""
    return f"{number:05d}.frames"


def write(target: Path, videos: Iterable[Video], *, actions: int = 0, tested: int = 0, game: str = "") -> int:
    """Write the new folder `target`, whole or not at all. Returns how many frames there are.

    actions: 0 for one more than the highest that occurs. tested: how many videos, the last ones, are kept for the test,
    0 for a tenth of them, at least one.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        found, size = [], 0
        for number, video in enumerate(videos):
            size = video.frames.shape[-1]
            write_checked(part / frames_name(number), video.frames.tobytes(), frames_name(number))
            found.append({"name": video.name, "frames": len(video.frames), "action": video.action.tolist()})
        index = {
            "format": FORMAT,
            "image_size": size,
            "actions": actions or 1 + max(max(video["action"]) for video in found),
            "tested": tested or max(1, len(found) // HELD_OUT),
            "game": game,
            "videos": found,
        }
        atomic_write(part / INDEX, (json.dumps(index) + "\n").encode())
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sum(video["frames"] for video in found)


@dataclass
class Recordings:
    """Recorded videos: frames of each, and its actions [frames - 1]. A `Game` that nobody can play.

    tested: how many of the videos, the last ones, are kept for the test.
    """

    folder: Path
    image_size: int
    actions: int
    counts: tuple[int, ...]
    action: tuple[NDArray[np.int64], ...]
    tested: int
    game: str = ""
    names: tuple[str, ...] = ()  # actions have numbers only

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
        user_error(f"data: {error}; write it again")
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
            user_error(f"data: {path} has format {content['format']}, this program reads {FORMAT}; write it again")
        videos = content["videos"]
        action = tuple(np.array(video["action"], np.int64) for video in videos)
        counts = tuple(int(video["frames"]) for video in videos)
        tested = int(content.get("tested", max(1, len(counts) // HELD_OUT)))
        game = str(content.get("game", ""))
        size, actions = int(content["image_size"]), int(content["actions"])
        found = Recordings(Path(folder), size, actions, counts, action, tested, game)
        is_whole = all(
            len(some) == count - 1 and 0 <= some.min() <= some.max() < found.actions
            for some, count in zip(action, counts, strict=True)
        )
    except FileNotFoundError:
        user_error(f"data: {path} does not exist; python -m diamond.convert or diamond.recorder writes it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        user_error(f"data: {path} is damaged ({' '.join(str(error).split())}); write it again")
    if not is_whole or not 0 < tested < len(counts):
        user_error(f"data: {path} is damaged; write it again")
    short = [k for k in range(len(counts) - found.tested, len(counts)) if counts[k] <= history]
    if short:
        name = videos[short[0]]["name"]
        user_error(
            f"data: {name}, kept for the test, has {counts[short[0]]} frames, no more than the history {history}"
        )
    return found


def fitted(config: Config, chosen: frozenset[str]) -> Config:
    """The config, that of task own with the size of its frames and with no more steps than there are.

    One line and exit code 2 if `chosen`, what the user set, has another size, if play of a game is not of this one or
    less than the config asks for, or if a file is damaged.
    """
    found = load(config.data, config.history)
    is_own = config.task == "own"
    if not is_own and found.game != config.game:
        user_error(f"data: {config.data} holds {found.game or 'videos from elsewhere'}, not play of {config.game}")
    if (not is_own or "image_size" in chosen) and config.image_size != found.image_size:
        user_error(f"data: its frames have {found.image_size} rows, not {config.image_size}; write it in that size")
    if not is_own and config.env_steps > found.steps:
        user_error(f"data: {config.data} has {found.steps} steps to train on, not {config.env_steps}; record more")
    for number in range(len(found.counts)):
        found.frames(number)  # a damaged file is found before there is a run
    if not is_own:
        return config
    steps = min(config.env_steps, found.steps)
    return replace(config, image_size=found.image_size, env_steps=steps, collect_first=steps, collect_most=steps)
