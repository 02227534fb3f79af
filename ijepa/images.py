"""Image files: finding them in folders, with classes or without, and reading them with OpenCV.

Source: reference code: src/datasets/imagenet1k.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ijepa.statistics import IMAGENET, Statistics

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
COMPLAINT = " is missing, cut short or no image"
# As the authors' loader: colour whatever the file has, and no rotation by what the camera wrote of itself.
READ_AS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
JPEG, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
PNG, PNG_END = b"\x89PNG", b"IEND"


class DamagedImageError(ValueError):
    """An image that is missing, cut short or no image; the message names it."""


class ImageFolder:
    """<folder>/<class>/<file>, classes in alphabetical order, or those of another folder."""

    channels = 3
    factors: tuple[str, ...] = ("class",)

    def __init__(self, folder: Path, classes: Sequence[str] = (), statistics: Statistics = IMAGENET[3]) -> None:
        """Labels are places in `classes`, or without them among the folder's own.

        Raises ValueError if there is no image below the folder, or one of a class that is not among them.
        """
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        files = {name: images_of(folder / name) for name in names}
        self.statistics = statistics
        self.classes = tuple(classes) or tuple(name for name in names if files[name])
        number = {name: k for k, name in enumerate(self.classes)}
        unknown = [name for name in names if files[name] and name not in number]
        if unknown:
            raise ValueError(f"data: {folder} has images of {len(unknown)} unknown classes, the first is {unknown[0]}")
        pairs = [(path, number[name]) for name in names for path in files[name]]
        if not pairs:
            raise ValueError(f"data: no images in class folders below {folder}")
        # Byte strings in one array: a million Python objects would be copied into each worker, page by page.
        self.paths = np.array([str(path).encode() for path, _ in pairs])
        self.labels = np.array([[label] for _, label in pairs])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index].decode())


class ImageFiles:
    """All images of a folder and of the folders below it, in the order of their paths: without labels."""

    channels = 3

    def __init__(self, folder: Path, statistics: Statistics = IMAGENET[3]) -> None:
        """Raises ValueError if there is no image."""
        self.statistics = statistics
        found: list[Path] = []
        met: set[str] = set()
        for place, names, _ in os.walk(folder, followlinks=True):
            names.sort()
            real = os.path.realpath(place)
            if real in met:  # links may lead in a circle
                names.clear()
                continue
            met.add(real)
            found += images_of(Path(place))
        if not found:
            raise ValueError(f"data: no images in {folder} or in folders below it")
        self.paths = np.array(sorted(str(path).encode() for path in found))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        return read_image(self.paths[index].decode())


def has_classes(folder: Path) -> bool:
    """Whether there is an image in one of the folders in it."""
    return folder.is_dir() and any(images_of(path) for path in folder.iterdir() if path.is_dir())


def read_image(path: str) -> np.ndarray:
    """[H, W, 3] uint8, red first. Raises DamagedImageError if the file is missing, cut short or no image."""
    try:
        content = Path(path).read_bytes()
        image = cv2.imdecode(np.frombuffer(content, np.uint8), READ_AS) if is_whole(content) else None
    except (OSError, cv2.error):
        image = None
    if image is None:
        raise DamagedImageError(path)
    return image[..., ::-1]


def images_of(folder: Path) -> list[Path]:
    """Files, and links to files, with the name of an image, sorted; no pipes, whose reading would never end."""
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if Path(e.name).suffix.lower() in SUFFIXES and e.is_file())


def is_whole(content: bytes) -> bool:
    """Whether a file is not empty and, being a JPEG or PNG, has its end: decoders silently fill up what is cut off."""
    if content.startswith(JPEG):
        # The end behind the last scan: a small picture inside the head has an end of its own.
        return content.rfind(JPEG_END) > content.rfind(JPEG_SCAN)
    return PNG_END in content if content.startswith(PNG) else bool(content)
