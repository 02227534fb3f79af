"""What the report says, as tables without form: `markdown.py` and `page.py` print the same cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.compare import Result
from benchmarks.published import Published
from benchmarks.records import Record, Results, sample

HOW_TO_READ = (
    (
        "reproduced",
        "good",
        "Same protocol and budget; our mean lies within two published standard deviations, or the 95 % "
        "intervals overlap.",
    ),
    ("above / below", "none", "Same protocol and budget, outside of that."),
    (
        "level",
        "good",
        "Beside the published number of another method, which cannot be reproduced: the intervals overlap.",
    ),
    (
        "reduced (x %)",
        "partial",
        "Smaller budget or model: shown beside the published number with the share of its budget, never "
        "called a reproduction.",
    ),
    (
        "on / off the curve",
        "none",
        "Compared with the published learning curve at the last step that both have: each seed within one "
        "published standard deviation, or not.",
    ),
    (
        "claim holds / fails",
        "none",
        "A comparison that the paper claims, at the scale stated: for every seed the lower end of the 95 % "
        "bootstrap interval over episodes lies above the control's mean, or not. The control stands in the same "
        "record, or is another run of the same seed and budget with other settings.",
    ),
    ("not run", "none", "No record yet."),
)
NOTES = (
    "Every committed record of a row counts: seeds are not picked, and an unfinished run does not hold a "
    "claim. ± is over seeds where there are two or more, else over the episodes of the one seed; the "
    "interval is a bootstrap over seeds and, within them, over episodes. Published ± is over what its source states."
)


@dataclass(frozen=True)
class Cell:
    """One cell: text, smaller text below it, files it points to, and the tone of a badge ("" for none)."""

    text: str
    small: str = ""
    links: tuple[tuple[str, Path], ...] = ()
    tone: str = ""
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table with one anchor per row, or none; without rows, `empty` says so in words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str
    anchors: tuple[str, ...] = ()


def verdict_table(results: Sequence[Result]) -> Table:
    """The table of reported and reproduced numbers, a line per row of every suite; what is not run yet stands last."""
    results = sorted(results, key=lambda result: not result.seeds)
    columns = (
        "paper", "row", "reported", "reproduced", "verdict", "preset, seeds", "budget", "command", "device",
    )  # fmt: skip
    return Table(
        "Reported and reproduced",
        columns,
        tuple(_verdict_row(result) for result in results),
        "No rows.",
        tuple(f"{result.paper}-{result.row.id}" for result in results),
    )


def brief_table(results: Sequence[Result], paper: str = "") -> Table:
    """The block of a README: preset, minutes, measured and published result of a paper, or of all ("") in short.

    Rows that are not run yet are one line per paper and preset; REPORT.md has them one by one.
    """
    lines, waiting = [], dict[tuple[str, str], list[Result]]()
    for result in results:
        if paper not in ("", result.paper):
            continue
        if not result.seeds:
            waiting.setdefault((result.paper, result.row.suite), []).append(result)
            continue
        done = [seed.record for seed in result.seeds if seed.finished]
        minutes = sum(record.data["wall_seconds"] for record in done) / len(done) / 60 if done else result.row.minutes
        runs = _seed_links(result)
        lines.append({
            "paper": Cell(result.paper),
            "row": Cell(result.row.title),
            "preset": Cell(result.row.suite),
            "hardware": Cell(devices(done)),
            "seeds": Cell(runs.text),
            "minutes per seed": Cell(f"{minutes:.1f}", "" if done else "expected"),
            "measured": Cell(measured(result), against(result)),
            "published": Cell(reported(result)),
            "verdict": Cell(result.verdict.text, tone=result.verdict.tone),
            "records": runs,
        })  # fmt: skip
    for (name, suite), group in waiting.items():
        lines.append({
            "paper": Cell(name),
            "row": Cell(group[0].row.title if len(group) == 1 else f"{len(group)} rows of the report"),
            "preset": Cell(suite),
            "minutes per seed": Cell(f"{max(result.row.minutes for result in group):.0f}", "expected"),
            "verdict": Cell("not run", tone="none"),
        })  # fmt: skip
    first, last = (("row", "preset", "hardware"), ("records",)) if paper else (("paper", "row", "preset", "seeds"), ())
    columns = (*first, "minutes per seed", "measured", "published", "verdict", *last)
    rows = tuple(tuple(line.get(column, Cell("")) for column in columns) for line in lines)
    return Table("Results", columns, rows, "No rows.")


def runs_table(records: Iterable[Record]) -> Table:
    """Every run with its wall time, stage by stage, and what is needed to repeat it."""
    rows = []
    for record in records:
        data = record.data
        stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in data["stage_seconds"].items())
        links = (("record", record.path), *((file.name, file) for file in record.media))
        rows.append((
            Cell(data["paper"]),
            Cell(f"{data['task']}, seed {data['seed']}", f"{data['claim']}, preset {data['preset']}", links),
            Cell(duration(data["wall_seconds"]) + ("" if record.finished else " (unfinished)"), stages),
            Cell(data["policy"], f"{data['episodes']} episodes, {data['protocol']}"),
            Cell(data["device"]),
            Cell(data["revision"][:12], is_code=True),
            Cell(data["command"], is_code=True),
        ))  # fmt: skip
    columns = ("paper", "run", "wall time", "policy", "device", "revision", "command")
    return Table("Runs", columns, tuple(rows), "No run is recorded yet.")


def speed_table(results: Results) -> Table:
    """Speed of the hot paths beside what a user would take instead."""
    rows = []
    for path, data in results.speed.items():
        for m in data["measurements"]:
            peer = "" if m["peer"] is None else str(m["peer"])
            spread = f"{number(m['low'])} to {number(m['high'])}"
            ratio = "" if m["ratio"] is None else f"{m['ratio']:.2f} times"
            published = "" if m["published"] is None else f"{m['published']:,g}"
            rows.append((
                Cell(data["paper"]),
                Cell(m["name"], m["note"], (("record", path),)),
                Cell(f"{number(m['value'])} {m['unit']}", f"{spread}, {m['repeats']} repeats"),
                Cell(ratio, peer),
                Cell(published, m["published_source"]),
                Cell(data["device"]),
            ))  # fmt: skip
    columns = ("paper", "measurement", "ours", "against the peer", "published", "device")
    return Table("Speed", columns, tuple(rows), "No speed is recorded yet.")


def parity_table(results: Results) -> Table:
    """Each component beside the authors' own numbers."""
    rows = []
    for path, data in results.parity.items():
        for c in data["components"]:
            is_equal = c["largest_deviation"] <= c["tolerance"]
            rows.append((
                Cell(data["paper"]),
                Cell(c["component"], links=(("record", path),)),
                Cell(f"{c['cases']:,}"),
                Cell(f"{c['elements']:,}"),
                Cell(f"{c['largest_deviation']:.2g}"),
                Cell(f"{c['tolerance']:.2g}", c["dtype"]),
                Cell("equal" if is_equal else "differs", tone="good" if is_equal else "bad"),
            ))  # fmt: skip
    columns = ("paper", "component", "cases", "elements", "largest deviation", "tolerance", "parity")
    return Table("Parity with the authors' code", columns, tuple(rows), "No parity table is recorded yet.")


