"""Positions of connect four with the exact value of every move, and the share of mistakes an agent makes on them.

A file has the columns class, moves (columns 1 to 7 from the empty board, as text), values (of each move for the side to
move: 1, 0, -1, x for a full column); `connect4_positions.csv` says in its README how it was made.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import check_is_file
from muzero.boards import GAMES
from muzero.judges import Mover

Array = NDArray[Any]
FILE = Path(__file__).parent / "connect4_positions.csv"
COLUMNS = ("class", "moves", "values")
FULL = -2  # the value of a column that has no room: below a loss


@dataclass(frozen=True)
class Positions:
    """stones [N, 42], turn [N], values [N, 7], and the class of each."""

    names: list[str]
    stones: Array
    turn: Array
    values: Array

    def of_class(self, name: str) -> Positions:
        """Those of one class."""
        rows = np.array([found == name for found in self.names])
        return Positions([name] * int(rows.sum()), self.stones[rows], self.turn[rows], self.values[rows])

    @property
    def classes(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(self.names))


def load_positions(path: Path = FILE) -> Positions:
    """Raises ValueError, naming file and line, for what is not of this form."""
    game = GAMES["connect4"]
    names, stones, turns, values = [], [], [], []
    check_is_file(path)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; a file of positions has {', '.join(COLUMNS)}")
        for row in reader:
            try:
                if any(row[name] is None for name in COLUMNS):
                    raise ValueError(f"it is short; a position has {', '.join(COLUMNS)}")
                board, turn = game.position([int(digit) - 1 for digit in row["moves"]])
                if game.is_over(board)[0]:
                    raise ValueError("the game is over, no move is left to grade")
                scores = [FULL if word == "x" else int(word) for word in row["values"].split()]
                if len(scores) != game.actions or any(score not in (FULL, -1, 0, 1) for score in scores):
                    raise ValueError(f"values {row['values']!r} are not {game.actions} of 1, 0, -1, x")
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            names.append(row["class"])
            stones.append(board[0])
            turns.append(turn[0])
            values.append(scores)
    if not names:
        raise ValueError(f"{path}: no positions")
    return Positions(names, np.array(stones), np.array(turns, np.int8), np.array(values))


def mistakes(positions: Positions, mover: Mover) -> Array:
    """[N] float: 1 where the chosen move has a lower exact value than the best one."""
    action = mover(positions.stones, positions.turn)
    chosen = positions.values[np.arange(len(action)), action]
    return (chosen < positions.values.max(1)).astype(np.float64)


def mistakes_of_chance(positions: Positions, weight: Array) -> Array:
    """[N] expected mistakes of a mover that draws by weight [N, 7], any scale; full columns must have 0."""
    is_wrong = positions.values < positions.values.max(1, keepdims=True)
    return (weight * is_wrong).sum(1) / weight.sum(1)
