"""One trained run of the smoke preset for all tests of this package, and the real commands as subprocesses."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import testing
from dreamerv3.agent import Agent
from dreamerv3.config import EDITIONS, Config
from dreamerv3.replay import Batch
from dreamerv3.spaces import ActionSpace, ObsSpace, Sizes

SMOKE = ("--preset", "smoke")
TINY = Sizes(16, 8, 4, 4, 2, 8, 4)
SPACES = {
    "image": ObsSpace("image", (32, 32, 3)),
    "speed": ObsSpace("float", (3,)),
    "mode": ObsSpace("discrete", (), 5),
}


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    """start(module, *options): the command in an empty folder; its streams are pipes."""
    return functools.partial(testing.start, cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def egl() -> None:
    """For tests that render; asked of a process of its own, since EGL is initialised once."""
    process = testing.start("dm_control._render.pyopengl.egl_renderer", environment={"MUJOCO_GL": "egl"})
    process.communicate()
    if process.returncode:
        pytest.skip("no EGL")


@pytest.fixture(scope="session")
def trained(start: Start, tmp_path_factory) -> Path:
    """The folder of a run trained in one go, with two checkpoints. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    testing.finish(start("dreamerv3.train", *SMOKE, "--run", str(folder)))
    return folder


def tiny_agent(edition: str = "arxiv_v2", *, is_discrete: bool = True, **changes) -> Agent:
    """A small agent for images, vectors and integers at once, with weights that all matter."""
    torch.manual_seed(0)
    changes = {"edition": edition, "bins": 41, "imagination_length": 4, "precision": "float32", **changes}
    agent = Agent(SPACES, ActionSpace(4, is_discrete), TINY, EDITIONS[edition], Config(**changes))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def tiny_batch(agent: Agent, batch: int = 3, length: int = 6) -> Batch:
    """Random rows, with the beginnings and ends of episodes among them."""
    generator = torch.Generator().manual_seed(1)

    def flag(share: float) -> torch.Tensor:
        return torch.rand(batch, length, generator=generator) < share

    shape = (batch, length)
    action = torch.randn(*shape, 4, generator=generator)
    is_last = flag(0.2)
    return Batch(
        obs={
            "image": torch.randint(256, (*shape, 32, 32, 3), generator=generator).to(torch.uint8),
            "speed": torch.randn(*shape, 3, generator=generator),
            "mode": torch.randint(5, shape, generator=generator).int(),
        },
        prev_action=torch.randint(4, shape, generator=generator).int() if agent.actions.is_discrete else action,
        reward=torch.randn(shape, generator=generator),
        is_first=flag(0.2),
        is_last=is_last,
        is_terminal=is_last & flag(0.5),
        start_h=torch.randn(batch, TINY.deter, generator=generator),
        start_z=torch.randint(TINY.classes, (batch, TINY.stoch), generator=generator).to(torch.uint8),
    )
