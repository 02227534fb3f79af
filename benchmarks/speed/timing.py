"""How a call is timed and written down; no paper's code."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, fastest and slowest of the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def timed(call: Callable[[], object], device: torch.device, repeats: int = 5, warmup: int = 1) -> Timing:
    """Time a call, waiting for the GPU if it runs on one."""
    seconds = []
    for k in range(warmup + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if k >= warmup:
            seconds.append(time.perf_counter() - start)
    return _timing(seconds)


def in_turns(calls: Sequence[Callable[[], float]], repeats: int, warmup: int) -> list[Timing]:
    """Time calls that give their own seconds, one of each in turn, so that a slow moment of the machine meets all."""
    rounds = [[call() for call in calls] for _ in range(warmup + repeats)]
    return [_timing(seconds) for seconds in zip(*rounds[warmup:], strict=True)]


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call on the CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timing(seconds: Sequence[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def figure(name: str, unit: str, timing: Timing, amount: float = 0.0, **more: Any) -> dict[str, Any]:
    """A measurement of a speed record: a rate of `amount` per call, or without amount the call's own seconds."""

    def convert(seconds: float) -> float:
        value = amount / seconds if amount else seconds * (1000 if unit == "ms" else 1)
        return float(f"{value:.4g}")

    low, high = sorted((convert(timing.low), convert(timing.high)))
    empty = {"peer": None, "ratio": None, "published": None, "published_source": "", "note": ""}
    numbers = {"value": convert(timing.median), "low": low, "high": high, "repeats": timing.repeats}
    return {"name": name, "unit": unit, **numbers, **empty, **more}


def matmul_rate(device: torch.device) -> Timing:
    """Seconds of one 2048 x 2048 float32 matrix product; 2 * 2048^3 floating point operations."""
    a, b = torch.randn(2048, 2048, device=device), torch.randn(2048, 2048, device=device)
    return timed(lambda: a @ b, device, repeats=15, warmup=3)
