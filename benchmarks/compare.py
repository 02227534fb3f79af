"""One verdict per row: joins records and published numbers by fixed rules; pure functions of both.

Numbers are judged on the common scale of `scale.py`.
Seeds are never picked: every record of an experiment counts, unfinished ones too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from benchmarks.bins import bin_notes, curve_words, distance
from benchmarks.published import Published, PublishedCurve, PublishedNumber
from benchmarks.records import Record, sample
from benchmarks.rows import Beside, Calibration, Claim, Curve, Experiment, Number, Quantity, Row, Suite
from benchmarks.scale import (
    SAME_BUDGET,
    Draws,
    budget_shares,
    budget_words,
    effect_of,
    percent,
    published_draws,
    unknown_sizes,
)
from common.stats import draws_of_mean, interval, summary

HALF = 0.5  # of the effect that a reproduction must be sure of

Tone = Literal["good", "bad", "partial", "none"]


@dataclass(frozen=True)
class Verdict:
    """The words of a verdict; `tone` only colours the badge."""

    text: str
    tone: Tone


NOT_RUN = Verdict("not run", "none")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the values by seed of all finished records of a quantity, and what they amount to.

    mean, std: over seeds where there are two or more, else over the episodes of the one seed; see `std_over`.
    interval: 95 % bootstrap over seeds and their episodes. planned: seeds of the suite that have no finished record.
    """

    values: Mapping[int, tuple[float, ...]]
    records: tuple[Record, ...]
    unfinished: tuple[int, ...]
    missing: tuple[int, ...]
    protocol: str
    mean: float
    std: float
    std_over: Literal["seeds", "episodes"]
    interval: tuple[float, float]

    @property
    def groups(self) -> list[tuple[float, ...]]:
        """The values, seed by seed."""
        return [self.values[seed] for seed in sorted(self.values)]

    @property
    def seeds(self) -> str:
        """How many seeds these are, in words."""
        return "one seed" if len(self.values) == 1 else f"{len(self.values)} seeds"


