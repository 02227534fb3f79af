"""Shared by all tests: one torch thread, and the parity table that golden tests fill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.golden import Parity

TABLES = pytest.StashKey[dict[str, Parity]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-record", metavar="FILE", help="write the parity table of the one paper tested")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = {}
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parity(request: pytest.FixtureRequest) -> Parity:
    """The session's table of the paper (top folder) whose test asks for it."""
    paper = request.path.relative_to(request.config.rootpath).parts[0]
    return request.config.stash[TABLES].setdefault(paper, Parity(paper))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing is written after a failure: a table must stand for tests that passed."""
    target = session.config.getoption("--parity-record")
    tables = session.config.stash[TABLES]
    if target is None or exitstatus != pytest.ExitCode.OK:
        return
    if len(tables) != 1:
        raise pytest.UsageError(f"--parity-record needs the golden tests of one paper, found {sorted(tables)}")
    next(iter(tables.values())).write(Path(target))
