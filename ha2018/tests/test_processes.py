"""Games in processes: the same as here, answered in order, and a process that dies is named."""

import os
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.program import RunError
from ha2018.processes import Games
from ha2018.racing import CarRacing
from ha2018.random_play import car_episode, random_return

GAS = np.array([0.1, 1, 0], np.float32)


def open_games(count, parallel, max_steps=12):
    return Games(partial(CarRacing, max_steps), count, parallel)


def rollout(games):
    """Three games, asked in another order than theirs."""
    found = [*games.reset([(2, 7), (0, 5), (1, 6)])]
    for _ in range(12):
        for obs, reward, done in games.step([(1, GAS), (2, GAS), (0, -GAS)]):
            found += [obs, reward, done]
    return found


def test_games_are_answered_in_order_and_depend_on_nothing_else():
    answers = []
    for parallel in (1, 2, 3):
        with open_games(3, parallel) as games:
            assert games.parallel == parallel
            answers.append(rollout(games))
    game = CarRacing(12)
    game.reset(5)
    np.testing.assert_array_equal(answers[0][1], game.observe())
    assert answers[0][-1]  # the last step of the last game is the end of its episode
    for other in answers[1:]:
        for ours, theirs in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_answers_may_be_fetched_after_later_ones_were_asked():
    """Two groups in turn, a reset between: nothing is mixed up, and nothing depends on who waits first."""
    with open_games(4, 2) as games:
        seen = games.reset([(k, k) for k in range(4)])
        plain = [games.step([(k, GAS) for k in range(4)]) for _ in range(2)]
        assert len(seen) == 4
    with open_games(4, 2) as games:
        games.reset([(k, k) for k in range(4)])
        low, high = games.ask_step([(0, GAS), (1, GAS)]), games.ask_step([(2, GAS), (3, GAS)])
        first = [*games.stepped(high)]
        again = games.ask_step([(2, GAS), (3, GAS)])
        beginning = games.reset([(0, 0)])  # its answers come after those that nobody has fetched yet
        np.testing.assert_array_equal(beginning[0], seen[0])
        first = [*games.stepped(low), *first]
        second = games.stepped(again)
    for (frame, *rest), (expected, *others) in zip([*first, *second], [*plain[0], *plain[1][2:]], strict=True):
        np.testing.assert_array_equal(frame, expected)
        assert rest == others


def test_whole_episodes_are_answered_in_order():
    jobs = [partial(random_return, task="car", policy="collection", seed=seed) for seed in range(5)]
    with open_games(4, 2) as games:
        found = list(games.each(jobs))
        frames, actions = next(games.each([partial(car_episode, seed=3, steps=12)]))
    assert found == [job(CarRacing(12)) for job in jobs]
    assert frames.shape == (12, 64, 64, 3)
    assert actions.shape == (12, 3)


def test_no_process_starts_before_it_is_needed_and_none_stays():
    games = open_games(2, 2)
    with games:
        assert not games._processes
        games.reset([(0, 1)])
        processes = list(games._processes)
        assert all(process.poll() is None for process in processes)
    assert [process.poll() for process in processes] == [0, 0]


def test_a_killed_process_is_named():
    with open_games(2, 2) as games:
        games.reset([(0, 1), (1, 2)])
        os.kill(games._processes[1].pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RunError, match="game process 1 of 2 died with exit code -9"):
            games.step([(0, GAS), (1, GAS)])
        assert time.monotonic() - start < 20


class WithEngine(CarRacing):
    """A game whose engine is a process of its own that inherits what it can, as Doom's does."""

    def __init__(self):
        super().__init__(12)
        self.engine = subprocess.Popen(["sleep", "600"], close_fds=False)
        ENGINE.write_text(str(self.engine.pid))


ENGINE = Path(tempfile.gettempdir()) / f"engine-of-{os.environ.get('PYTEST_MAIN', os.getpid())}"


def is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_killed_process_does_not_hang_the_training_and_its_engine_goes_too(monkeypatch):
    """The engine held the pipe open after the death of its process: its end never came."""
    monkeypatch.setenv("PYTEST_MAIN", str(os.getpid()))
    try:
        with Games(WithEngine, 1, 1) as games:
            games.reset([(0, 1)])
            engine = int(ENGINE.read_text())
            assert is_alive(engine)
            os.kill(games._processes[0].pid, signal.SIGKILL)
            signal.alarm(20)  # instead of waiting for ever
            with pytest.raises(RunError, match="game process 0 of 1 died with exit code -9"):
                games.step([(0, GAS)])
            signal.alarm(0)
            end = time.monotonic() + 10
            while is_alive(engine) and time.monotonic() < end:
                time.sleep(0.01)
            assert not is_alive(engine)
    finally:
        ENGINE.unlink(missing_ok=True)


class Failing(CarRacing):
    def reset(self, seed):
        raise RunError("the Take Cover game process died: of a test")


def test_a_game_that_fails_is_named_without_a_traceback(capfd):
    with Games(Failing, 2, 2) as games, pytest.raises(RunError, match="died: of a test"):
        games.reset([(0, 1)])
    assert capfd.readouterr().err == ""
