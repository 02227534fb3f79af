"""What a person sees of a run: curves, hidden tubes, predicted beside real features as colours, surprise over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from common.curves import draw_curves
from common.seeding import derive_seed
from common.video import label, side_by_side, write_video
from vjepa import physics, scenes
from vjepa.build import mask_kinds
from vjepa.config import Config
from vjepa.crops import to_input, views
from vjepa.data import Splits
from vjepa.jepa import JEPA, predict, targets
from vjepa.masks import Masks, past_and_future, random_tubes, sample_masks
from vjepa.statistics import IMAGENET
from vjepa.videos import DamagedVideoError
from vjepa.vit import Grid

CLIPS = 24  # that the colours are taken from
SHOWN = 3
FPS = 8
PANEL = 128  # height in pixels
GREY = 105
RED, GREEN = (214, 62, 60), (80, 176, 84)


def draw_pictures(
    record: Mapping[str, Any], config: Config, folder: Path, splits: Splits, model: JEPA, device: torch.device
) -> None:
    """All pictures and the film of a run, into its folder."""
    draw_curves(record, folder / "curves.png", from_zero=True)
    pixels = _clips(config, splits)
    inputs = to_input(torch.from_numpy(pixels), splits.pretrain.statistics, device)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "pictured masks"))
    masks = _masks(config, model.encoder.grid, len(pixels), generator).to(device)
    draw_masks(pixels[:SHOWN], masks, model.encoder.grid, folder / "masks.png")
    if config.target == "pixels":
        return
    with torch.no_grad():
        film(pixels, inputs, model, config, folder / "video.webm")
        if config.task == "physics":
            surprise_film(model, config, device, folder / "surprise.webm")


def _clips(config: Config, splits: Splits) -> np.ndarray:
    """Some clips as a probe sees them, [n, F, H, W, C] uint8."""
    source = splits.pretrain if splits.test is None else splits.test
    order = np.random.default_rng(derive_seed(config.seed, "pictures")).permutation(len(source))
    found: list[np.ndarray] = []
    for row in order[: 4 * CLIPS]:
        try:
            found.append(views(source.read(int(row)), config, 1)[0])
        except DamagedVideoError:  # named when it was met first
            continue
        if len(found) == CLIPS:
            break
    return np.stack(found)


def _masks(config: Config, grid: Grid, batch: int, generator: torch.Generator) -> Masks:
    if config.masking == "random-tube":
        rng = np.random.default_rng(derive_seed(config.seed, "pictured masks"))
        return random_tubes(config.tube_ratio, grid, batch, rng)
    return sample_masks(mask_kinds(config), grid, batch, 0, generator)


def draw_masks(pixels: np.ndarray, masks: Masks, grid: Grid, path: Path) -> None:
    """A row a clip: some of its frames, and below what each kind of masks leaves of them. PNG."""
    rows = []
    for k, clip in enumerate(pixels):
        steps = np.linspace(0, grid[0] - 1, min(8, grid[0])).astype(int)
        frames = [_large(_rgb(clip[step * (len(clip) // grid[0])])) for step in steps]
        rows.append(frames)
        for context in masks.context:
            seen = torch.zeros(grid).flatten().index_fill(0, context[k].cpu(), 1).reshape(grid).numpy()
            large = [cv2.resize(seen[step], frames[0].shape[1::-1], interpolation=cv2.INTER_NEAREST) for step in steps]
            pairs = zip(frames, large, strict=True)
            rows.append([np.where(part[..., None] > 0, frame, GREY).astype(np.uint8) for frame, part in pairs])
    _save_rows(rows, path)


def film(pixels: np.ndarray, inputs: Tensor, model: JEPA, config: Config, path: Path) -> None:
    """Clips, their first half alone, and the features of all tokens as colours: real, and predicted from that half."""
    grid = model.encoder.grid
    steps = max(1, grid[0] // 2)
    tokens = targets(model.target_encoder, inputs)
    predicted = tokens.clone()
    masks = past_and_future(grid, steps, len(inputs)).to(inputs.device)
    predicted[:, steps * grid[1] * grid[2] :] = predict(model, inputs, masks)[0].to(tokens.dtype)
    colours = principal_colours(tokens)
    real, expected = (colours(part[:SHOWN]).reshape(-1, *grid, 3) for part in (tokens, predicted))
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for k in range(min(SHOWN, len(pixels))):
        for number in range(len(pixels[k])):
            frame, step = _rgb(pixels[k, number]), number // config.tubelet
            seen = frame if step < steps else np.full_like(frame, GREY)
            parts = (frame, seen, real[k, step], expected[k, step])
            titles = ("clip", "seen", "features", "expected" if step >= steps else "features")
            for column, part, title in zip(columns, parts, titles, strict=True):
                column.append(label(_panel(part, frame.shape), title))
    write_video(path, side_by_side([np.stack(column) for column in columns]), FPS)


def principal_colours(tokens: Tensor) -> Any:
    """A function from tokens [..., D] to colours [..., 3] uint8: the three largest components of tokens [n, N, D]."""
    flat = tokens.flatten(0, 1).float().cpu()
    rows = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:5000]]
    mean = rows.mean(0)
    axes = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:3]
    shades = (rows - mean) @ axes.t()
    low, high = shades.quantile(0.02, dim=0), shades.quantile(0.98, dim=0)

    def colours(some: Tensor) -> np.ndarray:
        shares = ((some.float().cpu() - mean) @ axes.t() - low) / (high - low).clamp(min=1e-9)
        return (shares.clamp(0, 1) * 255).byte().numpy()

    return colours


def surprise_film(model: JEPA, config: Config, device: torch.device, path: Path) -> None:
    """A possible and an impossible video of each block, and under them the surprise at each moment.

    The surprise of a frame is that of the time step it lies in, predicted by the window that ends there.
    """
    subject = physics.subject_of(model, config.target)
    columns: list[list[np.ndarray]] = [[], []]
    for block in scenes.BLOCKS:
        videos = scenes.pair(block, config.size[0], config.frames, 0, derive_seed(config.seed, "pictured pairs"))
        lines = [surprise_line(subject, video, model.encoder.grid, config.tubelet, device) for video in videos]
        top = max(float(np.nanmax(line)) for line in lines)
        for column, video, line, colour, word in zip(
            columns, videos, lines, (GREEN, RED), ("possible", "impossible"), strict=True
        ):
            for number, frame in enumerate(video):
                upper = label(_panel(frame, frame.shape), f"{block}: {word}")
                column.append(np.concatenate([upper, _graph(line, number, top, colour, upper.shape[1])]))
    write_video(path, side_by_side([np.stack(column) for column in columns]), FPS)


@torch.no_grad()
def surprise_line(
    subject: physics.Subject, video: np.ndarray, grid: Grid, tubelet: int, device: torch.device
) -> np.ndarray:
    """The surprise at each frame of a video [L, H, W, 3]: [L], none where too little has been seen.

    A window's context is all of it but its last time step, and only this step is compared.
    """
    frames = grid[0] * tubelet
    starts = range(0, len(video) - frames + 1, tubelet)
    windows = np.stack([video[start : start + frames] for start in starts])
    inputs = to_input(torch.from_numpy(windows), IMAGENET[3], device)
    border = (grid[0] - 1) * grid[1] * grid[2]
    wanted = subject.what(inputs)[:, border:]
    found = (subject.expects(inputs, grid[0] - 1) - wanted).abs().mean((1, 2)).cpu().numpy()
    line = np.full(len(video), np.nan)
    for start, value in zip(starts, found, strict=True):
        line[start + frames - tubelet : start + frames] = value
    return line


def _graph(line: np.ndarray, number: int, top: float, colour: Sequence[int], width: int) -> np.ndarray:
    """The line up to frame `number`, [PANEL / 3, width, 3]."""
    height = PANEL // 3 // 2 * 2
    canvas = np.full((height, width, 3), 255, np.uint8)
    points = [
        (round((k + 0.5) * width / len(line)), round(height - 4 - (height - 8) * value / max(top, 1e-9)))
        for k, value in enumerate(line[: number + 1])
        if np.isfinite(value)
    ]
    for before, after in zip(points, points[1:], strict=False):
        cv2.line(canvas, before, after, colour, 2, cv2.LINE_AA)
    return canvas


def _panel(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Enlarged to PANEL rows and an even number of columns, in the proportions of a frame of that shape."""
    width = round(shape[1] * PANEL / shape[0] / 2) * 2
    return cv2.resize(np.ascontiguousarray(image), (width, PANEL), interpolation=cv2.INTER_NEAREST)


def _large(image: np.ndarray) -> np.ndarray:
    """Small frames some whole number of times as large, about 80 rows."""
    times = max(1, 80 // len(image))
    return image.repeat(times, 0).repeat(times, 1)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _save_rows(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Panels [H, W, 3] uint8 in rows and columns, with white gaps, as PNG."""
    gap = 2
    lines = [
        cv2.hconcat([cv2.copyMakeBorder(p, 0, gap, 0, gap, cv2.BORDER_CONSTANT, value=[255] * 3) for p in row])
        for row in rows
    ]
    cv2.imwrite(str(path), cv2.vconcat(lines)[..., ::-1])
