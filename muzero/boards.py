"""Games of stones in a row as arrays: tic-tac-toe, connect four, gomoku; many boards per call, no object per board.

N boards, A actions, R x C cells. Stones [N, R * C] int8: 1 of the first player, -1 of the second, 0 empty; rows from
the top. turn [N] int8: 1 or -1, who moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class LineGame:
    """Whoever first has `length` stones in a row, column or diagonal wins; a full board is a draw.

    has_gravity: an action is a column, and the stone falls to its lowest empty cell; else an action is a cell.
    """

    name: str
    rows: int
    columns: int
    length: int
    has_gravity: bool = False

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    @property
    def actions(self) -> int:
        return self.columns if self.has_gravity else self.cells

    @property
    def encoding(self) -> str:
        """How the network's dynamics see an action."""
        return "column" if self.has_gravity else "point"

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        return 3, self.rows, self.columns

    @cached_property
    def windows(self) -> Array:
        """[windows, length]: the cells of every possible line."""
        found = []
        for row in range(self.rows):
            for column in range(self.columns):
                for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    steps = np.arange(self.length)
                    rows, columns = row + down * steps, column + right * steps
                    if rows[-1] < self.rows and 0 <= columns[-1] < self.columns:
                        found.append(rows * self.columns + columns)
        return np.array(found)

    def start(self, count: int) -> tuple[Array, Array]:
        """Empty boards, the first player to move: stones [N, R * C], turn [N]."""
        return np.zeros((count, self.cells), np.int8), np.ones(count, np.int8)

    def legal(self, stones: Array) -> Array:
        """[N, A] bool; what is allowed if the game is not over."""
        # A column is open as long as its top cell is empty.
        return stones[:, : self.columns] == 0 if self.has_gravity else stones == 0

    def place(self, stones: Array, turn: Array, action: Array) -> Array:
        """The boards after a move of each. Raises ValueError for an illegal one."""
        rows = np.arange(len(stones))
        if np.any((action < 0) | (action >= self.actions)) or not self.legal(stones)[rows, action].all():
            raise ValueError(f"illegal move in {self.name}")
        cell = action
        if self.has_gravity:
            filled = (stones.reshape(-1, self.rows, self.columns)[rows, :, action] != 0).sum(1)
            cell = (self.rows - 1 - filled) * self.columns + action
        after = stones.copy()
        after[rows, cell] = turn
        return after

    def has_line(self, stones: Array, player: Array) -> Array:
        """[N] bool: whether that player has a line."""
        return (stones[:, self.windows] == player[:, None, None]).all(-1).any(-1)

    def is_full(self, stones: Array) -> Array:
        """[N] bool."""
        return (stones != 0).all(-1)

    def observe(self, stones: Array, turn: Array) -> Array:
        """[N, 3, R, C] float32: own stones, the other's, and a plane of ones if the first player moves."""
        mine, other = stones == turn[:, None], stones == -turn[:, None]
        first = np.broadcast_to((turn == 1)[:, None], stones.shape)
        return np.stack([mine, other, first], 1).astype(np.float32).reshape(-1, *self.obs_shape)

    def position(self, moves: list[int]) -> tuple[Array, Array]:
        """One board after these actions. Raises ValueError for an illegal one, or one after the end."""
        stones, turn = self.start(1)
        for action in moves:
            if self.is_over(stones)[0]:
                raise ValueError(f"a move after the end of the game of {self.name}")
            stones, turn = self.place(stones, turn, np.array([action])), -turn
        return stones, turn

    def is_over(self, stones: Array) -> Array:
        """[N] bool."""
        ones = np.ones(len(stones), np.int8)
        return self.has_line(stones, ones) | self.has_line(stones, -ones) | self.is_full(stones)


GAMES = {
    game.name: game
    for game in (
        LineGame("tictactoe", 3, 3, 3),
        LineGame("connect4", 6, 7, 4, has_gravity=True),
        LineGame("gomoku", 15, 15, 5),
    )
}
