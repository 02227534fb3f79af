"""The common scale: effect = (ours - floor) / (published - floor), and the share of a budget.

0 is the floor, 1 the published number; the 95 % interval is a bootstrap over our seeds and their episodes, the floor's
episodes, and the published spread and rounding. `compare.py` joins these numbers with rows and records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.published import PublishedNumber
from benchmarks.records import Record
from benchmarks.rows import Suite
from common.stats import RESAMPLES, draws_of_mean, interval, summary

SAME_BUDGET = 0.05  # a budget within this share of the published one is the same: a last, partial batch does not matter
TENTH = 0.1  # of the effect is as near as can be told where no spread is published
Z95 = 1.96

Draws = NDArray[np.float64]


def effect_of(
    ours: Sequence[Sequence[float]], floor: Sequence[Sequence[float]], reported: PublishedNumber
) -> tuple[tuple[float, float, float] | None, bool]:
    """(mean, low, high) on the common scale, None if the published number cannot be told from the floor; and is_near.

    Our mean is taken to be at least as uncertain as the published spread says that a mean over as many seeds or
    episodes is: a few quiet episodes prove no difference. is_near: 1 lies as near to our mean as chance alone would
    bring it, by the published spread; without one, within a tenth of the effect. Our own noise has no part in it, so
    noise can make a row inconclusive, never reproduced.
    """
    count = len(ours) if reported.std_over == "seeds" else sum(map(len, ours))
    implied = 0.0 if reported.std is None else reported.std / count**0.5
    a, b, c = draws_of_mean(ours, seed=0), draws_of_mean(floor, seed=1), published_draws(reported)
    a = as_uncertain(a, implied)
    low, high = interval(c - b)
    if low <= 0 <= high:
        return None, False
    mean_ours, mean_floor = (summary([summary(group).mean for group in groups]).mean for groups in (ours, floor))
    effect = (mean_ours - mean_floor) / (reported.value - mean_floor)
    values = (a - b) / (c - b)
    if reported.std is None:
        reach = TENTH
    else:
        reach = Z95 * (implied**2 + float(c.std()) ** 2 + float(b.std()) ** 2) ** 0.5 / abs(reported.value - mean_floor)
    low, high = interval(values)
    return (effect, low, high), abs(effect - 1) <= reach


def as_uncertain(draws: Draws, least: float) -> Draws:
    """The draws with as much noise more as makes their standard deviation at least so large."""
    own = float(draws.std())
    if own >= least:
        return draws
    return draws + np.random.default_rng(3).normal(0.0, (least**2 - own**2) ** 0.5, len(draws))


def published_draws(reported: PublishedNumber) -> Draws:
    """Draws of the published mean: its standard error where spread and number are known, and its rounding."""
    rng = np.random.default_rng(2)
    error = 0.0 if reported.std is None or not reported.n else reported.std / reported.n**0.5
    noise: Draws = rng.normal(0.0, error, RESAMPLES) if error else np.zeros(RESAMPLES)
    return reported.value + noise + rng.uniform(-reported.rounding, reported.rounding, RESAMPLES)


def budget_shares(records: Sequence[Record], reported: PublishedNumber) -> dict[str, float]:
    """Each published budget size as ours / published, the smallest over records; a size that we do not know is 0."""
    shares = {}
    for name, size in reported.spent.items():
        ours = [{**r.data["budget"], "parameters": sum(r.data["parameters"].values())}.get(name, 0.0) for r in records]
        shares[name] = min(ours) / size
    return shares


def unknown_sizes(suite: Suite, records: Sequence[Record], reported: PublishedNumber) -> tuple[str, ...]:
    """Sizes that we spent and whose published value is not known: unknown is not equal."""
    spent = {name for record in records for name, size in record.data["budget"].items() if size}
    return tuple(name for name in suite.budget if name in spent and name not in reported.spent)


def budget_words(suite: Suite, shares: Mapping[str, float], unknown: Sequence[str] = ()) -> str:
    """The shares in words, for instance "2 % of the environment frames, 8 % of the CMA-ES rollouts"."""
    words = [f"{percent(share)} of the {suite.budget[name]}" for name, share in shares.items()]
    return ", ".join([*words, *(f"an unknown share of the {suite.budget[name]}" for name in unknown)])


def percent(share: float) -> str:
    """A share as a percentage with two significant digits: 0.02 → "2.0 %", 0.6 → "60 %"."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 or value == 0 else f"{value:.2g} %"
