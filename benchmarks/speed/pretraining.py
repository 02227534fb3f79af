"""How an update of pretraining is measured, for I-JEPA and V-JEPA alike; the update itself is each paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.speed.timing import figure, matrix_product, timed
from common.precision import compute_dtype


def precisions(config: Any, device: torch.device) -> dict[str, Any]:
    """The configuration in float32 and as it is on this device, by the name of what is multiplied."""
    shipped = str(compute_dtype(config.precision, device)).removeprefix("torch.")
    return {words: replace(config, precision=words) for words in ("float32", shipped)}


def pretraining(
    update: Callable[..., tuple[Callable[[], object], float]],
    case: Any,
    title: str,
    unit: str,
    device: torch.device,
    has_rate: bool,
) -> list[dict[str, Any]]:
    """Figures of updates in float32 and as shipped, beside the rate of matrix products and, on a CPU, beside the update
    with attention and optimiser written out.

    update(config, device) -> the call, and its floating point operations; unit: "images" or "clips" of a batch.
    has_rate: with the rate of matrix products as a figure of its own.
    """
    torch.manual_seed(0)
    found = []
    plain = None
    if device.type == "cpu":
        exact = replace(case, precision="float32")
        plain = timed(update(exact, device, is_written_out=True)[0], device, repeats=5, warmup=1).median
    for words, config in precisions(case, device).items():
        side, product = matrix_product(compute_dtype(config.precision, device), device)
        rate = 2 * side**3 / product.median / 1e9
        if has_rate:
            found.append(figure(f"{words} matrix product {side}", "GFLOP/s", product, 2 * side**3 / 1e9))
        step, flops = update(config, device)
        timing = timed(step, device, repeats=5, warmup=3)
        written_out = "" if plain is None else f"{config.batch_size / plain:,.2f} {unit}/s"
        found += [
            figure(
                f"pretraining update, {title}, {words}",
                f"{unit}/s",
                timing,
                config.batch_size,
                peer=None if plain is None else f"in float32 with attention and optimiser written out: {written_out}",
                ratio=None if plain is None else round(plain / timing.median, 2),
            ),
            figure(
                f"pretraining update, {title}, {words}, share of the {words} matrix product rate",
                "GFLOP/s",
                timing,
                flops / 1e9,
                peer=f"{words} matrix product, {rate:,.0f} GFLOP/s",
                ratio=round(flops / timing.median / 1e9 / rate, 3),
            ),
        ]
    return found
