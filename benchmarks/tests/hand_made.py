"""Records made by hand for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record


def sample(values: Sequence[float], protocol: str = "doom-100") -> dict[str, Any]:
    return {
        "value": sum(values) / len(values),
        "values": list(values),
        "episodes": len(values),
        "protocol": protocol,
    }


def record(values: Sequence[float], seed: int = 0, /, **changes: Any) -> Record:
    """A record of ha2018 at the published size, with both controls at 200 tics."""
    data: dict[str, Any] = {
        "schema": 1,
        "paper": "ha2018",
        "suite": "cpu",
        "claim": "dream-transfer",
        "task": "doom",
        "preset": "cpu",
        "seed": seed,
        "metric": "return",
        "unit": "tics survived",
        "policy": "CMA mean, z sampled",
        "budget": {
            "env_frames": 3_080_900,
            "generations": 1800,
            "rollouts": 1_843_200,
            "episodes_collected": 10_000,
        },
        "controls": {"uniform random": sample([190.0, 210.0]), "held random": sample([190.0, 210.0])},
        "measurements": {},
        "curves": {},
        "wall_seconds": 60.0,
        "stage_seconds": {"collect": 20.0, "controller": 40.0},
        "device": "a CPU, 2 threads",
        "parameters": {"V": 4_446_915, "M": 1_678_785, "C": 1088},
        "revision": "0123456789abcdef",
        "packages": {"torch": "2"},
        "config": {"task": "doom", "seed": seed},
        "command": "python -m ha2018.train",
        "finished": True,
    }
    data.update(sample(values))
    data.update(changes)
    return Record(Path(f"doom-seed{seed}.json"), data)
