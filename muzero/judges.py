"""Opponents and judges for boards: every reply, alpha-beta, rollouts, chance; matches and the Elo ladder.

N positions, A actions. A mover is a function of stones [N, R * C] and turn [N] that answers with actions [N].
Source of the alpha-beta and rollout opponents: the usual ones of connect four (Pons; the AlphaZero.jl tutorial).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from muzero.boards import LineGame

Array = NDArray[Any]
Mover = Callable[[Array, Array], Array]
LINE_VALUE = np.array([0, 1, 10, 100], np.int64)  # of an open window with so many stones of one side
CERTAIN = 1_000_000  # a win that alpha-beta has seen; sooner is better


def random_mover(game: LineGame, rng: np.random.Generator) -> Mover:
    """Uniform over the legal moves."""

    def move(stones: Array, turn: Array) -> Array:
        return uniform_moves(game.legal(stones), rng)

    return move


def uniform_moves(legal: Array, rng: np.random.Generator) -> Array:
    """[N]: one of the legal moves [N, A] of each position, uniformly."""
    return np.where(legal, rng.random(legal.shape), -1.0).argmax(1)


def every_line(game: LineGame, mover: Mover, side: int) -> Array:
    """Results [lines] for the mover, 1, 0 or -1, against every possible sequence of the opponent's replies.

    side: 1 if the mover begins, -1 if not. The mover must be a function of the position alone: it is asked once for
    each of the positions of a move, all at a time.
    """
    stones, turn = game.start(1)
    results: list[Array] = []
    while len(stones):
        if turn[0] == side:
            different, back = np.unique(stones, axis=0, return_inverse=True)
            action = mover(different, np.full(len(different), side, np.int8))[back.reshape(-1)]
        else:
            line, action = np.nonzero(game.legal(stones))
            stones, turn = stones[line], turn[line]
        stones = game.place(stones, turn, action)
        won = game.has_line(stones, turn)
        is_over = won | game.is_full(stones)
        results.append(np.where(won, turn * side, 0)[is_over])
        stones, turn = stones[~is_over], -turn[~is_over]
    return np.concatenate(results)


def match(game: LineGame, first: Mover, second: Mover, count: int, rng: np.random.Generator, opening: int) -> Array:
    """Results [count] for `first`, 1, 0 or -1: it begins in every other game.

    The first `opening` moves of each pair of games are the same random ones, so that two movers without chance do not
    play one game over and over.
    """
    stones, _ = game.start(count)
    pairs = np.arange(count) // 2
    begins = np.where(np.arange(count) % 2 == 0, 1, -1)
    result, is_over, turn = np.zeros(count), np.zeros(count, np.bool_), 1
    for number in range(game.cells):
        action = np.zeros(count, np.int64)
        if number < opening:
            drawn = rng.random((pairs[-1] + 1, game.actions))[pairs]
            action = np.where(game.legal(stones), drawn, -1.0).argmax(1)
        else:
            for mover, side in ((first, begins), (second, -begins)):
                mine = np.flatnonzero(~is_over & (side == turn))
                if len(mine):
                    action[mine] = mover(stones[mine], np.full(len(mine), turn, np.int8))
        live = np.flatnonzero(~is_over)
        turns = np.full(len(live), turn, np.int8)
        stones[live] = game.place(stones[live], turns, action[live])
        won = game.has_line(stones[live], turns)
        result[live[won]] = (begins * turn)[live[won]]
        is_over[live] = won | game.is_full(stones[live])
        turn = -turn
        if is_over.all():
            break
    return result


def elo(results: Array, rounds: int = 2000) -> Array:
    """Ratings [n] of players from points [n, n] that row i took from column j (0.5 for a draw); the first has 0.

    Maximum likelihood of the logistic model by its fixed point, with one draw added to each pair that has met, so that
    a player who has won everything has a rating too. 400 points are odds of ten to one.
    """
    met = (results + results.T) > 0
    points = results + 0.5 * met
    games = points + points.T
    strength = np.ones(len(results))
    for _ in range(rounds):
        pulls = np.where(games > 0, games / (strength[:, None] + strength[None, :]), 0)
        strength = points.sum(1) / pulls.sum(1)
        strength /= np.exp(np.log(strength).mean())
    ratings = 400 * np.log10(strength)
    return ratings - ratings[0]


# --- connect four and its like, compiled ------------------------------------------------------------------------------


@numba.njit(cache=True)
def _cell(stones, action, rows, columns):  # type: ignore[no-untyped-def]
    """Where a stone falls; -1 if the column is full."""
    for row in range(rows - 1, -1, -1):
        if stones[row * columns + action] == 0:
            return row * columns + action
    return -1


@numba.njit(cache=True)
def _makes_line(stones, cell, player, windows, through, counts):  # type: ignore[no-untyped-def]
    """Whether a window through the cell is full of the player's stones."""
    for k in range(counts[cell]):
        window = windows[through[cell, k]]
        is_full = True
        for c in window:
            if stones[c] != player:
                is_full = False
                break
        if is_full:
            return True
    return False


