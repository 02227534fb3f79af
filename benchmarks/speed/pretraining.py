"""How an update of pretraining is measured, for I-JEPA and V-JEPA alike; the update itself is each paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.peer import compared, started
from benchmarks.speed.timing import figure, in_turns, matrix_product, peak_memory_of, timed
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


def beside_cases(small: Any, large: tuple[Any, ...], device: torch.device) -> list[tuple[Any, str]]:
    """What is measured beside the authors' code on this device, and the precision of their products.

    On a GPU both lie in its memory and theirs is in bfloat16, as released: hence half the batches.
    """
    if device.type == "cpu":
        return [(case, "float32") for case in precisions(small, device).values()]
    halves = [(case, case.batch_size // 2) for case in large]
    return [
        (replace(case, batch_size=half, micro_batch_size=half, precision="bfloat16"), "bfloat16")
        for case, half in halves
    ]


def beside(
    checkout: tuple[str, Path],
    config: Any,
    theirs: str,
    device: torch.device,
    *,
    update: Callable[[], object],
    model: torch.nn.Module,
    masks: Any,
    small: Callable[[str], None],
    words: str,
    unit: str,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The update in turns with that of the authors' code, on the same masks and the same device.

    checkout: the peer's name and its folder. theirs: the precision of the peer's products. small: makes a few updates
    in a precision, for their memory. words: the row. more: what the peer is to build beyond what both papers have.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    order = {
        "device": device.type,
        "precision": theirs,
        "encoder": config.encoder,
        "batch": config.batch_size,
        "size": config.size[0],
        "patch": config.patch,
        "predictor_depth": config.predictor_depth,
        "predictor_width": config.predictor_width,
        "context": [mask.tolist() for mask in masks.context],
        "target": [mask.tolist() for mask in masks.target],
        **(more or {}),
    }
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shipped = str(compute_dtype(config.precision, device)).removeprefix("torch.")
    row = f"pretraining update, {words}, {shipped}, beside the authors' code"
    with started(*checkout, order) as peer:
        calls = [lambda: timed(update, device, repeats=1, warmup=0).median, peer.update]
        ours, other = in_turns(calls, repeats=15, warmup=3)
        if is_cuda:
            memory, peer_memory = torch.cuda.max_memory_allocated(device) / 2**30, float(peer.ask({"asks": "memory"}))
        else:
            memory, peer_memory = peak_memory_of(small, config.precision), peer.memory
        return compared(row, f"{unit}/s", ours, other, peer, parameters, memory, config.batch_size, peer_memory)
