"""Frozen features: tokens of an encoder, averaged over the patches, from each of the last four blocks, or as they are.

Shapes: T images, L layers, N patches, D width. Source: paper, appendix A.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.faults import Faults
from common.precision import compute_dtype
from common.run import progress_bar
from common.workers import begin_worker
from ijepa.config import Config
from ijepa.crops import centred, to_input
from ijepa.data import Images
from ijepa.images import COMPLAINT, DamagedImageError
from ijepa.vit import VisionTransformer

LAYERS = 4
BATCH = 128


def pooled_layers(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """images [B, C, H, W] normalised -> [B, L, D]: the last four blocks after the final norm, averaged over patches.

    All blocks of an encoder that has fewer.
    """
    return pooled_and_tokens(encoder, images)[0]


def pooled_and_tokens(encoder: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """images [B, C, H, W] normalised -> those averages [B, L, D], and all tokens of the last block [B, N*D]."""
    layers = encoder.layers(images, min(LAYERS, len(encoder.blocks)))
    return torch.stack([tokens.mean(1) for tokens in layers], 1), layers[-1].flatten(1)


class _Centred(Dataset[Any]):
    """Batches of whole images as the probes see them; those that cannot be read are left out and named."""

    def __init__(self, images: Images, config: Config) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        images, rows, faults = [], [], []
        for row in range(k * BATCH, min(len(self.images), (k + 1) * BATCH)):
            try:
                images.append(centred(self.images.read(row), self.config))
                rows.append(row)
            except DamagedImageError as error:
                faults.append(str(error))
        shape = (0, *self.config.size, self.images.channels)
        return np.stack(images) if images else np.zeros(shape, np.uint8), np.array(rows, np.int64), faults


@torch.no_grad()
def encode(
    encode_batch: Callable[[Tensor], Tensor], images: Images, config: Config, device: torch.device, name: str
) -> tuple[Tensor, np.ndarray]:
    """encode_batch([b, C, H, W] normalised) of all images, on the CPU, and the rows of those that could be read.

    On CUDA the products are of `config.precision`; on a CPU of float32, whatever the training multiplied.
    """
    data = _Centred(images, config)
    loader = DataLoader(
        data, batch_size=None, num_workers=config.workers, collate_fn=_as_it_is, worker_init_fn=begin_worker
    )
    has_bfloat16 = device.type == "cuda" and compute_dtype(config.precision, device) == torch.bfloat16
    # Filled as they come, since those of ImageNet are too large to lie in memory twice: 26 GB of ViT-H.
    features, kept, faults = torch.zeros(0), [np.zeros(0, np.int64)], Faults(len(images), "images", complaint=COMPLAINT)
    count = 0
    with progress_bar(len(data), name, unit="batch") as bar:
        for batch, rows, names in loader:
            faults.note(names)
            if len(rows):
                inputs = to_input(torch.from_numpy(batch), images.statistics, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16):
                    part = encode_batch(inputs)
                if count == 0:
                    features = torch.empty(len(images), *part.shape[1:])
                features[count : count + len(rows)] = part
                kept.append(rows)
                count += len(rows)
            bar.update()
    return features[:count], np.concatenate(kept)


def _as_it_is(item: Any) -> Any:
    return item
