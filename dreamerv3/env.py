"""The worlds by name, several side by side; Crafter and any gymnasium environment.

Every episode has a seed of its own, so that a world is brought back to the middle of an episode by its actions.
Shapes: W worlds; the rest as in `interface.py`.
Source: reference code, envs/crafter.py; which rules hold in which edition: README.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from common.seeding import derive_seed
from dreamerv3.atari import ATARI_RULES, Atari, register_games
from dreamerv3.config import Config
from dreamerv3.control import Control
from dreamerv3.interface import IMAGE_SIZE, Array, Step, World, WorldError, need, rescale, resized
from dreamerv3.spaces import ActionSpace, ObsSpace

T = TypeVar("T")
UNFIT = (TypeError, ValueError, AssertionError, AttributeError, KeyError)  # what arguments that do not fit end in


class _Ordered(dict[Any, None]):
    """A set that hands its members out in the order in which they came."""

    def add(self, member: Any) -> None:
        self[member] = None

    def remove(self, member: Any) -> None:
        del self[member]


class Crafter:
    """Crafter with its reward: RGB, 17 actions, at most 10,000 steps. `info` has the achievements unlocked."""

    def __init__(self, repeat: int, size: int = IMAGE_SIZE) -> None:
        self._crafter, self._repeat, self._size = need("crafter", "crafter"), repeat, size
        names = tuple(need("crafter.constants", "crafter").actions)
        self.actions = ActionSpace(len(names), is_discrete=True, names=names)
        self.spaces = {"image": ObsSpace("image", (size, size, 3))}

    def reset(self, seed: int) -> Step:
        self._env = self._crafter.Env(size=(self._size, self._size), reward=True, seed=seed)
        first, world = self._env.reset(), self._env._world
        # Deviation D10: which of several creatures vanishes hangs on the order of the sets that Crafter keeps them in,
        # and that on addresses in memory.
        place = {creature: k for k, creature in enumerate(world.objects)}
        chunks = {area: _Ordered.fromkeys(sorted(found, key=place.__getitem__)) for area, found in world.chunks.items()}
        world._chunks = defaultdict(_Ordered, chunks)
        return Step({"image": first})

    def step(self, action: Array) -> Step:
        total, is_last = 0.0, False
        for _ in range(self._repeat):
            image, reward, is_last, info = self._env.step(int(action))
            total += float(reward)
            if is_last:
                break
        unlocked = {f"achievement {k}": float(count > 0) for k, count in info["achievements"].items()}
        return Step({"image": image}, total, is_last, info["discount"] == 0, unlocked if is_last else None)

    def close(self) -> None:
        self._env = None


class Gym:
    """Any gymnasium environment with images, vectors, integers or a dictionary of them, and one kind of action.

    size: rows and columns that its images are brought to. arguments: of the environment, see `gym_arguments`.
    """

    def __init__(self, gym_id: str, repeat: int, size: int = IMAGE_SIZE, arguments: str | None = None) -> None:
        gymnasium = need("gymnasium", "gymnasium")
        if gym_id not in gymnasium.registry and importlib.util.find_spec("ale_py"):
            register_games()
        try:
            self._env = gymnasium.make(gym_id, disable_env_checker=True, **gym_arguments(arguments))
        except (gymnasium.error.Error, ImportError, *UNFIT) as error:
            raise WorldError(f"gymnasium cannot make {gym_id!r}: {' '.join(str(error).split())}") from error
        self._repeat = repeat
        space, action = self._env.observation_space, self._env.action_space
        self._is_dict = isinstance(space, gymnasium.spaces.Dict)
        self._parts = dict(space.spaces) if self._is_dict else {"obs": space}
        self.spaces = {name: _obs_space(gym_id, name, part, size) for name, part in self._parts.items()}
        if isinstance(action, gymnasium.spaces.Discrete):
            names: tuple[str, ...] = tuple(getattr(self._env.unwrapped, "get_action_meanings", tuple)())
            self.actions = ActionSpace(int(action.n), is_discrete=True, names=names)
            self._to_env: Callable[[Array], Any] = lambda a: int(a) + int(action.start)
        elif isinstance(action, gymnasium.spaces.Box) and action.is_bounded():
            self.actions = ActionSpace(int(np.prod(action.shape)), is_discrete=False)
            shape, dtype = action.shape, action.dtype
            self._to_env = lambda a: rescale(a.reshape(shape), action.low, action.high).astype(dtype)
        else:
            raise WorldError(f"{gym_id}: actions are {action}; supported: Discrete, bounded Box")

    def reset(self, seed: int) -> Step:
        return Step(self._observe(self._env.reset(seed=seed)[0]))

    def step(self, action: Array) -> Step:
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._repeat):
            found, reward, terminated, truncated, _ = self._env.step(self._to_env(action))
            total += float(reward)
            if terminated or truncated:
                break
        return Step(self._observe(found), total, bool(terminated or truncated), bool(terminated))

    def close(self) -> None:
        self._env.close()

    def _observe(self, found: Any) -> dict[str, Array]:
        values = found if self._is_dict else {"obs": found}
        return {name: _obs_value(space, self._parts[name], values[name]) for name, space in self.spaces.items()}


def gym_arguments(words: str | None) -> dict[str, Any]:
    """ "key=value,key=value" as keyword arguments: numbers, true, false and none, all else as text.

    Raises ValueError for what has another form.
    """
    found: dict[str, Any] = {}
    for word in (words or "").split(","):
        key, equals, text = (part.strip() for part in word.partition("="))
        if word.strip() and not (equals and key.isidentifier()):
            raise ValueError(f"gym_args takes key=value with commas between, not {word!r}")
        if not word.strip():
            continue
        try:
            found[key] = json.loads(text.lower().replace("none", "null"))
        except ValueError:
            found[key] = text
    return found


def _obs_space(gym_id: str, name: str, part: Any, size: int) -> ObsSpace:
    spaces = need("gymnasium.spaces", "gymnasium")
    if isinstance(part, spaces.Box) and part.dtype == np.uint8 and len(part.shape) in (2, 3):
        if len(part.shape) == 3 and part.shape[0] < min(part.shape[1:]):
            raise WorldError(f"{gym_id}: observation {name!r} is an image {part.shape}; its channels must come last")
        return ObsSpace("image", (size, size, part.shape[2] if len(part.shape) == 3 else 1))
    if isinstance(part, spaces.Discrete):
        return ObsSpace("discrete", (), int(part.n))
    if isinstance(part, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) and part.shape is not None:
        return ObsSpace("float", tuple(part.shape) or (1,))
    raise WorldError(f"{gym_id}: observation {name!r} is {part}; supported: images, numbers, integers")


def _obs_value(space: ObsSpace, part: Any, value: Any) -> Array:
    """Images are resized to those of the space, integers start at 0."""
    array = np.asarray(value)
    if space.kind == "image":
        if array.shape[:2] != space.shape[:2]:
            # One channel at a time: Pillow would take the last of two or four for transparency.
            channels = np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0)
            array = np.stack([resized(channel, space.shape[0]) for channel in channels], -1)
        return array.reshape(space.shape)
    if space.kind == "discrete":
        return array.astype(np.int32) - int(part.start)
    return array.astype(np.float32).reshape(space.shape)


def make_world(config: Config) -> World:
    """The world of a config. Raises WorldError, in one line, if this machine cannot make it."""
    benchmark, repeat, size = config.benchmark, config.plan.action_repeat, config.image_size or IMAGE_SIZE
    name = config.task.removeprefix(benchmark).lstrip("_")
    world: World
    if benchmark in ("dmc_proprio", "dmc_vision"):
        world = Control(name, repeat, benchmark == "dmc_vision", size)
    elif benchmark == "crafter":
        world = Crafter(repeat, size)
    elif benchmark == "gym":
        world = Gym(config.gym_id, repeat, size, config.gym_args)
    else:
        rules = ATARI_RULES[config.edition, benchmark]
        world = Atari(name, repeat, replace(rules, size=config.image_size or rules.size))
    if config.image_size is not None and all(space.kind != "image" for space in world.spaces.values()):
        world.close()
        raise WorldError(f"image_size: {config.task} has no images")
    return world


@dataclass(frozen=True)
class Finished:
    """An episode that has just ended: its return, length in agent steps, and what the world says of it."""

    env: int
    total: float
    length: int
    info: Mapping[str, float]


class Worlds:
    """Worlds stepped side by side by threads; a finished one begins its next episode by itself. Use as a context.

    A world is made, stepped and closed in one and the same thread: a renderer belongs to the thread that made it.
    """

    def __init__(self, make: Callable[[], World], indices: Sequence[int], seed: int, purpose: str) -> None:
        """`indices`: numbers of the worlds, which seed their episodes together with `seed` and `purpose`."""
        self._threads = [ThreadPoolExecutor(1) for _ in range(min(len(indices), os.cpu_count() or 1))]
        self.worlds: list[World] = []
        try:
            for k in range(len(indices)):
                self.worlds.append(self._submit(k, make).result())
        except Exception:
            self.close()
            raise
        self.indices, self.seed, self.purpose = list(indices), seed, purpose
        self.spaces, self.actions = self.worlds[0].spaces, self.worlds[0].actions
        self.episode = [-1] * len(self.worlds)  # the number of the running one
        self.has_ended = [True] * len(self.worlds)
        self.totals, self.lengths = [0.0] * len(self.worlds), [0] * len(self.worlds)
        self.finished: list[Finished] = []

    def __enter__(self) -> Worlds:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the worlds hold."""
        for k, world in enumerate(self.worlds):
            self._submit(k, world.close).result()
        for thread in self._threads:
            thread.shutdown()

    def _submit(self, k: int, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have the thread of world k call a function."""
        return self._threads[k % len(self._threads)].submit(function, *arguments)

    def step(self, actions: Array) -> dict[str, Array]:
        """Each world moves, or begins an episode where the last one has ended: arrays [W, ...].

        Names as in the replay: obs/<name>, reward, is_first, is_last, is_terminal. `finished` has what ends now.
        """
        firsts = list(self.has_ended)
        waiting = [self._submit(k, self._advance, k, action) for k, action in enumerate(actions)]
        steps = [future.result() for future in waiting]
        self.finished = []
        for k, found in enumerate(steps):
            self.totals[k] += found.reward
            self.lengths[k] += 1
            if found.is_last:
                self.finished.append(Finished(k, self.totals[k], self.lengths[k] - 1, found.info or {}))
        rows = {f"obs/{name}": np.stack([step.obs[name] for step in steps]) for name in self.spaces}
        rows["reward"] = np.array([step.reward for step in steps], np.float32)
        rows["is_first"] = np.array(firsts)
        rows["is_last"] = np.array([step.is_last for step in steps])
        rows["is_terminal"] = np.array([step.is_terminal for step in steps])
        return rows

    def _advance(self, k: int, action: Array) -> Step:
        if self.has_ended[k]:
            self.episode[k] += 1
            self.totals[k], self.lengths[k] = 0.0, 0
            found = self.worlds[k].reset(self._seed(k))
        else:
            found = self.worlds[k].step(action)
        self.has_ended[k] = found.is_last
        return found

    def _seed(self, k: int) -> int:
        # Deviation D4: a seed per episode, the reference code has a stream per world.
        return derive_seed(self.seed, self.purpose, self.indices[k], self.episode[k]) % 2**31

    def restore(self, episode: Sequence[int], actions: Sequence[Sequence[Array]]) -> None:
        """Bring every world back to the middle of an episode: its number and the actions taken in it so far.

        The last action of the list was chosen but not yet taken.
        """
        self.episode = list(episode)

        def again(k: int) -> None:
            found = self.worlds[k].reset(self._seed(k))
            self.totals[k], self.lengths[k] = 0.0, 1
            for action in actions[k][:-1]:
                found = self.worlds[k].step(action)
                self.totals[k] += found.reward
                self.lengths[k] += 1
            self.has_ended[k] = found.is_last

        for future in [self._submit(k, again, k) for k in range(len(self.worlds))]:
            future.result()
