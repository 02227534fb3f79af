"""Fashion-MNIST from its four files in a folder: 60,000 and 10,000 grey images of clothes in ten classes.

Source: Xiao et al. 2017; the files are in the format of MNIST's: a head of big-endian numbers, then the bytes.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

# Where Debian and Ubuntu put them.
PACKAGE, FOLDER = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
BYTES = 8  # the code of unsigned bytes, the third byte of a file; the fourth is the number of its axes


def fashion(data: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [N, 28, 28] uint8, white on black, and classes [N] int64, under "train" and "test".

    data: the folder of the four files, as they are or packed (.gz); "" is where Debian and Ubuntu put them.
    Raises ValueError in one line if one is missing or damaged.
    """
    folder = Path(data) if data else FOLDER
    return {part: _pair(folder, *names) for part, names in FILES.items()}


def _pair(folder: Path, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one part. Raises ValueError if their numbers differ."""
    pictures, classes = read(folder / images, 3), read(folder / labels, 1)
    if len(pictures) != len(classes) or len(pictures) == 0:
        raise ValueError(f"data: {folder}: {len(pictures)} images in {images}, {len(classes)} labels in {labels}")
    return pictures, classes.astype(np.int64)


def read(path: Path, axes: int) -> np.ndarray:
    """The bytes of one file, packed or not, with that number of axes. Raises ValueError for any other file."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        if path.is_file():
            content = path.read_bytes()
        elif packed.is_file():
            content = gzip.decompress(packed.read_bytes())
        else:
            raise ValueError(
                f"task fashion needs the four files of Fashion-MNIST in a folder (data): {path} is missing; on Debian "
                f"and Ubuntu, apt install {PACKAGE} puts them where they are looked for without data"
            )
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data: {path} cannot be read ({' '.join(str(error).split())})") from error
    start = 4 + 4 * axes
    sizes = np.frombuffer(content[4:start], ">u4") if len(content) >= start else np.zeros(0, int)
    if content[:4] != bytes((0, 0, BYTES, axes)) or len(content) - start != np.prod(sizes, dtype=np.int64):
        raise ValueError(f"data: {path} is no whole file of {axes}-dimensional bytes in MNIST's format")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