def parts_table(results: Sequence[Result], known: Published) -> Table:
    """Single variables of the calibrations that are published too: where a difference of their score comes from."""
    rows = []
    for result in results:
        if result.row.kind != "calibration" or result.row.quantity != "value" or result.reported is None:
            continue
        parts: dict[str, list[float]] = {}
        for seed in result.seeds:
            for name, part in seed.record.data["measurements"].items():
                parts.setdefault(name, []).append(part["value"])
        for name, values in parts.items():
            key = f"{result.row.task}-{name.replace('_', '-')}-{result.reported.method}"
            published = known.numbers.get((result.paper, key))
            if published is not None:
                rows.append((
                    Cell(result.paper),
                    Cell(f"{result.row.task}: {name}", result.reported.method),
                    Cell(f"{published.value:g}", f"{published.metric}, {published.unit}"),
                    Cell(f"{fmean(values):.1f}", ", ".join(f"{v:.1f}" for v in values) if len(values) > 1 else ""),
                    Cell(f"{fmean(values) - published.value:+.1f}"),
                ))  # fmt: skip
    columns = ("paper", "variable", "reported", "measured", "difference")
    return Table("Calibrations, variable by variable", columns, tuple(rows), "No calibration is recorded yet.")


def protocol_table(results: Sequence[Result], protocols: Mapping[str, str]) -> Table:
    """What the protocol keys of the verdict table stand for."""
    used = dict.fromkeys(name for name in map(_protocol, results) if name)
    rows = tuple((Cell(name), Cell(protocols[name])) for name in used)
    return Table("Protocols", ("protocol", "meaning"), rows, "No protocol is in use.")


