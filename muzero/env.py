"""Many worlds side by side behind one interface: boards as arrays, any gymnasium environment.

W worlds, A actions. An episode that ends by its rules starts again at once. One that is cut by a time limit still shows
its last observation (`is_over`), whose value the targets need; the step after it begins the next episode, whatever the
action.
Source: paper, Appendices E and F; time limits: Deviation D3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed
from muzero.boards import GAMES, LineGame
from muzero.config import Config

if TYPE_CHECKING:
    import gymnasium

Array = NDArray[Any]
NO_ACTION = -1


class WorldError(Exception):
    """A world that is missing or does not fit; the message is one line for the user."""


@dataclass(frozen=True)
class Step:
    """reward [W] float32, from the view of whoever moved; terminated and truncated [W] bool."""

    reward: Array
    terminated: Array
    truncated: Array


@dataclass(frozen=True)
class Space:
    """What a network must know of a world: shape of one frame and its dtype, frames seen at once, actions, players, and
    the encoding of an action for the dynamics."""

    frame_shape: tuple[int, ...]
    dtype: str
    history: int
    actions: int
    players: int
    encoding: str

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Of what h is given: the frame, or `history` frames and as many planes with the actions between them."""
        if self.history == 1:
            return self.frame_shape
        channels, rows, columns = self.frame_shape
        return self.history * (channels + 1), rows, columns


class Worlds(Protocol):
    """W worlds; `lanes` are their numbers among all processes."""

    space: Space
    count: int
    is_over: Array

    def observe(self) -> Array:
        """The newest frames [W, *frame_shape]."""
        ...

    def legal(self) -> Array:
        """[W, A] bool."""
        ...

    def step(self, action: Array) -> Step:
        """One action [W] in every world."""
        ...

    def state(self) -> dict[str, Array]:
        """What `restore` needs; arrays [W, ...], of actions `padded`."""
        ...

    def restore(self, state: Mapping[str, Array]) -> None:
        """Back into the middle of every episode."""
        ...

    def close(self) -> None: ...


def padded(episodes: Sequence[Sequence[int]]) -> Array:
    """[W, longest] int64: the actions of each episode, and NO_ACTION behind them."""
    found = np.full((len(episodes), max(map(len, episodes), default=0)), NO_ACTION, np.int64)
    for row, actions in zip(found, episodes, strict=True):
        row[: len(actions)] = actions
    return found


class BoardWorlds:
    """Boards of one game; both players move in turn."""

    def __init__(self, game: LineGame, count: int) -> None:
        self.game, self.count = game, count
        self.space = Space(game.obs_shape, "float32", 1, game.actions, 2, game.encoding)
        self.is_over = np.zeros(count, np.bool_)
        self.stones, self.turn = game.start(count)

    def observe(self) -> Array:
        return self.game.observe(self.stones, self.turn)

    def legal(self) -> Array:
        return self.game.legal(self.stones)

    def step(self, action: Array) -> Step:
        self.stones = self.game.place(self.stones, self.turn, action)
        won = self.game.has_line(self.stones, self.turn)
        terminated = won | self.game.is_full(self.stones)
        self.turn = -self.turn
        self.stones[terminated], self.turn[terminated] = 0, 1
        return Step(won.astype(np.float32), terminated, np.zeros(self.count, np.bool_))

    def state(self) -> dict[str, Array]:
        return {"stones": self.stones, "turn": self.turn}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.stones, self.turn = state["stones"].copy(), state["turn"].copy()

    def close(self) -> None:
        pass


