"""Sizes and ranges of C."""

import pytest
import torch

from ha2018.controller import car_action, car_params, doom_action, doom_params


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameter_counts_are_those_of_the_paper():
    assert [car_params(288), car_params(32), car_params(32, 40)] == [867, 99, 1443]
    assert doom_params(64, 512) == 1088


def test_one_controller_for_each_row_equals_one_for_all():
    x, params = numbers(5, 12), numbers(5, 12, seed=1)
    own = doom_action(params, x)
    for row in range(5):
        torch.testing.assert_close(own[row], doom_action(params[row], x)[row])
    torch.testing.assert_close(doom_action(params[0].expand(5, -1), x), doom_action(params[0], x))


def test_doom_has_no_bias():
    assert doom_action(numbers(12), torch.zeros(1, 12, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("hidden", [0, 4])
def test_ranges_of_steering_gas_and_brake(hidden):
    action = car_action(5 * numbers(car_params(6, hidden)), 5 * numbers(2000, 6, seed=1), hidden)
    assert action.shape == (2000, 3)
    assert action.abs().max() <= 1
    assert action[:, 0].min() < -0.9
    assert 0 <= action[:, 1].min() < 0.1
    assert action[:, 2].min() == 0
    assert action.max(0).values.min() > 0.9


def test_gas_is_half_and_brake_off_at_rest():
    action = car_action(torch.zeros(99), torch.ones(1, 32))
    assert action.tolist() == [[0, 0.5, 0]]


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="11 weights do not fit 12 inputs"):
        doom_action(numbers(11), numbers(2, 12))
    with pytest.raises(ValueError, match="expected 99 parameters for 32 inputs, got 98"):
        car_action(numbers(98), numbers(2, 32))
