"""One trained run of the smoke preset for all tests of this package, and the real commands as subprocesses."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor

from common import testing

# More updates than the preset, so that M and C last long enough to be killed in the middle.
SMOKE = ("--preset", "smoke", "--memory-updates", "20", "--generations", "10")


Start = Callable[..., subprocess.Popen[str]]


def params_of(folder: Path) -> Tensor:
    """The parameters [P] of C in a run folder."""
    content = (folder / "controller.safetensors").read_bytes()[:-73]  # without the checksum
    return safetensors.torch.load(content)["params"]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    """start(module, *options): the command in an empty folder; its streams are pipes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return partial(testing.start, cwd=folder)


@pytest.fixture(scope="session")
def trained(start: Start, tmp_path_factory) -> Path:
    """The folder of a run trained in one go. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    process = start("ha2018.train", *SMOKE, "--run", str(folder))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder
