"""I-JEPA: pretraining updates, mask sampling, and the probes of AtariARI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.pretraining import beside, beside_cases, pretraining
from benchmarks.speed.timing import figure, timed
from common.precision import compute_dtype
from ijepa.build import mask_config, new_model, new_schedule
from ijepa.config import Config
from ijepa.jepa import JEPA, new_optimizer
from ijepa.masks import Masks, sample_masks
from ijepa.ram_probe import Probes
from ijepa.train import compile_blocks, train_step
from ijepa.vit import Attention, Block

CPU = torch.device("cpu")
SMALL = Config(
    size=(64, 64), patch=8, encoder="small", predictor_depth=6, min_keep=4, batch_size=64, micro_batch_size=64
)
BASE = Config(patch=16, encoder="base", predictor_depth=6, batch_size=256, micro_batch_size=256)
HUGE = Config(batch_size=64, micro_batch_size=64)
_TINY = replace(SMALL, encoder="nano", predictor_depth=1, predictor_width=32, batch_size=2, micro_batch_size=2)
SMOKE = {"SMALL": _TINY, "BASE": _TINY, "HUGE": _TINY}


def measure(device: torch.device) -> list[dict[str, Any]]:
    """Pretraining updates of the small encoder on random images, mask sampling, and the probes of AtariARI."""
    masks = mask_config(Config(), (16, 16))
    sampling = timed(lambda: sample_masks(masks, 128, 0, torch.Generator().manual_seed(0)), CPU)
    sampled = figure("masks of 128 images, 16 x 16 patches", "ms", sampling)
    return [*_pretraining(SMALL, device, has_rate=True), sampled, _ram_probes()]


def measure_base(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, pretraining updates of ViT-B/16."""
    return _pretraining(BASE, device) if device.type == "cuda" else []


def measure_huge(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, pretraining updates of ViT-H/14, the paper's."""
    return _pretraining(HUGE, device) if device.type == "cuda" else []


def _pretraining(case: Config, device: torch.device, has_rate: bool = False) -> list[dict[str, Any]]:
    return pretraining(_update, case, _title(case), "images", device, has_rate)


def measure_beside(checkouts: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """The pretraining update in turns with that of the authors' code, on the same masks and the same device."""
    found = []
    for checkout in checkouts.items():
        for case, theirs in beside_cases(SMALL, (BASE, HUGE), device):
            model = new_model(case, 3)
            found.append(
                beside(
                    checkout,
                    case,
                    theirs,
                    device,
                    update=_update(case, device)[0],
                    model=model,
                    masks=_masks(case, model),
                    small=small_updates,
                    words=_title(case),
                    unit="images",
                )
            )
    return found


def small_updates(precision: str) -> None:
    """Build the learner that is measured beside others and make a few updates, for their memory."""
    update, _ = _update(replace(SMALL, precision=precision), CPU)
    for _ in range(3):
        update()


def _title(config: Config) -> str:
    return f"ViT-{config.encoder[0].upper()}/{config.patch} at {config.size[0]} px, batch {config.batch_size}"


def _masks(config: Config, model: JEPA) -> Masks:
    grid = model.encoder.grid
    return sample_masks(mask_config(config, grid), config.batch_size, 0, torch.Generator().manual_seed(0))


def _update(config: Config, device: torch.device, is_written_out: bool = False) -> tuple[Callable[[], object], float]:
    """One update on fixed images and masks, and its floating point operations in matrix products.

    is_written_out: attention as softmax(q k) v and AdamW tensor by tensor, as in the authors' code.
    """
    model = new_model(config, 3).to(device)
    masks = _masks(config, model)
    images = torch.randn(config.batch_size, 3, *config.size, device=device)
    rates, optimizer = new_schedule(config, 1000), new_optimizer(model)
    if is_written_out:
        groups = [{**group, "fused": False, "foreach": False} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, foreach=False)
        for module in model.modules():
            if isinstance(module, Attention):
                module.forward = partial(_written_out, module)  # type: ignore[method-assign]
            elif isinstance(module, Block):
                module.last = partial(_cut, module)  # type: ignore[method-assign]
    elif device.type == "cuda":
        compile_blocks(model)
    batches = [(images, masks.to(device))]

    def update() -> None:
        train_step(model, optimizer, batches, rates, 5, dtype=compute_dtype(config.precision, device))

    return update, _flops(model, config, masks)


def _cut(block: Block, x: torch.Tensor, count: int) -> torch.Tensor:
    return block(x)[:, -count:]


def _written_out(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def _flops(model: JEPA, config: Config, masks: Masks) -> float:
    """Of the matrix products of one update: the target encoder once, the rest three times for its gradient."""
    size, patches = model.encoder.size, model.encoder.grid[0] * model.encoder.grid[1]
    known, asked = masks.context[0].shape[1], masks.target[0].shape[1]

    def transformer(tokens: int, width: int, hidden: int, depth: int) -> float:
        return depth * tokens * (8 * width**2 + 4 * width * hidden + 4 * tokens * width)

    pixels = 2 * patches * 3 * config.patch**2 * size.width
    target = transformer(patches, size.width, size.hidden, size.depth) + pixels
    context = transformer(known, size.width, size.hidden, size.depth) + pixels
    narrow = config.predictor_width
    predicted = transformer(known + asked, narrow, 4 * narrow, config.predictor_depth)
    predicted += 2 * (known + asked) * narrow * size.width
    return config.batch_size * (target + 3 * (context + config.targets * predicted))


def _ram_probes() -> dict[str, Any]:
    """Updates of six probes on 256 features, as for Pong."""
    probes = Probes(256, 6, torch.Generator().manual_seed(0))
    x, labels = torch.randn(64, 256), torch.randint(256, (64, 6))

    def updates() -> None:
        for _ in range(50):
            probes.step(x, labels, range(6))

    return figure("AtariARI, six linear probes, batch 64", "updates/s", timed(updates, CPU), 50)
