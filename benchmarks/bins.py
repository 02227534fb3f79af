"""A learning curve against a published one, bin by bin; pure functions.

A distance is (ours - published) / published spread: in published standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.scale import TENTH, Draws, as_uncertain
from common.stats import draws_of_mean, interval

FEW_BINS = 12  # that are listed one by one


def distance(
    ours: Sequence[Sequence[float]], y: Sequence[float], spread: Sequence[float]
) -> tuple[Draws, tuple[float, float, float]]:
    """(ours - published) / published spread: of the mean of our seeds in each bin, and (mean, low, high) over bins.

    ours: [seeds][bins]; y, spread: [bins]. The interval is a bootstrap over our seeds, at least as wide as the
    published spread says of a mean over as many; a seed that is ahead in one bin counts as ahead in all.
    """
    each = (np.asarray(ours, float) - np.asarray(y)) / np.maximum(spread, 1e-9)  # [seeds, bins]
    draws = as_uncertain(draws_of_mean(each.mean(1, keepdims=True).tolist()), 1 / len(each) ** 0.5)
    bins: Draws = each.mean(0)
    return bins, (float(bins.mean()), *interval(draws))


def curve_words(bins: Sequence[float]) -> tuple[str, str]:
    """The verdict word for the distances of some bins, and the bins it rests on.

    A bin is above or below beyond one published standard deviation, else on. The curve is on if at least half of its
    bins are and their mean is within one; else above or below if at most a tenth of the bins lies on the other side,
    and across if more do.
    """
    above, below = sum(one > 1 for one in bins), sum(one < -1 for one in bins)
    on = len(bins) - above - below
    of = f"of {len(bins)} bin{'s' if len(bins) > 1 else ''}"
    if 2 * on >= len(bins) and abs(float(np.mean(bins))) <= 1:
        return "on", f"{on} {of}"
    if min(above, below) > TENTH * len(bins):
        return "across", f"{above} {of} above, {below} below"
    return ("above", f"{above} {of}") if above > below else ("below", f"{below} {of}")


def bin_notes(unit: str, points: Sequence[tuple[float, float, float, float]], bins: Sequence[float]) -> tuple[str, ...]:
    """How many bins are above, on and below, and each of them where they are few; of many the last."""
    words = ["above" if one > 1 else "below" if one < -1 else "on" for one in bins]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("above", "on", "below") if word in words)
    lines = [
        f"{unit} {x:,.10g}: {ours:.1f} beside {y:.1f} ± {spread:.1f}, {word}"
        for (x, ours, y, spread), word in zip(points, words, strict=True)
    ]
    shown = lines if len(lines) <= FEW_BINS else lines[-1:]
    return (f"bins up to {unit} {points[-1][0]:,.10g}: {counts}", *shown)
