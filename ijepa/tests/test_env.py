"""Random play: what a step is, what an episode is, and that the memory says where things are on the screen."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common import testing
from ijepa import play
from ijepa.env import Game
from ijepa.games import GAMES, PUBLISHED, TODAY, variables


@pytest.mark.parametrize(("edition", "total", "of_some"), [(PUBLISHED, 308, (6, 7, 5)), (TODAY, 336, (8, 7, 29))])
def test_every_game_has_annotated_bytes(edition, total, of_some):
    """308 is the paper's own count (its table 1)."""
    counts = {game: len(variables(game, edition)) for game in GAMES}
    assert len(counts) == 22
    assert (counts["pong"], counts["boxing"], counts["qbert"]) == of_some
    assert sum(counts.values()) == total
    names = {name for game in GAMES for v in variables(game, edition) for name in v.categories}
    assert len(names) == 5
    assert all(0 <= v.index < 128 for game in GAMES for v in variables(game, edition))


def test_the_labels_are_those_of_the_published_tables():
    """What later commits of the released code changed, beside names that change no score."""

    def found(game, edition, word):
        return {v.name: (v.index, *v.categories) for v in variables(game, edition) if word in v.name}

    other, small = "other_localization", "small_object_localization"
    assert variables("seaquest") == variables("seaquest", PUBLISHED)
    assert found("spaceinvaders", PUBLISHED, "lives") == {"num_lives": (125, "score_clock_lives_display")}
    assert found("spaceinvaders", TODAY, "lives") == {"num_lives": (73, "score_clock_lives_display")}
    assert found("seaquest", PUBLISHED, "diver_x") == {f"diver_x_{k}": (71 + k, other) for k in range(4)}
    assert found("seaquest", TODAY, "diver_or") == {f"diver_or_enemy_missile_x_{k}": (71 + k, small) for k in range(4)}
    assert [v.name for v in variables("seaquest") if small in v.categories] == ["missile_x"]
    gone = [("pitfall", "clock", 2), ("qbert", "score", 3), ("qbert", "tile_color", 21), ("pong", "player_x", 1)]
    for game, word, count in gone:
        assert (len(found(game, PUBLISHED, word)), len(found(game, TODAY, word))) == (0, count)
    same = set(GAMES) - {"pitfall", "pong", "privateeye", "qbert", "seaquest", "spaceinvaders", "yarsrevenge"}
    assert all(variables(game) == variables(game, TODAY) for game in same)
    with pytest.raises(ValueError, match="edition '2020' of the annotation: expected '2019' or '2021'"):
        variables("pong", "2020")


def bright_paddle(frame):
    """Pong's right paddle, where it is whole, at rest and without the ball."""
    column = frame[34:194, 140:144].mean(1)
    rows = np.flatnonzero(np.abs(column - np.median(column)) > 20)
    return [rows.mean()] if 18 <= len(rows) <= 20 and np.ptp(rows) < 20 else None


def two_boxers(frame):
    ring = frame[36:176, 32:128]
    return [np.median(places) for mask in (ring > 200, ring < 20) for places in np.nonzero(mask)[::-1]]


def paddle(frame):
    columns = np.nonzero(frame[189:193, 8:152] > 60)[1]
    return [np.median(columns)] if len(columns) > 20 else None


def submarine(frame):
    rows, columns = np.nonzero(np.abs(frame[46:150].astype(int) - 170) < 12)
    return [np.median(columns), np.median(rows)] if len(rows) > 20 else None


def cannon(frame):
    columns = np.nonzero(frame[185:195] == 98)[1]
    return [np.median(columns)] if len(columns) > 20 else None


