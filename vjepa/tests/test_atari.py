"""Clips of games: what stands in the console's memory is what the clip shows."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from vjepa import atari, data
from vjepa.atari import GAMES, LONGEST_STEP, AtariClips, Memory
from vjepa.config import TASKS, Config

SIDE, FRAMES, COUNT = 64, 4, 60


@pytest.fixture(scope="module")
def pong() -> AtariClips:
    return AtariClips("pong", SIDE, FRAMES, COUNT, seed=3)


def test_a_clip_is_the_same_at_each_call_and_in_each_play_of_its_seed(pong: AtariClips):
    again, other = (AtariClips("pong", SIDE, FRAMES, COUNT, seed) for seed in (3, 4))
    for index in (0, COUNT - 1):
        assert np.array_equal(pong.read(index), pong.read(index))
        assert np.array_equal(pong.read(index), again.read(index))
    assert np.array_equal(pong.states, again.states)
    assert not np.array_equal(pong.states, other.states)
    assert (len(pong), pong.read(0).shape) == (COUNT, (FRAMES, SIDE, SIDE, 1))
    assert pong.read(0).dtype == np.uint8


def test_the_ball_is_where_its_bytes_say(pong: AtariClips):
    """Between the bats it is the brightest pixel; its way is that since the frame before."""
    found, rows = [], []
    for index in range(COUNT):
        field = pong.read(index)[-2:, 12:56, 10:54, 0].astype(int)
        if (field.max((1, 2)) > np.median(field) + 15).all():
            (y, x), (last_y, last_x) = (np.unravel_index(frame.argmax(), frame.shape) for frame in field)
            found.append([last_x, last_y, last_x - x, last_y - y])
            rows.append(index)
    assert len(rows) > COUNT // 2
    names = ("ball x", "ball y", "ball x velocity", "ball y velocity")
    places = GAMES["pong"].places
    order = [*places, *(f"{name} velocity" for name in places)]
    for name, seen in zip(names, np.array(found).T, strict=True):
        true = pong.states[rows, order.index(name)]
        assert np.corrcoef(seen, true)[0, 1] > 0.8, name  # a pixel here is two and a half of the console


def test_clips_end_where_all_is_there_and_nothing_jumped_within_one_game():
    memory = Memory("", {"x": 0, "y": 1}, ("x",))
    x = np.array([1, 2, 3, 0, 5, 6, 7, 40, 41, 42, 43, 44], np.float32)
    places, first = np.stack([x, np.ones(12)], 1), np.array([0] * 9 + [9] * 3)
    # Not step 0, hidden at 3 and just before 4, a jump at 7, and a new game at 9.
    assert atari.ends(places, first, memory, 2).tolist() == [1, 2, 5, 6, 8, 10, 11]
    assert atari.ends(places, first, memory, 3).tolist() == [2, 5, 6, 8, 11]


@pytest.mark.parametrize("game", GAMES)
def test_every_game_has_clips_in_which_things_move(game: str):
    clips = AtariClips(game, 16, FRAMES, 40, seed=0)
    half = clips.states.shape[1] // 2
    assert clips.states.shape == (40, 2 * len(GAMES[game].places))
    assert (clips.states[:, :half].std(0) > 0).all()
    assert (np.abs(clips.states[:, half:]) <= LONGEST_STEP).all()
    assert np.abs(clips.states[:, half:]).max() > 0


def test_a_task_plays_anew_for_its_probes():
    config = Config(**{**TASKS["atari-boxing"], "task": "atari-boxing", "frames": 4, "clips": 16, "probe_clips": 40})
    splits = data.load_splits(config)
    assert isinstance(splits.train, AtariClips)
    assert isinstance(splits.test, AtariClips)
    assert (len(splits.pretrain), len(splits.train), len(splits.test)) == (16, 40, 10)
    assert not np.array_equal(splits.train.states[:10], splits.test.states)


def test_a_missing_emulator_game_or_clip_is_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="no play of boxing shows 5000 frames in a row"):
        AtariClips("boxing", 16, 5000, 1, seed=0)
    ale = importlib.import_module("ale_py")
    monkeypatch.setattr(ale.roms, "get_rom_path", lambda name: None)
    with pytest.raises(ValueError, match="no ROM of pong"):
        AtariClips("pong", 16, FRAMES, 1, seed=0)

    def absent(name: str) -> object:
        raise ImportError("No module named 'ale_py'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match="atari-pong needs the package ale-py"):
        AtariClips("pong", 16, FRAMES, 1, seed=0)
