"""Statistics with known answers."""

import numpy as np
import pytest

from common.stats import bootstrap_interval, human_normalised, iqm, nested_bootstrap_interval, summary


def test_summary_uses_the_population_deviation():
    result = summary([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (result.mean, result.std, result.n) == (5.0, 2.0, 8)


def test_iqm_cuts_a_quarter_at_each_end():
    assert iqm([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert iqm([3.0, 1.0, 2.0]) == 2.0
    assert np.array_equal(iqm(np.array([[0.0, 9.0, 1.0, 3.0], [4.0, 4.0, 4.0, 4.0]]), axis=1), [2.0, 4.0])


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.012)
    assert high == pytest.approx(values.mean() + half, abs=0.012)
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval([4.0], iqm) == (4.0, 4.0)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_a_nested_interval_knows_that_values_of_a_group_are_alike():
    rng = np.random.default_rng(2)
    groups = [centre + rng.normal(0.0, 1.0, size=100) for centre in (0.0, 10.0, 20.0)]
    low, high = nested_bootstrap_interval(groups)
    pooled = bootstrap_interval(np.concatenate(groups))
    # Three drawn centres have the mean 10 and the standard deviation 8.16 / sqrt(3); the pooled interval is 1.7 wide.
    assert (low, high) == nested_bootstrap_interval(groups)
    assert low < 2.0 < pooled[0] < 10.0 < pooled[1] < 18.0 < high
    assert nested_bootstrap_interval(groups[:1]) == bootstrap_interval(groups[0])
    alike = [rng.normal(5.0, 1.0, size=size) for size in (400, 400, 400)]
    near = nested_bootstrap_interval(alike)
    assert near == pytest.approx(bootstrap_interval(np.concatenate(alike)), abs=0.06)
    weights = [[0.0], [3.0, 3.0, 3.0]]  # each group counts once
    assert nested_bootstrap_interval(weights) == (0.0, 3.0)
    with pytest.raises(ValueError, match="at least one group"):
        nested_bootstrap_interval([])


def test_human_normalised_score():
    assert human_normalised(30.0, 10.0, 50.0) == 0.5
    with pytest.raises(ValueError, match="both 1"):
        human_normalised(2.0, 1.0, 1.0)


@pytest.mark.parametrize("function", [summary, iqm, bootstrap_interval])
def test_no_values_is_an_error(function):
    with pytest.raises(ValueError, match="value"):
        function([])
