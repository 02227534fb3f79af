"""Short WebM clips (VP9) from arrays of frames. T frames, H rows, W columns, RGB, uint8."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
# OpenCV announces with this that it found the encoder by another name than the four letters, which is fine.
_HARMLESS = "is not supported with codec id"


def write_video(path: Path | str, frames: Frames, fps: float) -> None:
    """Writes frames [T, H, W, 3] as a .webm file; the file appears only when it is complete.

    Raises ValueError for anything but uint8 frames of even size, RuntimeError if OpenCV has no VP9 encoder.
    """
    path = Path(path)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"expected uint8 frames [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"VP9 needs even height and width, got {height} x {width}")
    if path.suffix != ".webm" or not fps > 0:
        raise ValueError(f"expected a .webm file and fps above 0, got {path.name} and {fps}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.webm")
    with _quiet_encoder() as complaints:
        fourcc = cv2.VideoWriter.fourcc(*"VP90")
        writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, fourcc, fps, (width, height))
    if not writer.isOpened():
        raise RuntimeError(f"OpenCV cannot write VP9 to {path}: {' '.join(complaints) or 'no encoder'}")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    os.replace(temporary, path)


def label(frame: Frames, text: str) -> Frames:
    """A copy of frame [H, W, 3] with the text at the top left, white with a dark edge."""
    marked = np.ascontiguousarray(frame).copy()
    scale = max(0.35, frame.shape[0] / 500)
    at = (4, int(8 + 22 * scale))
    # The edge is the same letters one pixel to each side: thicker ones are wider and would not lie behind them.
    for x, y, colour in ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, 255)):
        place, ink = (at[0] + x, at[1] + y), (colour, colour, colour)
        cv2.putText(marked, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return marked


def side_by_side(clips: Sequence[Frames]) -> Frames:
    """Clips [T_i, H, W_i, 3] become one [max T, H, sum W, 3]; a shorter one stays on its last frame.

    Raises ValueError if there is no clip, an empty one, or heights differ.
    """
    if not clips or any(len(clip) == 0 for clip in clips) or len({clip.shape[1] for clip in clips}) != 1:
        raise ValueError(f"expected clips of one height with frames, got {[list(clip.shape) for clip in clips]}")
    longest = max(map(len, clips))
    padded = [np.concatenate([clip, np.repeat(clip[-1:], longest - len(clip), axis=0)]) for clip in clips]
    return np.concatenate(padded, axis=2)


def has_display() -> bool:
    """Whether a window can be opened."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@contextmanager
def _quiet_encoder() -> Iterator[list[str]]:
    """Collects what native code writes to stderr; at the end all but the harmless line is passed on."""
    lines: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            text = file.read().decode(errors="replace")
            lines += [line for line in text.splitlines() if line.strip() and _HARMLESS not in line]
            for line in lines:
                print(line, file=sys.stderr)
