"""Own videos as data for a world model: a folder of videos with an action file each becomes a folder of frames.

    python -m diamond.convert videos data
    python -m diamond.train --preset cpu --task own --data data

Beside each video, of any kind that OpenCV reads, lies a text file of the same name that ends in .txt, with a whole
number from 0 on each line: what was done between this frame and the next. There are as many lines as frames, or one
less, since the last frame's action leads to nothing. Each video is an episode; all have the same rows and columns, and
become square frames of --size. The last tenth of the videos by name, at least one, is kept for the test.
The format of what comes out is documented in data.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong with a video is said in one line of ours
import cv2
import numpy as np
from numpy.typing import NDArray

from common.config import Parser, user_error
from common.files import check_is_file
from common.program import program
from common.run import progress_bar
from diamond import data
from diamond.data import Video

ACTION_FILE = ".txt"
DIGITS = 5  # of an action: each number up to the highest has an embedding, so a time or a key code is none
MULTIPLE = 16  # of rows and columns, which the networks halve


def read_actions(path: Path) -> list[int]:
    """The numbers of an action file; one line and exit code 2 if there is none, or a line is no number."""
    try:
        check_is_file(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        user_error(f"{path}: no action file ({' '.join(str(error).split())})")
    for number, line in enumerate(lines, 1):
        if not line.strip().isdecimal() or len(line.strip()) > DIGITS:
            user_error(f"{path}: line {number} is {line[:40]!r}, not a whole number from 0 to {10**DIGITS - 1:,}")
    return [int(line) for line in lines]


def read_video(path: Path, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Frames [N, 3, size, size] of a video, and the rows and columns it had; one line and exit code 2 if it is broken.

    Made smaller by the mean over areas, as Atari frames are.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)  # others print what they miss
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames: list[NDArray[np.uint8]] = []
    shape = (0, 0)
    while True:
        is_there, picture = capture.read()
        if not is_there:
            break
        if frames and picture.shape[:2] != shape:
            user_error(f"{path}: frame {len(frames)} is {_by(picture.shape[:2])}, the first {_by(shape)}")
        shape = (picture.shape[0], picture.shape[1])
        if min(shape) < size:
            user_error(f"{path}: frames of {_by(shape)} are smaller than --size {size}")
        small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
        frames.append(np.asarray(small[..., ::-1].transpose(2, 0, 1), np.uint8))
    capture.release()
    if not frames:
        user_error(f"{path}: no video that can be read")
    if len(frames) < 2 or len(frames) < promised - 1:
        user_error(f"{path}: {len(frames)} of {promised} frames can be read, it is cut off or damaged")
    return np.stack(frames), shape


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]} pixels"


def convert(source: Path, target: Path, size: int) -> int:
    """Write the data of all videos in `source` to the new folder `target`. Returns how many frames there are."""
    if not source.is_dir():
        user_error(f"{source} is no folder")
    if target.exists():
        user_error(f"{target} exists; give a folder that does not")
    files = (path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    paths = sorted(path for path in files if path.suffix != ACTION_FILE)
    if len(paths) < 2:
        user_error(f"{source}: {len(paths)} videos; at least two are needed, the last is kept for the test")
    names = [path.stem for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        user_error(f"{source}: two videos are named {twice}, so their actions cannot be told apart")
    return data.write(target, _videos(paths, size))


def _videos(paths: Sequence[Path], size: int) -> Iterator[Video]:
    """Each video with its actions; one line and exit code 2 at the first that does not fit."""
    common: tuple[int, int] | None = None
    bar = progress_bar(len(paths), "convert", unit="video")
    for path in paths:
        action = read_actions(path.with_suffix(ACTION_FILE))
        frames, shape = read_video(path, size)
        common = common or shape
        if shape != common:
            user_error(f"{path}: frames of {_by(shape)}, those of {paths[0].name} have {_by(common)}")
        if len(action) not in (len(frames) - 1, len(frames)):
            user_error(f"{path}: {len(frames)} frames and {len(action)} actions; one for each frame is needed")
        bar.update()
        yield Video(path.name, frames, np.array(action[: len(frames) - 1], np.int64))
    bar.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m diamond.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="VIDEOS", help="a folder of videos, each with its action file")
    parser.add_argument("target", type=Path, metavar="DATA", help="the folder to write; it must not exist")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of the frames (default 64)")
    options = parser.parse_args(argv)
    if options.size < MULTIPLE or options.size % MULTIPLE:
        user_error(f"--size must be a multiple of {MULTIPLE}, not {options.size}")
    frames = convert(options.source, options.target, options.size)
    print(f"converted: {frames:,} frames to {options.target}")


if __name__ == "__main__":
    program(main)
