"""What frames are normalised by before an encoder sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Mean [C] and standard deviation [C] of pixels in [0, 1]."""

    mean: np.ndarray
    std: np.ndarray


# ImageNet's; grey frames take the mean of the three colours.
IMAGENET = {
    3: Statistics(np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
    1: Statistics(np.array([0.449]), np.array([0.226])),
}
