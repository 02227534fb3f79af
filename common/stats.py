"""Numbers over episodes or seeds: spread, bootstrap intervals, interquartile mean, human-normalised score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.floating]
_CHUNK = 1000  # resamples held in memory at a time


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


def iqm(values: Values | NDArray[np.floating], axis: int = -1) -> NDArray[np.floating]:
    """Mean of the middle half along `axis`: a quarter of the values, rounded down, is cut off at each end."""
    array = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    if array.shape[axis] == 0:
        raise ValueError("no values")
    cut = array.shape[axis] // 4
    return np.asarray(np.take(array, range(cut, array.shape[axis] - cut), axis=axis).mean(axis=axis))


def bootstrap_interval(
    values: Values,
    statistic: Callable[..., NDArray[np.floating]] = np.mean,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval; `statistic(array, axis=1)` maps [resamples, n] to [resamples].

    Raises ValueError if there is no value or confidence is not inside (0, 1).
    """
    return _interval(_resampled(_array(values), statistic, resamples, np.random.default_rng(seed)), confidence)


def nested_bootstrap_interval(
    groups: Sequence[Values], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean over groups of each group's mean: groups are drawn, then values of each drawn group.

    Groups are training seeds, values their episodes: episodes of one seed are more alike than those of several. One
    group alone gives `bootstrap_interval`. Raises ValueError if there is no group, a group has no value, or confidence
    is not inside (0, 1).
    """
    arrays = [_array(values) for values in groups]
    if not arrays:
        raise ValueError("need at least one group of values")
    rng, n = np.random.default_rng(seed), len(arrays)
    means = np.stack([_resampled(array, np.mean, resamples * n, rng).reshape(resamples, n) for array in arrays])
    if n > 1:
        drawn = rng.integers(n, size=(1, resamples, n))
        means = np.take_along_axis(means, drawn, axis=0)
    return _interval(means[0].mean(axis=1), confidence)


def human_normalised(score: float, random: float, human: float) -> float:
    """0 at random play, 1 at the human score. Raises ValueError if the two are equal."""
    if human == random:
        raise ValueError(f"human and random score are both {human}")
    return (score - random) / (human - random)


def _resampled(
    array: NDArray[np.float64],
    statistic: Callable[..., NDArray[np.floating]],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.floating]:
    """The statistic of `resamples` draws with replacement, [resamples]."""
    results = []
    for start in range(0, resamples, _CHUNK):
        picks = rng.integers(len(array), size=(min(_CHUNK, resamples - start), len(array)))
        results.append(statistic(array[picks], axis=1))
    return np.concatenate(results)


def _interval(results: NDArray[np.floating], confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), not {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(results, [tail, 1 - tail])
    return float(low), float(high)


def _array(values: Values) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"need one list with at least one value, got shape {array.shape}")
    return array
