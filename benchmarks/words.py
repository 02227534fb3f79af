"""How a result is said in a few words: ours, the control, the published number, the effect, the share of the budget."""

from __future__ import annotations

from statistics import fmean

from benchmarks.compare import Result
from benchmarks.published import PublishedNumber
from benchmarks.rows import Beside, Claim, Number, first
from benchmarks.scale import percent


def ours(result: Result) -> str:
    """Our mean ± standard deviation, or "not run"."""
    if result.ours is None:
        return "not run"
    spread = (
        f" ± {result.ours.std:.1f}"
        if any(len(group) > 1 for group in result.ours.groups) or len(result.ours.groups) > 1
        else ""
    )
    return f"{result.ours.mean:.1f}{spread}"


def interval_words(result: Result) -> str:
    """The interval of our mean, and what ± is over."""
    side = result.ours
    if side is None or side.interval[0] == side.interval[1]:
        return ""
    return f"95 % {side.interval[0]:.1f} to {side.interval[1]:.1f}; ± over {side.std_over}"


def seeds(result: Result) -> str:
    """How many seeds of ours stand behind a row."""
    return "" if result.ours is None else result.ours.seeds


def control(result: Result) -> str:
    """The mean of the floor or of the control."""
    return "" if result.other is None else f"{result.other.mean:.1f}"


def control_name(result: Result) -> str:
    """What the floor or the control is."""
    if isinstance(result.row, Claim):
        return result.row.against
    if isinstance(result.row, Number) and result.other is not None:
        return "floor: " + result.row.floor.name.split("/")[-1]
    return ""


def reported(result: Result) -> str:
    """The published number ± its spread; of a curve its value at the last point compared; else "none"."""
    if result.reported is not None:
        spread = "" if result.reported.std is None else f" ± {result.reported.std:.4g}"
        return f"{result.reported.value:.4g}{spread}"
    if result.points:
        return f"{result.points[-1][2]:.1f}"
    return "" if result.curve is not None else "none"


def reported_kind(result: Result) -> str:
    """What the published number is: the same score, another method's, or none."""
    if isinstance(result.row, Beside):
        return result.row.why
    if result.curve is not None:
        return f"the same curve, last of {len(result.points)} bins" if len(result.points) > 1 else "the same curve"
    return "the same score" + _silent(result.reported) if result.reported is not None else "none of this protocol"


def source(result: Result) -> str:
    """Where the published number comes from."""
    if result.reported is None:
        return "" if result.curve is None else result.curve.source
    certainty = f" ({result.reported.certainty})" if result.reported.certainty else ""
    return f"{result.reported.source}{certainty}"


def _silent(found: PublishedNumber | None) -> str:
    return (
        "; ± over episodes of one run, silent about seeds" if found is not None and found.std_over == "episodes" else ""
    )


def effect_words(result: Result) -> str:
    """The effect with its interval; of a claim, the difference with its interval; of a curve, its mean distance."""
    if result.effect is not None:
        mean, low, high = result.effect
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    if result.difference is not None:
        mean, low, high = result.difference
        unit = "" if result.curve is None else " published standard deviations"
        return f"{mean:+.1f} [{low:.1f}, {high:.1f}]{unit}"
    return ""


def budget_share(result: Result) -> str:
    """The smallest share of the published budget."""
    if result.reported is None or not result.is_run or not isinstance(result.row, Number):
        return ""
    if result.row.is_official:
        return "the authors' weights"
    if result.share is None:
        return "unknown"
    return f"at most {percent(result.share)}" if result.has_unknown_budget else percent(result.share)


def protocol(result: Result) -> str:
    """The protocol word of a row; where ours has another one than the number it stands beside, ours."""
    if isinstance(result.row, Beside) and result.ours is not None:
        return result.ours.protocol
    if result.reported is not None:
        return result.reported.protocol
    if result.curve is not None:
        return result.curve.protocol
    return "" if result.ours is None else result.ours.protocol


def minutes(result: Result) -> float:
    """Measured minutes of a seed."""
    return (
        fmean(record.data["wall_seconds"] for record in result.ours.records) / 60
        if result.ours
        else first(result.row).minutes
    )


def devices(result: Result) -> str:
    """The devices of the runs, each named once."""
    return ", ".join(dict.fromkeys(record.data["device"] for record in result.ours.records)) if result.ours else ""


def duration(seconds: float) -> str:
    """Seconds as a person writes them: "41 s", "6.9 min", "2.1 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def number(value: float) -> str:
    """A measured number with about four digits and thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
