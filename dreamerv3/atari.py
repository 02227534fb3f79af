"""Games of the Arcade Learning Environment, as each benchmark and edition prepares them.

Source: reference code, envs/atari.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamerv3.interface import Array, Step, need, resized
from dreamerv3.spaces import ActionSpace, ObsSpace


@dataclass(frozen=True)
class AtariRules:
    """How a game is prepared: image size, gray or RGB, probability of a repeated action, all 18 actions, no-ops."""

    size: int
    is_gray: bool
    sticky: float
    has_all_actions: bool
    noops: int


ATARI_RULES = {
    ("arxiv_v2", "atari100k"): AtariRules(64, True, 0.25, True, 0),
    ("arxiv_v2", "atari57"): AtariRules(96, True, 0.25, True, 0),
    ("nature", "atari100k"): AtariRules(64, False, 0.0, False, 30),
    ("nature", "atari57"): AtariRules(96, True, 0.25, True, 30),
}
ATARI_FRAMES = 108_000  # limit of an episode
POOLED = 2
GRAY = np.array([0.299, 0.587, 1 - (0.299 + 0.587)])  # so summed, gray levels stay; with 0.114 many drop by one


def gray(image: Array) -> Array:
    """[..., 3] uint8 -> [..., 1] uint8, rounded down. Source: reference code, atari.py."""
    return (image * GRAY).sum(-1).astype(np.uint8)[..., None]


def register_games() -> Any:
    """gymnasium, once it knows the games of ale_py; both are imported here, for whoever plays."""
    gymnasium = need("gymnasium", "gymnasium")
    ale = need("ale_py", "ale-py")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    gymnasium.register_envs(ale)
    return gymnasium


class Atari:
    """A game of the Arcade Learning Environment: maximum of two raw frames, raw scores, no frame stack.

    The frames are the last two of an action's repeats. A game that ends before them shows what was seen before, the end
    by the frame limit counts as terminal, and lost lives are not used: reference code.
    """

    def __init__(self, game: str, repeat: int, rules: AtariRules) -> None:
        gymnasium = register_games()
        name = "".join(word.capitalize() for word in game.split("_"))
        self._env = gymnasium.make(
            f"ALE/{name}-v5",
            frameskip=1,
            repeat_action_probability=rules.sticky,
            full_action_space=rules.has_all_actions,
            disable_env_checker=True,
        )
        self._repeat, self._rules = repeat, rules
        names = tuple(self._env.unwrapped.get_action_meanings())
        self.actions = ActionSpace(int(self._env.action_space.n), is_discrete=True, names=names)
        self.spaces = {"image": ObsSpace("image", (rules.size, rules.size, 1 if rules.is_gray else 3))}

    def reset(self, seed: int) -> Step:
        frame, _ = self._env.reset(seed=seed)
        for _ in range(np.random.default_rng(seed).integers(self._rules.noops + 1)):
            frame, _, terminated, truncated, _ = self._env.step(0)
            if terminated or truncated:
                frame, _ = self._env.reset()
        # Deviation D6: the reference code of 2024 shows the last frame of the game before.
        self._frames, self._count = [frame, frame], 0
        return Step(self._observe())

    def step(self, action: Array) -> Step:
        reward, is_last = 0.0, False
        for number in range(self._repeat):
            frame, gain, terminated, truncated, _ = self._env.step(int(action))
            if number >= self._repeat - POOLED:
                self._frames = [self._frames[1], frame]
            self._count += 1
            reward += float(gain)
            is_last = bool(terminated or truncated or self._count >= ATARI_FRAMES)
            if is_last:
                break
        return Step(self._observe(), reward, is_last, is_last)

    def close(self) -> None:
        self._env.close()

    def _observe(self) -> dict[str, Array]:
        image = resized(np.maximum(*self._frames), self._rules.size)
        return {"image": gray(image) if self._rules.is_gray else image}
