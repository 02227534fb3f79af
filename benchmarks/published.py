"""The published numbers in `published/*.csv`: each with its source, protocol and budget, or it is refused.

`protocols.csv` explains the protocol keys, `curves.csv` lists the files that hold curves, all others hold
numbers.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K", str, tuple[str, str])

FOLDER = Path(__file__).parent / "published"
TEXT_COLUMNS = (
    "key",
    "task",
    "method",
    "metric",
    "unit",
    "std_over",
    "budget",
    "protocol",
    "source",
    "certainty",
)
NUMBER_COLUMNS = ("value", "std", "n")
REQUIRED = ("key", "task", "method", "metric", "unit", "value", "budget", "protocol", "source")
CURVE_COLUMNS = (
    "file", "key", "task", "x", "y", "spread", "x_unit", "y_unit", "protocol", "budget", "source",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedNumber:
    """One number as printed; `std` and `n` are None where the source is silent.

    spent: the sizes of the budget that are known, by the further columns of the file; a missing one is unknown, not
    equal. rounding: half a unit of the last printed digit.
    """

    paper: str
    key: str
    task: str
    method: str
    metric: str
    unit: str
    value: float
    rounding: float
    std: float | None
    std_over: str
    n: int | None
    budget: str
    spent: Mapping[str, float]
    protocol: str
    source: str
    certainty: str


@dataclass(frozen=True)
class PublishedCurve:
    """One published curve: y over x, with its spread around y (one standard deviation, same unit as y)."""

    paper: str
    key: str
    task: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...]
    x_unit: str
    y_unit: str
    protocol: str
    budget: str
    source: str


@dataclass(frozen=True)
class Published:
    """All published material: numbers and curves by (paper, key), protocol descriptions by key."""

    numbers: Mapping[tuple[str, str], PublishedNumber]
    curves: Mapping[tuple[str, str], PublishedCurve]
    protocols: Mapping[str, str]


def load(folder: Path = FOLDER) -> Published:
    """Read and check the whole folder. Raises ValueError naming file and line of the first fault."""
    protocols: dict[str, str] = {}
    for where, row in _lines(folder / "protocols.csv"):
        if set(row) != {"protocol", "description"}:
            raise ValueError(f"{where}: the columns are protocol and description")
        _add(where, protocols, row["protocol"], row["description"])
    curves: dict[tuple[str, str], PublishedCurve] = {}
    curve_files: set[str] = set()
    manifest = folder / "curves.csv"
    for where, row in _lines(manifest):
        _check_columns(where, row, CURVE_COLUMNS)
        _check_filled(where, row, CURVE_COLUMNS, protocols)
        curve = _curve(where, row, folder)
        _add(where, curves, (curve.paper, curve.key), curve)
        curve_files.add(row["file"])
    numbers: dict[tuple[str, str], PublishedNumber] = {}
    for path in sorted(folder.glob("*.csv")):
        if path.name in curve_files or path.name in ("protocols.csv", "curves.csv"):
            continue
        for where, row in _lines(path):
            if "value" not in row:
                raise ValueError(f"{path.name}:1: no column 'value', and not listed in {manifest.name}")
            _check_filled(where, row, REQUIRED, protocols)
            _add(where, numbers, (path.stem, row["key"]), _published_number(where, path.stem, row))
    return Published(numbers, curves, protocols)


def _published_number(where: str, paper: str, row: Mapping[str, str]) -> PublishedNumber:
    std, n = (_number(where, name, row[name]) if row.get(name) else None for name in ("std", "n"))
    if std is not None and not row.get("std_over"):
        raise ValueError(f"{where}: std without std_over (episodes or seeds)")
    sizes = [name for name in row if name not in TEXT_COLUMNS + NUMBER_COLUMNS]
    spent = {name: _number(where, name, row[name]) for name in sizes if row[name]}
    if any(size < 0 for size in spent.values()):
        raise ValueError(f"{where}: a budget below 0")
    spent = {name: size for name, size in spent.items() if size}  # of what was not spent there is no share
    return PublishedNumber(
        paper=paper,
        value=_number(where, "value", row["value"]),
        rounding=_rounding(row["value"]),
        std=std,
        n=None if n is None else int(n),
        spent=spent,
        **{name: row.get(name, "") for name in TEXT_COLUMNS},
    )


def _rounding(text: str) -> float:
    """Half a unit of the last digit; zeros behind the point come from a change of unit and count as not printed."""
    digits = text.partition(".")[2].rstrip("0")
    return 0.5 * 10.0 ** -len(digits)


def _curve(where: str, row: Mapping[str, str], folder: Path) -> PublishedCurve:
    path = folder / row["file"]
    if not path.is_file():
        raise ValueError(f"{where}: no file {row['file']}")
    columns: dict[str, list[float]] = {"x": [], "y": [], "spread": []}
    for line, point in _lines(path):
        for role, values in columns.items():
            if row[role] not in point:
                raise ValueError(f"{line}: no column {row[role]!r}")
            values.append(_number(line, row[role], point[row[role]]))
    if columns["x"] != sorted(set(columns["x"])):
        raise ValueError(f"{path.name}: column {row['x']!r} does not rise")
    return PublishedCurve(
        paper=row["file"].split("_")[0],
        x=tuple(columns["x"]),
        y=tuple(columns["y"]),
        spread=tuple(columns["spread"]),
        **{name: row[name] for name in ("key", "task", "x_unit", "y_unit", "protocol", "budget", "source")},
    )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file.csv:line", row) for each row; a row with too few or too many cells is refused."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for row in reader:
                where = f"{path.name}:{reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: {len(reader.fieldnames or ())} cells expected, one per column")
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _check_columns(where: str, row: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(row) - set(allowed))
    if unknown:
        raise ValueError(f"{where}: unknown column {', '.join(unknown)}; known: {', '.join(allowed)}")


def _check_filled(where: str, row: Mapping[str, str], names: tuple[str, ...], protocols: Mapping[str, str]) -> None:
    for name in names:
        if not row.get(name, "").strip():
            raise ValueError(f"{where}: no {name}")
    if row["protocol"] not in protocols:
        raise ValueError(f"{where}: unknown protocol {row['protocol']!r}; known: {', '.join(protocols)}")


def _number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise ValueError(f"{where}: {name} is no number: {text!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name} is not finite: {text!r}")
    return number


def _add(where: str, known: dict[K, T], key: K, value: T) -> None:
    if key in known:
        name = key if isinstance(key, str) else " ".join(key)
        raise ValueError(f"{where}: key {name!r} stands twice")
    known[key] = value