@numba.njit(cache=True)
def _evaluate(stones, player, windows, values):  # type: ignore[no-untyped-def]
    """Open windows of the player less those of the other side."""
    total = 0
    for w in range(len(windows)):
        mine = other = 0
        for c in windows[w]:
            mine += stones[c] == player
            other += stones[c] == -player
        if other == 0:
            total += values[mine]
        elif mine == 0:
            total -= values[other]
    return total


@numba.njit(cache=True)
def _negamax(stones, player, depth, alpha, beta, free, board, tables, values):  # type: ignore[no-untyped-def]
    rows, columns = board
    windows, through, counts = tables
    if free == 0:
        return 0
    if depth == 0:
        return _evaluate(stones, player, windows, values)
    best = -2 * CERTAIN
    for action in range(columns):
        cell = _cell(stones, action, rows, columns)
        if cell < 0:
            continue
        stones[cell] = player
        if _makes_line(stones, cell, player, windows, through, counts):
            score = CERTAIN + depth
        else:
            score = -_negamax(stones, -player, depth - 1, -beta, -alpha, free - 1, board, tables, values)
        stones[cell] = 0
        best = max(best, score)
        alpha = max(alpha, best)
        if alpha >= beta:
            break
    return best


@numba.njit(cache=True)
def _move_scores(stones, player, depth, board, tables, values, out):  # type: ignore[no-untyped-def]
    rows, columns = board
    windows, through, counts = tables
    free = 0
    for c in range(len(stones)):
        free += stones[c] == 0
    for action in range(columns):
        cell = _cell(stones, action, rows, columns)
        out[action] = -4 * CERTAIN
        if cell < 0:
            continue
        stones[cell] = player
        if _makes_line(stones, cell, player, windows, through, counts):
            out[action] = CERTAIN + depth
        else:
            low, high = -4 * CERTAIN, 4 * CERTAIN
            out[action] = -_negamax(stones, -player, depth - 1, low, high, free - 1, board, tables, values)
        stones[cell] = 0


@numba.njit(cache=True)
def _rollout(stones, player, free, board, tables):  # type: ignore[no-untyped-def]
    """Random play to the end: 1, 0 or -1 for the player to move; changes the stones."""
    rows, columns = board
    windows, through, counts = tables
    sign = 1
    while free > 0:
        cell = -1
        while cell < 0:
            cell = _cell(stones, np.random.randint(columns), rows, columns)
        stones[cell] = player
        if _makes_line(stones, cell, player, windows, through, counts):
            return sign
        player, sign, free = -player, -sign, free - 1
    return 0


