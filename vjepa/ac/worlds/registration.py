"""The worlds as gymnasium environments, one episode each: importing this module registers them.

import gymnasium, vjepa.ac.worlds.registration
env = gymnasium.make("vjepa/TwoRooms-v0")
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.ac.worlds.catalogue import WORLDS, new_world

MOST_STEPS = 200
MOST_ACTION = 2.45  # of each axis, in Two Rooms


class PlanningWorld(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """One episode of a world. Observation: a picture [C, H, W]; `info` has state, goal, layout and the goal's picture.

    The reward is 1 on the step that reaches the goal, else 0; the episode then ends.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        self.world, self.render_mode = new_world(task), render_mode
        most = MOST_ACTION if self.world.picture_shape[0] == 2 else 1.8 if task == "wall" else 1.0
        self.action_space = gymnasium.spaces.Box(-most, most, (self.world.action_size,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, self.world.picture_shape, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new episode, always the same one for a seed."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**62)) if seed is None else seed
        self.generator = torch.Generator().manual_seed(drawn)
        self.state, self.goal, self.layout = (part[None] for part in self.world.episode(drawn))
        return self._obs(self.state), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """action [A], as given: no world is left by a large one."""
        noise = torch.randn(1, 2, generator=self.generator)
        given = torch.as_tensor(np.asarray(action, np.float32))[None]
        self.state = self.world.step(self.state, given, self.layout, noise)
        is_reached = bool(self.world.distance(self.state, self.goal) < self.world.radius)
        return self._obs(self.state), float(is_reached), is_reached, False, self._info()

    def render(self) -> NDArray[np.uint8]:
        """The picture as [H, W, 3]."""
        picture = self._obs(self.state).transpose(1, 2, 0)
        if picture.shape[2] == 3:
            return picture
        return np.concatenate([picture, np.zeros_like(picture[..., :1])], 2)

    def _obs(self, state: torch.Tensor) -> NDArray[np.uint8]:
        return self.world.render(state, self.layout)[0].numpy()

    def _info(self) -> dict[str, Any]:
        state, goal, layout = (part[0].numpy().copy() for part in (self.state, self.goal, self.layout))
        return {"state": state, "goal": goal, "layout": layout, "goal_obs": self._obs(self.goal)}


NAMES = {
    "two-rooms": "TwoRooms",
    "two-rooms-random": "TwoRoomsRandom",
    "wall": "Wall",
    "tworoom-swm": "TwoRoomSWM",
    "pointmaze": "PointMaze2D",
}

PLACE = f"{__name__}:{PlanningWorld.__name__}"
for _task in WORLDS:
    if f"vjepa/{NAMES[_task]}-v0" not in gymnasium.registry:
        gymnasium.register(f"vjepa/{NAMES[_task]}-v0", PLACE, max_episode_steps=MOST_STEPS, kwargs={"task": _task})
