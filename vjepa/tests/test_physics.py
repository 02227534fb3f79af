"""Pairs of videos that give nothing away, and surprise that only what was seen can explain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa import physics, scenes
from vjepa.build import new_model
from vjepa.crops import to_input
from vjepa.statistics import IMAGENET
from vjepa.tests.calculation import CONFIG

LENGTH = scenes.length_of(16)


def scene_of(block, number):
    return scenes.new_scene(block, LENGTH, np.random.default_rng([0, number]), is_test=True)


@pytest.mark.parametrize("block", scenes.BLOCKS)
@pytest.mark.parametrize(("side", "frames"), [(64, 16), (32, 8)])
def test_variants_have_the_same_frame_where_they_are_exchanged(block, side, frames):
    length = scenes.length_of(frames)
    still = np.zeros((length, side, side, 3), np.int16)
    for number in range(50):
        scene = scenes.new_scene(block, length, np.random.default_rng([0, number]), is_test=True)
        one, two = (scenes.video(scene, side, (k,) * (len(scene.cuts) + 1), still) for k in range(2))
        assert all((one[cut] == two[cut]).all() for cut in scene.cuts)
        assert (one != two).any()


@pytest.mark.parametrize("block", scenes.BLOCKS)
def test_possible_and_impossible_videos_are_made_of_the_same_parts(block):
    """Over the two pairs of a scene, every part occurs as often in possible as in impossible videos."""
    pairs = [scenes.pair(block, 32, 16, number, 0) for number in (6, 7)]
    possible, impossible = zip(*pairs, strict=True)
    draws = np.random.default_rng([0, scenes.BLOCKS.index(block), 3])
    cuts = (0, *scenes.new_scene(block, LENGTH, draws, is_test=True).cuts, LENGTH)
    for start, end in zip(cuts, cuts[1:], strict=False):
        parts = [sorted(video[start:end].tobytes() for video in group) for group in (possible, impossible)]
        assert parts[0] == parts[1]
    for one, two in pairs:
        assert (one != two).any()


def test_things_obey_their_laws():
    falling = scene_of("gravity", 0).variants[0]
    assert falling is not None
    speeds = np.diff(falling.path[:12, 1])
    assert np.allclose(np.diff(speeds), np.diff(speeds)[0])  # constant acceleration, downwards
    assert speeds[-1] > speeds[0]
    left, right = scene_of("solidity", 0).variants
    assert left is not None
    assert right is not None
    (wall,) = scene_of("solidity", 0).walls
    radius = scene_of("solidity", 0).radius
    assert left.path[:, 0].max() + radius <= wall[0] + 1e-9
    assert right.path[:, 0].min() - radius >= wall[2] - 1e-9


def test_training_has_other_colours_and_only_possible_videos():
    def hues(is_test):
        return {
            scenes.new_scene("permanence", LENGTH, np.random.default_rng(k), is_test=is_test).colours[0].tobytes()
            for k in range(60)
        }

    assert not hues(True) & hues(False)
    found = scenes.Scenes(32, 8, 10, 0)
    assert found.read(2).shape == (8, 32, 32, 3)
    assert (found.read(2) == found.read(2)).all()


def test_expectations_do_not_see_the_future():
    model = new_model(CONFIG, 3).eval()
    video = scenes.pair("permanence", 32, 4, 0, 0)[0][:4]
    inputs = to_input(torch.from_numpy(video[None]), IMAGENET[3], torch.device("cpu"))
    changed = inputs.clone()
    changed[:, :, 2:] = 0
    with torch.no_grad():
        for subject in (physics.subject_of(model, "ema"), physics.copy_of(model)):
            assert torch.equal(subject.expects(inputs, 1), subject.expects(changed, 1))
            assert not torch.equal(subject.what(inputs), subject.what(changed))


def test_a_copy_is_surprised_by_what_moves_alone():
    model = new_model(CONFIG, 3)
    still = torch.rand(2, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1).clone()
    moving = still.clone()
    moving[1, :, 3] += 1
    found = physics.surprise(physics.copy_of(model), moving, (2, 4, 4))
    assert found[0].tolist() == [0]
    assert found[1].item() == pytest.approx(0.5)


def test_hits_count_the_more_surprising_member():
    table = np.zeros((5, 3, 2, 2, 2))  # block, pair, member, context, window
    table[0, 0, 1] = 1
    table[0, 1, 0] = 1
    table[0, 0, 0, 1] = 2
    found = physics.hits(table)
    assert found.mean[0].tolist() == [[100, 0, 50], [0, 0, 50]]
    table[0, 2, 1, 0] = (0, 3)
    table[0, 2, 0, 0] = (2, 2)
    found = physics.hits(table)
    assert (found.mean[0, 0, 2], found.maximum[0, 0, 2]) == (0, 100)
    parts = physics.details(found, 2, 0)
    assert parts["best context of each block"].mean() >= parts["after 2 frames"].mean()


def test_contexts_are_the_published_ones():
    assert [steps * 2 for steps in physics.contexts((8, 14, 14))] == [2, 4, 6, 8, 10]
    assert physics.fixed_context((8, 14, 14)) == 3
    assert physics.windows_of(np.zeros((24, 8, 8, 3)), 16).shape == (5, 16, 8, 8, 3)
    with pytest.raises(ValueError, match="a block is one of permanence"):
        scenes.new_scene("magic", 24, np.random.default_rng(0), is_test=True)
