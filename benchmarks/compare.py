"""One verdict per row: joins records and published numbers by fixed rules; pure functions of both.

Seeds are never picked: every record of a row's suite, task and claim counts, unfinished ones too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.published import Published, PublishedCurve, PublishedNumber
from benchmarks.records import Record, sample
from benchmarks.rows import Row, Suite
from common.stats import bootstrap_interval, summary

# A budget is "the same" within this share of the published one: a last, partial batch does not matter.
SAME_BUDGET = 0.05
NORMAL_95 = 1.96

Tone = Literal["good", "bad", "partial", "none"]
BUDGET_WORDS = {
    "env_frames": "environment frames",
    "updates": "updates",
    "generations": "CMA-ES generations",
    "rollouts": "CMA-ES rollouts",
    "episodes_collected": "episodes collected",
    "parameters": "parameters",
}


@dataclass(frozen=True)
class Verdict:
    """The words of a verdict; `tone` only colours the badge."""

    text: str
    tone: Tone


NOT_RUN = Verdict("not run", "none")


@dataclass(frozen=True)
class Seed:
    """What one record says about one row; the interval is the 95 % bootstrap over its episodes.

    finished: whether the run, and the rival if there is one, came to its end. control: the mean of either.
    on_curve: the published curve at the step compared.
    """

    seed: int
    record: Record
    finished: bool
    values: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    control: float | None = None
    rival: Record | None = None
    on_curve: float | None = None


@dataclass(frozen=True)
class Result:
    """One line of the verdict table.

    mean, std: over seeds where there are two or more, else over the episodes of the one seed; see `std_over`.
    interval: 95 % bootstrap over seeds and their episodes. budget: each size as a share of the published.
    """

    paper: str
    row: Row
    verdict: Verdict
    reported: PublishedNumber | None
    curve: PublishedCurve | None
    seeds: tuple[Seed, ...] = ()
    mean: float | None = None
    std: float | None = None
    std_over: str = ""
    interval: tuple[float, float] | None = None
    budget: str = ""
    notes: tuple[str, ...] = ()


def compare(suite: Suite, row: Row, records: Sequence[Record], published: Published) -> Result:
    """The verdict of one row. ValueError if the row and a record or a published number cannot be joined."""
    key = (suite.paper, row.published)
    reported, curve = published.numbers.get(key), published.curves.get(key)
    is_needed = bool(row.published) or row.kind != "claim"
    if is_needed and (curve if row.kind == "curve" else reported) is None:
        raise ValueError(f"row {suite.paper}/{row.id}: no published {row.kind} {row.published!r}")
    mine = _records(suite, row, row.claim, records)
    rivals = {record.seed: record for record in _records(suite, row, row.rival, records)}
    if row.rival:
        # One run alone is no comparison: such a seed is not run.
        mine = [record for record in mine if record.seed in rivals]
    if not mine:
        return Result(suite.paper, row, NOT_RUN, reported, curve)
    budget = "" if reported is None or row.kind == "calibration" else budget_words(mine, reported)
    if row.kind == "curve":
        assert curve is not None
        return _compare_curve(suite.paper, row, mine, curve)
    seeds = tuple(_seed(row, record, rivals.get(record.seed), published) for record in mine)
    notes = _notes(row, seeds)
    done = [seed for seed in seeds if seed.values]
    if not done:
        unfinished = Verdict("not run (unfinished)", "none")
        return Result(suite.paper, row, unfinished, reported, None, seeds, notes=notes)
    if reported is not None:
        for seed in done:
            _check_protocol(row, seed, reported)
    over_seeds = len(done) > 1
    spread = summary([seed.mean for seed in done if seed.mean is not None] if over_seeds else done[0].values)
    interval = bootstrap_interval([seed.values for seed in done])
    if row.kind == "claim":
        verdict = _claim_verdict(row, seeds)
    else:
        assert reported is not None
        verdict = number_verdict(row, reported, spread.mean, interval, [seed.record for seed in done])
    std_over = "seeds" if over_seeds else "episodes"
    return Result(
        suite.paper,
        row,
        verdict,
        reported,
        None,
        seeds,
        spread.mean,
        spread.std,
        std_over,
        interval,
        budget,
        notes,
    )


def number_verdict(
    row: Row, reported: PublishedNumber, mean: float, interval: tuple[float, float], records: Sequence[Record]
) -> Verdict:
    """`reproduced` (`level` with another method), `above` or `below` at the published budget, else `reduced (x %)`."""
    if row.kind != "calibration":
        shares = [budget_shares(record.data, reported) for record in records]
        if not reported.spent:
            raise ValueError(f"row {row.id}: published {reported.key!r} has no budget sizes to compare with")
        if any(share.get(name, 0.0) < 1 - SAME_BUDGET for share in shares for name in reported.spent):
            fraction = min(share.get(row.fraction_of, 0.0) for share in shares)
            if fraction >= 1 - SAME_BUDGET:
                # All of what usually counts was spent: the size that was saved is the one to name.
                fraction = min(min(share.values()) for share in shares)
            return Verdict(f"reduced ({percent(fraction)})", "partial")
        if any(value > 1 + SAME_BUDGET for share in shares for value in share.values()):
            raise ValueError(f"row {row.id}: the budget is larger than that of published {reported.key!r}")
    is_near = reported.std is not None and abs(mean - reported.value) <= 2 * reported.std
    low, high = published_interval(reported)
    if is_near or (interval[0] <= high and low <= interval[1]):
        return Verdict("level" if row.kind == "beside" else "reproduced", "good")
    return Verdict("above", "good") if mean > reported.value else Verdict("below", "bad")


def published_interval(reported: PublishedNumber) -> tuple[float, float]:
    """95 % interval of a published mean, normal since its episodes are unknown; a point without std or n."""
    half = 0.0 if reported.std is None or not reported.n else NORMAL_95 * reported.std / reported.n**0.5
    return reported.value - half, reported.value + half


def budget_shares(record: Mapping[str, Any], reported: PublishedNumber) -> dict[str, float]:
    """Each published budget size that the record knows, as ours / published."""
    ours = {**record["budget"], "parameters": sum(record["parameters"].values())}
    return {name: ours[name] / size for name, size in reported.spent.items() if size and name in ours}


def budget_words(records: Sequence[Record], reported: PublishedNumber) -> str:
    """The shares in words, for instance "2 % of the environment frames, 8 % of the CMA-ES rollouts"."""
    shares = [budget_shares(record.data, reported) for record in records if record.finished]
    names = [name for name in reported.spent if shares and all(name in share for share in shares)]
    parts = [f"{percent(min(share[name] for share in shares))} of the {BUDGET_WORDS[name]}" for name in names]
    return ", ".join(parts)


def percent(share: float) -> str:
    """A share as a percentage with two significant digits: 0.02 → "2.0 %", 0.6 → "60 %"."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.2g} %"


