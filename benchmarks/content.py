"""What the report says, as tables without form: `markdown.py` and `page.py` print the same cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare import Result
from benchmarks.published import Published
from benchmarks.records import Record, Results
from benchmarks.rows import Beside, Calibration, Claim, Curve, Number, Suite, first
from benchmarks.words import (
    budget_share,
    control,
    control_name,
    devices,
    duration,
    effect_words,
    interval_words,
    minutes,
    number,
    ours,
    protocol,
    reported,
    reported_kind,
    seeds,
    source,
)

SCALE = (
    "The common scale is the effect: 0 is the floor (the same score of something that has learnt nothing, measured by "
    "us under the same protocol), 1 is the published number. Its 95 % interval covers our seeds and their episodes, "
    "the floor's episodes, and the published spread and rounding."
)
HOW_TO_READ = (
    (
        "reproduced",
        "good",
        "At the published budget the interval of the effect holds 1 and lies above one half, and our mean is as near "
        "to the published one as chance alone brings it (without a published spread: within a tenth of the effect).",
    ),
    (
        "exceeded / not reproduced",
        "none",
        "At the published budget the interval lies above 1; or below it, and our mean is farther than chance alone.",
    ),
    ("inconclusive", "none", "Neither: too noisy, or the published number cannot be told from the floor."),
    (
        "reduced",
        "partial",
        "A smaller budget or model: so much of the effect at so much of the budget, by the smallest share of those "
        "that the published row names. Never called a reproduction.",
    ),
    (
        "above / on / below / across the curve",
        "none",
        "Against a published learning curve at equal steps: each bin that we reached is above or below beyond one "
        "published standard deviation, else on. The curve is on if at least half of its bins are and their mean "
        "distance is within one; else above or below if at most a tenth of the bins lies on the other side, and across "
        "if more do. None of them where the published curve has not left the floor yet: then ours stands beside it.",
    ),
    (
        "holds / fails",
        "none",
        "A claim of the paper: the 95 % interval of the difference to its control, seeds and episodes of both sides, "
        "lies above 0, or below; where ours is to be less, the other way round. Else it is undecided.",
    ),
    ("passed / not passed", "none", "The same for a check that we and not the paper assert."),
    ("agrees / differs", "none", "A calibration: something untrained has its published value, or not. No result."),
    ("beside", "none", "A number that ours cannot be joined to, shown for orientation with the reason. No verdict."),
)  # fmt: skip
NOTES = (
    "Every committed record of a row counts: seeds are not picked. ± is over seeds where there are two or more, else "
    "over the episodes of the one seed. A published ± over the episodes of one run says nothing of other seeds. "
    "Two or three seeds are few: their interval reaches little further than from the lowest to the highest seed, and "
    'covers the mean of all seeds less often than 95 times in 100. Read "(3 seeds)" as: so it came out in all three.'
)
MOST_OPEN = 12  # rows of a table of checks that stands open
TALLIED = (
    ("trained numbers", Number),
    ("learning curves", Curve),
    ("claims of the papers", Claim),
    ("checks of ours", Claim),
    ("calibrations", Calibration),
)  # fmt: skip


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
    """A titled table; without rows, `empty` says so in words. is_folded: shown only when asked for."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str = "Nothing is recorded yet."
    is_folded: bool = False


# --- the whole --------------------------------------------------------------------------------------------------------


def headline_table(
    suites: Sequence[Suite], results: Mapping[str, Mapping[str, Result]], measured: Results, absent: Sequence[str]
) -> Table:
    """One row a paper: the result that stands for it."""
    rows = []
    for suite in suites:
        result = results[suite.paper][suite.headline]
        rows.append((
            Cell(suite.title, suite.paper),
            Cell(parity_words(measured, suite.paper)),
            Cell(suite.scale, seeds(result)),
            Cell(ours(result), interval_words(result)),
            Cell(control(result), control_name(result)),
            Cell(reported(result), reported_kind(result)),
            Cell(budget_share(result), result.budget),
            Cell(result.verdict.text, tone=result.verdict.tone),
        ))  # fmt: skip
    rows += [
        (Cell(name), Cell(""), Cell("not part of this checkout yet"), *(Cell(""),) * 4, Cell("")) for name in absent
    ]
    columns = (
        "paper",
        "parity",
        "headline (scale, seeds)",
        "ours",
        "control",
        "published",
        "share of the budget",
        "verdict",
    )
    return Table("The six papers", columns, tuple(rows))


