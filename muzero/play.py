"""Play a board game against a trained agent in the terminal, and see what its search thinks.

    python -m muzero.play --run runs/muzero/tictactoe-cpu-seed0

A move is the number of a cell, counted from 1 from the top left, or of a column. hint: the agent's search of your
position; undo: both last moves back; quit: the end. Behind each move of the agent stand its visits and values: for it
+1 is won and -1 lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from common.config import Parser, user_error
from common.program import program
from common.run import Run, run_config, usable_device
from muzero.agent import load_network
from muzero.boards import GAMES, LineGame
from muzero.config import Config
from muzero.networks import Network
from muzero.search import Result
from muzero.self_play import search_position

SIGNS = {1: "X", -1: "O", 0: "."}


class Quit(Exception):
    """The player has had enough."""


def picture(game: LineGame, moves: Sequence[int]) -> str:
    """The board after these actions, with the numbers that a player types."""
    stones, _ = game.position(list(moves))
    rows = stones.reshape(game.rows, game.columns)
    width = len(str(game.actions))
    lines = []
    for number, row in enumerate(rows):
        numbers = [str(number * game.columns + column + 1) for column in range(game.columns)]
        shows_number = [not game.has_gravity and cell == 0 for cell in row]
        words = [n if shown else SIGNS[int(cell)] for n, shown, cell in zip(numbers, shows_number, row, strict=True)]
        lines.append(" ".join(word.rjust(width) for word in words))
    if game.has_gravity:
        lines.append(" ".join(str(column + 1).rjust(width) for column in range(game.columns)))
    return "\n".join(lines)


def thoughts(found: Result) -> str:
    """Visits and values of the root's actions, the most visited first."""
    visits, q = found.visits[0].tolist(), found.q[0].tolist()
    order = [action for action in np.argsort(visits)[::-1].tolist() if visits[action]]
    words = [f"{action + 1}: {visits[action]} visits, {q[action]:+.2f}" for action in order]
    return f"value {float(found.value[0]):+.2f}; " + "; ".join(words)


def end_of(game: LineGame, moves: Sequence[int], person: int) -> str | None:
    """How the game has ended for the person, who is 1 or -1; None if it goes on."""
    stones, turn = game.position(list(moves))
    if game.has_line(stones, -turn)[0]:
        return "you win" if -int(turn[0]) == person else "the agent wins"
    return "a draw" if game.is_full(stones)[0] else None


def ask(game: LineGame, moves: Sequence[int], person: int, read: Callable[[], str], think: Callable[[], Result]) -> int:
    """The person's next move, or -1 to take back; whatever is no move is answered with one line and asked again."""
    legal = game.legal(game.position(list(moves))[0])[0]
    while True:
        word = read().strip().lower()
        if word in ("q", "quit"):
            raise Quit
        if word == "hint":
            print(thoughts(think()))
        elif word == "undo" and len(moves) >= 2:
            return -1
        elif word.isdecimal() and 1 <= int(word) <= game.actions and legal[int(word) - 1]:
            return int(word) - 1
        else:
            allowed = ", ".join(str(action + 1) for action in np.flatnonzero(legal))
            print(f"{word or 'nothing'!r} is no move here; allowed: {allowed}, hint, undo, quit")


def play(
    network: Network, game: LineGame, config: Config, simulations: int, person: int, read: Callable[[], str]
) -> str:
    """One game; returns how it ended. person: 1 if the person begins, -1 if not."""
    moves: list[int] = []

    def think() -> Result:
        stones, turn = game.position(moves)
        return search_position(network, game, config, simulations, stones, turn)

    while (end := end_of(game, moves, person)) is None:
        if (len(moves) % 2 == 0) == (person == 1):
            print(picture(game, moves))
            action = ask(game, moves, person, read, think)
            moves = moves[:-2] if action < 0 else [*moves, action]
        else:
            found = think()
            moves = [*moves, int(found.action[0])]
            print(f"agent: {moves[-1] + 1}  ({thoughts(found)})")
    print(picture(game, moves))
    return end


def typed() -> str:
    """A line from the terminal; its end is the end of the game."""
    print("your move: ", end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise Quit
    return line


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m muzero.play", description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="run folder of a trained agent")
    parser.add_argument("--simulations", type=int, metavar="N", help="of each move (default as in training)")
    parser.add_argument("--second", action="store_true", help="let the agent begin")
    options = parser.parse_args(argv)
    if options.simulations is not None and options.simulations < 1:
        user_error("--simulations must be at least 1")
    info = Run.load("muzero", options.run)
    config = run_config(Config, info)
    if config.task not in GAMES:
        user_error(f"{options.run} is an agent of {config.task}; one can play {', '.join(GAMES)}")
    network, _ = load_network(info, config, usable_device("cpu"))
    torch.set_num_threads(1)
    person = -1 if options.second else 1
    try:
        print(play(network, GAMES[config.task], config, options.simulations or config.simulations, person, typed))
    except Quit:
        print("good bye")


if __name__ == "__main__":
    program(main)
