"""Intuitive physics by violation of expectation: is an impossible video more surprising than the possible one?

Shapes: B windows of F frames, T time steps, N tokens, D width; n pairs, c contexts, w windows of a video.
Surprise of a window: the model sees its first frames, predicts the tokens of all later ones, and is told them; mean L1.
Source: Garrido et al. 2025 (arXiv 2502.11831), with the scenes of `scenes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.run import progress_bar
from vjepa import scenes
from vjepa.ablations import pixel_tokens
from vjepa.config import Config
from vjepa.crops import to_input
from vjepa.jepa import JEPA, predict, targets
from vjepa.masks import past_and_future
from vjepa.statistics import IMAGENET
from vjepa.vit import Grid, VideoTransformer, tubelets

WINDOW_STRIDE = 2  # frames
LONGEST_CONTEXT = 5 / 8  # of a window: the published contexts are 2, 4, 6, 8 and 10 of 16 frames


@dataclass(frozen=True)
class Subject:
    """Who may be surprised. what(clips) -> tokens [B, N, D]; expects(clips, steps) -> those after so many time steps.

    expects must not depend on the frames after the context.
    """

    what: Callable[[Tensor], Tensor]
    expects: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Hits:
    """In percent, 100 where the impossible member of a pair surprised more, 50 where both did alike: [blocks, c, n].

    mean: of the mean over windows; maximum: of the most surprising window.
    """

    mean: np.ndarray
    maximum: np.ndarray


def subject_of(model: JEPA, target: str) -> Subject:
    """A model, by the tokens that it was trained to predict: of its target encoder, or pixels."""

    def expects(clips: Tensor, steps: int) -> Tensor:
        grid = model.encoder.grid
        return predict(model, clips, past_and_future(grid, steps, len(clips)).to(clips.device))[0]

    if target == "pixels":
        return Subject(lambda clips: pixel_tokens(model, clips), expects)
    return Subject(lambda clips: targets(model.target_encoder, clips), expects)


def copy_of(model: JEPA) -> Subject:
    """The control without a model: the pixels of the last frame seen stay for ever."""
    tubelet, patch = model.encoder.tubelet, model.encoder.patch

    def expects(clips: Tensor, steps: int) -> Tensor:
        last = clips[:, :, steps * tubelet - 1 : steps * tubelet]
        return tubelets(last.expand(-1, -1, clips.shape[2] - steps * tubelet, -1, -1), tubelet, patch)

    return Subject(lambda clips: tubelets(clips, tubelet, patch), expects)


def contexts(grid: Grid) -> range:
    """The context lengths that are tested, in time steps."""
    return range(1, max(1, int(grid[0] * LONGEST_CONTEXT)) + 1)


def fixed_context(grid: Grid) -> int:
    """The place among `contexts` of the one that the score takes: half a window."""
    return min(grid[0] // 2, contexts(grid)[-1]) - 1


@torch.no_grad()
def surprise(subject: Subject, windows: Tensor, grid: Grid) -> Tensor:
    """Mean L1 over future tokens and channels for each context length: windows [B, C, F, H, W] -> [B, c]."""
    tokens = subject.what(windows).float()
    per_step = grid[1] * grid[2]
    columns = [
        (subject.expects(windows, steps).float() - tokens[:, steps * per_step :]).abs().mean((1, 2))
        for steps in contexts(grid)
    ]
    return torch.stack(columns, 1)


def measure(
    subjects: Mapping[str, Subject], encoder: VideoTransformer, config: Config, seed: int, device: torch.device
) -> dict[str, np.ndarray]:
    """For each subject the surprise at all windows of all pairs: [blocks, n, possible and impossible, c, w]."""
    tables: dict[str, list[np.ndarray]] = {name: [] for name in subjects}
    total = len(scenes.BLOCKS) * config.pairs
    with progress_bar(total, "pairs", unit="pair") as bar:
        for windows in _all_windows(config, seed):
            inputs = to_input(torch.from_numpy(windows), IMAGENET[3], device)
            for name, subject in subjects.items():
                found = surprise(subject, inputs, encoder.grid).cpu().numpy()
                tables[name].append(found.reshape(2, -1, found.shape[1]).swapaxes(1, 2))
            bar.update()
    return {
        name: np.stack(parts).reshape(len(scenes.BLOCKS), config.pairs, *parts[0].shape)
        for name, parts in tables.items()
    }


def _all_windows(config: Config, seed: int) -> Iterator[np.ndarray]:
    """Pair by pair, block by block, the windows of the possible, then of the impossible video: [2w, F, H, W, 3]."""
    for block in scenes.BLOCKS:
        for number in range(config.pairs):
            videos = scenes.pair(block, config.size[0], config.frames, number, seed)
            yield np.concatenate([windows_of(video, config.frames) for video in videos])


def windows_of(video: np.ndarray, frames: int) -> np.ndarray:
    """video [L, H, W, 3] -> its windows of so many frames, [w, F, H, W, 3]."""
    starts = range(0, len(video) - frames + 1, WINDOW_STRIDE)
    return np.stack([video[start : start + frames] for start in starts])


def hits(table: np.ndarray) -> Hits:
    """Who was more surprised by which member, from a table of `measure`."""
    mean, maximum = table.mean(-1), table.max(-1)  # [blocks, n, 2, c]
    compared = [50 * (1 + np.sign(part[:, :, 1] - part[:, :, 0])) for part in (mean, maximum)]
    return Hits(*(part.swapaxes(1, 2) for part in compared))


def details(found: Hits, tubelet: int, fixed: int) -> dict[str, np.ndarray]:
    """A hit for each pair [n], means over blocks, by the names that a record gives them. fixed: `fixed_context`.

    Beside it stands the published way to count: in each block the best context, which is chosen on the very pairs that
    it is tested on.
    """
    blocks, lengths, _ = found.mean.shape
    parts = {name: found.mean[k, fixed] for k, name in enumerate(scenes.BLOCKS)}
    parts |= {f"after {(c + 1) * tubelet} frames": found.mean[:, c].mean(0) for c in range(lengths)}
    best = found.mean.mean(2).argmax(1)
    parts["best context of each block"] = found.mean[np.arange(blocks), best].mean(0)
    best = found.maximum.mean(2).argmax(1)
    parts["largest surprise"] = found.maximum[:, fixed].mean(0)
    parts["largest surprise, best context of each block"] = found.maximum[np.arange(blocks), best].mean(0)
    return parts