def tally_table(results: Iterable[Result]) -> Table:
    """How often each verdict stands, numbers, claims, checks and calibrations apart."""
    groups: dict[str, list[Result]] = {name: [] for name, _ in TALLIED}
    for result in results:
        if isinstance(result.row, Beside):
            continue
        by_us = isinstance(result.row, Claim) and result.row.asserted_by == "us"
        name = next(
            name for name, kind in TALLIED if isinstance(result.row, kind) and by_us == (name == "checks of ours")
        )
        groups[name].append(result)
    rows = tuple((Cell(name), Cell(_counted(found))) for name, found in groups.items())
    return Table("Tally", ("rows", "verdicts"), rows)


def _counted(results: Iterable[Result]) -> str:
    """How often each verdict stands."""
    words = Counter(result.verdict.text.split(":")[0].split(" (")[0] for result in results)
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def parity_words(measured: Results, paper: str) -> str:
    """How many components equal the authors' code."""
    found = [c for data in measured.parity.values() if data["paper"] == paper for c in data["components"]]
    equal = sum(c["largest_deviation"] <= c["tolerance"] for c in found)
    return f"{equal} of {len(found)}" if found else ""


# --- one paper --------------------------------------------------------------------------------------------------------


def paper_tables(suite: Suite, results: Mapping[str, Result], published: Published) -> list[Table]:
    """The section of a paper: its own tables, then ours by kind; rows that have not run stand last, folded.

    Many checks are folded too, below a title that says how they came out.
    """
    run = [result for result in results.values() if result.is_run]

    def of(kind: type, by: str = "") -> list[Result]:
        return [r for r in run if isinstance(r.row, kind) and (not by or getattr(r.row, "asserted_by", "") == by)]

    checks = of(Claim, "us")
    tables = [
        *suite.tables(results, published),
        _rows("Against published numbers", of(Number)),
        _rows("Against published learning curves", of(Curve)),
        _rows("Claims of the paper", of(Claim, "paper")),
        _rows(f"Checks of ours: {_counted(checks)}", checks, is_folded=len(checks) > MOST_OPEN),
        _rows("Beside numbers of another method or protocol", of(Beside), is_folded=True),
        _rows("Calibrations", of(Calibration), is_folded=True),
        _waiting([result for result in results.values() if not result.is_run]),
    ]
    return [table for table in tables if table.rows]


def brief_table(suite: Suite, results: Mapping[str, Result], most: int = 8) -> Table:
    """The block of a package's README: the headline first, then what ran longest, at most `most` rows."""
    run = [result for result in results.values() if result.is_run and not isinstance(result.row, Calibration | Beside)]
    order = sorted(run, key=lambda r: (r.row.id != suite.headline, -minutes(r)))
    rows = []
    for result in order[:most]:
        rows.append((
            Cell(result.row.title),
            Cell(first(result.row).suite, f"{seeds(result)}, {minutes(result):.0f} min each"),
            Cell(ours(result), interval_words(result)),
            Cell(control(result), control_name(result)),
            Cell(reported(result), reported_kind(result)),
            Cell(result.verdict.text, tone=result.verdict.tone),
        ))  # fmt: skip
    columns = ("what", "preset", "ours", "control", "published", "verdict")
    return Table("Results", columns, tuple(rows), "No row has run yet.")


