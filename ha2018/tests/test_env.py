"""Doom Take Cover as it is really played here, and the official oddities of its frames and buttons."""

import contextlib
import os
import signal
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from vizdoom import GameVariable

from ha2018 import env
from ha2018.env import TakeCover, button, preprocess
from ha2018.processes import Games
from ha2018.random_play import RANDOM_POLICIES, doom_episode, held_actions, random_return, varied_hold

ACTIONS = [env.MOVE_LEFT] * 12 + [env.NOTHING] * 3 + [env.MOVE_RIGHT] * 25


@pytest.fixture(scope="module")
def game():
    game = TakeCover(max_steps=60)
    yield game
    game.close()


def film(game, seed, actions=ACTIONS):
    game.reset(seed)
    frames = [game.frame.copy()]
    for action in actions:
        reward, done = game.step(action)
        assert reward == 1
        assert not done
        frames.append(game.frame.copy())
    return np.stack(frames)


def test_the_recipe(game):
    engine = game._env.unwrapped.game
    assert engine.get_episode_start_time() == 14
    assert engine.get_living_reward() == 1
    assert engine.get_death_penalty() == 0
    game.reset(0)
    assert game.frame.shape == (120, 160, 3)
    assert game.frame.dtype == np.uint8
    obs = game.observe()
    assert obs.shape == (64, 64, 3)
    assert obs.dtype == np.uint8


def test_varied_holds_are_log_uniform():
    holds = np.array([varied_hold(seed, 400) for seed in range(4000)])
    assert (holds.min(), holds.max()) == (1, 400)
    # Each of n holds has the share log(1 + 1 / n) / log(401), so those below 20 half of the whole.
    np.testing.assert_allclose([np.mean(holds == 1), np.mean(holds < 20)], [0.1156, 0.4998], atol=0.025)
    assert varied_hold(5, 400) == varied_hold(5, 400)


def test_an_episode_can_have_a_longest_hold_of_its_own(game):
    seed = next(seed for seed in range(100) if varied_hold(seed, 60) == 1)
    _, held = doom_episode(game, seed, 60)
    _, varied = doom_episode(game, seed, 60, vary_hold=True)
    np.testing.assert_array_equal(varied, doom_episode(game, seed, 1)[1])
    assert not np.array_equal(varied, held)


def test_the_status_bar_is_rendered_and_cropped(game):
    game.reset(0)
    before, bar = game.observe(), game.frame[100:]
    assert len(np.unique(bar.reshape(-1, 3), axis=0)) > 20
    game.frame = np.concatenate([game.frame[:100], np.zeros_like(bar)])
    np.testing.assert_array_equal(game.observe(), before)


def test_an_episode_ends_at_max_steps_and_has_that_return(game):
    assert random_return(game, "doom", "held", 0) == 60
    frames, actions = doom_episode(game, 0, 10)
    assert frames.shape == (60, 64, 64, 3)
    assert actions.shape == (60,)
    np.testing.assert_array_equal(actions, np.array(list(islice(held_actions(0), 60)), np.float32))


def test_the_return_is_the_length_of_the_episode():
    """Held random play dies within 2100 tics."""
    game = TakeCover()
    try:
        frames, actions = doom_episode(game, 3, 10)
        assert random_return(game, "doom", "held", 3) == len(frames) == len(actions)
        assert 60 < len(frames) < 2100
    finally:
        game.close()


def test_an_episode_is_a_function_of_its_seed_and_actions(game):
    first = film(game, 5)
    other, moved = film(game, 6), film(game, 5, ACTIONS[::-1])
    np.testing.assert_array_equal(film(game, 5), first)
    assert (other != first).any()
    assert (moved != first).any()


