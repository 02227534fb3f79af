"""Games in processes: the same as here, answered in order, and a process that dies is named."""

import os
import signal
import time
from functools import partial

import numpy as np
import pytest

from ha2018.processes import Worlds
from ha2018.racing import CarRacing, random_episode, random_return

GAS = np.array([0.1, 1, 0], np.float32)


def worlds(count, parallel, max_steps=12):
    return Worlds(partial(CarRacing, max_steps), count, parallel)


def rollout(world):
    """Three games, asked in another order than theirs."""
    found = [*world.reset([(2, 7), (0, 5), (1, 6)])]
    for _ in range(12):
        for obs, reward, done in world.step([(1, GAS), (2, GAS), (0, -GAS)]):
            found += [obs, reward, done]
    return found


def test_games_are_answered_in_order_and_depend_on_nothing_else():
    answers = []
    for parallel in (1, 2, 3):
        with worlds(3, parallel) as world:
            assert world.parallel == parallel
            answers.append(rollout(world))
    game = CarRacing(12)
    game.reset(5)
    np.testing.assert_array_equal(answers[0][1], game.observe())
    assert answers[0][-1]  # the last step of the last game is the end of its episode
    for other in answers[1:]:
        for ours, theirs in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_answers_may_be_fetched_after_later_ones_were_asked():
    """Two groups in turn, a reset between: nothing is mixed up, and nothing depends on who waits first."""
    with worlds(4, 2) as world:
        seen = world.reset([(k, k) for k in range(4)])
        plain = [world.step([(k, GAS) for k in range(4)]) for _ in range(2)]
        assert len(seen) == 4
    with worlds(4, 2) as world:
        world.reset([(k, k) for k in range(4)])
        low, high = world.ask_step([(0, GAS), (1, GAS)]), world.ask_step([(2, GAS), (3, GAS)])
        first = [*world.stepped(high)]
        again = world.ask_step([(2, GAS), (3, GAS)])
        beginning = world.reset([(0, 0)])  # its answers come after those that nobody has fetched yet
        np.testing.assert_array_equal(beginning[0], seen[0])
        first = [*world.stepped(low), *first]
        second = world.stepped(again)
    for (frame, *rest), (expected, *others) in zip([*first, *second], [*plain[0], *plain[1][2:]], strict=True):
        np.testing.assert_array_equal(frame, expected)
        assert rest == others


def test_whole_episodes_are_answered_in_order():
    jobs = [partial(random_return, policy="collection", seed=seed) for seed in range(5)]
    with worlds(4, 2) as world:
        found = list(world.each(jobs))
        frames, actions = next(world.each([partial(random_episode, seed=3)]))
    assert found == [job(CarRacing(12)) for job in jobs]
    assert frames.shape == (12, 64, 64, 3)
    assert actions.shape == (12, 3)


def test_no_process_starts_before_it_is_needed_and_none_stays():
    world = worlds(2, 2)
    with world:
        assert not world._processes
        world.reset([(0, 1)])
        processes = list(world._processes)
        assert all(process.poll() is None for process in processes)
    assert [process.poll() for process in processes] == [0, 0]


def test_a_killed_process_is_named():
    with worlds(2, 2) as world:
        world.reset([(0, 1), (1, 2)])
        os.kill(world._processes[1].pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="game process 1 of 2 died with exit code -9"):
            world.step([(0, GAS), (1, GAS)])
        assert time.monotonic() - start < 20
