"""Statistics with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from common import stats
from common.stats import draws_of_mean, interval, summary


def test_summary_uses_the_population_deviation():
    result = summary([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (result.mean, result.std, result.n) == (5.0, 2.0, 8)


def bootstrap_interval(groups, confidence=0.95):
    return interval(draws_of_mean(groups), confidence)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    low, high = bootstrap_interval([values])
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.012)
    assert high == pytest.approx(values.mean() + half, abs=0.012)
    assert (low, high) == bootstrap_interval([values])
    assert bootstrap_interval([[4.0]]) == (4.0, 4.0)
    wide = bootstrap_interval([values], confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_an_interval_over_groups_knows_that_values_of_a_group_are_alike():
    rng = np.random.default_rng(2)
    groups = [centre + rng.normal(0.0, 1.0, size=100) for centre in (0.0, 10.0, 20.0)]
    low, high = bootstrap_interval(groups)
    pooled = bootstrap_interval([np.concatenate(groups)])
    # Three drawn centres have the mean 10 and the standard deviation 8.16 / sqrt(3); the pooled interval is 1.7 wide.
    assert (low, high) == bootstrap_interval(groups)
    assert low < 2.0 < pooled[0] < 10.0 < pooled[1] < 18.0 < high
    alike = [rng.normal(5.0, 1.0, size=size) for size in (400, 400, 400)]
    near = bootstrap_interval(alike)
    assert near == pytest.approx(bootstrap_interval([np.concatenate(alike)]), abs=0.06)
    weights = [[0.0], [3.0, 3.0, 3.0]]  # each group counts once
    assert bootstrap_interval(weights) == (0.0, 3.0)
    with pytest.raises(ValueError, match="at least one group"):
        bootstrap_interval([])


def test_another_seed_gives_other_draws_of_the_same_law():
    first, second = (draws_of_mean([[0.0, 1.0, 5.0]], seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert first.mean() == pytest.approx(second.mean(), abs=0.05)
    with pytest.raises(ValueError, match="inside"):
        interval(first, 1.0)


@pytest.mark.parametrize("values", [[0.0] * 150 + [1.0] * 50, [-1.0] * 20 + [0.0] * 30 + [4.0] * 10, [3.0] * 40])
def test_draws_of_few_distinct_values_have_the_law_of_many(monkeypatch, values):
    """And that of the mean of so many draws with replacement."""
    few = draws_of_mean([values])
    monkeypatch.setattr(stats, "_FEW", 0)
    many = draws_of_mean([values])
    assert few.shape == many.shape
    quantiles = (0.025, 0.25, 0.5, 0.75, 0.975)
    step = 5.0 / len(values)  # one value more or less
    assert np.quantile(few, quantiles) == pytest.approx(np.quantile(many, quantiles), abs=step)
    error = np.std(values) / len(values) ** 0.5
    assert (few.mean(), few.std()) == pytest.approx((np.mean(values), error), abs=0.05 * error)


@pytest.mark.parametrize("function", [summary, lambda values: bootstrap_interval([values])])
def test_no_values_is_an_error(function):
    with pytest.raises(ValueError, match="value"):
        function([])