class GymWorlds:
    """Environments of gymnasium with vectors and discrete actions.

    Every episode has a seed of its own, (seed, lane, number), so that a world is brought back by its actions.
    """

    def __init__(self, gym_id: str, lanes: Sequence[int], seed: int, purpose: str) -> None:
        gymnasium = _gymnasium(gym_id)
        self.envs = [_make(gym_id) for _ in lanes]
        self.count, self.lanes, self.seed, self.purpose = len(self.envs), list(lanes), seed, purpose
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(space, gymnasium.spaces.Box) or not isinstance(actions, gymnasium.spaces.Discrete):
            raise WorldError(f"{gym_id}: needs an observation of numbers and discrete actions")
        if actions.start != 0:
            raise WorldError(f"{gym_id}: actions must be numbered from 0")
        size = int(np.prod(space.shape))
        self.space = Space((size,), "float32", 1, int(actions.n), 1, "tiled")
        self.is_over = np.zeros(self.count, np.bool_)
        self.frames = np.zeros((self.count, size), np.float32)
        self.episodes = [-1] * self.count
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
        for lane, env in enumerate(self.envs):
            if self.is_over[lane]:
                self._reset(lane)
                continue
            self.history[lane].append(int(action[lane]))
            frame, gain, terminated, truncated, _ = env.step(int(action[lane]))
            self.frames[lane], reward[lane] = np.ravel(frame), gain
            ends[:, lane] = terminated, truncated and not terminated
            if terminated:
                self._reset(lane)
            self.is_over[lane] = ends[1, lane]
        return Step(reward, ends[0], ends[1])

    def state(self) -> dict[str, Array]:
        return {"episodes": np.array(self.episodes), "is_over": self.is_over, "actions": padded(self.history)}

    def restore(self, state: Mapping[str, Array]) -> None:
        for lane, env in enumerate(self.envs):
            self.episodes[lane] = int(state["episodes"][lane]) - 1
            self._reset(lane)
            actions = state["actions"][lane]
            self.history[lane] = actions[actions != NO_ACTION].tolist()
            for action in self.history[lane]:
                self.frames[lane] = np.ravel(env.step(action)[0])
        self.is_over[:] = state["is_over"]

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _reset(self, lane: int) -> None:
        self.episodes[lane] += 1
        seed = derive_seed(self.seed, self.purpose, self.lanes[lane], self.episodes[lane]) % 2**31
        frame, _ = self.envs[lane].reset(seed=seed)
        self.frames[lane], self.is_over[lane], self.history[lane] = np.ravel(frame), False, []


def _gymnasium(gym_id: str) -> Any:
    """The library, imported where a world is made of it: boards need none."""
    try:
        import gymnasium
    except ImportError:
        raise WorldError(f"{gym_id} needs gymnasium: pip install gymnasium") from None
    return gymnasium


def _make(gym_id: str) -> gymnasium.Env[Any, Any]:
    gymnasium = _gymnasium(gym_id)
    try:
        return gymnasium.make(gym_id)
    except (gymnasium.error.Error, ImportError, ModuleNotFoundError) as error:
        raise WorldError(f"{gym_id}: {' '.join(str(error).split())}") from None


GYM_IDS = {"cartpole": "CartPole-v1", "lunarlander": "LunarLander-v3"}


def make_worlds(config: Config, lanes: Sequence[int], purpose: str = "train") -> Worlds:
    """The worlds of a task. purpose: "train" or "test", which have seeds of their own. Raises WorldError."""
    if config.task in GAMES:
        return BoardWorlds(GAMES[config.task], len(lanes))
    if config.task in GYM_IDS or config.task == "gym":
        return GymWorlds(GYM_IDS.get(config.task, config.gym_id), lanes, config.seed, purpose)
    if config.task.startswith("atari"):
        from muzero.atari import AtariWorlds  # here, since its library is needed for it alone

        return AtariWorlds(config.task, lanes, config.seed, purpose)
    from muzero.spiel import SpielWorlds

    return SpielWorlds(config.task, len(lanes))


def space_of(config: Config) -> Space:
    """The space of a task. Raises WorldError."""
    worlds = make_worlds(config, [0])
    worlds.close()
    return worlds.space


def stacked(frames: Array, actions: Array, space: Space) -> Array:
    """What h is given, float32 [B, *obs_shape].

    frames [B, history, *frame_shape], the newest last, zeros before an episode began; actions [B, history], the one
    before each frame (-1: none). Images of uint8 become [0, 1]; an action is a constant plane a / A.
    Source: paper, Appendix E (Atari: 32 frames and 32 actions).
    """
    found = frames.astype(np.float32)
    if space.dtype == "uint8":
        found /= 255
    if space.history == 1:
        return found[:, 0]
    batch, history, channels, rows, columns = frames.shape
    planes = np.where(actions >= 0, actions / space.actions, 0).astype(np.float32)
    planes = np.broadcast_to(planes[:, :, None, None], (batch, history, rows, columns))
    return np.concatenate([found.reshape(batch, history * channels, rows, columns), planes], 1)


class View:
    """What an agent sees of worlds that it plays without a replay: the last frames and actions of every world."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds, space = worlds, worlds.space
        self.frames = np.zeros((worlds.count, space.history, *space.frame_shape), space.dtype)
        self.actions = np.full((worlds.count, space.history), -1, np.int64)

    def observe(self) -> Array:
        """What h is given, [W, *obs_shape]; to be asked once a step."""
        self.frames = np.concatenate([self.frames[:, 1:], self.worlds.observe()[:, None]], 1)
        return stacked(self.frames, self.actions, self.worlds.space)

    def after(self, action: Array, step: Step) -> None:
        """Remember the actions; forget episodes that have ended."""
        self.actions = np.concatenate([self.actions[:, 1:], action[:, None]], 1)
        ended = step.terminated | step.truncated
        self.frames[ended], self.actions[ended] = 0, -1
