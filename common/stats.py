"""Numbers over episodes or seeds: mean, spread, and bootstrap intervals of one or of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.floating]
RESAMPLES = 10_000
_CHUNK = 1000  # resamples held in memory at a time
_FEW = 16  # distinct values, as of games that are won or lost


@dataclass(frozen=True)
class Summary:
    """Mean and population standard deviation (divided by n, as the papers print it) of n values."""

    mean: float
    std: float
    n: int


def summary(values: Values) -> Summary:
    """Raises ValueError if there is no value."""
    array = _array(values)
    return Summary(float(array.mean()), float(array.std()), len(array))


def draws_of_mean(groups: Sequence[Values], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Bootstrap draws [resamples] of the mean over groups of each group's mean: groups are drawn, then their values.

    Groups are training seeds, values their episodes: episodes of one seed are more alike than those of several. One
    group alone is the plain bootstrap. Raises ValueError if there is no group, or a group without a value.
    """
    arrays = [_array(values) for values in groups]
    if not arrays:
        raise ValueError("need at least one group of values")
    rng, n = np.random.default_rng(seed), len(arrays)
    means = np.stack([_resampled_means(array, resamples * n, rng).reshape(resamples, n) for array in arrays])
    if n > 1:
        drawn = rng.integers(n, size=(1, resamples, n))
        means = np.take_along_axis(means, drawn, axis=0)
    return means[0].mean(axis=1)


def interval(draws: NDArray[np.floating], confidence: float = 0.95) -> tuple[float, float]:
    """The middle `confidence` of some draws. Raises ValueError if confidence is not inside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), not {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(array: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The means of `resamples` draws with replacement, [resamples].

    Of few distinct values only how often each is drawn matters: the same law at a small part of the cost.
    """
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) <= _FEW:
        drawn = rng.multinomial(len(array), counts / len(array), size=resamples)
        return drawn @ distinct / len(array)
    results = []
    for start in range(0, resamples, _CHUNK):
        picks = rng.integers(len(array), size=(min(_CHUNK, resamples - start), len(array)))
        results.append(array[picks].mean(axis=1))
    return np.concatenate(results)


def _array(values: Values) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"need one list with at least one value, got shape {array.shape}")
    return array
