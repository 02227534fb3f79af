"""One trained run of the smoke preset for all tests of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import testing

SMOKE = ("--preset", "smoke", "--checkpoint-seconds", "0")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a run trained in one go. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    testing.run("muzero.train", *SMOKE, "--run", str(folder))
    return folder
