"""The mask sampler: what it promises for every seed, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ijepa.masks import STRATEGIES, MaskConfig, block_shapes, check_masks, sample_masks

PAPER = MaskConfig(14, 14, 4, 1, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 10, False)
RECTANGLE = dataclasses.replace(PAPER, columns=10)


def sample(config, batch=8, counter=0, seed=0):
    return sample_masks(config, batch, counter, torch.Generator().manual_seed(seed))


def everything(masks):
    return [mask for group in (masks.context, masks.target) for mask in group]


@pytest.mark.parametrize("config", [PAPER, RECTANGLE, dataclasses.replace(PAPER, contexts=2)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_context_and_targets_share_no_patch(config, strategy):
    config = dataclasses.replace(config, strategy=strategy)
    for counter in range(5):
        masks = sample(config, counter=counter, seed=counter)
        for image in range(8):
            hidden = {int(k) for mask in masks.target for k in mask[image]}
            for mask in masks.context:
                assert not hidden & set(mask[image].tolist())
        for mask in everything(masks):
            assert mask.shape[0] == 8
            assert mask.shape[1] > 0
            assert (mask.diff(dim=1) > 0).all()
            assert 0 <= mask.min() <= mask.max() < config.rows * config.columns


def test_the_last_row_and_column_are_never_used():
    for counter in range(20):
        for mask in everything(sample(PAPER, counter=counter, seed=counter)):
            assert (mask // 14).max() < 13
            assert (mask % 14).max() < 13


def test_sizes_come_from_the_counter_and_places_from_the_generator():
    first, again, other = sample(PAPER, seed=0), sample(PAPER, seed=0), sample(PAPER, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(everything(first), everything(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.target, other.target, strict=True))
    assert [mask.shape for mask in first.target] == [mask.shape for mask in other.target]
    assert len({block_shapes(PAPER, k)[0] for k in range(100)}) == 5


def test_images_of_a_batch_have_masks_of_their_own():
    masks = sample(PAPER)
    assert len({tuple(row.tolist()) for row in masks.target[0]}) > 4


def test_overlap_is_allowed_where_asked_for():
    masks = sample(dataclasses.replace(PAPER, allow_overlap=True))
    assert masks.context[0].shape[1] == 13 * 13


def test_a_context_that_the_targets_would_cover_forgets_some_of_them():
    """Four targets on a small grid with a context that must be large: without giving way this would never end."""
    config = MaskConfig(6, 6, 4, 1, (0.4, 0.45), (1.0, 1.0), (0.95, 1.0), 8, False)
    masks = sample(config, batch=16)
    assert masks.context[0].shape[1] > 8


@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (4, 4), (1, 14)])
def test_a_grid_too_small_for_the_blocks_is_named_at_once(grid):
    config = dataclasses.replace(PAPER, rows=grid[0], columns=grid[1])
    with pytest.raises(ValueError, match=f"{grid[0]} x {grid[1]} patches has target blocks"):
        check_masks(config)
    smallest = min(range(100), key=lambda counter: math.prod(block_shapes(config, counter)[0]))
    with pytest.raises(ValueError, match="not above min_keep"):
        sample(config, counter=smallest)


def test_grids_of_nine_and_more_are_safe():
    for grid in (9, 12, 14, 16, 28):
        check_masks(dataclasses.replace(PAPER, rows=grid, columns=grid))


def test_quadrants_and_shares():
    raster = sample(dataclasses.replace(PAPER, strategy="rasterized"))
    assert [mask.shape for mask in everything(raster)] == [(8, 49)] * 4
    scattered = sample(dataclasses.replace(PAPER, strategy="random"))
    assert [mask.shape for mask in everything(scattered)] == [(8, 79), (8, 117)]
    block = sample(dataclasses.replace(PAPER, strategy="block"))
    assert [mask.shape for mask in everything(block)] == [(8, 75), (8, 121)]
