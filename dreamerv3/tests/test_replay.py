"""The replay: uniform windows, eviction, flags, and latents that survive a kill through the journal."""

from __future__ import annotations

import collections
import errno
import io
import os
import re
import shutil

import numpy as np
import pytest
import torch

from common.program import RunError
from dreamerv3 import rows
from dreamerv3.replay import Ratio, Replay
from dreamerv3.rows import MARGIN
from dreamerv3.spaces import ActionSpace, ObsSpace, Sizes

SIZES = Sizes(4, 4, 2, 3, 1, 4, 1)
SPACES = {"x": ObsSpace("float", (2,)), "image": ObsSpace("image", (4, 4, 1))}


def new_replay(folder, envs=2, capacity=1000, length=4, **options):
    return Replay(folder, SPACES, ActionSpace(3, True), SIZES, envs, capacity, length, **options)


def add(replay, number):
    """A row whose numbers tell the step and the environment."""
    envs = np.arange(replay.envs)
    replay.add(
        {
            "obs/x": np.stack([np.full(replay.envs, number), envs], 1).astype(np.float32),
            "obs/image": np.full((replay.envs, 4, 4, 1), number % 256, np.uint8),
            "action": (number + envs) % 3,
            "reward": number + 0.5 * envs,
            "is_first": np.full(replay.envs, number % 7 == 0),
            "is_last": np.full(replay.envs, number % 7 == 6),
            "is_terminal": np.zeros(replay.envs, bool),
            "h": np.full((replay.envs, 4), number, np.float32),
            "z": np.full((replay.envs, 2), number % 3, np.uint8),
        }
    )
    for _ in envs:
        replay.admit()


def test_a_batch_holds_what_was_added(tmp_path):
    replay = new_replay(tmp_path)
    for number in range(20):
        add(replay, number)
    picks = np.array([[1, 3], [0, 9]])
    batch = replay.batch(picks, torch.device("cpu"))
    assert batch.obs["x"][:, :, 0].tolist() == [[4, 5, 6, 7], [10, 11, 12, 13]]
    assert batch.obs["x"][:, :, 1].tolist() == [[1] * 4, [0] * 4]
    assert batch.obs["image"].shape == (2, 4, 4, 4, 1)
    assert batch.prev_action.tolist() == [[1, 2, 0, 1], [0, 1, 2, 0]]
    assert batch.reward[0].tolist() == [4.5, 5.5, 6.5, 7.5]
    assert batch.is_first.tolist() == [[False, False, False, True], [False] * 4]
    assert batch.is_last.tolist() == [[False, False, True, False], [False, False, False, True]]
    assert batch.start_h[:, 0].tolist() == [3, 9]
    assert batch.start_z[:, 0].tolist() == [0, 0]


def test_the_last_row_before_an_episode_is_last_even_if_the_world_did_not_say_so(tmp_path):
    replay = new_replay(tmp_path, envs=1)
    for number in range(10):
        add(replay, number)
    replay.rows.arrays["is_last"][:] = False
    assert replay.read(np.array([[0, 4]]))["is_last"][0].tolist() == [False, False, True, False, False]


def test_windows_are_uniform_and_the_oldest_are_evicted(tmp_path):
    replay = new_replay(tmp_path, capacity=10)
    for number in range(30):
        add(replay, number)
    rng = np.random.default_rng(0)
    seen: collections.Counter[tuple[int, int]] = collections.Counter()
    replay.served = 10**6  # nothing waits
    for _ in range(200):
        seen.update(map(tuple, replay.choose(16, rng).tolist()))
    assert set(seen) == {(env, start) for env in (0, 1) for start in range(21, 26)}
    assert max(seen.values()) < 1.3 * 320
    assert min(seen.values()) > 0.7 * 320


def test_each_queued_window_is_served_once(tmp_path):
    replay = new_replay(tmp_path, length=4)
    served: list[tuple[int, int]] = []
    rng = np.random.default_rng(0)
    for number in range(40):
        add(replay, number)
        if number > 6:
            waiting = len(replay.queued())
            served += map(tuple, replay.choose(3, rng)[: min(3, waiting)].tolist())
    assert served == [(env, start) for start in range(1, 36, 5) for env in (0, 1)]


