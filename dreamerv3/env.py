"""The worlds: DeepMind Control, Atari, Crafter and any gymnasium environment, as the reference code prepares them.

Every episode has a seed of its own, so that a world is brought back to the middle of an episode by its actions.
Shapes: W worlds. Images [H, W, C] uint8; rewards are raw sums over repeated actions; actions as in `ActionSpace`.
Source: reference code: envs/dmc.py, envs/atari.py, envs/crafter.py; which rules hold in which edition: README.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.seeding import derive_seed
from dreamerv3.config import Config
from dreamerv3.spaces import ActionSpace, ObsSpace

Array = NDArray[Any]
T = TypeVar("T")
IMAGE_SIZE = 64


class WorldError(ValueError):
    """A world that this machine cannot make; the message is one line."""


@dataclass(frozen=True)
class Step:
    """What a world answers. is_terminal: the episode ended for good; is_last: it ended, also by a time limit.

    info: numbers of a finished episode for the log.
    """

    obs: Mapping[str, Array]
    reward: float = 0.0
    is_last: bool = False
    is_terminal: bool = False
    info: Mapping[str, float] | None = None


class World(Protocol):
    """One environment. `reset(seed)` makes an episode deterministic given its actions."""

    spaces: dict[str, ObsSpace]
    actions: ActionSpace

    def reset(self, seed: int) -> Step:
        """Start the episode `seed`."""

    def step(self, action: Array) -> Step:
        """One agent step, i.e. all repeats of the action."""

    def close(self) -> None:
        """Free what the world holds."""


def need(module: str, requirement: str) -> Any:
    """The imported module, or a line that says why not, and how to install it if it is not there at all."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        is_there = importlib.util.find_spec(module.split(".")[0]) is not None
        remedy = "" if is_there else f"; pip install {requirement}"
        raise WorldError(f"{module} cannot be imported ({error}){remedy}") from error


def rescale(action: Array, low: Array, high: Array) -> Array:
    """From [-1, 1], clipped, to [low, high]."""
    return low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)


class Control:
    """A task of the DeepMind Control Suite, 1000 environment steps an episode, from vectors or from a camera."""

    def __init__(self, name: str, repeat: int, is_vision: bool) -> None:
        suite = control_suite(is_vision)
        domain = "ball_in_cup" if name.startswith("ball_in_cup") else name.split("_")[0]
        self._random = np.random.RandomState(0)
        self._env = suite.load(domain, name[len(domain) + 1 :], task_kwargs={"random": self._random})
        self._repeat, self._is_vision = repeat, is_vision
        self._camera = 2 if domain == "quadruped" else 0
        spec = self._env.action_spec()
        self._low, self._high = spec.minimum, spec.maximum
        self.actions = ActionSpace(spec.shape[0], is_discrete=False)
        if is_vision:
            self.spaces = {"image": ObsSpace("image", (IMAGE_SIZE, IMAGE_SIZE, 3))}
            try:
                self.reset(0)  # a renderer that does not work must say so now
            except WorldError:
                self.close()
                raise
        else:
            shapes = {key: tuple(part.shape) or (1,) for key, part in self._env.observation_spec().items()}
            self.spaces = {key: ObsSpace("float", shape) for key, shape in shapes.items() if 0 not in shape}

    def reset(self, seed: int) -> Step:
        self._random.seed(seed)
        return Step(self._observe(self._env.reset().observation))

    def step(self, action: Array) -> Step:
        reward, control = 0.0, rescale(action.astype(np.float64), self._low, self._high)
        for _ in range(self._repeat):
            found = self._env.step(control)
            reward += found.reward or 0.0
            if found.last():
                break
        return Step(self._observe(found.observation), reward, found.last(), found.last() and found.discount == 0)

    def render(self, size: int) -> Array:
        """A picture [size, size, 3] of the current state."""
        try:
            picture: Array = self._env.physics.render(size, size, camera_id=self._camera)
        except render_faults() as error:
            raise WorldError(render_complaint(error)) from error
        return picture

    def close(self) -> None:
        self._env.physics.free()  # the renderer too, in the thread that made it

    def _observe(self, observation: Mapping[str, Any]) -> dict[str, Array]:
        if self._is_vision:
            return {"image": self.render(IMAGE_SIZE)}
        return {key: np.asarray(observation[key], np.float32).reshape(s.shape) for key, s in self.spaces.items()}