def _records(suite: Suite, row: Row, claim: str, records: Sequence[Record]) -> list[Record]:
    wanted = (suite.paper, row.suite, row.task, claim)
    found = [r for r in records if tuple(r.data[k] for k in ("paper", "suite", "task", "claim")) == wanted]
    return sorted(found, key=lambda record: record.seed)


def _seed(row: Row, record: Record, rival: Record | None, published: Published) -> Seed:
    found = sample(record.data, row.quantity)
    if not record.finished or (rival is not None and not rival.finished):
        return Seed(record.seed, record, finished=False, rival=rival)
    if found is None:
        raise ValueError(f"{record.path}: row {row.id} needs {row.quantity!r}")
    if found["protocol"] not in published.protocols:
        raise ValueError(f"{record.path}: unknown protocol {found['protocol']!r}")
    control = _control(row, record, rival, found["protocol"]) if row.kind == "claim" else None
    values = tuple(float(value) for value in found["values"])
    return Seed(record.seed, record, True, values, float(found["value"]), bootstrap_interval([values]), control, rival)


def _control(row: Row, record: Record, rival: Record | None, protocol: str) -> float:
    """The mean that a claim has to exceed: of a control in the record, or of the rival's record."""
    if rival is None:
        where, name, other = record.path, f"control {row.control!r}", sample(record.data, f"controls/{row.control}")
    else:
        where, name, other = rival.path, f"rival {row.rival!r}", sample(rival.data, row.quantity)
    if other is None:
        raise ValueError(f"{where}: row {row.id} needs the {name}")
    if other["protocol"] != protocol:
        raise ValueError(f"{where}: {name} was run under another protocol")
    if rival is not None:
        ours, theirs = (data["budget"].get(row.fraction_of) for data in (record.data, rival.data))
        if ours != theirs:
            raise ValueError(f"{where}: {name} spent {theirs} {row.fraction_of}, row {row.id} {ours}")
    return float(other["value"])