@dataclass(frozen=True)
class Result:
    """One row with its verdict.

    other: the floor or the control. effect: mean, low and high on the common scale. share: the smallest share of the
    published budget, None where it is unknown or nothing was to be spent. budget: every share in words. difference:
    mean, low and high, of a claim in its unit, of a curve over its bins in published standard deviations. points: the
    bins of a curve compared, (x, ours, published, published spread).
    """

    paper: str
    row: Row
    verdict: Verdict
    ours: Side | None = None
    other: Side | None = None
    reported: PublishedNumber | None = None
    curve: PublishedCurve | None = None
    effect: tuple[float, float, float] | None = None
    share: float | None = None
    budget: str = ""
    has_unknown_budget: bool = False
    difference: tuple[float, float, float] | None = None
    points: tuple[tuple[float, float, float, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_run(self) -> bool:
        """Whether there is a finished record of it."""
        return self.ours is not None


def compare(suite: Suite, row: Row, records: Sequence[Record], published: Published) -> Result:
    """The verdict of one row. ValueError if the row and a record or a published number cannot be joined."""
    match row:
        case Number():
            return _number(suite, row, records, published)
        case Curve():
            return _curve(suite, row, records, published)
        case Claim():
            return _claim(suite, row, records, published)
        case Calibration():
            return _calibration(suite, row, records, published)
        case Beside():
            reported = _reported(suite, row, published)
            ours = _side(suite, row.ours, records, published)
            verdict = NOT_RUN if ours is None else Verdict("beside", "none")
            return Result(suite.paper, row, verdict, ours, reported=reported, notes=_notes(ours))


# --- numbers ----------------------------------------------------------------------------------------------------------


def _number(suite: Suite, row: Number, records: Sequence[Record], published: Published) -> Result:
    reported = _reported(suite, row, published)
    ours = _side(suite, row.ours, records, published)
    floor = _side(suite, row.floor, records, published)
    if ours is None:
        return Result(suite.paper, row, NOT_RUN, other=floor, reported=reported)
    _same_protocol(row, ours, reported.protocol)
    shares = {} if row.is_official else budget_shares(ours.records, reported)
    unknown = () if row.is_official else unknown_sizes(suite, ours.records, reported)
    share = min(shares.values()) if shares else None
    words = budget_words(suite, shares, unknown)
    joined = partial(
        Result, suite.paper, row, ours=ours, reported=reported, share=share, budget=words,
        has_unknown_budget=bool(unknown),
    )  # fmt: skip
    if floor is None:
        return joined(Verdict("no floor measured", "none"), notes=_notes(ours))
    _same_protocol(row, floor, row.floor_protocol or reported.protocol)
    effect, is_near = effect_of(ours.groups, floor.groups, reported)
    notes = _notes(ours)
    if effect is None:
        words = "the published number lies within its own error of the floor, so there is no scale between them"
        verdict, notes = Verdict("inconclusive", "none"), (*notes, words)
    elif row.is_official or (share is not None and share >= 1 - SAME_BUDGET and not unknown):
        if share is not None and max(shares.values()) > 1 + SAME_BUDGET:
            raise ValueError(f"row {row.id}: the budget is larger than that of published {reported.key!r}")
        verdict = number_verdict(effect, is_near)
    else:
        spent = (
            "at an unknown share"
            if share is None
            else f"with at most {percent(share)}"
            if unknown
            else f"at {percent(share)}"
        )
        verdict = Verdict(f"reduced: {percent(effect[0])} of the effect {spent} of the budget", "partial")
    return joined(verdict, other=floor, effect=effect, notes=notes)


def number_verdict(effect: tuple[float, float, float], is_near: bool) -> Verdict:
    """At the published budget: effect (mean, low, high); is_near as `effect_of` gives it."""
    _, low, high = effect
    if low > 1:
        return Verdict("exceeded", "good")
    if high < 1 and not is_near:
        return Verdict("not reproduced", "bad")
    if high >= 1 and low > HALF and is_near:
        return Verdict("reproduced", "good")
    return Verdict("inconclusive", "none")


# --- curves -----------------------------------------------------------------------------------------------------------


def _curve(suite: Suite, row: Curve, records: Sequence[Record], published: Published) -> Result:
    """Bin by bin, then by `curve_words`. Ours is the mean over seeds; between two points of a curve it is straight.

    No verdict where the published curve lies within its own spread of the floor in every bin.
    """
    curve = published.curves.get((suite.paper, row.published))
    if curve is None:
        raise ValueError(f"row {suite.paper}/{row.id}: no published curve {row.published!r}")
    found = _records(suite, row.ours.of, records)
    done = [record for record in found if record.finished]
    mine = [record for record in done if row.ours.name in record.data["curves"]]
    floor = _side(suite, row.floor, records, published)
    if not mine:
        return Result(suite.paper, row, NOT_RUN, other=floor, curve=curve)
    if len(mine) < len(done):
        lacking = next(record for record in done if record not in mine)
        raise ValueError(f"{lacking.path}: no curve {row.ours.name!r}, which other seeds have")
    lines = []
    for record in mine:
        line = record.data["curves"][row.ours.name]
        if (line["x_unit"], line["y_unit"]) != (curve.x_unit, curve.y_unit):
            raise ValueError(f"{record.path}: curve {row.ours.name!r} is not in {curve.y_unit} per {curve.x_unit}")
        lines.append(line)
    start, end = max(curve.x[0], *(line["x"][0] for line in lines)), min(line["x"][-1] for line in lines)
    at = [x for x in curve.x if start <= x <= end]
    if not at:
        at = [min(end, curve.x[-1])] if end >= curve.x[0] else []
    if not at:
        raise ValueError(f"{row.id}: curve {row.ours.name!r} has no x in common with {curve.key!r}")
    ours = np.array([np.interp(at, line["x"], line["y"]) for line in lines])  # [seeds, bins]
    y, spread = np.interp(at, curve.x, curve.y), np.interp(at, curve.x, curve.spread)
    bins, mean = distance(ours.tolist(), y.tolist(), spread.tolist())
    values = {record.seed: (float(line[-1]),) for record, line in zip(mine, ours, strict=True)}
    unfinished = tuple(record.seed for record in found if not record.finished)
    missing = tuple(sorted(set(row.ours.of.seeds) - values.keys() - set(unfinished)))
    side = replace(_sized(values, tuple(mine), unfinished, missing, ""), std_over="seeds")
    points = tuple(zip(map(float, at), map(float, ours.mean(0)), map(float, y), map(float, spread), strict=True))
    notes = (*bin_notes(curve.x_unit, points, bins.tolist()), *_gaps(side))
    verdict = curve_verdict(row, bins.tolist(), side)
    if floor is not None and (abs(y - floor.mean) <= spread).all():
        verdict = Verdict("beside", "none")
        notes = (f"no verdict: the published curve has not left {floor.mean:.1f}, the floor, by its spread", *notes)
    return Result(suite.paper, row, verdict, side, floor, curve=curve, points=points, difference=mean, notes=notes)


def curve_verdict(row: Curve, bins: Sequence[float], side: Side) -> Verdict:
    """The word for the distances of all bins, the bins and seeds that it rests on, and in what our model is smaller."""
    word, counted = curve_words(bins)
    tone: Tone = "bad" if word == "below" else "partial" if row.reduced or word == "across" else "good"
    inside = "; ".join([f"{counted}, {side.seeds}", *([f"reduced model: {row.reduced}"] if row.reduced else [])])
    return Verdict(f"{word} the curve ({inside})", tone)


# --- claims -----------------------------------------------------------------------------------------------------------


def _claim(suite: Suite, row: Claim, records: Sequence[Record], published: Published) -> Result:
    """By the 95 % interval of the difference, seeds and episodes of both sides: holds above 0, fails below it; a claim
    that ours is less the other way round.

    A seed that lacks one of the sides is not run.
    """
    if len(row.ours) != len(row.control):
        raise ValueError(f"row {row.id}: {len(row.ours)} quantities against {len(row.control)}")
    differences: list[Draws] = []
    sides: list[tuple[Side, Side]] = []
    unfinished: set[int] = set()
    for mine, theirs in zip(row.ours, row.control, strict=True):
        ours, control = (_side(suite, quantity, records, published) for quantity in (mine, theirs))
        unfinished |= set(_unfinished(suite, mine.of, records)) | set(_unfinished(suite, theirs.of, records))
        if ours is None or control is None:
            return Result(suite.paper, row, NOT_RUN)
        is_shared = mine.of.seeds == theirs.of.seeds
        if is_shared:
            both = ours.values.keys() & control.values.keys()
            if not both:
                return Result(suite.paper, row, NOT_RUN)
            ours, control = _only(ours, both), _only(control, both)
        _same_protocol(row, control, ours.protocol)
        _same_budget(row, ours, control)
        sides.append((ours, control))
        differences.append(_difference(row, ours, control))
    draws = np.mean(differences, axis=0)
    low, high = interval(draws)
    mean = float(np.mean([ours.mean - control.mean for ours, control in sides]))
    ours, control = sides[0] if len(sides) == 1 else (_mean([a for a, _ in sides]), _mean([b for _, b in sides]))
    planned = row.ours[0].of.seeds
    gain = (-high, -low) if row.is_less else (low, high)
    word, tone = claim_words(row.asserted_by, *gain, bool(unfinished))
    count = ours.seeds if set(ours.values) >= set(planned) else f"{ours.seeds} of {len(planned)} planned"
    notes = (f"difference {mean:+.1f} [{low:.1f}, {high:.1f}]", *_notes(ours))
    notes += tuple(f"seed {seed}: unfinished" for seed in sorted(unfinished))
    return Result(
        suite.paper, row, Verdict(f"{word} ({count})", tone), ours, control, difference=(mean, low, high), notes=notes
    )


def claim_words(asserted_by: str, low: float, high: float, is_unfinished: bool) -> tuple[str, Tone]:
    """The verdict word of a claim of the paper or a check of ours; an unfinished run holds nothing.

    low, high: of how much better ours is than the control.
    """
    good, bad = ("holds", "fails") if asserted_by == "paper" else ("passed", "not passed")
    if low > 0 and not is_unfinished:
        return good, "good"
    return (bad, "bad") if high < 0 else ("undecided", "none")


def _difference(row: Claim, ours: Side, control: Side) -> Draws:
    """Draws of ours - control: item by item where the row is paired, else each side by itself."""
    if row.is_paired:
        pairs = []
        for seed, values in ours.values.items():
            theirs = control.values.get(seed, ())
            if len(theirs) != len(values):
                raise ValueError(f"row {row.id}: seed {seed} has {len(values)} values against {len(theirs)}, not pairs")
            pairs.append([a - b for a, b in zip(values, theirs, strict=True)])
        return draws_of_mean(pairs, seed=0)
    return draws_of_mean(ours.groups, seed=0) - draws_of_mean(control.groups, seed=1)


def _same_budget(row: Claim, ours: Side, control: Side) -> None:
    if not row.equal:
        return
    mine, theirs = ({r.data["budget"].get(row.equal) for r in side.records} for side in (ours, control))
    if mine != theirs:
        where = control.records[0].path
        raise ValueError(f"{where}: {row.against} spent {_listed(theirs)} {row.equal}, row {row.id} {_listed(mine)}")


def _listed(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values)))


