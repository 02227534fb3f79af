"""Run, speed and parity records: their schema, and loaders that refuse a file that does not keep it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.record import CURVE_KEYS, MAPPINGS, RECORD_KEYS, SAMPLE_KEYS, SCHEMA, TEXTS

FOLDER = Path(__file__).parent / "results"
HARDEN = "harden.json"
LARGEST = 1e300  # no measurement; a larger whole number cannot even become a float
SPEED_KEYS = frozenset({"schema", "paper", "device", "revision", "packages", "command", "measurements"})
MEASUREMENT_KEYS = frozenset({
    "name", "value", "unit", "low", "high", "repeats",
    "peer", "ratio", "published", "published_source", "note",
})  # fmt: skip
PARITY_KEYS = frozenset({"paper", "components"})
COMPONENT_KEYS = frozenset({"component", "cases", "elements", "largest_deviation", "tolerance", "dtype"})


@dataclass(frozen=True)
class Record:
    """A checked run record and where it lies; `media` are the videos and pictures beside it."""

    path: Path
    data: Mapping[str, Any]
    media: tuple[Path, ...] = ()

    @property
    def seed(self) -> int:
        """Training seed of the run."""
        return int(self.data["seed"])

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.data["finished"])


@dataclass(frozen=True)
class Results:
    """Everything measured: run records, speed records and parity tables, these by path, and what attacks came to."""

    records: tuple[Record, ...]
    speed: Mapping[Path, Mapping[str, Any]]
    parity: Mapping[Path, Mapping[str, Any]]
    harden: Mapping[str, Any] = field(default_factory=dict)


def load(folder: Path = FOLDER) -> Results:
    """Read `<paper>/<suite>/*.json`, `<paper>/throughput/*.json`, `<paper>/parity.json` and `harden.json`.

    Raises ValueError naming the first bad file.
    """
    records: list[Record] = []
    speed: dict[Path, Mapping[str, Any]] = {}
    parity: dict[Path, Mapping[str, Any]] = {}
    harden: Mapping[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        parts = path.relative_to(folder).parts
        if parts == (HARDEN,):
            harden = read(path, check_harden)
        elif len(parts) == 2 and parts[1] == "parity.json":
            parity[path] = read(path, check_parity)
        elif len(parts) == 3 and parts[1] == "throughput":
            speed[path] = read(path, check_speed)
        elif len(parts) == 3:
            records.append(_placed(path, read(path, check_record)))
        else:
            raise ValueError(f"{path}: expected <paper>/<suite>/<task>-seed<k>.json")
    check_unique(records)
    return Results(tuple(records), speed, parity, harden)


def load_runs(folder: Path) -> tuple[Record, ...]:
    """The records that this machine's runs left as `<folder>/<paper>/<run>/record.json`, with their media."""
    found = []
    for path in sorted(folder.glob("*/*/record.json")):
        try:
            data = read(path, check_record)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        # A run in a folder of another name was made with other settings: it is no run of a row.
        words = data["preset"], data["claim"], f"{data['preset']}-{data['claim']}"
        if path.parent.name in (f"{data['task']}-{word}-seed{data['seed']}" for word in words):
            media = tuple(file for file in sorted(path.parent.iterdir()) if file.suffix in (".webm", ".png"))
            found.append(Record(path, data, media))
    return tuple(found)


