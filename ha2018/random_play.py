"""Play that looks at nothing: the random policies of the paper, the collection of data, and their returns.

Shapes: T time; actions are scalars in [-1, 1] for Doom and [3] for CarRacing; frames [T, 64, 64, 3] uint8.
Source: paper, section 4 and appendix A.1; reference code: doomrnn/extract.py, carracing/extract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from common.seeding import derive_seed
from ha2018.env import Game, command

Actions = Iterator[Any]  # one per step: a scalar or [3]
CAR_ACTIONS = 3
CAR_Z, CAR_HIDDEN = 32, 256  # of the untrained V and M behind CarRacing's collection policy


def held_actions(seed: int, longest_hold: int = 10) -> Iterator[float]:
    """The official collection policy of Doom: u ~ U(-1, 1), held for a random number of tics.

    Yields one scalar action per tic from RandomState(seed). Hold times are drawn from 1 to `longest_hold` tics, and the
    modulus of the frame number makes them irregular. Source: reference code, doomrnn/extract.py.
    """
    rng = np.random.RandomState(seed)
    repeat, frame, action = rng.randint(1, longest_hold + 1), 0, 0.0
    while True:
        if frame % repeat == 0:
            action = rng.rand() * 2 - 1
            repeat = rng.randint(1, longest_hold + 1)
        yield action
        frame += 1


def varied_hold(seed: int, longest_hold: int) -> int:
    """The longest hold of one episode, log-uniform from 1 to `longest_hold` tics. Deviation D15."""
    share = np.random.default_rng(derive_seed(seed, "longest hold")).random()
    return int((longest_hold + 1) ** share)


def uniform_actions(seed: int) -> Iterator[float]:
    """A fresh u ~ U(-1, 1) at every tic: left, nothing, right with one third each; the paper's "random policy"."""
    rng = np.random.RandomState(seed)
    while True:
        yield rng.rand() * 2 - 1


def no_actions(seed: int) -> Iterator[float]:
    """Nothing at every tic; the seed is ignored."""
    while True:
        yield 0.0


def random_car_controller(seed: int, params: int) -> tuple[float, np.ndarray]:
    """The official collection policy of CarRacing: a fresh random controller for each episode.

    Returns the spread ~ U(0, 0.01) and the parameters [params] = standard Cauchy * spread, from RandomState(seed).
    V and M are random too, but so small that z is standard normal noise and h zero. Source: reference code, extract.py.
    """
    rng = np.random.RandomState(seed)
    stdev = rng.rand() * 0.01
    return stdev, rng.standard_cauchy(params) * stdev


def collection_actions(seed: int) -> Iterator[np.ndarray]:
    """The official collection policy of CarRacing: a random controller on latents that are noise, with half of the gas.

    Yields actions [3]. Source: reference code, carracing/extract.py.
    """
    # Deviation D11: V and M of that policy are random too, but their parameters are divided by 10,000: what they answer
    # is standard normal noise for z and zero for h, and that is what stands here.
    _, params = random_car_controller(seed, CAR_ACTIONS * (CAR_Z + CAR_HIDDEN + 1))
    bias, weight = params[:CAR_ACTIONS], params[CAR_ACTIONS:].reshape(-1, CAR_ACTIONS)[:CAR_Z]
    rng = np.random.RandomState(derive_seed(seed, "noise") % 2**32)
    while True:
        steering, gas, brake = np.tanh(rng.standard_normal(CAR_Z) @ weight + bias)
        yield np.array([steering, (gas + 1) / 2, np.clip(brake, 0, 1)], np.float32)


def uniform_car_actions(seed: int) -> Iterator[np.ndarray]:
    """A fresh action from the whole range at every step: steering in [-1, 1], gas and brake in [0, 1]."""
    rng = np.random.RandomState(seed)
    while True:
        yield rng.uniform([-1, 0, 0], [1, 1, 1]).astype(np.float32)


def no_car_actions(seed: int) -> Iterator[np.ndarray]:
    """Hands off the wheel at every step; the seed is ignored."""
    while True:
        yield np.zeros(CAR_ACTIONS, np.float32)


RANDOM_POLICIES: Mapping[str, Mapping[str, Callable[[int], Actions]]] = {
    "doom": {"uniform": uniform_actions, "held": held_actions, "none": no_actions},
    "car": {"uniform": uniform_car_actions, "collection": collection_actions, "none": no_car_actions},
}


def doom_episode(game: Game, seed: int, longest_hold: int, vary_hold: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """One episode of Doom's collection policy; with `vary_hold` its longest hold is its own.

    Returns frames [T, 64, 64, 3] uint8 and actions [T] float32 in [-1, 1]: the observation before each action; the
    terminal frame is not stored. The return of the episode is T.
    """
    hold = varied_hold(seed, longest_hold) if vary_hold else longest_hold
    frames, actions = [], []
    game.reset(seed)
    for action in held_actions(seed, hold):
        frames.append(game.observe())
        actions.append(action)
        if game.step(command(action))[1]:
            break
    return np.stack(frames), np.asarray(actions, np.float32)


def car_episode(game: Game, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """One episode of CarRacing's collection policy: always `steps` frames, for its end is ignored.

    Returns frames [T, 64, 64, 3] uint8 and actions [T, 3] float32, rounded to float16: the observation before each.
    """
    frames, actions = [], []
    game.reset(seed)
    for action in islice(collection_actions(seed), steps):
        frames.append(game.observe())
        actions.append(action)
        game.step(command(action))
    return np.stack(frames), np.stack(actions).astype(np.float16).astype(np.float32)


def random_return(game: Game, task: str, policy: str, seed: int) -> float:
    """The return of one episode of a random policy of the task."""
    return blind_return(game, seed, RANDOM_POLICIES[task][policy](seed))


def blind_return(game: Game, seed: int, actions: Iterable[Any]) -> float:
    """The return of one episode of given actions, which must be as many as it lasts."""
    game.reset(seed)
    total = 0.0
    for action in actions:
        reward, done = game.step(command(action))
        total += reward
        if done:
            break
    return total
