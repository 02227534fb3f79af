"""Which numbers a device multiplies."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 or float32, one of PRECISIONS; "auto" is bfloat16 wherever the device multiplies in it."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" or _processor_has_bfloat16() else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@functools.cache
def _processor_has_bfloat16() -> bool:
    """Whether this processor has products of bfloat16; without, they are slower than those of float32."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(name in flags.read_text() for name in ("avx512_bf16", "amx_bf16"))
