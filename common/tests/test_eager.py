"""What cannot be compiled or captured runs as it is, says so once, and the record of the run has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common import eager
from common.config import Preset, parse
from common.record import of_run
from common.run import Run


@dataclass(frozen=True)
class Settings:
    """What every run has."""

    task: str = "only"
    seed: int = 0
    device: str = "cpu"


@pytest.fixture(autouse=True)
def _nothing_fell_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eager, "_marks", [])
    monkeypatch.delenv(eager.VARIABLE, raising=False)


def broken(function, **options):
    """A compiler that fails when its result is called."""

    def call(*args):
        raise RuntimeError("no kernel\nfor this device")

    return call


def test_a_call_that_compilation_fails_at_is_made_by_the_function_itself(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", broken)
    step = eager.compiled("the step", lambda x: x + 1)
    assert [step(1), step(2)] == [2, 3]
    assert eager.marks() == ("the step not as a graph (RuntimeError: no kernel for this device)",)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_of_the_function_itself_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def step(x):
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        eager.compiled("the step", step)(1)


def test_what_compiles_is_compiled_and_leaves_no_mark(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda x: 10 * function(x))
    assert eager.compiled("the step", lambda x: x + 1, dynamic=True)(1) == 20
    assert eager.captured("the graph", lambda: 3) == 3
    assert eager.marks() == ()


def test_a_copy_of_a_function_is_another_one_to_the_compiler():
    def step(x: int, *, y: int = 2) -> int:
        return x + y

    first, second = eager.own_copy(step), eager.own_copy(step)
    assert [first(1), second(1, y=5)] == [3, 6]
    assert len({step.__code__, first.__code__, second.__code__}) == 3


def test_a_capture_that_fails_gives_nothing_and_a_mark(capsys):
    def capture() -> int:
        raise MemoryError

    assert eager.captured("the graph", capture) is None
    assert eager.captured("the graph", capture) is None
    assert eager.marks() == ("the graph not as a graph (MemoryError)",)
    assert capsys.readouterr().err.count("\n") == 1


def test_with_a_reason_nothing_is_compiled_or_captured(monkeypatch):
    monkeypatch.setenv(eager.VARIABLE, "the tests failed")
    monkeypatch.setattr(torch, "compile", broken)

    def step(x: int) -> int:
        return x

    assert eager.compiled("the step", step) is step
    assert eager.captured("the graph", lambda: 3) is None
    assert eager.marks() == tuple(f"{what} not as a graph (the tests failed)" for what in ("the step", "the graph"))


def test_the_record_of_a_run_says_what_fell_back_in_any_of_its_starts(tmp_path: Path):
    config, _ = parse(Settings, {"only": {}}, {"cpu": Preset("")}, [], prog="x", description="")
    run = Run.open("ha2018", config, "cpu", tmp_path / "run")
    device = of_run(Run.load("ha2018", run.folder))["device"]
    eager.fall_back("the step", "first")
    run.add_seconds(1.0)
    assert run.lock is not None
    run.lock.release()
    again = Run.open("ha2018", config, "cpu", tmp_path / "run")
    eager.fall_back("the graph", "second")
    again.add_seconds(1.0)
    found = of_run(Run.load("ha2018", run.folder))["device"]
    assert found == f"{device}; the step not as a graph (first); the graph not as a graph (second)"