def _only(side: Side, seeds: set[int]) -> Side:
    """The same side with some of its seeds; those left out are missing."""
    kept = tuple(record for record in side.records if record.seed in seeds)
    missing = tuple(sorted({*side.missing, *(set(side.values) - seeds)}))
    values = {seed: side.values[seed] for seed in sorted(seeds)}
    return _sized(values, kept, side.unfinished, missing, side.protocol)


def _mean(sides: Sequence[Side]) -> Side:
    """Several tasks as one side: of each seed that all have, the mean over tasks of its mean."""
    seeds = set.intersection(*(set(side.values) for side in sides))
    values = {seed: (float(np.mean([np.mean(side.values[seed]) for side in sides])),) for seed in sorted(seeds)}
    records = tuple(record for side in sides for record in side.records)
    return _sized(values, records, (), (), sides[0].protocol)


# --- calibrations -----------------------------------------------------------------------------------------------------


def _calibration(suite: Suite, row: Calibration, records: Sequence[Record], published: Published) -> Result:
    """Agrees if 0 lies in the 95 % interval of the difference, the published error and rounding included."""
    reported = _reported(suite, row, published)
    ours = _side(suite, row.ours, records, published)
    if ours is None:
        return Result(suite.paper, row, NOT_RUN, reported=reported)
    _same_protocol(row, ours, reported.protocol)
    low, high = interval(draws_of_mean(ours.groups) - published_draws(reported))
    verdict = Verdict("agrees", "good") if low <= 0 <= high else Verdict("differs", "bad")
    return Result(suite.paper, row, verdict, ours, reported=reported, notes=_notes(ours))