def _rows(title: str, results: Sequence[Result], is_folded: bool = False) -> Table:
    rows = []
    for result in results:
        links = tuple((f"seed {record.seed}", record.path) for record in result.ours.records[:6]) if result.ours else ()
        rows.append((
            Cell(result.row.title, protocol(result), links),
            Cell(first(result.row).suite, f"{seeds(result)}; {devices(result)}"),
            Cell(ours(result), interval_words(result)),
            Cell(control(result), control_name(result)),
            Cell(reported(result), reported_kind(result)),
            Cell(effect_words(result)),
            Cell(budget_share(result), result.budget),
            Cell(result.verdict.text, "; ".join(result.notes), tone=result.verdict.tone),
        ))  # fmt: skip
    columns = ("what", "preset, seeds", "ours", "control", "published", "effect", "share of the budget", "verdict")
    kept = [k for k in range(len(columns)) if k in (0, 1, 2, 7) or any(row[k].text or row[k].small for row in rows)]
    return Table(
        title, tuple(columns[k] for k in kept), tuple(tuple(row[k] for k in kept) for row in rows), is_folded=is_folded
    )


def _waiting(results: Sequence[Result]) -> Table:
    """What has not run, with the command that runs it."""
    rows = []
    for result in results:
        run = first(result.row)
        command = f"python -m benchmarks.runner bench {result.paper} --preset {run.suite} --task {run.task}"
        if run.needs:
            command += f" --set {' '.join(need if '=' in need else f'{need}=FILE' for need in run.needs)}"
        rows.append(
            (
                Cell(result.row.title),
                Cell(run.suite, f"{run.minutes:.0f} min a seed expected"),
                Cell(command, is_code=True),
            )
        )
    return Table(f"{len(rows)} rows that have not run", ("what", "preset", "command"), tuple(rows), is_folded=True)


# --- forms that a suite may use ---------------------------------------------------------------------------------------


def beside_published(title: str, scores: Sequence[str], lines: Sequence[tuple[str, Sequence[Result]]]) -> Table:
    """A table of the paper with ours beside each of its columns: lines are (name, one result a score)."""
    columns = ["", *(f"{name}, {whose}" for name in scores for whose in ("published", "ours"))]
    rows = []
    for name, results in lines:
        cells = [Cell(name)]
        for result in results:
            cells += [Cell(reported(result)), Cell(ours(result), seeds(result) if result.is_run else "")]
        share = next((budget_share(result) for result in results if result.is_run), "")
        rows.append((*cells, Cell(share)))
    return Table(title, (*columns, "share of the budget"), tuple(rows))


def games_by_method(
    games: Mapping[str, str],
    results: Mapping[str, Result],
    published: Published,
    methods: Sequence[tuple[str, str]],
) -> Table:
    """Published scores of other methods by game, and ours where a game has run."""
    rows = []
    for game, name in games.items():
        result = next(
            (results[id] for id in (f"night-{game}-untrained", f"cpu-{game}-untrained") if id in results), None
        )
        mine = Cell(ours(result), seeds(result)) if result is not None and result.is_run else Cell("")
        floor = Cell(control(result)) if result is not None and result.is_run else Cell("")
        keys = [("ijepa", f"{game}-{method}") for method in ("maj-clf", "random-cnn", *(key for key, _ in methods))]
        known = [published.numbers.get(key) for key in keys]
        rows.append((Cell(name), mine, floor, *(Cell("" if k is None else f"{k.value:g}") for k in known)))
    columns = ("game", "I-JEPA, ours", "untrained, ours", "majority", "random CNN", *(words for _, words in methods))
    return Table(
        "AtariARI, F1 in percent: ours on standardised, published methods on raw features", columns, tuple(rows)
    )


# --- all papers -------------------------------------------------------------------------------------------------------


