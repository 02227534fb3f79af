"""From a clip to what the encoder sees: random crops for training, equally spaced views for probes, normalised input.

A clip is [F, H, W, C] uint8; all its frames are cut and mirrored alike.
Source: V-JEPA, appendix C and D; reference code: app/vjepa/transforms.py, src/datasets/utils/video/.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from vjepa.config import Config
from vjepa.statistics import Statistics


def resize(clip: np.ndarray, height: int, width: int) -> np.ndarray:
    """clip [F, H, W, C] -> [F, height, width, C], bilinear, not smoothed when shrinking; as the authors resize."""
    if clip.shape[1:3] == (height, width):
        return clip
    frames = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in clip]
    return np.stack(frames).reshape(len(clip), height, width, clip.shape[3])


def random_crop(
    height: int, width: int, scale: tuple[float, ...], ratio: tuple[float, ...], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop with an area share in `scale` and a width / height in `ratio`.

    Ten tries, the ratio drawn uniformly in its logarithm; then the largest allowed crop in the middle. Consumes `rng`.
    """
    low, high = ratio
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def augmented(clip: np.ndarray, config: Config, rng: np.random.Generator) -> np.ndarray:
    """What the training sees of a clip: [F, height, width, C] uint8. Consumes `rng`."""
    if config.augment:
        top, left, h, w = random_crop(clip.shape[1], clip.shape[2], config.crop_scale, config.crop_ratio, rng)
        clip = clip[:, top : top + h, left : left + w]
    clip = resize(clip, config.size[0], config.size[1])
    return clip[:, :, ::-1] if config.flip and rng.random() < 0.5 else clip


def views(clip: np.ndarray, config: Config, count: int) -> list[np.ndarray]:
    """What a test sees of a clip: `count` crops, equally spaced along the longer side; one lies in the middle.

    The shorter side is resized to the size first. Without `augment`, the whole frame, whatever its shape, once.
    """
    height, width = config.size
    if not config.augment:
        return [resize(clip, height, width)]
    factor = max(height / clip.shape[1], width / clip.shape[2])
    clip = resize(clip, max(height, round(factor * clip.shape[1])), max(width, round(factor * clip.shape[2])))
    spare_rows, spare_columns = clip.shape[1] - height, clip.shape[2] - width
    shares = [0.5] if count == 1 else [k / (count - 1) for k in range(count)]
    places = [(int(share * spare_rows), int(share * spare_columns)) for share in shares]
    return [clip[:, top : top + height, left : left + width] for top, left in places]


def to_input(clips: Tensor, statistics: Statistics, device: torch.device) -> Tensor:
    """clips [m, F, H, W, C] uint8 -> [m, C, F, H, W] float32, normalised, on `device`."""
    mean, std = (torch.from_numpy(part).float().to(device) for part in (statistics.mean, statistics.std))
    return ((clips.to(device, non_blocking=True) / 255 - mean) / std).permute(0, 4, 1, 2, 3)
