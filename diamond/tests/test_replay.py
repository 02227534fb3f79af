"""The replay keeps every byte, pads as it should, and notices damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import dist
from common.program import RunError
from diamond.frames import to_float
from diamond.replay import FINALS, Replay, Step

CPU = torch.device("cpu")


def filled(folder, lengths=(5, 3, 4), is_open=True) -> Replay:
    """Episodes of random frames; the first ends, the second is cut, the last may be open."""
    replay, rng = Replay(folder, 40, 8), np.random.default_rng(0)
    for number, length in enumerate(lengths):
        for t in range(length):
            is_last = t == length - 1 and not (is_open and number == len(lengths) - 1)
            frame, final = (rng.integers(256, size=(3, 8, 8), dtype=np.uint8) for _ in range(2))
            end, trunc = is_last and number != 1, is_last and number == 1
            replay.add(Step(frame, t + 1, float(t - 1), end, trunc, final if is_last else None))
    return replay


def test_frames_come_back_bit_for_bit_and_padding_is_grey(tmp_path):
    replay = filled(tmp_path)
    assert replay.lengths == [5, 3, 4]
    found = replay.segments(np.array([[1, -2, 4]]), CPU, slice(0, 1))
    assert found.is_real.tolist() == [[False, False, True, True, True, False]]
    assert torch.equal(found.obs[0, 2:5], to_float(torch.from_numpy(replay.frames[5:8].copy())))
    assert found.obs[0, [0, 1, 5]].abs().max() == 0
    assert found.action.tolist() == [[0, 0, 1, 2, 3, 0]]


def test_only_an_end_has_its_final_frame(tmp_path):
    play = filled(tmp_path).plays(np.array([[0, 2, 8], [1, 0, 6], [2, 0, 6]]), CPU, slice(0, 3))
    assert play.has_final.tolist() == [True, False, False]
    assert play.end.tolist()[0] == [0, 0, 1, 0, 0, 0]
    assert play.trunc.tolist()[1] == [0, 0, 1, 0, 0, 0]


def test_an_open_episode_is_drawn_where_the_room_for_last_frames_was_full(tmp_path):
    replay, frame = Replay(tmp_path, FINALS + 1, 8), np.zeros((3, 8, 8), np.uint8)
    for _ in range(FINALS):
        replay.add(Step(frame, 0, 1.0, True, False, frame))
    replay.add(Step(frame, 0, 0.0, False, False))
    play = replay.plays(np.array([[FINALS, -2, 2], [FINALS - 1, -2, 2]]), CPU, slice(0, 2))
    assert play.has_final.tolist() == [False, True]


def test_an_episode_goes_on_after_it_was_sampled(tmp_path):
    replay = filled(tmp_path)
    before = replay.segments(np.array([[2, 0, 4]]), CPU, slice(0, 1)).obs
    replay.add(Step(np.zeros((3, 8, 8), np.uint8), 0, 0.0, False, False))
    assert replay.lengths == [5, 3, 5]
    assert torch.equal(replay.segments(np.array([[2, 0, 4]]), CPU, slice(0, 1)).obs, before)


def test_counts_of_two_processes_add_up_to_those_of_one(tmp_path):
    replay, picks = filled(tmp_path), np.array([[0, -3, 3], [1, 0, 6], [2, -1, 5], [0, 0, 6]])
    whole = replay.segments(picks, CPU, slice(0, 4))
    halves = [replay.segments(picks, CPU, dist.share(4, dist.Ranks(k, 2, 0, CPU))) for k in range(2)]
    assert torch.equal(halves[0].count + halves[1].count, whole.count)
    assert torch.equal(torch.cat([half.obs for half in halves]), whole.obs)


def test_a_changed_byte_is_noticed(tmp_path):
    replay = filled(tmp_path)
    again = Replay(tmp_path, 40, 8)
    again.restore(replay.count)
    assert again.lengths == replay.lengths
    replay.frames[6, 0, 0, 0] ^= 1
    with pytest.raises(RunError, match="step 6"):
        again.restore(replay.count)


def test_rows_behind_a_checkpoint_are_forgotten(tmp_path):
    replay = filled(tmp_path)
    replay.restore(7)
    assert replay.lengths == [5, 2]
    assert replay.has_open_episode
