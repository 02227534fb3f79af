"""Boards of OpenSpiel: Go on 9 x 9 and chess, one object a world; for games whose rules are not worth writing again.

W worlds, A actions. Observations are OpenSpiel's planes, turned to the player to move.
Deviation D6: Go has the last position alone (paper: eight), and chess OpenSpiel's planes and 4,674 actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muzero.env import NO_ACTION, Space, Step, WorldError, padded

Array = NDArray[Any]
NAMES = {"go9": "go(board_size=9,komi=7.5)", "chess": "chess"}
ENCODINGS = {"go9": "point", "chess": "move"}
MAX_MOVES = {"go9": 162, "chess": 512}  # twice the points, as the paper's 722 for 19 x 19; chess as the paper


class SpielWorlds:
    """Games of OpenSpiel for two players who move in turn. A game that reaches its longest length is a draw."""

    def __init__(self, task: str, count: int) -> None:
        try:
            import pyspiel
        except ImportError:
            raise WorldError(f"{task} needs OpenSpiel: pip install open_spiel") from None
        self.game, self.longest, self.count = pyspiel.load_game(NAMES[task]), MAX_MOVES[task], count
        shape = tuple(self.game.observation_tensor_shape())
        actions = self.game.num_distinct_actions()
        self.space = Space(shape, "float32", 1, actions, 2, ENCODINGS[task])
        self.is_over = np.zeros(count, np.bool_)
        self.states = [self.game.new_initial_state() for _ in range(count)]

    def observe(self) -> Array:
        planes = [np.array(state.observation_tensor(state.current_player()), np.float32) for state in self.states]
        return np.stack(planes).reshape(self.count, *self.space.frame_shape)

    def legal(self) -> Array:
        return np.array([state.legal_actions_mask() for state in self.states], np.bool_)

    def step(self, action: Array) -> Step:
        reward, ends = np.zeros(self.count, np.float32), np.zeros(self.count, np.bool_)
        for world, state in enumerate(self.states):
            mover = state.current_player()
            if action[world] not in state.legal_actions():
                raise ValueError(f"illegal move in {self.game.get_type().short_name}")
            state.apply_action(int(action[world]))
            ends[world] = state.is_terminal() or state.move_number() >= self.longest
            if state.is_terminal():
                reward[world] = state.returns()[mover]
            if ends[world]:
                self.states[world] = self.game.new_initial_state()
        return Step(reward, ends, np.zeros(self.count, np.bool_))

    def state(self) -> dict[str, Array]:
        return {"actions": padded([state.history() for state in self.states])}

    def restore(self, state: Mapping[str, Array]) -> None:
        for world, past in enumerate(state["actions"]):
            self.states[world] = self.game.new_initial_state()
            for action in past[past != NO_ACTION].tolist():
                self.states[world].apply_action(action)

    def close(self) -> None:
        pass
