"""Numbers computed with the authors' code beside ours; the comparison is also a table for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.files import atomic_write


def load(path: Path | str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; an object array, which would need unpickling, raises ValueError."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class Parity:
    """Collects, per component, how far our numbers lie from the reference."""

    def __init__(self, paper: str) -> None:
        self.paper = paper
        self.components: dict[str, dict[str, Any]] = {}

    def check(self, component: str, ours: Any, reference: Any, *, atol: float, rtol: float = 0.0) -> None:
        """Raises AssertionError, naming the worst element, if |ours - reference| > atol + rtol * |reference|.

        NaN equals NaN, and an infinity equals the same infinity. The row keeps the largest deviation of all
        cases, and the tolerance that held at that element.
        """
        found, wanted = _numpy(ours), _numpy(reference)
        if found.shape != wanted.shape:
            raise AssertionError(f"{component}: shape {found.shape}, reference {wanted.shape}")
        if found.size == 0:
            raise AssertionError(f"{component}: nothing to compare, shape {found.shape}")
        a, b = found.astype(np.float64), wanted.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            deviation = np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf))
        tolerance = atol + rtol * np.nan_to_num(np.abs(b), nan=0.0, posinf=0.0)
        excess = deviation - tolerance
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        if excess[worst] > 0:
            bad = int((excess > 0).sum())
            raise AssertionError(
                f"{component}: {bad} of {a.size} elements differ, worst at {tuple(map(int, worst))}: "
                f"ours {a[worst]!s}, reference {b[worst]!s}, deviation {deviation[worst]:.3g}, "
                f"tolerance {tolerance[worst]:.3g}"
            )
        largest = np.unravel_index(int(np.argmax(deviation)), deviation.shape)
        self._add(component, a.size, float(deviation[largest]), float(tolerance[largest]), str(found.dtype))

    def _add(self, component: str, elements: int, deviation: float, tolerance: float, dtype: str) -> None:
        row = self.components.setdefault(
            component,
            {"component": component, "cases": 0, "elements": 0, "largest_deviation": -1.0, "tolerance": 0.0},
        )
        row["cases"] += 1
        row["elements"] += elements
        if deviation > row["largest_deviation"]:
            row |= {"largest_deviation": deviation, "tolerance": tolerance, "dtype": dtype}

    def write(self, path: Path | str) -> None:
        """The table as JSON, one row per component in the order of their first check."""
        table = {"paper": self.paper, "components": list(self.components.values())}
        atomic_write(path, (json.dumps(table, indent=1) + "\n").encode())


def _numpy(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