def control_suite(is_vision: bool) -> Any:
    """The tasks of dm_control, with the renderer that MUJOCO_GL names (none: EGL) if they are to be seen.

    dm_control chooses its renderer when it is imported, so that part of it is imported again.
    """
    # Vectors need no renderer, and a machine without one must still do.
    # Deviation D8: the reference code renders every step for its logs.
    with rendering_by("disabled"):
        suite = need("dm_control.suite", "--no-deps dm_control==1.0.34")
    if is_vision:
        try:
            with rendering_by(renderer()), warnings.catch_warnings():
                warnings.filterwarnings("error", module="glfw")  # it only warns that there is no display
                importlib.reload(importlib.import_module("dm_control._render"))
        except render_faults() as error:
            raise WorldError(render_complaint(error)) from error
    return suite


def renderer() -> str:
    """What renders: what the user has chosen, or what needs no display."""
    return os.environ.get("MUJOCO_GL") or "egl"


@contextmanager
def rendering_by(name: str) -> Iterator[None]:
    """The block finds the renderer in the environment; later worlds and child processes do not."""
    before = {variable: os.environ.get(variable) for variable in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    os.environ["MUJOCO_GL"] = name
    try:
        yield
    finally:
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value


def render_faults() -> tuple[type[Exception], ...]:
    """What comes out of the libraries below MuJoCo on a machine on which it cannot render."""
    libraries = (("mujoco", "FatalError"), ("OpenGL.error", "Error"))
    found = [getattr(sys.modules[module], name) for module, name in libraries if module in sys.modules]
    return (ImportError, AttributeError, RuntimeError, *found)


def render_complaint(error: Exception) -> str:
    """One line for a machine on which MuJoCo cannot render."""
    reason = " ".join(str(error).split()) or repr(error.__cause__ or error)
    remedy = "egl needs the driver of a GPU or Mesa, osmesa its library, and dmc_proprio tasks none of them"
    return f"MuJoCo cannot render (MUJOCO_GL={renderer()}: {reason}); {remedy}"


def resized(image: Array, size: int) -> Array:
    """An image [H, W] or [H, W, 3] uint8, bilinear with Pillow's filter, as [size, size, ...]."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


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


def register_games() -> None:
    """Let gymnasium know the games of ale_py."""
    ale = need("ale_py", "ale-py")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    gymnasium.register_envs(ale)


class Atari:
    """A game of the Arcade Learning Environment: maximum of two raw frames, raw scores, no frame stack.

    The frames are the last two of an action's repeats. A game that ends before them shows what was seen before, the end
    by the frame limit counts as terminal, and lost lives are not used: reference code.
    """

    def __init__(self, game: str, repeat: int, rules: AtariRules) -> None:
        register_games()
        name = "".join(word.capitalize() for word in game.split("_"))
        self._env = gymnasium.make(
            f"ALE/{name}-v5",
            frameskip=1,
            repeat_action_probability=rules.sticky,
            full_action_space=rules.has_all_actions,
            disable_env_checker=True,
        )
        self._repeat, self._rules = repeat, rules
        self.actions = ActionSpace(int(self._env.action_space.n), is_discrete=True)  # type: ignore[attr-defined]
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


class _Ordered(dict[Any, None]):
    """A set that hands its members out in the order in which they came."""

    def add(self, member: Any) -> None:
        self[member] = None

    def remove(self, member: Any) -> None:
        del self[member]


class Crafter:
    """Crafter with its reward: 64 x 64 RGB, 17 actions, at most 10,000 steps. `info` has the achievements unlocked."""

    def __init__(self, repeat: int) -> None:
        self._crafter, self._repeat = need("crafter", "crafter"), repeat
        self.actions = ActionSpace(17, is_discrete=True)
        self.spaces = {"image": ObsSpace("image", (IMAGE_SIZE, IMAGE_SIZE, 3))}

    def reset(self, seed: int) -> Step:
        self._env = self._crafter.Env(size=(IMAGE_SIZE, IMAGE_SIZE), reward=True, seed=seed)
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
    """Any gymnasium environment with images, vectors, integers or a dictionary of them, and one kind of action."""

    def __init__(self, gym_id: str, repeat: int) -> None:
        if gym_id not in gymnasium.registry and importlib.util.find_spec("ale_py"):
            register_games()
        try:
            self._env = gymnasium.make(gym_id, disable_env_checker=True)
        except (gymnasium.error.Error, ImportError) as error:
            raise WorldError(f"gymnasium cannot make {gym_id!r}: {error}") from error
        self._repeat = repeat
        space, action = self._env.observation_space, self._env.action_space
        self._parts = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {"obs": space}
        self.spaces = {name: _obs_space(gym_id, name, part) for name, part in self._parts.items()}
        if isinstance(action, gymnasium.spaces.Discrete):
            self.actions = ActionSpace(int(action.n), is_discrete=True)
            self._to_env: Callable[[Array], Any] = lambda a: int(a) + int(action.start)
        elif isinstance(action, gymnasium.spaces.Box) and action.is_bounded():
            self.actions = ActionSpace(int(np.prod(action.shape)), is_discrete=False)
            shape, kind = action.shape, action.dtype
            self._to_env = lambda a: rescale(a.reshape(shape), action.low, action.high).astype(kind)
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
        values = found if isinstance(self._env.observation_space, gymnasium.spaces.Dict) else {"obs": found}
        return {name: _obs_value(space, self._parts[name], values[name]) for name, space in self.spaces.items()}


def _obs_space(gym_id: str, name: str, part: Any) -> ObsSpace:
    spaces = gymnasium.spaces
    if isinstance(part, spaces.Box) and part.dtype == np.uint8 and len(part.shape) in (2, 3):
        if len(part.shape) == 3 and part.shape[0] < min(part.shape[1:]):
            raise WorldError(f"{gym_id}: observation {name!r} is an image {part.shape}; its channels must come last")
        return ObsSpace("image", (IMAGE_SIZE, IMAGE_SIZE, part.shape[2] if len(part.shape) == 3 else 1))
    if isinstance(part, spaces.Discrete):
        return ObsSpace("discrete", (), int(part.n))
    if isinstance(part, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete) and part.shape is not None:
        return ObsSpace("float", tuple(part.shape) or (1,))
    raise WorldError(f"{gym_id}: observation {name!r} is {part}; supported: images, numbers, integers")


def _obs_value(space: ObsSpace, part: Any, value: Any) -> Array:
    """Images are resized to 64 x 64, integers start at 0."""
    array = np.asarray(value)
    if space.kind == "image":
        if array.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            # One channel at a time: Pillow would take the last of two or four for transparency.
            channels = np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0)
            array = np.stack([resized(channel, IMAGE_SIZE) for channel in channels], -1)
        return array.reshape(space.shape)
    if space.kind == "discrete":
        return array.astype(np.int32) - int(part.start)
    return array.astype(np.float32).reshape(space.shape)


def make_world(config: Config) -> World:
    """The world of a config. Raises WorldError, in one line, if this machine cannot make it."""
    benchmark, repeat = config.benchmark, config.plan.action_repeat
    name = config.task.removeprefix(benchmark).lstrip("_")
    if benchmark in ("dmc_proprio", "dmc_vision"):
        return Control(name, repeat, benchmark == "dmc_vision")
    if benchmark == "crafter":
        return Crafter(repeat)
    if benchmark == "gym":
        return Gym(config.gym_id, repeat)
    return Atari(name, repeat, ATARI_RULES[config.edition, benchmark])


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
