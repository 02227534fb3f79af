"""How a call is timed and written down; no paper's code."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the rate of a device
MOST_CALLS = 1000  # to warm up, and to time
SMOKE: dict[str, Any] = {"SIDES": {"cpu": 64, "cuda": 64}, "MOST_CALLS": 1}


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, fastest and slowest of the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def timed(call: Callable[[], object], device: torch.device, repeats: int = 5, warmup: int = 1) -> Timing:
    """Time a call, waiting for the GPU if it runs on one. Raises TypeError if it only makes a generator."""
    seconds = []
    repeats, warmup = min(repeats, MOST_CALLS), min(warmup, MOST_CALLS)
    for k in range(warmup + repeats):
        start = time.perf_counter()
        if isinstance(call(), Generator):
            raise TypeError("the timed call makes a generator and does none of its work")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if k >= warmup:
            seconds.append(time.perf_counter() - start)
    return _timing(seconds)


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[int, Timing]:
    """The rate that a device can reach: side of a square matrix and the seconds of one product with another."""
    side = SIDES[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return side, timed(lambda: a @ b, device, repeats=15, warmup=3)


def in_turns(calls: Sequence[Callable[[], float]], repeats: int, warmup: int) -> list[Timing]:
    """Time calls that give their own seconds, one of each in turn, so that a slow moment of the machine meets all."""
    rounds = [[call() for call in calls] for _ in range(warmup + repeats)]
    return [_timing(seconds) for seconds in zip(*rounds[warmup:], strict=True)]


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call on the CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory(pid: int | str = "self") -> float:
    """GiB of memory that a process has held at most, its libraries included; nan where there is no /proc to say."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) / 2**20 if found else math.nan


def peak_memory_of(call: Callable[..., object], *words: str) -> float:
    """`peak_memory` of a fresh process that imports a function of a module and calls it with `words`."""
    code = f"from {call.__module__} import {call.__name__} as call\n"
    code += f"from benchmarks.speed.timing import peak_memory\ncall(*{words!r})\nprint(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


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
