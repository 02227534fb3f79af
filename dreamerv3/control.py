"""The DeepMind Control Suite from vectors or from a camera, and the renderer behind the camera.

Source: reference code, envs/dmc.py.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dreamerv3.interface import IMAGE_SIZE, Array, Step, WorldError, need, rescale
from dreamerv3.spaces import ActionSpace, ObsSpace


class Control:
    """A task of the DeepMind Control Suite, 1000 environment steps an episode, from vectors or from a camera."""

    def __init__(self, name: str, repeat: int, is_vision: bool, size: int = IMAGE_SIZE) -> None:
        suite = control_suite(is_vision)
        domain = "ball_in_cup" if name.startswith("ball_in_cup") else name.split("_")[0]
        self._random = np.random.RandomState(0)
        self._env = suite.load(domain, name[len(domain) + 1 :], task_kwargs={"random": self._random})
        self._repeat, self._is_vision, self._size = repeat, is_vision, size
        self._camera = 2 if domain == "quadruped" else 0
        spec = self._env.action_spec()
        self._low, self._high = spec.minimum, spec.maximum
        self.actions = ActionSpace(spec.shape[0], is_discrete=False)
        if is_vision:
            self.spaces = {"image": ObsSpace("image", (size, size, 3))}
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
            return {"image": self.render(self._size)}
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