def speed_table(results: Results, paper: str) -> Table:
    """Speed of the hot paths of a paper beside what a user would take instead."""
    rows = []
    for path, data in results.speed.items():
        for m in data["measurements"] if data["paper"] == paper else ():
            spread = f"{number(m['low'])} to {number(m['high'])}, {m['repeats']} repeats"
            ratio = "" if m["ratio"] is None else f"{m['ratio']:.2f} times"
            published = "" if m["published"] is None else f"{m['published']:,g}"
            rows.append((
                Cell(m["name"], m["note"], (("record", path),)),
                Cell(f"{number(m['value'])} {m['unit']}", spread),
                Cell(ratio, "" if m["peer"] is None else str(m["peer"])),
                Cell(published, m["published_source"]),
                Cell(data["device"]),
            ))  # fmt: skip
    return Table("Speed", ("what", "ours", "against", "published", "device"), tuple(rows), is_folded=True)


def parity_table(results: Results) -> Table:
    """Each component beside the authors' own numbers."""
    rows = []
    for data in results.parity.values():
        for c in data["components"]:
            is_equal = c["largest_deviation"] <= c["tolerance"]
            rows.append((
                Cell(data["paper"]),
                Cell(c["component"]),
                Cell(f"{c['cases']:,}"),
                Cell(f"{c['elements']:,}"),
                Cell(f"{c['largest_deviation']:.2g}"),
                Cell(f"{c['tolerance']:.2g}", c["dtype"]),
                Cell("equal" if is_equal else "differs", tone="good" if is_equal else "bad"),
            ))  # fmt: skip
    columns = ("paper", "component", "cases", "elements", "largest deviation", "tolerance", "parity")
    return Table("Parity, component by component", columns, tuple(rows), is_folded=True)


def source_table(results: Iterable[Result]) -> Table:
    """Where each published number that a row uses comes from, and what it spent."""
    rows: dict[tuple[str, str], tuple[Cell, ...]] = {}
    for result in results:
        found = result.reported or result.curve
        if found is not None:
            value = reported(result) if result.reported is not None else "curve"
            n = f"n {result.reported.n}" if result.reported is not None and result.reported.n else ""
            place = Cell(f"{result.paper}: {found.key}", found.protocol)
            rows[(result.paper, found.key)] = (
                place,
                Cell(value, n),
                Cell(source(result)),
                Cell(found.budget or "unknown"),
            )
    columns = ("number", "published", "source", "budget")
    return Table("Sources of the published numbers", columns, tuple(rows.values()), is_folded=True)


def harden_table(results: Results) -> Table:
    """What came of attacks on the smoke run of every paper."""
    words = ("equal", "refused", "traceback", "silent", "hang", "orphan", "executed")
    rows = []
    for paper, kinds in results.harden.get("papers", {}).items():
        for kind, found in kinds.items():
            tried = sum(found.values())
            rows.append((Cell(paper), Cell(kind), Cell(str(tried)), *(Cell(str(found.get(word, 0))) for word in words)))
    device = f" ({results.harden['device']}, revision {results.harden['revision']})" if rows else ""
    return Table(f"Attacks{device}", ("paper", "attack", "tried", *words), tuple(rows), is_folded=True)


def runs_table(records: Iterable[Record]) -> Table:
    """Every run with its wall time, stage by stage, and what is needed to repeat it."""
    rows = []
    for record in records:
        data = record.data
        stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in data["stage_seconds"].items())
        link = (("record", record.path),)
        rows.append((
            Cell(data["paper"]),
            Cell(f"{data['task']}, seed {data['seed']}", f"{data['claim']}, {data['preset']}", link),
            Cell(duration(data["wall_seconds"]) + ("" if record.finished else " (unfinished)"), stages),
            Cell(data["device"], f"revision {data['revision'][:12]}"),
            Cell(data["command"], is_code=True),
        ))  # fmt: skip
    columns = ("paper", "run", "wall time", "device", "command")
    return Table("Provenance of every record", columns, tuple(rows), is_folded=True)


def protocol_table(results: Iterable[Result], protocols: Mapping[str, str]) -> Table:
    """What the protocol words stand for."""
    used = dict.fromkeys(name for name in map(protocol, results) if name)
    rows = tuple((Cell(name), Cell(protocols[name])) for name in used if name in protocols)
    return Table("Protocols", ("protocol", "meaning"), rows, is_folded=True)