def read(path: Path, check: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    """The JSON object in `path`, checked. Raises ValueError starting with the path."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
        text.encode("utf-8")
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # an escaped lone surrogate cannot be printed
        check(data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
    return data


def check_record(data: Mapping[str, Any]) -> None:
    """Raise ValueError for the first thing that a run record may not be."""
    _keys(data, RECORD_KEYS)
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r}, expected {SCHEMA}")
    for key in TEXTS:
        if not isinstance(data[key], str) or not data[key]:
            raise ValueError(f"{key} must be a text that is not empty")
    for key in MAPPINGS:
        if not isinstance(data[key], dict):
            raise ValueError(f"{key} must be an object")
    if not isinstance(data["finished"], bool) or type(data["seed"]) is not int:
        raise ValueError("finished must be true or false, seed a whole number")
    if data["finished"] or data["values"]:
        _sample("value", data)
    for group in ("controls", "measurements"):
        for name, sample in data[group].items():
            _keys(sample, SAMPLE_KEYS, f"{group}/{name}")
            _sample(f"{group}/{name}", sample)
    for name, curve in data["curves"].items():
        _keys(curve, CURVE_KEYS, f"curves/{name}")
        if len(curve["x"]) != len(curve["y"]) or not curve["x"]:
            raise ValueError(f"curves/{name}: x and y must be of one length and not empty")
        _finite(f"curves/{name}", [*curve["x"], *curve["y"]])
    for group in ("budget", "stage_seconds", "parameters"):
        _finite(group, list(data[group].values()))
    _finite("wall_seconds", [data["wall_seconds"]])


def check_speed(data: Mapping[str, Any]) -> None:
    """Raise ValueError for the first thing that a speed record may not be."""
    _keys(data, SPEED_KEYS)
    for measurement in data["measurements"]:
        name = measurement.get("name", "measurement without name")
        _keys(measurement, MEASUREMENT_KEYS, name)
        _finite(name, [measurement[key] for key in ("value", "low", "high", "repeats")])
        _finite(name, [measurement[key] for key in ("ratio", "published") if measurement[key] is not None])
        if measurement["published"] is not None and not measurement["published_source"]:
            raise ValueError(f"{name}: a published number without published_source")


def check_parity(data: Mapping[str, Any]) -> None:
    """Raise ValueError for the first thing that a parity table may not be."""
    _keys(data, PARITY_KEYS)
    for component in data["components"]:
        name = component.get("component", "component without name")
        _keys(component, COMPONENT_KEYS, name)
        _finite(name, [component[key] for key in ("cases", "elements", "largest_deviation", "tolerance")])


def check_harden(data: Mapping[str, Any]) -> None:
    """Raise ValueError for the first thing that the record of attacks may not be."""
    _keys(data, frozenset({"device", "revision", "seed", "papers"}))
    for paper, kinds in data["papers"].items():
        for kind, found in kinds.items():
            _finite(f"{paper} {kind}", list(found.values()))


def check_unique(records: Sequence[Record]) -> None:
    """Raise ValueError if two records speak of the same run: a row would count one seed twice."""
    seen: dict[tuple[Any, ...], Path] = {}
    for record in records:
        identity = tuple(record.data[key] for key in ("paper", "suite", "task", "claim", "seed"))
        if identity in seen:
            raise ValueError(f"{record.path}: same run as {seen[identity]} ({' '.join(map(str, identity))})")
        seen[identity] = record.path


def sample(data: Mapping[str, Any], quantity: str) -> Mapping[str, Any] | None:
    """What a row measures: "value" is the record itself, else "controls/NAME" or "measurements/NAME"."""
    if quantity == "value":
        return data
    group, name = quantity.split("/", 1)
    found: Mapping[str, Any] | None = data[group].get(name)
    return found


def _placed(path: Path, data: Mapping[str, Any]) -> Record:
    place = path.parts[-3:-1]
    if place != (data["paper"], data["suite"]):
        raise ValueError(f"{path}: holds a record of {data['paper']}/{data['suite']}")
    if not re.fullmatch(rf"{re.escape(data['task'])}(-.+)?-seed{data['seed']}", path.stem):
        raise ValueError(f"{path}: expected the name {data['task']}-seed{data['seed']}.json")
    beside = (file for file in sorted(path.parent.iterdir()) if file.suffix in (".webm", ".png"))
    mine = (file for file in beside if re.match(rf"{re.escape(path.stem)}[.-]", file.name))
    return Record(path, data, tuple(mine))


def _keys(data: Mapping[str, Any], expected: frozenset[str], where: str = "") -> None:
    missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
    if missing or unknown:
        named = (("missing", missing), ("unknown", unknown))
        faults = "; ".join(f"{what} {', '.join(keys)}" for what, keys in named if keys)
        raise ValueError(f"{where}: {faults}" if where else faults)


def _sample(where: str, sample: Mapping[str, Any]) -> None:
    values = sample["values"]
    if not values or sample["episodes"] != len(values):
        raise ValueError(f"{where}: episodes is {sample['episodes']}, but there are {len(values)} values")
    _finite(where, [*values, sample["value"]])
    mean = math.fsum(values) / len(values)
    if not math.isclose(sample["value"], mean, rel_tol=1e-6, abs_tol=1e-6):
        raise ValueError(f"{where}: value {sample['value']} is not the mean of values, {mean}")


def _finite(where: str, numbers: Sequence[Any]) -> None:
    for number in numbers:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or abs(number) > LARGEST or not math.isfinite(number):
            raise ValueError(f"{where}: {number!r} is no finite number")
