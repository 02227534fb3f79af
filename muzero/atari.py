"""Games of the Arcade Learning Environment, by the paper's protocol and by that of Atari 100k.

W worlds. A frame is [3, 96, 96] uint8 RGB; 32 of them, or 4 in Atari 100k, are seen at once with the actions between.
Source: paper, Appendix E; EfficientZero, Appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed
from muzero.env import NO_ACTION, Space, Step, WorldError, padded

Array = NDArray[Any]
SIZE = 96
REPEAT = 4  # raw frames per action; the last two are pooled by their maximum
NOOPS = 30  # an episode begins with 1 to so many
FRAME_LIMIT = 108_000  # half an hour of play


@dataclass(frozen=True)
class AtariRules:
    """Frames seen at once; whether the agent has all 18 actions; in training alone: rewards of -1, 0, 1, and episodes
    that end with a life."""

    history: int
    has_all_actions: bool
    clips_rewards: bool
    ends_with_life: bool


RULES = {
    "atari": AtariRules(32, has_all_actions=True, clips_rewards=False, ends_with_life=False),
    "atari100k": AtariRules(4, has_all_actions=False, clips_rewards=True, ends_with_life=True),
}


class AtariWorlds:
    """Games side by side. The frame limit cuts an episode, a lost last life ends it.

    In training under Atari 100k a lost life ends an episode of the agent while the game goes on.
    """

    def __init__(self, task: str, lanes: Sequence[int], seed: int, purpose: str) -> None:
        try:
            import ale_py
        except ImportError:
            raise WorldError("Atari needs ale-py: pip install ale-py") from None
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        gymnasium.register_envs(ale_py)
        benchmark, _, game = task.partition("_")
        self.rules, self.is_test = RULES[benchmark], purpose == "test"
        name = "".join(word.capitalize() for word in game.split("_"))
        self.envs = [
            gymnasium.make(
                f"ALE/{name}-v5",
                frameskip=1,
                repeat_action_probability=0.0,
                full_action_space=self.rules.has_all_actions,
                disable_env_checker=True,
            )
            for _ in lanes
        ]
        self.count, self.lanes, self.seed, self.purpose = len(self.envs), list(lanes), seed, purpose
        actions = int(self.envs[0].action_space.n)  # type: ignore[attr-defined]
        self.space = Space((3, SIZE, SIZE), "uint8", self.rules.history, actions, 1, "tiled")
        self.is_over = np.zeros(self.count, np.bool_)
        self.frames = np.zeros((self.count, 3, SIZE, SIZE), np.uint8)
        self.episodes, self.played = np.full(self.count, -1), np.zeros(self.count, np.int64)
        self.lives = np.zeros(self.count, np.int64)
        # Actions since the game began, over all lives: a world is brought back by them.
        self.history: list[list[int]] = [[] for _ in lanes]
        for lane in range(self.count):
            self._reset(lane)

    def observe(self) -> Array:
        return self.frames.copy()

    def legal(self) -> Array:
        return np.ones((self.count, self.space.actions), np.bool_)

    def step(self, action: Array) -> Step:
        reward = np.zeros(self.count, np.float32)
        ends = np.zeros((2, self.count), np.bool_)
        for lane in range(self.count):
            if self.is_over[lane]:
                self._reset(lane)
                continue
            gain, terminated, is_cut, lost_life = self._act(lane, int(action[lane]))
            is_trained = not self.is_test
            reward[lane] = np.sign(gain) if is_trained and self.rules.clips_rewards else gain
            ends[0, lane] = terminated or (is_trained and self.rules.ends_with_life and lost_life)
            ends[1, lane] = is_cut and not ends[0, lane]
            if terminated:
                self._reset(lane)
            self.is_over[lane] = ends[1, lane]
        return Step(reward, ends[0], ends[1])

    def state(self) -> dict[str, Array]:
        return {"episodes": self.episodes, "is_over": self.is_over, "actions": padded(self.history)}

    def restore(self, state: Mapping[str, Array]) -> None:
        for lane in range(self.count):
            self.episodes[lane] = int(state["episodes"][lane]) - 1
            self._reset(lane)
            for action in state["actions"][lane]:
                if action != NO_ACTION:
                    self._act(lane, int(action))
        self.is_over[:] = state["is_over"]

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _act(self, lane: int, action: int) -> tuple[float, bool, bool, bool]:
        """Reward, end by the rules, end by the limit, and whether a life was lost."""
        env, total, terminated = self.envs[lane], 0.0, False
        screens: list[Array] = []
        self.history[lane].append(action)
        for _ in range(REPEAT):
            screen, gain, terminated, _, info = env.step(action)
            screens = [*screens[-1:], screen]
            total += float(gain)
            self.played[lane] += 1
            if terminated or self.played[lane] >= FRAME_LIMIT:
                break
        self.frames[lane] = _resized(np.maximum(screens[0], screens[-1]))
        lost, self.lives[lane] = int(info["lives"]) < self.lives[lane], int(info["lives"])
        return total, bool(terminated), bool(self.played[lane] >= FRAME_LIMIT), lost

    def _reset(self, lane: int) -> None:
        self.episodes[lane] += 1
        seed = derive_seed(self.seed, self.purpose, self.lanes[lane], int(self.episodes[lane])) % 2**31
        screen, info = self.envs[lane].reset(seed=seed)
        noops = int(np.random.default_rng(seed).integers(1, NOOPS + 1))
        for _ in range(noops):
            screen, _, terminated, _, info = self.envs[lane].step(0)
            if terminated:
                screen, info = self.envs[lane].reset()
        self.frames[lane], self.is_over[lane], self.played[lane] = _resized(screen), False, noops
        self.lives[lane], self.history[lane] = int(info["lives"]), []


def _resized(screen: Array) -> Array:
    """[210, 160, 3] -> [3, 96, 96], each pixel the mean of those it covers."""
    return np.moveaxis(cv2.resize(screen, (SIZE, SIZE), interpolation=cv2.INTER_AREA), -1, 0)
