"""Play in the real game: one that fills the replay, and several at once for the control that imagines nothing.

Source: paper, Algorithm 1; reference code: collector.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.seeding import derive_seed
from diamond.actor_critic import ActorCritic, Outcome, State
from diamond.config import Config
from diamond.data import load
from diamond.env import Frame, new_game
from diamond.frames import to_float
from diamond.imagination import pick
from diamond.replay import Replay, Step


def as_obs(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Frames of N games as [N, 3, H, W] in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack(frames)).to(device))


class Player:
    """Plays game after game for the replay: a lost life ends an episode, not the game.

    `games` were begun, the present one at row `first` of the replay; it is brought back by its actions.
    """

    def __init__(self, policy: ActorCritic, config: Config, device: torch.device) -> None:
        self.policy, self.config, self.device = policy, config, device
        self.game = new_game(config)
        self.games, self.first, self.score = 0, 0, 0.0
        self.finished: list[float] = []
        self.state: State = policy.initial_state(1)
        self.frame: Frame | None = None

    def _begin(self, row: int) -> Frame:
        self.games, self.first, self.score = self.games + 1, row, 0.0
        return self.game.reset(derive_seed(self.config.seed, "game", self.games - 1) % 2**31)

    @torch.no_grad()
    def collect(self, steps: int, row: int) -> list[Step]:
        """Play `steps` decisions, the first of them row number `row` of the replay; scores of games go to `finished`.

        Actions are drawn from the policy, a share epsilon of them uniformly.
        """
        config, found = self.config, []
        for number in range(row, row + steps):
            if self.frame is None:
                self.frame = self._begin(number)
            logits, _, self.state = self.policy(as_obs([self.frame], self.device), self.state)
            rng = np.random.default_rng(derive_seed(config.seed, "act", number))
            uniform, lottery, other = rng.random(), rng.random(), int(rng.integers(self.game.actions))
            drawn = pick(logits / config.collect_temperature, torch.tensor([uniform], device=self.device))
            action = other if lottery < config.epsilon else int(drawn)
            answer = self.game.step(action)
            self.score += answer.reward
            end = answer.is_over or answer.lost_life
            is_last = end or answer.is_cut
            final = answer.frame if is_last else None
            trunc = answer.is_cut and not end
            found.append(Step(self.frame, action, answer.reward, end, trunc, final))
            self.frame = answer.frame
            if is_last:
                self.state = self.policy.initial_state(1)
            if answer.is_over or answer.is_cut:
                self.finished.append(self.score)
                self.frame = None
        return found

    def restore(self, replay: Replay, games: int, first: int, state: State) -> None:
        """Go on where a checkpoint stood, in the middle of a game."""
        self.games, self.state = games, state
        if games == 0:
            return
        self.games -= 1
        self.frame = self._begin(first)
        for row in range(first, replay.count):
            answer = self.game.step(int(replay.facts["action"][row]))
            self.score += answer.reward
            self.frame = None if answer.is_over or answer.is_cut else answer.frame


class Reader(Player):
    """In place of a player: the recorded videos to train on, one after the other, each an episode that is cut."""

    def __init__(self, policy: ActorCritic, config: Config, device: torch.device) -> None:
        super().__init__(policy, config, device)
        self.recordings = load(config.data, config.history)
        steps = [count - 1 for count in self.recordings.counts[: -self.recordings.tested]]
        self.starts = np.concatenate([[0], np.cumsum(steps)])

    def collect(self, steps: int, row: int) -> list[Step]:
        """The steps from number `row` on; nothing is drawn."""
        found = []
        for number in range(row, row + steps):
            video = int(np.searchsorted(self.starts, number, side="right")) - 1
            t = number - int(self.starts[video])
            frames, action = self.recordings.frames(video), self.recordings.action[video]
            is_last = t == len(action) - 1
            found.append(Step(frames[t], int(action[t]), 0.0, False, is_last, frames[t + 1] if is_last else None))
        return found

    def restore(self, replay: Replay, games: int, first: int, state: State) -> None:
        """The replay says how far it has come."""


class RealSteps:
    """`Steps` in several real games, for a policy trained by the same loss without a world model.

    Each game is brought back by its number and its actions, in `histories`.
    """

    def __init__(self, config: Config, share: slice, device: torch.device) -> None:
        self.config, self.device = config, device
        self.places = range(config.batch_size)[share]
        self.games = [new_game(config) for _ in self.places]
        self.numbers = [0] * len(self.games)
        self.histories: list[list[int]] = [[] for _ in self.games]
        self.frames = [self._begin(k) for k in range(len(self.games))]

    @property
    def obs(self) -> Tensor:
        """The newest frames [N, 3, H, W]."""
        return as_obs(self.frames, self.device)

    def _begin(self, k: int) -> Frame:
        seed = derive_seed(self.config.seed, "real", self.places[k], self.numbers[k])
        return self.games[k].reset(seed % 2**31)

    def step(self, action: Tensor) -> Outcome:
        """One step of all games. There is no burn-in: a new episode has no frames before its first."""
        rewards: list[float] = []
        ends: list[float] = []
        truncs: list[float] = []
        finals: dict[int, Frame] = {}
        for k, choice in enumerate(action.tolist()):
            answer = self.games[k].step(choice)
            self.histories[k].append(choice)
            self.frames[k] = answer.frame
            end = answer.is_over or answer.lost_life
            if end or answer.is_cut:
                finals[k] = answer.frame
            if answer.is_over or answer.is_cut:
                self.numbers[k] += 1
                self.histories[k] = []
                self.frames[k] = self._begin(k)
            for values, value in ((rewards, answer.reward), (ends, end), (truncs, answer.is_cut and not end)):
                values.append(float(value))
        reward, end_, trunc = (torch.tensor(values, device=self.device) for values in (rewards, ends, truncs))
        dead = torch.tensor(sorted(finals), dtype=torch.int64, device=self.device)
        final = as_obs([finals[k] for k in sorted(finals)], self.device) if finals else self.obs[:0]
        return Outcome(self.obs, reward, end_, trunc, dead, final, final[:, None][:, :0])

    def restore(self, numbers: Sequence[int], histories: Sequence[Sequence[int]]) -> None:
        """Bring every game back."""
        self.numbers, self.histories = list(numbers), [list(history) for history in histories]
        for k, history in enumerate(self.histories):
            self.frames[k] = self._begin(k)
            for action in history:
                self.frames[k] = self.games[k].step(action).frame