# --- joining ----------------------------------------------------------------------------------------------------------


def _reported(suite: Suite, row: Number | Calibration | Beside, published: Published) -> PublishedNumber:
    found = published.numbers.get((suite.paper, row.published))
    if found is None:
        raise ValueError(f"row {suite.paper}/{row.id}: no published number {row.published!r}")
    return found


def _records(suite: Suite, experiment: Experiment, records: Sequence[Record]) -> list[Record]:
    wanted = (suite.paper, experiment.suite, experiment.task, experiment.claim)
    found = [r for r in records if tuple(r.data[k] for k in ("paper", "suite", "task", "claim")) == wanted]
    return sorted(found, key=lambda record: record.seed)


def _unfinished(suite: Suite, experiment: Experiment, records: Sequence[Record]) -> list[int]:
    return [record.seed for record in _records(suite, experiment, records) if not record.finished]


def _side(suite: Suite, quantity: Quantity, records: Sequence[Record], published: Published) -> Side | None:
    """All finished records of a quantity; None if there is none, or none that measured it."""
    found = _records(suite, quantity.of, records)
    done = [record for record in found if record.finished]
    samples = {record.seed: sample(record.data, quantity.name) for record in done}
    there = {seed: one for seed, one in samples.items() if one is not None}
    if not there:
        return None
    if len(there) < len(done):
        lacking = next(record for record in done if samples[record.seed] is None)
        raise ValueError(f"{lacking.path}: no {quantity.name!r}, which other seeds have")
    protocols = {one["protocol"] for one in there.values()}
    if len(protocols) > 1 or not protocols <= published.protocols.keys():
        raise ValueError(f"{done[0].path}: unknown protocol, or several: {_listed(protocols)}")
    values = {seed: tuple(map(float, one["values"])) for seed, one in there.items()}
    unfinished = tuple(record.seed for record in found if not record.finished)
    missing = tuple(sorted(set(quantity.of.seeds) - values.keys() - set(unfinished)))
    return _sized(values, tuple(done), unfinished, missing, protocols.pop())


def _sized(
    values: Mapping[int, tuple[float, ...]],
    records: tuple[Record, ...],
    unfinished: tuple[int, ...],
    missing: tuple[int, ...],
    protocol: str,
) -> Side:
    groups = list(values.values())
    over: Literal["seeds", "episodes"] = "seeds" if len(groups) > 1 else "episodes"
    spread = summary([summary(group).mean for group in groups] if over == "seeds" else groups[0])
    ends = interval(draws_of_mean(groups))
    return Side(values, records, unfinished, missing, protocol, spread.mean, spread.std, over, ends)


def _same_protocol(row: Row, side: Side, protocol: str) -> None:
    if side.protocol != protocol:
        where = side.records[0].path
        raise ValueError(f"{where}: row {row.id}: protocol {side.protocol!r}, compared with {protocol!r}")


def _notes(side: Side | None) -> tuple[str, ...]:
    if side is None:
        return ()
    notes = []
    if len(side.values) > 1:
        for seed, values in side.values.items():
            low, high = interval(draws_of_mean([values]))
            notes.append(f"seed {seed}: {summary(values).mean:.1f} [{low:.1f}, {high:.1f}], {len(values)} values")
    return (*notes, *_gaps(side))


def _gaps(side: Side) -> tuple[str, ...]:
    """The seeds that are planned and not there."""
    notes = [f"seed {seed}: unfinished" for seed in side.unfinished]
    if side.missing:
        notes.append(f"not run: seed {', '.join(map(str, side.missing))}")
    return tuple(notes)
