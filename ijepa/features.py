"""Frozen features: tokens of an encoder, averaged over the patches, from each of the last four blocks, or as they are.

    python -m ijepa.features --run FOLDER --data IMAGES --npz FILE
    python -m ijepa.features --preset paper --init-from RELEASED --data IMAGES --npz FILE

writes those of all images of a folder, by a run or by released weights: `paths` [T], relative to the folder, `mean`
[T, L, D] and, if asked for, `tokens` [T, N, D] of the last block.
Shapes: T images, L layers, N patches, D width. Source: paper, appendix A.2.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.config import parse, user_error
from common.faults import Faults
from common.files import atomic_write
from common.precision import compute_dtype
from common.program import program
from common.run import progress_bar, run_under_test, usable_device
from common.workers import begin_worker
from ijepa.build import load_model, new_model
from ijepa.config import PRESETS, TASKS, Config
from ijepa.crops import centred, to_input
from ijepa.data import Images, as_it_is, statistics_of
from ijepa.images import COMPLAINT, DamagedImageError, ImageFiles
from ijepa.statistics import IMAGENET
from ijepa.vit import VisionTransformer

LAYERS = 4
BATCH = 128
IN_COLOUR = ("imagenet", "shapes")  # tasks whose encoders can see a folder of images


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
        data, batch_size=None, num_workers=config.workers, collate_fn=as_it_is, worker_init_fn=begin_worker
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


# --- features of a folder ---------------------------------------------------------------------------------------------


def write_features(
    path: Path, encoder: VisionTransformer, images: ImageFiles, folder: Path, config: Config, has_tokens: bool
) -> int:
    """Writes the features of all images that can be read, and returns how many these are. The file is whole or not.

    Raises OSError if it cannot be written.
    """
    layers, device = min(LAYERS, len(encoder.blocks)), encoder.pos_embed.device

    def both(batch: Tensor) -> Tensor:
        mean, tokens = pooled_and_tokens(encoder, batch)
        return torch.cat([mean.flatten(1), tokens], 1) if has_tokens else mean.flatten(1)

    found, rows = encode(both, images, config, device, "features")
    width = encoder.size.width
    arrays = {
        "paths": np.array([os.path.relpath(images.paths[row].decode(), folder) for row in rows]),
        "mean": found[:, : layers * width].unflatten(1, (layers, width)).numpy(),
    }
    if has_tokens:
        arrays["tokens"] = found[:, layers * width :].unflatten(1, (-1, width)).numpy()
    content = io.BytesIO()
    np.savez(content, **arrays)
    atomic_write(path, content.getvalue())
    return len(rows)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--npz", type=Path, metavar="FILE", required=True, help="where the features are written")
    parser.add_argument("--tokens", action="store_true", help="all tokens too, N times as many numbers")


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m ijepa.features", description=__doc__ or "", extra=_options
    )
    folder = Path(config.data)
    if options.run is None and not config.init_from:
        user_error("name a run, --run, or released weights, --init-from")
    if not config.data:
        user_error("name a folder of images, --data")
    try:
        device = usable_device(config.device)
        if options.run is None:
            model = new_model(config, ImageFiles.channels, config.init_from).to(device).eval()
        else:
            info, config = run_under_test("ijepa", Config, config, options, ("device", "workers", "data"))
            if config.task not in IN_COLOUR:
                user_error(f"{info['folder']} has learnt from grey images of task {config.task}, a folder is in colour")
            identity = info["meta"]["identity"]
            model, _ = load_model(info["folder"], config, ImageFiles.channels, device, identity)
        images = ImageFiles(folder, statistics_of(config, IMAGENET[ImageFiles.channels]))
        count = write_features(options.npz, model.target_encoder, images, folder, config, options.tokens)
    except (ValueError, OSError) as error:
        user_error(str(error))
    print(f"features of {count} images: {options.npz}")


if __name__ == "__main__":
    program(main)
