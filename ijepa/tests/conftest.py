"""One trained run of the smoke preset for all tests of this package, and the real commands as subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ("--preset", "smoke", "--task", "shapes", "--updates", "30")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Start:
    """start(module, *options): the command in an empty folder; its streams are pipes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    return start


@pytest.fixture(scope="session")
def trained(start: Start, tmp_path_factory) -> Path:
    """The folder of a run trained in one go. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    process = start("ijepa.train", *SMOKE, "--run", str(folder))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder
