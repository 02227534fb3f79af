"""What the unrolled network should have said: n-step values, rewards, priorities; learning rate and temperature.

B positions, K unroll steps, L columns of a window that begins at a position. left [B]: actions until the end of the
episode, counted from the position. A negative discount passes the turn: rewards are those of whoever moved, and every
value is for the player to move.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from muzero.config import Config

Array = NDArray[Any]


def value_targets(
    rewards: Array,
    values: Array,
    left: Array,
    is_cut: Array,
    *,
    discount: float,
    td_steps: int | None,
    unroll_steps: int,
    keeps_outcome: bool = False,
) -> Array:
    """z [B, K + 1]: n rewards and then the search's value, at each of the unrolled positions.

    z_t = u_{t+1} + g u_{t+2} + ... + g^{n-1} u_{t+n} + g^n v_{t+n}. rewards [B, L]: received by acting at column j;
    values [B, L]: of the search there. Behind the end everything is 0, the bootstrap included; td_steps None: no
    bootstrap but at a cut. is_cut [B]: the episode was stopped by a time limit, and values[left] is that of its last
    state. L must be at least K + min(n, longest left) + 1.

    keeps_outcome: for boards whose network predicts no reward. A finished game then keeps its outcome as the value of
    its absorbing states (of changing sign, as the turn passes), or else a search could not see a winning move.
    Source: paper, Appendix A ("always predict the same value") and G, and pseudocode. Deviation D3: there a cut is an
    end.
    """
    wide = np.asarray(left)[:, None]
    start = np.arange(unroll_steps + 1)
    most = int(np.max(left, initial=0))
    steps = most if td_steps is None else min(td_steps, most)
    found = np.zeros((len(rewards), unroll_steps + 1))
    for j in range(steps):
        column = np.minimum(start + j, rewards.shape[1] - 1)
        found += np.where(start + j < wide, discount**j * rewards[:, column], 0)
    rows = np.arange(len(rewards))[:, None]
    horizon = wide + 1 if td_steps is None else np.broadcast_to(td_steps, wide.shape)
    # An n that reaches the end stops there: at a cut there is a value to take, at an end there is not.
    taken = np.minimum(horizon, np.maximum(wide - start, 0))
    has_value = (start + taken < wide) | (np.asarray(is_cut)[:, None] & (start <= wide))
    column = np.minimum(start + taken, values.shape[1] - 1)
    found += np.where(has_value, discount**taken * values[rows, column], 0)
    if keeps_outcome:
        # Deviation D5: the pseudocode has 0 here, and no reward for boards either.
        last = rewards[rows, np.clip(wide - 1, 0, rewards.shape[1] - 1)]
        found = np.where(start >= wide, float(np.sign(discount)) ** (start - wide + 1) * last, found)
    return found


def reward_targets(arriving: Array, left: Array) -> Array:
    """arriving [B, K + 1]: the reward on the way into each position. 0 behind the end; the last reward still counts."""
    return np.where(np.arange(arriving.shape[1]) <= np.asarray(left)[:, None], arriving, 0)


def policy_mask(left: Array, is_cut: Array, unroll_steps: int) -> Array:
    """[B, K + 1] bool: where a search was made. Absorbing states have none, the last state before a cut has."""
    steps, wide = np.arange(unroll_steps + 1), np.asarray(left)[:, None]
    return (steps < wide) | ((steps == wide) & np.asarray(is_cut)[:, None])


def known_mask(left: Array, is_cut: Array, unroll_steps: int) -> Array:
    """[B, K + 1] bool: where value and reward are known; behind a cut nobody knows, behind an end they are 0."""
    return (np.arange(unroll_steps + 1) <= np.asarray(left)[:, None]) | ~np.asarray(is_cut)[:, None]


def priorities(values: Array, targets: Array, exponent: float) -> Array:
    """|v - z| ^ alpha; P is proportional to it. Source: paper, Appendix G."""
    return np.abs(values - targets) ** exponent


def importance_weights(probability: Array, count: int, exponent: float) -> Array:
    """(1 / (N P)) ^ beta. Source: paper, Appendix G."""
    return (1 / (count * probability)) ** exponent


def learning_rate(initial: float, update: int, decay_updates: int | None) -> float:
    """lr0 * 0.1 ^ (t / T); T None: constant. Source: pseudocode."""
    return initial if decay_updates is None else initial * 0.1 ** (update / decay_updates)


def temperature_by_update(temperatures: tuple[float, ...], update: int, updates: int) -> float:
    """The temperatures for the first half, the third quarter and the last quarter of training. Source: pseudocode."""
    first, second, third = temperatures
    return first if 2 * update < updates else second if 4 * update < 3 * updates else third


def temperature_by_move(move: Array, temperature: float, moves: int | None) -> Array:
    """The temperature at each move [...] of an episode: 0 after the first `moves`. Source: pseudocode (boards: 30)."""
    return np.where(move < (np.inf if moves is None else moves), temperature, 0.0)


def visit_policy(visits: Array, temperature: float) -> Array:
    """N(a)^(1/T) / sum [B, A]; at temperature 0 all on the first of the most visited actions. Source: paper, Eq. 6."""
    if temperature == 0:
        return np.eye(visits.shape[-1])[visits.argmax(-1)]
    # Divided by the largest first: a small temperature would overflow.
    scaled = (visits / visits.max(-1, keepdims=True)) ** (1 / temperature)
    return scaled / scaled.sum(-1, keepdims=True)


def updates_due(steps: int, config: Config) -> int:
    """Updates that belong to so many agent steps of all worlds."""
    return min(config.updates, int(max(0, steps - config.first_steps) * config.samples_per_state / config.batch_size))


def total_moves(config: Config) -> int:
    """Moves of every world until all updates are due."""
    if config.updates == 0:
        return 0
    steps = config.first_steps + config.updates * config.batch_size / config.samples_per_state
    moves = int(steps // config.envs)
    while updates_due(moves * config.envs, config) < config.updates:
        moves += 1
    return moves
