"""Catch: what is caught is what the last picture shows, every ball can be reached, and chance catches a quarter.
Atari: which screens a frame is made of."""

from __future__ import annotations

import numpy as np
import pytest

from diamond.env import Atari, Catch

BALL, PADDLE = (240, 208, 64), (64, 160, 224)


def play(game, seed, choose):
    """The pictures of a game, and its rewards."""
    frames, rewards, is_over = [game.reset(seed)], [], False
    while not is_over:
        answer = game.step(choose(frames[-1]))
        frames.append(answer.frame)
        rewards.append(answer.reward)
        is_over = answer.is_over
    return np.stack(frames), rewards


def columns(frame, colour):
    """The columns in which a colour stands, in pixels."""
    return np.unique((frame == np.array(colour)[:, None, None]).all(0).nonzero()[1])


def towards(frame):
    """The action that brings the middle of the paddle nearer to the ball."""
    way = columns(frame, BALL).mean() - columns(frame, PADDLE).mean()
    return 1 + int(np.sign(way)) * (abs(way) > 1)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_every_ball_can_be_caught(size):
    game, seen = Catch(size), set()
    for seed in range(100):
        frames, rewards = play(game, seed, towards)
        assert frames.shape == (size // 2, 3, size, size)
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
        seen |= {*columns(frames[0], BALL)}
    assert seen == {*range(size)}


def test_a_ball_is_caught_where_it_covers_a_part_of_the_paddle():
    game, rng = Catch(16), np.random.default_rng(0)
    for seed in range(200):
        frames, rewards = play(game, seed, lambda frame: int(rng.integers(3)))
        # The paddle has four columns, and two are behind a ball that is caught.
        assert len(columns(frames[-1], PADDLE)) == (2 if rewards[-1] > 0 else 4)
        assert len(columns(frames[-2], PADDLE)) == 4


def test_chance_catches_a_quarter():
    game, rng = Catch(16), np.random.default_rng(0)
    caught = [play(game, seed, lambda frame: int(rng.integers(3)))[1][-1] > 0 for seed in range(2000)]
    assert np.mean(caught) == pytest.approx(0.25, abs=0.03)


class Screens:
    """In the place of an emulator: raw frame t is t everywhere but for a point, and the game ends at one of them."""

    def __init__(self, end):
        self.end, self.time = end, 0

    def lives(self):
        return 1

    def step(self, action):
        self.time += 1
        return self.screen(), 1.0, self.time == self.end, False, {}

    def screen(self):
        screen = np.full((16, 16, 3), self.time, np.uint8)
        screen.reshape(-1, 3)[self.time] = 200  # so that a maximum of two screens shows both
        return screen


@pytest.mark.parametrize(("end", "shown"), [(None, [7, 8]), (5, [3, 4]), (6, [3, 4]), (7, [3, 4]), (8, [4, 7])])
def test_the_screen_that_ends_a_game_is_not_taken(end, shown):
    """Those of the decision before stay in their places, as in the authors' code."""
    game = object.__new__(Atari)
    game._env = game._ale = Screens(end)
    game._size, game._lives, game._screens = 16, 1, [game._env.screen()] * 2
    game.step(0)
    answer = game.step(0)
    assert (answer.reward, answer.is_over) == (4.0 if end is None else end - 4.0, end is not None)
    assert (answer.frame[0].ravel() == 200).nonzero()[0].tolist() == shown
    assert answer.frame.min() == max(shown)
