"""Frozen features: the tokens of clips, as an encoder or a control says them.

Shapes: n clips, N tokens, D width. Source: V-JEPA, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.precision import compute_dtype
from common.run import progress_bar
from common.workers import begin_worker
from vjepa.config import Config
from vjepa.crops import to_input, views
from vjepa.data import Clips, as_it_is
from vjepa.vit import VideoTransformer, tubelets, video_table

BATCH = 64

Encode = Callable[[Tensor], Tensor]


def last_frame(encoder: VideoTransformer, clips: Tensor) -> Tensor:
    """The control without motion: tokens of clips that stand still on their last frame."""
    return encoder(clips[:, :, -1:].expand_as(clips))


def pixel_features(encoder: VideoTransformer, clips: Tensor) -> Tensor:
    """The control without an encoder: the pixels of each tubelet beside the table of its place, [B, N, D'].

    D' is a multiple of four, as heads need it. Without the places, a probe could not tell which tubelet is where.
    """
    pixels = tubelets(clips, encoder.tubelet, encoder.patch)
    room = -pixels.shape[2] % 4
    table = torch.from_numpy(video_table(24, encoder.grid)).float().to(clips.device)
    return torch.cat([pixels, table.expand(len(clips), -1, -1), pixels.new_zeros(*pixels.shape[:2], room)], 2)


class _Whole(Dataset[Any]):
    """Batches of clips as probes see them."""

    def __init__(self, clips: Clips, config: Config) -> None:
        self.clips, self.config = clips, config

    def __len__(self) -> int:
        return -(-len(self.clips) // BATCH)

    def __getitem__(self, k: int) -> np.ndarray:
        rows = range(k * BATCH, min(len(self.clips), (k + 1) * BATCH))
        return np.stack([views(self.clips.read(row), self.config, 1)[0] for row in rows])


@torch.no_grad()
def encode(encode_batch: Encode, clips: Clips, config: Config, device: torch.device, name: str) -> Tensor:
    """encode_batch([b, C, F, H, W] normalised) of all clips, on the CPU: [n, ...].

    On CUDA the products are of `config.precision`; on a CPU of float32, whatever the training multiplied.
    """
    loader = DataLoader(
        _Whole(clips, config),
        batch_size=None,
        num_workers=config.workers,
        collate_fn=as_it_is,
        worker_init_fn=begin_worker,
        generator=torch.Generator().manual_seed(0),
    )
    has_bfloat16 = device.type == "cuda" and compute_dtype(config.precision, device) == torch.bfloat16
    parts = []
    with progress_bar(-(-len(clips) // BATCH), name, unit="batch") as bar:
        for batch in loader:
            inputs = to_input(torch.from_numpy(batch), clips.statistics, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16):
                parts.append(encode_batch(inputs).float().cpu())
            bar.update()
    return torch.cat(parts)