def _check_protocol(row: Row, seed: Seed, reported: PublishedNumber) -> None:
    found = sample(seed.record.data, row.quantity)
    if found is not None and found["protocol"] != reported.protocol:
        raise ValueError(
            f"{seed.record.path}: row {row.id}: protocol {found['protocol']!r}, "
            f"but published {reported.key!r} has {reported.protocol!r}"
        )


def _claim_verdict(row: Row, seeds: Sequence[Seed]) -> Verdict:
    """Every seed's interval must lie above that seed's control; an unfinished seed does not hold."""
    held = sum(s.interval is not None and s.control is not None and s.interval[0] > s.control for s in seeds)
    return _counted("claim holds", "claim fails", held, seeds, row)


def _counted(good: str, bad: str, held: int, seeds: Sequence[Seed], row: Row) -> Verdict:
    if held < len(seeds):
        return Verdict(f"{bad} ({held} of {len(seeds)} seeds)", "bad")
    if {seed.seed for seed in seeds} >= set(row.seeds):
        return Verdict(good, "good")
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return Verdict(f"{good} ({count} of {len(row.seeds)} planned)", "good")


def _notes(row: Row, seeds: Sequence[Seed]) -> tuple[str, ...]:
    notes = []
    for seed in seeds:
        if not seed.finished:
            notes.append(f"seed {seed.seed}: unfinished")
        elif seed.mean is not None and seed.interval is not None:
            against = "" if seed.control is None else f" against {seed.control:.1f} ({row.control or row.rival})"
            interval = f"[{seed.interval[0]:.1f}, {seed.interval[1]:.1f}]"
            episodes = f"{len(seed.values)} episodes"
            notes.append(f"seed {seed.seed}: {seed.mean:.1f} {interval}{against}, {episodes}")
    missing = sorted(set(row.seeds) - {seed.seed for seed in seeds})
    if missing:
        notes.append(f"not run: seed {', '.join(map(str, missing))}")
    return tuple(notes)


def _compare_curve(paper: str, row: Row, records: Sequence[Record], curve: PublishedCurve) -> Result:
    """On the curve: where the shorter of both curves ends, each seed is within one published spread of the published y.

    Between two points of a curve it is a straight line.
    """
    seeds, notes, held, ends = [], [], 0, []
    for record in records:
        ours = record.data["curves"].get(row.quantity)
        if ours is None or not record.finished:
            seeds.append(Seed(record.seed, record, finished=record.finished))
            notes.append(f"seed {record.seed}: {'unfinished' if not record.finished else 'no such curve'}")
            continue
        if (ours["x_unit"], ours["y_unit"]) != (curve.x_unit, curve.y_unit):
            raise ValueError(f"{record.path}: curve {row.quantity!r} is not in {curve.y_unit} per {curve.x_unit}")
        last = float(min(ours["x"][-1], curve.x[-1]))
        if last < max(ours["x"][0], curve.x[0]):
            raise ValueError(f"{record.path}: curve {row.quantity!r} has no x in common with {curve.key!r}")
        mean = float(np.interp(last, ours["x"], ours["y"]))
        reported, band = (float(np.interp(last, curve.x, values)) for values in (curve.y, curve.spread))
        held += abs(mean - reported) <= band
        ends.append(mean)
        seeds.append(Seed(record.seed, record, True, mean=mean, on_curve=reported))
        theirs = f"published {reported:.1f} ± {band:.1f}"
        notes.append(f"seed {record.seed}: {mean:.1f} at {curve.x_unit} {round(last, 2):.10g}, {theirs}")
    verdict = _counted("on the curve", "off the curve", held, seeds, row)
    spread = summary(ends) if ends else None
    std = spread.std if spread and len(ends) > 1 else None
    return Result(
        paper, row, verdict, None, curve, tuple(seeds), spread.mean if spread else None, std,
        "seeds" if std is not None else "", notes=tuple(notes),
    )  # fmt: skip
