"""Video files: which frames a clip takes, and reading them with OpenCV.

Source: V-JEPA, appendix C; reference code: src/datasets/video_dataset.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.files import check_is_file
from vjepa.statistics import IMAGENET, Statistics

SUFFIXES = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif"}
# Containers guess their number of frames from their length: so many at the end may be missing.
SLACK = 2


class DamagedVideoError(ValueError):
    """A video that is missing, cut short or no video; the message names it.

    Deviation D3: the authors draw other videos in place of such, however many; here they are counted and named.
    """


def frame_indices(
    length: int,
    frames: int,
    step: int,
    clips: int = 1,
    allow_overlap: bool = False,
    rng: np.random.Generator | np.random.RandomState | None = None,
) -> np.ndarray:
    """Which frames of a video of `length` frames its clips take: [clips, frames] int64.

    The video is cut into `clips` parts of P = length // clips frames. A clip spans frames * step of them: from the
    beginning of its part, or at a random place with `rng`. It is evenly spaced over its whole span, so two frames are a
    little more than `step` apart. Shorter parts give what they have, then their last frame again; or with
    `allow_overlap`, clips reach into one another. Raises ValueError if a part has no frame and clips must not overlap.
    Source: reference code; the paper has a fixed step.
    """
    span, part = frames * step, length // clips
    if length < 1 or (part < 1 and not allow_overlap):
        raise ValueError(f"{length} frames are too few for {clips} clips")
    rows = []
    for k in range(clips):
        if part > span:
            end = span if rng is None else int(_integer(rng, span, part))
            row = np.linspace(end - span, end, frames).clip(end - span, end - 1) + k * part
        elif not allow_overlap:
            row = _padded(part, part // step, frames) + k * part
        else:
            most = min(span, length) - 1
            apart = (length - span) // (clips - 1) if length > span and clips > 1 else 0
            row = _padded(most, most // step, frames) + k * apart
        rows.append(row.astype(np.int64))
    return np.stack(rows)


def _padded(most: int, count: int, frames: int) -> np.ndarray:
    """`count` evenly spaced numbers from 0 to `most`, then `most` again, each below it."""
    row = np.concatenate([np.linspace(0, most, count), np.full(max(0, frames - count), float(most))])
    return row[:frames].clip(0, max(0, most - 1)).astype(np.int64)


def _integer(rng: np.random.Generator | np.random.RandomState, low: int, high: int) -> int:
    return int(rng.integers(low, high) if isinstance(rng, np.random.Generator) else rng.randint(low, high))


class VideoFiles:
    """Videos of a list file, a folder or a folder of class folders; `labels` is empty if there are none."""

    channels = 3

    def __init__(
        self, place: Path, frames: int, step: int | None, fps: int | None, classes: Sequence[str] = (),
        statistics: Statistics = IMAGENET[3],
    ) -> None:  # fmt: skip
        """`frames` a clip, `step` frames apart, or so many of a second (`fps`).

        A list file has a line a video: its path, relative to the list, and optionally a space and its label. `classes`:
        names of class folders, in the order of their numbers; otherwise they are taken from the folder.
        Raises ValueError in one line if there is no video or a line is no such line.
        """
        quieten()
        self.frames, self.step, self.fps, self.statistics = frames, step, fps, statistics
        self.classes = tuple(classes)
        pairs = self._listed(place) if place.is_file() else self._found(place)
        if not pairs:
            raise ValueError(f"data: no videos in {place}")
        # Byte strings in one array: a million Python objects would be copied into each worker, page by page.
        self.paths = np.array([str(path).encode() for path, _ in pairs])
        labels = [label for _, label in pairs if label is not None]
        if labels and len(labels) < len(pairs):
            raise ValueError(f"data: {place} has labels for {len(labels)} of {len(pairs)} videos")
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """One clip of video `index`, [F, H, W, 3] uint8, at a random place with `rng`. Raises DamagedVideoError."""
        return self.clips(index, 1, rng)[0]

    def clips(self, index: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """`count` clips of video `index`, [count, F, H, W, 3] uint8; a short one's last frame is seen again and again.

        Raises DamagedVideoError.
        """
        path = self.paths[index].decode()
        if not Path(path).is_file():  # nor a pipe, whose reading would never end
            raise DamagedVideoError(f"{path} is missing or no video")
        video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        try:
            length, fps = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
            if not video.isOpened() or length < 1 or not math.isfinite(fps):
                raise DamagedVideoError(f"{path} is missing or no video")
            step = self.step if self.step is not None else max(1, math.ceil(fps) // (self.fps or 1))
            chosen = frame_indices(length, self.frames, step, count, count > 1, rng)
            return _read(video, chosen, length, path)
        finally:
            video.release()

    def _found(self, folder: Path) -> list[tuple[Path, int | None]]:
        """Videos below a folder, sorted; those in folders of their own have these as classes."""
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        names = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
        if "" in names:
            return [(path, None) for path in paths]
        self.classes = self.classes or tuple(sorted(set(names)))
        number = {name: k for k, name in enumerate(self.classes)}
        unknown = sorted(set(names) - set(number))
        if unknown:
            raise ValueError(f"data: {folder} has videos of {len(unknown)} unknown classes, the first is {unknown[0]}")
        return [(path, number[name]) for path, name in zip(paths, names, strict=True)]

    def _listed(self, file: Path) -> list[tuple[Path, int | None]]:
        check_is_file(file)
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError:
            raise ValueError(f"data: {file} is no list of videos") from None
        pairs: list[tuple[Path, int | None]] = []
        for line in filter(None, lines):
            path, space, label = line.rpartition(" ")
            if space and label.isdigit():
                pairs.append((file.parent / path, int(label)))
            elif Path(line).suffix.lower() in SUFFIXES:
                pairs.append((file.parent / line, None))
            else:
                raise ValueError(
                    f"data: {file}: {line[:80]!r} is no path of a video, with a number behind it or without"
                )
        return pairs


def _read(video: cv2.VideoCapture, chosen: np.ndarray, length: int, path: str) -> np.ndarray:
    """Frames at `chosen` [count, F] of an open video, [count, F, H, W, 3] RGB."""
    wanted = np.unique(chosen)
    first = int(wanted[0])
    # A seek goes to the next key frame and decodes from there; where the container cannot, all frames are decoded.
    if first and video.set(cv2.CAP_PROP_POS_FRAMES, first) and int(video.get(cv2.CAP_PROP_POS_FRAMES)) == first:
        at = first
    else:
        video.set(cv2.CAP_PROP_POS_FRAMES, 0)
        at = 0
    frames: dict[int, np.ndarray] = {}
    last: np.ndarray | None = None
    for number in map(int, wanted):
        while at < number and video.grab():
            at += 1
        is_read, frame = video.read() if at == number else (False, None)
        if is_read and frame is not None:
            last, at = frame[..., ::-1], at + 1
        elif last is None or number < length - SLACK:
            raise DamagedVideoError(f"{path} is cut short: frame {number} of {length} cannot be read")
        frames[number] = last
    return np.stack([np.stack([frames[int(number)] for number in row]) for row in chosen])


def quieten() -> None:
    """What OpenCV and FFmpeg say of damaged files stays unsaid: we name them ourselves."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read at the first video
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