def test_a_queued_window_is_served_as_long_as_its_rows_are_there(tmp_path):
    """Also one that has left the pool of uniform draws; one whose rows are gone is passed over."""
    replay = new_replay(tmp_path, envs=2, capacity=4, length=4)
    for number in range(13):
        add(replay, number)
    assert replay.rows.oldest == 13 - (2 + 5) == 6
    assert replay.windows - replay.capacity == 2 * 7
    assert replay.queued()[:4] == [(0, 1), (1, 1), (0, 6), (1, 6)]
    assert replay.choose(4, np.random.default_rng(0)).tolist()[:2] == [[0, 6], [1, 6]]


def test_the_files_go_round(tmp_path):
    """More rows than slots: old ones are overwritten, and what is still in the pool is intact."""
    replay = new_replay(tmp_path, envs=1, capacity=20, length=4)
    total = replay.rows.slots + 50
    for number in range(total):
        add(replay, number)
    assert replay.rows.slots == 20 + 5 + MARGIN
    starts = replay.choose(100, np.random.default_rng(0))[:, 1]
    assert total - 20 - 5 <= starts[30:].min()
    for start in starts[-10:]:
        assert replay.read(np.array([[0, start]]))["obs/x"][0, :, 0].tolist() == list(range(start, start + 5))


def latents(replay):
    return replay.rows.arrays["h"][: replay.rows.count].copy(), replay.rows.arrays["z"][: replay.rows.count].copy()


def refresh(replay, starts, value):
    picks = np.array([[k % 2, start] for k, start in enumerate(starts)])
    replay.refresh(picks, np.full((len(picks), 4, 4), value, np.float32), np.full((len(picks), 4, 2), 2, np.uint8))


def save(replay, step, steps):
    """What a checkpoint does to the replay."""
    replay.rows.flush()
    replay.rows.saved(step, steps)


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_refreshed_latents_are_stored_where_they_belong(tmp_path):
    replay = new_replay(tmp_path)
    for number in range(12):
        add(replay, number)
    refresh(replay, [2, 6], 99)
    h = replay.rows.arrays["h"][:12, :, 0]
    assert h[:, 0].tolist() == [0, 1, 2, 99, 99, 99, 99, 7, 8, 9, 10, 11]
    assert h[:, 1].tolist() == [0, 1, 2, 3, 4, 5, 6, 99, 99, 99, 99, 11]
    assert replay.batch(np.array([[0, 3]]), torch.device("cpu")).start_h[0, 0] == 99


def test_a_killed_replay_goes_back_to_its_checkpoint_and_to_the_one_before(tmp_path):
    replay = new_replay(tmp_path / "a")
    for number in range(12):
        add(replay, number)
    save(replay, 12, [12])
    refresh(replay, [0, 3], 50)
    one = latents(replay), replay.state()
    for number in range(12, 16):
        add(replay, number)
    two = latents(replay), replay.state()
    save(replay, 16, [12, 16])
    refresh(replay, [0, 9], 60)
    refresh(replay, [0, 10], 70)
    add(replay, 16)
    refresh(replay, [12, 11], 80)
    replay.rows.flush()
    for cut in (0, 1):  # also with a record that the kill has cut short
        folder = tmp_path / f"killed{cut}"
        shutil.copytree(tmp_path / "a", folder)
        if cut:
            with open(folder / "undo-000000016.bin", "ab") as file:
                file.write(b"half a record")
        again = new_replay(folder, is_known=True)
        again.restore(16, two[1])
        assert same(latents(again), two[0])
        assert again.state() == two[1]
        again = new_replay(folder, is_known=True)
        again.restore(16, two[1])  # killed while it was going back
        assert same(latents(again), two[0])
    again = new_replay(tmp_path / "a", is_known=True)  # the newest checkpoint is damaged
    again.restore(12, one[1])
    h, z = latents(again)
    assert h[:, 0, 0].tolist() == list(range(12))
    assert z[:, 0, 0].tolist() == [k % 3 for k in range(12)]
    assert not same((h, z), (one[0][0], one[0][1]))


