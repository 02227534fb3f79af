"""One trained run of the smoke preset for each family, and the real commands as subprocesses."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common import testing

SMOKE = ("--preset", "smoke")
WALL = ("--preset", "smoke", "--task", "wall")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    """start(module, *options): the command in an empty folder; its streams are pipes."""
    return functools.partial(testing.start, cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def trained(start: Start, tmp_path_factory) -> Path:
    """The folder of a run of the recipe trained in one go. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    testing.finish(start("vjepa.ac.train", *SMOKE, "--run", str(folder)))
    return folder


@pytest.fixture(scope="session")
def trained_wall(start: Start, tmp_path_factory) -> Path:
    """The same of V-JEPA 2-AC."""
    folder = tmp_path_factory.mktemp("trained") / "wall"
    testing.finish(start("vjepa.ac.train", *WALL, "--run", str(folder)))
    return folder