@pytest.mark.parametrize(
    ("name", "find", "bytes_of"),
    [
        ("pong", bright_paddle, ["player_y"]),
        ("boxing", two_boxers, ["player_x", "player_y", "enemy_x", "enemy_y"]),
        ("breakout", paddle, ["player_x"]),
        ("seaquest", submarine, ["player_x", "player_y"]),
        ("spaceinvaders", cannon, ["player_x"]),
    ],
)
def test_the_memory_says_where_things_are_on_the_screen(name, find, bytes_of):
    """Found by their colour: the byte is the place, up to a constant."""
    game, index = Game(name, 0, np.random.default_rng(0)), {v.name: v.index for v in variables(name)}
    game.reset()
    rng, seen, said = np.random.default_rng(1), [], []
    for _ in range(250):
        if game.step(int(rng.integers(1, len(game.actions)))):
            game.reset()
            continue
        place = find(game.frame)
        if place is not None:
            seen.append(place)
            said.append([float(game.ram[index[variable]]) for variable in bytes_of])
    assert len(seen) > 50
    for ours, theirs in zip(np.array(seen).T, np.array(said).T, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_a_lost_life_ends_an_episode_but_not_the_game():
    game = Game("breakout", 0, np.random.default_rng(0))
    game.reset()
    lives = game._lives
    rng = np.random.default_rng(0)
    while not game.step(int(rng.integers(1, 4))):
        pass
    assert (game._lives, game._is_over) == (lives - 1, False)
    game.reset()
    assert game._lives == lives - 1


def collected(folder, workers=1):
    play.collect(folder, "pong", "probe", 400, 5, workers)
    return play.load(folder, "pong", "probe", 400, 5)


def test_play_is_a_function_of_the_seed(tmp_path):
    """Not of the number of processes, nor of an interruption."""
    first = collected(tmp_path / "a")
    assert [one.frames.shape for one in first] == [(50, 210, 160)] * 8
    assert [one.starts[0] for one in first] == [0] * 8
    assert len({one.digest[40] for one in first}) > 4
    (tmp_path / "a" / "probe-3.npz").unlink()
    for again in (collected(tmp_path / "a"), collected(tmp_path / "b", workers=2)):
        for ours, theirs in zip(again, first, strict=True):
            np.testing.assert_array_equal(ours.frames, theirs.frames)
            np.testing.assert_array_equal(ours.ram, theirs.ram)
            np.testing.assert_array_equal(ours.digest, theirs.digest)


def test_digests_tell_frames_apart(tmp_path):
    for one in collected(tmp_path):
        same = one.digest[:, None] == one.digest[None]
        frames = one.frames.reshape(len(one.frames), -1)
        for k in range(0, 50, 10):
            np.testing.assert_array_equal(same[k], (frames == frames[k]).all(1))


def test_play_that_is_damaged_or_of_another_seed_is_played_again(tmp_path, capsys):
    first = collected(tmp_path / "whole")
    for name in ("probe-2.npy", "probe-5.npz"):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            play.load(folder, "pong", "probe", 400, 5)
        again = collected(folder)
        assert f"{name} is damaged" in capsys.readouterr().err
        for ours, theirs in zip(again, first, strict=True):
            np.testing.assert_array_equal(ours.frames, theirs.frames)
            np.testing.assert_array_equal(ours.ram, theirs.ram)
    with pytest.raises(ValueError, match="of another run"):
        play.load(tmp_path / "whole", "pong", "probe", 400, 6)


def test_a_full_disk_ends_the_play_with_the_name_of_its_file(tmp_path, monkeypatch):
    """Frames are written, not mapped: a mapped file on a full disk is a bus error, without a word."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*probe-0\.npy"):
        collected(tmp_path)
    assert not list(tmp_path.iterdir())


def test_drawn_shapes_need_no_emulator():
    code = "import sys; sys.modules['ale_py'] = sys.modules['gymnasium'] = None; import ijepa.train, ijepa.evaluate"
    code += "; from ijepa import play; play.check_emulator()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=testing.ROOT, check=False)
    assert done.stderr.splitlines()[-1].startswith("ValueError: a game needs ale_py")