def test_random_policies():
    uniform, held, none = (np.array(list(islice(play(0), 30_000))) for play in RANDOM_POLICIES["doom"].values())
    for actions in (uniform, held):
        assert -1 <= actions.min() < -0.99
        assert 0.99 < actions.max() <= 1
        share = np.bincount([button(a) for a in actions]) / len(actions)
        np.testing.assert_allclose(share, 1 / 3, atol=0.02)
    assert not none.any()
    assert (np.diff(uniform) != 0).all()
    lengths = np.diff(np.flatnonzero(np.diff(held)))
    assert (lengths.min(), lengths.max()) == (1, 10)
    assert 3 < lengths.mean() < 4.5  # the modulus of the frame number shortens the 5.5 tics that were drawn
    assert list(islice(held_actions(1), 50)) != list(islice(held_actions(2), 50))


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (-1, env.MOVE_LEFT),
        (-0.33331, env.MOVE_LEFT),
        (-0.3333, env.NOTHING),
        (0, env.NOTHING),
        (0.3333, env.NOTHING),
        (0.33331, env.MOVE_RIGHT),
        (1, env.MOVE_RIGHT),
    ],
)
def test_thresholds_of_the_buttons(action, expected):
    assert button(action) == expected


def test_the_buttons_move_the_player_as_named(game):
    engine = game._env.unwrapped.game

    def position():
        return np.array([engine.get_game_variable(v) for v in (GameVariable.POSITION_X, GameVariable.POSITION_Y)])

    def to_the_left(direction):
        """Map units to the left of where the player looks, after ten tics."""
        game.reset(1)
        start, angle = position(), np.deg2rad(engine.get_game_variable(GameVariable.ANGLE))
        for _ in range(10):
            game.step(direction)
        return (position() - start) @ [-np.sin(angle), np.cos(angle)]

    assert to_the_left(env.MOVE_LEFT) > 10
    assert to_the_left(env.MOVE_RIGHT) < -10
    assert to_the_left(env.NOTHING) == 0


def test_preprocessing_stretches_the_contrast_and_wraps_zero_to_255():
    frame = np.full((96, 96, 3), 100, np.uint8)
    frame[:, 48:] = 150
    frame[84:] = 255  # cropped, so without effect on the stretch
    obs = preprocess(frame, 84)
    assert (obs[:, 0] == 255).all()  # black, 0, becomes white
    assert (obs[:, -1] == 254).all()
    assert (preprocess(np.full((96, 96, 3), 7, np.uint8), 84) == 255).all()


@pytest.mark.parametrize(
    "frame",
    [np.zeros((99, 160, 3), np.uint8), np.zeros((120, 160), np.uint8), np.zeros((120, 160, 3), np.float32)],
)
def test_wrong_frames_are_named(frame):
    with pytest.raises(ValueError, match=r"expected uint8 \[>= 100, W, 3\]") as error:
        preprocess(frame, 100)
    assert f"{frame.dtype} {list(frame.shape)}" in str(error.value)


def test_nothing_is_left_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    game = TakeCover(max_steps=20)
    scratch = Path(game._scratch.name)
    random_return(game, "doom", "uniform", 0)
    game.close()
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())
    assert not scratch.exists()


def children():
    """Processes that this one has started."""
    pids = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                pids.add(int(status.parent.name))
    return pids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the game's process")
def test_a_killed_game_process_is_named():
    before = children()
    game = TakeCover(max_steps=60)
    try:
        game.reset(0)
        (process,) = children() - before
        os.kill(process, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="Take Cover game process died"):
            game.step(env.NOTHING)
        assert time.monotonic() - start < 20
    finally:
        game.close()


def test_games_answer_in_the_order_asked(game):
    with Games(partial(TakeCover, 60), 2, 2) as games:
        obs = games.reset([(1, 8), (0, 9)])
        steps = games.step([(1, env.MOVE_LEFT), (0, env.MOVE_RIGHT)])
        alone = []
        for seed, action in ((8, env.MOVE_LEFT), (9, env.MOVE_RIGHT)):
            game.reset(seed)
            alone.append((game.observe(), *game.step(action), game.observe()))
        for k, (first, reward, done, second) in enumerate(alone):
            np.testing.assert_array_equal(obs[k], first)
            np.testing.assert_array_equal(steps[k][0], second)
            assert steps[k][1:] == (reward, done)


def test_whole_episodes_are_answered_in_order():
    jobs = [partial(random_return, task="doom", policy="uniform", seed=seed) for seed in range(5)]
    with Games(partial(TakeCover, 120), 2, 2) as games:
        found = list(games.each(jobs))
    game = TakeCover(120)
    try:
        assert found == [job(game) for job in jobs]
    finally:
        game.close()
    assert len(set(found)) > 1
