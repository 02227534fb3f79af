"""What a person sees of a run: curves, masks, what the predictor expects, neighbours, features as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.curves import draw_curves
from common.seeding import derive_seed
from common.video import label, side_by_side, write_video
from ijepa import data
from ijepa.build import mask_config
from ijepa.config import Config
from ijepa.crops import centred, to_input
from ijepa.data import Images, Splits
from ijepa.features import pooled_layers
from ijepa.jepa import JEPA, predict, targets
from ijepa.masks import sample_masks
from ijepa.play import load

BANK = 160  # images that patches and neighbours are taken from
SHOWN = 6  # rows of a picture
NEAREST = 5
SECONDS = 1.5  # per image of the film
PANEL = 224  # height in pixels, in the film
LEAST = 64  # height in pixels, of a panel in a picture
GREY = 105


def draw_pictures(
    record: Mapping[str, Any], config: Config, folder: Path, splits: Splits | None, model: JEPA, device: torch.device
) -> None:
    """All pictures and the film of a run, into its folder."""
    draw_curves(record, folder / "curves.png", from_zero=True)
    images = _images(config, folder, splits)
    rng = np.random.default_rng(derive_seed(config.seed, "pictures"))
    rows = rng.choice(len(images), min(BANK, len(images)), replace=False)
    pixels = np.stack([centred(images.read(int(row)), config) for row in rows])
    inputs = to_input(torch.from_numpy(pixels), images.statistics, device)
    with torch.no_grad():
        draw_neighbours(pixels, pooled_layers(model.target_encoder, inputs)[:, -1], folder / "neighbours.png")
        tokens = targets(model.target_encoder, inputs)
        draw_colours(pixels, tokens, model.encoder.grid, folder / "features.png")
        if config.target != "pixels":
            panels = expectations(pixels, inputs, tokens, model, config)
            _save_rows([list(row) for row in panels[:SHOWN]], folder / "masks.png")
            film(panels, folder / "video.webm")


def _images(config: Config, folder: Path, splits: Splits | None) -> Images:
    if splits is not None:
        return splits.shown
    statistics = data.frame_statistics(data.pretraining_play(folder / "play", config), config)
    plays = load(folder / "play", config.task, "probe", config.probe_env_steps, config.seed)
    return data.Frames(plays, statistics)


def expectations(
    pixels: np.ndarray, inputs: Tensor, tokens: Tensor, model: JEPA, config: Config
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For some images: the image, its context, and the context with what the predictor expects in the targets.

    A prediction is no picture; each predicted patch is shown as the patch of another image whose token is nearest.
    pixels [n, H, W, C] uint8, inputs [n, C, H, W], tokens [n, N, D]. Returns panels [H, W, 3] uint8.
    """
    count = min(len(pixels) // 2, 16)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "pictured masks"))
    masks = sample_masks(mask_config(config, model.encoder.grid), count, 0, generator).to(inputs.device)
    predicted = predict(model, inputs[:count], masks).unflatten(0, (len(masks.target), len(masks.context), count))
    bank = tokens[count:].flatten(0, 1)
    patches = _patches(pixels[count:], config.patch).reshape(-1, *_patches(pixels[:1], config.patch).shape[2:])
    panels = []
    for k in range(count):
        whole = _patches(pixels[k : k + 1], config.patch)[0]
        context = np.full_like(whole, GREY)
        for mask in masks.context:
            context[mask[k].cpu()] = whole[mask[k].cpu()]
        expected = context.copy()
        for m, mask in enumerate(masks.target):
            nearest = torch.cdist(predicted[m, 0, k], bank).argmin(1).cpu()
            expected[mask[k].cpu()] = patches[nearest]
        rows, columns = model.encoder.grid
        parts = (part.reshape(rows, columns, *part.shape[1:]) for part in (whole, context, expected))
        panels.append(tuple(_rgb(part.swapaxes(1, 2).reshape(pixels.shape[1:])) for part in parts))
    return panels  # type: ignore[return-value]


def _patches(images: np.ndarray, patch: int) -> np.ndarray:
    """images [n, H, W, C] -> [n, N, P, P, C]."""
    n, height, width, channels = images.shape
    parts = images.reshape(n, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return parts.reshape(n, -1, patch, patch, channels)


def draw_neighbours(pixels: np.ndarray, features: Tensor, path: Path) -> None:
    """Images and their nearest others by the cosine of features [n, D] without their mean; the query stands left."""
    x = F.normalize(features - features.mean(0), dim=1)
    order = (x @ x.t()).topk(min(NEAREST + 1, len(x)), dim=1).indices.cpu()
    _save_rows([[_rgb(pixels[k]) for k in order[row]] for row in range(min(SHOWN, len(x)))], path)


def draw_colours(pixels: np.ndarray, tokens: Tensor, grid: tuple[int, int], path: Path) -> None:
    """Images beside the three largest principal components of their tokens [n, N, D] as red, green and blue."""
    flat = tokens.flatten(0, 1).float().cpu()
    generator = torch.Generator().manual_seed(0)
    rows = flat[torch.randperm(len(flat), generator=generator)[:5000]]
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:3]
    colours = (flat - rows.mean(0)) @ axes.t()
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low).clamp(min=1e-9)).clamp(0, 1) * 255
    maps = colours.byte().numpy().reshape(len(tokens), *grid, 3)
    height, width = pixels.shape[1:3]
    enlarged = [cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST) for part in maps[:SHOWN]]
    _save_rows([[_rgb(image), part] for image, part in zip(pixels[:SHOWN], enlarged, strict=True)], path)


def film(panels: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Image, context and expectation side by side, one image after the other."""
    titles = ("image", "context", "expected")
    columns = []
    for k, title in enumerate(titles):
        frames = [_panel(row[k]) for row in panels]
        columns.append(np.stack([label(frame, title) for frame in frames]))
    write_video(path, side_by_side(columns), 1 / SECONDS)


def _panel(image: np.ndarray) -> np.ndarray:
    """Enlarged to PANEL rows and an even number of columns."""
    width = round(image.shape[1] * PANEL / image.shape[0] / 2) * 2
    return cv2.resize(image, (width, PANEL), interpolation=cv2.INTER_NEAREST)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _save_rows(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Panels [H, W, 3] uint8 in rows and columns, with white gaps, as PNG; small ones are enlarged."""
    gap, times = 4, -(-LEAST // rows[0][0].shape[0])
    panels = [[p.repeat(times, axis=0).repeat(times, axis=1) for p in row] for row in rows]
    lines = [
        cv2.hconcat([cv2.copyMakeBorder(p, 0, gap, 0, gap, cv2.BORDER_CONSTANT, value=[255] * 3) for p in row])
        for row in panels
    ]
    cv2.imwrite(str(path), cv2.vconcat(lines)[..., ::-1])
