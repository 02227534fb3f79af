"""What a test leaves: record.json, its parts, and the lines that close the program."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import to_dict
from common.files import atomic_write
from common.provenance import command_line, describe_device, git_revision, package_versions, without_place

SCHEMA = 1
TEXTS = (
    *("paper", "suite", "claim", "task", "preset", "metric", "unit", "policy", "protocol"),
    *("device", "revision", "command"),
)
MAPPINGS = (
    *("budget", "controls", "measurements", "curves", "stage_seconds", "parameters", "packages", "config"),
)  # fmt: skip
RECORD_KEYS = frozenset(
    {*TEXTS, *MAPPINGS, "schema", "seed", "value", "values", "episodes", "wall_seconds", "finished"}
)
SAMPLE_KEYS = frozenset({"value", "values", "episodes", "protocol"})
CURVE_KEYS = frozenset({"x", "y", "x_unit", "y_unit"})
POINTS = 200  # of a curve in a record


def sample(values: Sequence[float] | NDArray[Any], protocol: str) -> dict[str, Any]:
    """A score, control or measurement as it stands in a record: its values to eight digits, its value their mean.

    Raises ValueError if there is no value.
    """
    numbers = [_short(value, 8) for value in values]
    if not numbers:
        raise ValueError(f"a sample of protocol {protocol} needs a value")
    return {"value": float(np.mean(numbers)), "values": numbers, "episodes": len(numbers), "protocol": protocol}


def curve(
    lines: Iterable[Mapping[str, Any]], y: str, x_unit: str, y_unit: str, *, x: str = "step", points: int = POINTS
) -> dict[str, Any]:
    """The values `y` of some lines of metrics.jsonl over their `x`, thinned to at most `points`, to six digits."""
    there = [line for line in lines if line.get(y) is not None]
    thin = there[:: max(1, -(-len(there) // points))]
    values = [_short(line[y], 6) for line in thin]
    return {"x": [line[x] for line in thin], "y": values, "x_unit": x_unit, "y_unit": y_unit}


def _short(value: float, digits: int) -> float:
    """The value to so many significant digits: single precision has seven, and records stay small."""
    return float(f"{float(value):.{digits}g}")


def of_run(info: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that is known from the run folder (the result of `Run.load`)."""
    meta, config = info["meta"], info["config"]
    revisions = [meta["revision"], *(start["revision"] for start in meta["restarts"])]
    return {
        "schema": SCHEMA,
        "paper": meta["paper"],
        "suite": meta["preset"],
        "task": config["task"],
        "preset": meta["preset"],
        "seed": config["seed"],
        "wall_seconds": round(info["wall_seconds"], 1),
        "stage_seconds": {name: round(value, 1) for name, value in info["stage_seconds"].items()},
        "device": "; ".join([meta["device"], *meta.get("marks", [])]),
        "revision": ", ".join(dict.fromkeys(revisions)),
        "packages": meta["packages"],
        "config": config,
        "command": without_place(meta["command"]),
        "finished": True,
    }


def without_run(paper: str, suite: str, config: Any, started: float) -> dict[str, Any]:
    """The same part for something that is not trained, such as a random policy; started is of `time.monotonic`."""
    return {
        "schema": SCHEMA,
        "paper": paper,
        "suite": suite,
        "task": config.task,
        "preset": suite,
        "seed": config.seed,
        "wall_seconds": round(time.monotonic() - started, 1),
        "stage_seconds": {},
        "device": describe_device(config.device),
        "revision": git_revision(),
        "packages": package_versions(paper),
        "config": to_dict(config),
        "command": command_line(),
        "budget": {"env_frames": 0, "updates": 0},
        "controls": {},
        "measurements": {},
        "curves": {},
        "parameters": {},
        "finished": True,
    }


def write_record(path: Path | str, record: Mapping[str, Any]) -> None:
    """Raises ValueError for missing or unknown keys, numbers not finite, or episodes that do not fit."""
    missing, unknown = sorted(RECORD_KEYS - set(record)), sorted(set(record) - RECORD_KEYS)
    if missing or unknown:
        raise ValueError(f"record: missing keys {missing}, unknown keys {unknown}")
    if len(record["values"]) != record["episodes"]:
        raise ValueError(f"record: {record['episodes']} episodes but {len(record['values'])} values")
    atomic_write(path, as_text(record).encode())


def as_text(record: Mapping[str, Any]) -> str:
    """JSON with a key a line, but a list of numbers in one, since a test has hundreds, and whole ones without ".0".

    A string of JSON has no line break in it, so only lists are joined. Raises ValueError if a number is not finite.
    """

    def joined(found: re.Match[str]) -> str:
        numbers = (number.strip().removesuffix(".0") for number in found[1].split(","))
        return f"[{', '.join(numbers)}]"

    lines = json.dumps(record, indent=1, allow_nan=False)
    return re.sub(r'\[\n([^\[\]{}"]*)\n *\]', joined, lines) + "\n"


def close(record: Mapping[str, Any], folder: Path) -> None:
    """Write `record` into the folder and print the lines that an evaluation ends with."""
    path = folder / "record.json"
    write_record(path, record)
    unit = "" if record["unit"] == record["metric"] else f" {record['unit']}"
    numbers = f"{record['metric']} {record['value']:.1f}{unit}"
    print(f"{record['policy']}: {numbers}, the mean of {record['episodes']} values")
    for name, control in record["controls"].items():
        print(f"{name}: {control['value']:.1f}")
    print(f"record: {path}")