def test_journals_of_an_earlier_life_do_not_reach_into_the_next(tmp_path):
    """The advice for damaged checkpoints is to remove their folder and to start again."""
    replay = new_replay(tmp_path)
    for number in range(100, 120):
        add(replay, number)
    save(replay, 20, [20])
    refresh(replay, [2, 6], 99)
    replay = new_replay(tmp_path)
    for number in range(12):
        add(replay, number)
    save(replay, 12, [12])
    wanted, state = latents(replay), replay.state()
    again = new_replay(tmp_path, is_known=True)
    again.restore(12, state)
    assert same(latents(again), wanted)


FILES = ["obs-x.bin", "reward.bin", "h.bin", "z.bin", "checks.bin", "latent-checks.bin", "undo-000000012.bin"]


@pytest.mark.parametrize("name", FILES)
def test_one_wrong_bit_of_a_row_ends_a_resumed_run_in_one_line(name, tmp_path, capsys):
    replay = new_replay(tmp_path)
    for number in range(12):
        add(replay, number)
    save(replay, 12, [12])
    state = replay.state()
    refresh(replay, [2, 6], 99)
    replay.rows.flush()
    content = bytearray((tmp_path / name).read_bytes())
    content[-1 if name.startswith("undo") else 3] ^= 16
    (tmp_path / name).write_bytes(content)
    again = new_replay(tmp_path, is_known=True)
    with pytest.raises(SystemExit) as end:
        again.restore(12, state)
    assert end.value.code == 2
    assert re.fullmatch(r"error: .* row \d+ of the replay is damaged or of another run; .*\n", capsys.readouterr().err)


def test_rows_of_another_seed_are_refused(tmp_path, capsys):
    replay = new_replay(tmp_path, identity="seed 0")
    for number in range(12):
        add(replay, number)
    save(replay, 12, [12])
    new_replay(tmp_path, identity="seed 0", is_known=True).restore(12, replay.state())
    with pytest.raises(SystemExit):
        new_replay(tmp_path, identity="seed 1", is_known=True).restore(12, replay.state())
    assert "of another run" in capsys.readouterr().err


def test_rows_of_another_world_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        new_replay(tmp_path).add({"obs/y": np.zeros(2)})


def test_the_train_ratio_is_kept_on_average():
    ratio = Ratio(0.3)
    assert sum(ratio(step) for step in range(1, 1001)) == pytest.approx(300, abs=2)
    never = Ratio(0)
    assert sum(never(step) for step in range(1, 100)) == 0


def test_an_episode_longer_than_the_replay_is_not_cut(tmp_path):
    replay = new_replay(tmp_path, envs=1, capacity=20)
    for number in range(replay.rows.slots + 20):
        add(replay, number)
    assert len(replay.episode(0)) == (replay.rows.count - 1) % 7 + 1
    replay.rows.arrays["is_first"][:] = False
    with pytest.raises(RunError, match=f"the {replay.rows.kept} rows kept of environment 0 hold no beginning"):
        replay.episode(0)


class Full:
    """A file that takes a few bytes at a time, and no more than `room` in all."""

    def __init__(self, path, room):
        self.file, self.room = io.FileIO(path, "ab"), room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = min(7, self.room, len(data))
        self.room -= part
        return self.file.write(data[:part])


@pytest.mark.parametrize("room", [10_000, 40])
def test_a_journal_is_written_whole_or_ends_the_run_in_one_line(room, tmp_path, monkeypatch):
    replay = new_replay(tmp_path)
    for number in range(12):
        add(replay, number)
    save(replay, 12, [12])
    before, state = latents(replay), replay.state()
    monkeypatch.setattr(rows, "open", lambda path, *_, **__: Full(path, room), raising=False)
    if room == 40:
        with pytest.raises(RunError, match="disk full"):
            refresh(replay, [2, 6], 99)
    else:
        refresh(replay, [2, 6], 99)
        assert not same(latents(replay), before)
    monkeypatch.undo()
    again = new_replay(tmp_path, is_known=True)
    again.restore(12, state)
    assert same(latents(again), before)


def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch):
    replay = new_replay(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match="disk full"):
        add(replay, 0)
    assert replay.rows.count == 0