@numba.njit(cache=True)
def _uct(stones, player, rollouts, board, tables, seed):  # type: ignore[no-untyped-def]
    """Visits of the root's actions after so many simulations of UCT with a random rollout each."""
    np.random.seed(seed)
    rows, columns = board
    windows, through, counts = tables
    children = np.full((rollouts + 1, columns), -1, np.int32)
    visits, wins = np.zeros((rollouts + 1, columns), np.int32), np.zeros((rollouts + 1, columns))
    path_node, path_action = np.zeros(len(stones) + 1, np.int32), np.zeros(len(stones) + 1, np.int32)
    used = 1
    for _ in range(rollouts):
        position, mover, node, length, value, is_over = stones.copy(), player, 0, 0, 0.0, False
        free = 0
        for c in range(len(stones)):
            free += stones[c] == 0
        while node >= 0 and not is_over:
            total, best, choice = visits[node].sum(), -1.0, -1
            for a in range(columns):
                if position[a] != 0:
                    continue
                n = visits[node, a]
                score = 1e9 if n == 0 else wins[node, a] / n + math.sqrt(2 * math.log(total) / n)
                if score > best:
                    best, choice = score, a
            cell = _cell(position, choice, rows, columns)
            position[cell] = mover
            free -= 1
            path_node[length], path_action[length] = node, choice
            length += 1
            if _makes_line(position, cell, mover, windows, through, counts):
                value, is_over = 1.0, True
            elif free == 0:
                value, is_over = 0.0, True
            mover = -mover
            if children[node, choice] < 0 and not is_over:
                children[node, choice] = used
                used += 1
                # The value is for whoever moved last.
                value, node = -_rollout(position, mover, free, board, tables), -1
            elif not is_over:
                node = children[node, choice]
        for k in range(length - 1, -1, -1):
            visits[path_node[k], path_action[k]] += 1
            wins[path_node[k], path_action[k]] += value
            value = -value
    return visits[0]


def _tables(game: LineGame) -> tuple[Array, Array, Array]:
    """The windows, and for every cell the numbers of those through it."""
    lists = [np.flatnonzero((game.windows == cell).any(1)) for cell in range(game.cells)]
    counts = np.array([len(found) for found in lists])
    through = np.zeros((game.cells, counts.max()), np.int64)
    for cell, found in enumerate(lists):
        through[cell, : len(found)] = found
    return game.windows, through, counts


def alpha_beta_scores(game: LineGame, stones: Array, turn: Array, depth: int) -> Array:
    """[N, A] int64: the value of every move by `depth` plies, the move itself included.

    A won or lost game dominates; else the open windows at the end are counted, 1, 10 or 100 for one, two or three
    stones of one side alone, own less the opponent's. Raises ValueError for a game without gravity.
    """
    if not game.has_gravity:
        raise ValueError(f"alpha-beta plays games with gravity, not {game.name}")
    tables, board = _tables(game), (game.rows, game.columns)
    out = np.zeros((len(stones), game.actions), np.int64)
    for row, position, player in zip(out, stones.astype(np.int64), turn.astype(np.int64), strict=True):
        _move_scores(position, player, depth, board, tables, LINE_VALUE, row)
    return out


def alpha_beta_mover(game: LineGame, depth: int, rng: np.random.Generator) -> Mover:
    """One of the best moves by `alpha_beta_scores`, at random among equals."""

    def move(stones: Array, turn: Array) -> Array:
        scores = alpha_beta_scores(game, stones, turn, depth)
        return np.where(scores == scores.max(1, keepdims=True), rng.random(scores.shape), -1.0).argmax(1)

    return move


def rollout_mover(game: LineGame, rollouts: int, rng: np.random.Generator) -> Mover:
    """The most visited move of UCT with random rollouts. Raises ValueError for a game without gravity."""
    if not game.has_gravity:
        raise ValueError(f"rollouts play games with gravity, not {game.name}")
    tables, board = _tables(game), (game.rows, game.columns)

    def move(stones: Array, turn: Array) -> Array:
        seeds: Sequence[int] = rng.integers(2**31, size=len(stones)).tolist()
        visits = [
            _uct(position, int(player), rollouts, board, tables, seed)
            for position, player, seed in zip(stones.astype(np.int64), turn, seeds, strict=True)
        ]
        return np.array(visits).argmax(1)

    return move