def reported(result: Result) -> str:
    """The published number, or that of the published curve at the steps compared, without its source; "" for none."""
    if result.reported is None:
        found = [seed.on_curve for seed in result.seeds if seed.on_curve is not None]
        if found:
            return f"{sum(found) / len(found):.1f} (curve)"
        return "" if result.curve is None else "published curve"
    spread = "" if result.reported.std is None else f" ± {result.reported.std:g}"
    return f"{result.reported.value:g}{spread}"


def measured(result: Result) -> str:
    """Our mean ± standard deviation, or "not run"."""
    if result.mean is None:
        return result.verdict.text if result.verdict.tone == "none" else "not run"
    return f"{result.mean:.1f}" + ("" if result.std is None else f" ± {result.std:.1f}")


def against(result: Result) -> str:
    """The mean of what a claim is held against, over seeds; "" where there is none."""
    found = [seed.control for seed in result.seeds if seed.control is not None]
    return f"against {sum(found) / len(found):.1f}" if found else ""


def devices(records: Iterable[Record]) -> str:
    """The devices of some runs, each named once."""
    return ", ".join(dict.fromkeys(record.data["device"] for record in records))


def duration(seconds: float) -> str:
    """Seconds as a person writes them: "41 s", "6.9 min", "2.1 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def number(value: float) -> str:
    """A measured number with about four digits and thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def command(result: Result) -> str:
    """The command that makes the records of a row."""
    row, seeds = result.row, " ".join(map(str, result.row.seeds))
    return f"python -m benchmarks.runner bench {result.paper} --preset {row.suite} --task {row.task} --seeds {seeds}"


def _verdict_row(result: Result) -> tuple[Cell, ...]:
    unit, source, size = _published_words(result)
    interval = "" if result.interval is None else f"95 % {result.interval[0]:.1f} to {result.interval[1]:.1f}"
    over = f"± over {result.std_over}" if result.std_over else ""
    done = [seed.record for seed in result.seeds if seed.finished]
    revisions = ", ".join(dict.fromkeys(record.data["revision"][:12] for record in done))
    runs = _seed_links(result)
    return (
        Cell(result.paper),
        Cell(result.row.title, unit),
        Cell(reported(result), source),
        Cell(measured(result), "; ".join(part for part in (interval, over) if part)),
        Cell(result.verdict.text, "; ".join(result.notes), tone=result.verdict.tone),
        Cell(result.row.suite, runs.text, runs.links),
        Cell(result.budget, f"published: {size}" if size else ""),
        Cell(command(result), is_code=True),
        Cell(devices(done), f"revision {revisions}" if revisions else ""),
    )


def _published_words(result: Result) -> tuple[str, str, str]:
    """Unit and protocol, source, and budget of what a row is compared with."""
    curve, found = result.curve, result.reported
    if found is None and curve is None:
        unit = result.seeds[0].record.data["unit"] if result.seeds else ""
        return "; ".join(word for word in (unit, _protocol(result)) if word), "", ""
    if found is None:
        assert curve is not None
        return f"{curve.y_unit} per {curve.x_unit}; {curve.protocol}", curve.source, curve.budget
    n = f"n {found.n}, " if found.n else ""
    over = f"± over {found.std_over}; " if found.std_over else ""
    certainty = f" ({found.certainty})" if found.certainty else ""
    return f"{found.unit}; {found.protocol}", f"{n}{over}{found.source}{certainty}", found.budget


def _protocol(result: Result) -> str:
    """The protocol of the published number or curve, else that of the records; "" if there are none yet."""
    source = result.reported or result.curve
    if source is not None:
        return source.protocol
    found = sample(result.seeds[0].record.data, result.row.quantity) if result.seeds else None
    return str(found["protocol"]) if found else ""


def _seed_links(result: Result) -> Cell:
    links = []
    for seed in result.seeds:
        links.append((f"seed {seed.seed}" + ("" if seed.finished else " (unfinished)"), seed.record.path))
        if seed.rival is not None:
            links.append((f"seed {seed.seed} of {result.row.rival}", seed.rival.path))
    count = len(result.seeds)
    return Cell("one seed" if count == 1 else f"{count} seeds" if count else "none", links=tuple(links))
