"""Masks are disjoint, complete where they should be, differ by clip, and refuse grids that are too small."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.masks import MaskKind, check_kind, past_and_future, random_tubes, sample_masks

GRID = (4, 6, 8)
SHORT, LONG = MaskKind(8, (0.15, 0.15)), MaskKind(2, (0.7, 0.7))


def sampled(*kinds, batch=6, counter=0, seed=0):
    return sample_masks(kinds, GRID, batch, counter, torch.Generator().manual_seed(seed))


def test_context_and_target_share_no_token_and_are_in_order():
    found = sampled(SHORT, LONG)
    assert len(found.context) == len(found.target) == 2
    for context, target in zip(found.context, found.target, strict=True):
        for row, other in zip(context, target, strict=True):
            assert not set(row.tolist()) & set(other.tolist())
            assert sorted(row.tolist()) == row.tolist()
            assert sorted(set(other.tolist())) == other.tolist()
            assert max(row.tolist() + other.tolist()) < 4 * 6 * 8


def test_what_is_hidden_is_hidden_through_the_whole_clip():
    """Blocks of full length are tubes: what is context at one time step is context at all, but for the cut."""
    found = sampled(SHORT, batch=1)
    context = torch.zeros(GRID).flatten().index_fill(0, found.context[0][0], 1).reshape(GRID)
    assert (context == context[:1]).all()
    assert len(found.context[0][0]) + len(found.target[0][0]) == 4 * 6 * 8


def test_long_range_masks_hide_more():
    contexts = [sampled(kind, counter=k).context[0].shape[1] for kind in (SHORT, LONG) for k in range(8)]
    assert np.mean(contexts[:8]) > np.mean(contexts[8:])


def test_sizes_come_from_the_counter_and_places_from_the_generator():
    assert not torch.equal(sampled(SHORT, batch=1).context[0], sampled(SHORT, batch=1, seed=1).context[0])
    rows = sampled(LONG).target[0].tolist()
    assert len({tuple(row) for row in rows}) > 1


def test_a_context_may_be_kept_to_the_first_time_steps():
    """Causal multi-block of table 4: what comes later is target."""
    kind = MaskKind(2, (0.15, 0.15), max_temporal_keep=0.5)
    found = sampled(kind, batch=1)
    assert found.context[0].max() < 2 * 48
    assert set(range(2 * 48, 4 * 48)) <= set(found.target[0][0].tolist())


def test_random_tubes_hide_the_same_places_at_all_times():
    found = random_tubes(0.75, GRID, 3, np.random.default_rng(0))
    assert found.context[0].shape == (3, 4 * 12)
    places = found.context[0] % 48
    assert (places.reshape(3, 4, 12) == places.reshape(3, 4, 12)[:, :1]).all()
    with pytest.raises(ValueError, match="leave 0 of 48 places"):
        random_tubes(0.99, GRID, 1, np.random.default_rng(0))


def test_past_and_future_divide_the_clip():
    found = past_and_future(GRID, 3, 2)
    assert found.context[0].tolist() == [list(range(144))] * 2
    assert found.target[0].tolist() == [list(range(144, 192))] * 2
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"a context of {steps} of 4 time steps"):
            past_and_future(GRID, steps, 1)


@pytest.mark.parametrize(
    ("kind", "grid", "complaint"),
    [
        (SHORT, (4, 1, 1), "too small for blocks of 0.15 of a frame"),
        (MaskKind(1, (1.0, 1.0)), (4, 4, 4), "can be filled by one block of 1 of a frame: no context is left"),
        (MaskKind(1, (0.5, 0.9), ratio=(1.0, 1.0)), (4, 2, 2), "no context is left"),
    ],
)
def test_grids_on_which_the_sampler_would_loop_or_hide_nothing(kind, grid, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_kind(kind, grid)


def test_the_published_grids_are_fine():
    for grid in ((8, 14, 14), (8, 24, 24), (8, 16, 16), (32, 24, 24), (4, 4, 4)):
        check_kind(SHORT, grid)
        check_kind(LONG, grid)
