"""The evolution: seeds, exact resume, the rule of 2018, progress on a sphere."""

import numpy as np
import pytest
from cma.sigma_adaptation import CMAAdaptSigmaCSA

from ha2018.cma_es import Evolution, as_received_from_workers, as_sent_to_workers, cost, rollout_seeds

P, N = 6, 8


def sphere(solutions):
    return np.square(solutions - 0.3).sum(1)


def evolve(evolution, generations):
    asked = []
    for _ in range(generations):
        asked.append(evolution.ask())
        evolution.tell(asked[-1], sphere(asked[-1]))
    return asked


def test_halves_share_their_seeds_and_generations_do_not():
    rng = np.random.RandomState(3)
    first, second = rollout_seeds(rng, N), rollout_seeds(rng, N)
    np.testing.assert_array_equal(first[: N // 2], first[N // 2 :])
    assert len({*first, *second}) == N
    assert first.min() >= 0
    assert first.max() < 2**31 - 1


def test_a_resumed_evolution_equals_the_uninterrupted_one():
    whole = Evolution(P, N, 0.1, 5)
    asked = evolve(whole, 7)
    resumed = Evolution(P, N, 0.1, 5, whole.costs[:4])
    for ours, theirs in zip(evolve(resumed, 3), asked[4:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    assert resumed.sigma_rms == whole.sigma_rms == np.mean(whole._strategy.result.stds)


def test_seeds_of_evolution_differ_and_are_all_that_differs():
    first, again, other = (evolve(Evolution(P, N, 0.1, seed), 2)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


def test_it_improves_a_sphere():
    evolution = Evolution(P, N, 0.1, 0)
    asked = evolve(evolution, 80)
    assert sphere(asked[0]).mean() > 0.4
    assert sphere(evolution.mean[None])[0] < 1e-3


def test_it_starts_at_the_origin_with_the_given_spread():
    first = Evolution(100, 400, 0.1, 0).ask()
    assert abs(first.mean()) < 0.002
    assert first.std() == pytest.approx(0.1, rel=0.02)


def test_the_mean_has_four_decimals():
    evolution = Evolution(P, N, 0.1, 0)
    evolve(evolution, 3)
    assert evolution.mean.any()
    np.testing.assert_array_equal(evolution.mean, np.round(evolution.mean, 4))


def test_transport_rounds_parameters_and_truncates_returns():
    np.testing.assert_array_equal(as_sent_to_workers(np.array([0.12346, -0.12346])), [0.1235, -0.1235])
    np.testing.assert_array_equal(as_received_from_workers(np.array([1.23456, -1.23456])), [1.2345, -1.2345])


def test_large_weights_are_rewarded_as_in_the_official_code():
    costs = cost(np.array([10.0, 10.0]), np.array([[0.0, 0.0], [1.0, 3.0]]))
    np.testing.assert_allclose(costs, [-10, -10 - 0.01 * 5])


def test_the_step_size_follows_the_rule_of_2018():
    """In 1,088 dimensions pycma would choose another rule of its own accord."""
    evolution = Evolution(1088, 8, 0.1, 0)
    evolve(evolution, 1)
    assert isinstance(evolution._strategy.adapt_sigma, CMAAdaptSigmaCSA)


def test_a_wrong_number_of_costs_is_refused():
    evolution = Evolution(P, N, 0.1, 0)
    solutions = evolution.ask()
    with pytest.raises(ValueError, match="8 solutions were asked for, 7 costs came"):
        evolution.tell(solutions, sphere(solutions)[:7])
    assert not evolution.costs


def test_the_global_generator_is_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state(legacy=False)["state"]
    first = evolve(Evolution(P, N, 0.1, 0), 3)[-1]
    after = np.random.get_state(legacy=False)["state"]
    assert before["pos"] == after["pos"]
    np.testing.assert_array_equal(before["key"], after["key"])
    np.random.seed(2)
    np.testing.assert_array_equal(evolve(Evolution(P, N, 0.1, 0), 3)[-1], first)
