"""From an image to what the encoder sees: resizing, random crops, the whole image for the probes, normalised input.

An image is [H, W, C] uint8. Source: paper, appendix A.1; reference code: src/transforms.py.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from ijepa.config import Config
from ijepa.statistics import Statistics


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image [H, W, C] -> [height, width, C]; areas are averaged when shrinking.

    Deviation D3: OpenCV's area average and bilinear enlargement instead of Pillow's filtered bilinear.
    """
    if image.shape[:2] == (height, width):
        return image
    is_shrinking = height <= image.shape[0] and width <= image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR)
    return resized.reshape(height, width, image.shape[2])


def random_crop(height: int, width: int, scale: tuple[float, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """Top, left, height and width of a random crop with an area share in `scale` and a ratio of 3/4 to 4/3.

    Ten tries, then the largest allowed crop in the middle. Consumes `rng`.
    Source: the RandomResizedCrop that the authors use, with its default ratio, drawn uniformly in its logarithm.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(scale[0], scale[1])
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def augmented(image: np.ndarray, config: Config, rng: np.random.Generator) -> np.ndarray:
    """What the training sees of an image: [height, width, C] uint8. Consumes `rng`."""
    if config.augment:
        top, left, h, w = random_crop(image.shape[0], image.shape[1], config.crop_scale, rng)
        image = image[top : top + h, left : left + w]
    image = resize(image, config.size[0], config.size[1])
    return image[:, ::-1] if config.flip and rng.random() < 0.5 else image


def centred(image: np.ndarray, config: Config) -> np.ndarray:
    """What the probes see of an image: with crops on, `centre_share` of its shorter side, the middle of the image.

    7/8 is usual for photographs, whose crops show the middle more often than the border.
    """
    if not config.augment:
        return resize(image, config.size[0], config.size[1])
    factor = max(config.size[0] / image.shape[0], config.size[1] / image.shape[1]) / config.centre_share
    height, width = config.size
    image = resize(image, max(height, round(factor * image.shape[0])), max(width, round(factor * image.shape[1])))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def to_input(images: Tensor, statistics: Statistics, device: torch.device) -> Tensor:
    """images [m, H, W, C] uint8 -> [m, C, H, W] float32, normalised, on `device`."""
    mean, std = (torch.from_numpy(part).float().to(device) for part in (statistics.mean, statistics.std))
    if device.type == "cuda":
        images = images.pin_memory()  # from where the copy goes on beside the device's work
    return ((images.to(device, non_blocking=True) / 255 - mean) / std).permute(0, 3, 1, 2)
