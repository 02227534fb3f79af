"""Several temperatures in one process are the runs that each makes alone, also when they are killed and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.testing import log_lines, same_checkpoints
from ha2018 import temperatures, train
from ha2018.tests.conftest import SMOKE, params_of

TEMPERATURES = ("0.5", "1.3")


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory) -> dict[str, Path]:
    """A run of each temperature by the train command. Tests must not change them."""
    found = {tau: tmp_path_factory.mktemp("alone") / tau for tau in TEMPERATURES}
    for tau, folder in found.items():
        train.main([*SMOKE, "--temperature", tau, "--model-from", str(trained), "--run", str(folder)])
    return found


def words_of(trained: Path, folder: Path) -> list[str]:
    runs = [str(folder / tau) for tau in TEMPERATURES]
    return [*SMOKE, "--model-from", str(trained), "--temperatures", *TEMPERATURES, "--runs", *runs]


def same_runs(folder: Path, alone: dict[str, Path]) -> None:
    for tau, theirs in alone.items():
        ours = folder / tau
        assert torch.equal(params_of(ours), params_of(theirs))
        assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
        assert log_lines(ours) == log_lines(theirs)
        same_checkpoints(ours / "controller", theirs / "controller")
    assert not torch.equal(*(params_of(folder / tau) for tau in TEMPERATURES))


def test_two_temperatures_together_are_each_alone(trained, alone, tmp_path, capsys):
    temperatures.main(words_of(trained, tmp_path))
    assert capsys.readouterr().out.count("trained up to controller: ") == 2
    same_runs(tmp_path, alone)


def test_killed_together_they_go_on_together_or_alone(trained, alone, start, tmp_path):
    """One has lost a checkpoint more than the other, so that they stand at different generations."""
    process = start("ha2018.temperatures", *words_of(trained, tmp_path))
    last = tmp_path / TEMPERATURES[1] / "controller"
    while not (last / "step-000000004.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    newest = checkpoint.load_latest(last)
    assert newest is not None
    assert newest.step < 10, "killed too late to show anything"
    newest.path.unlink()
    tau = TEMPERATURES[0]
    train.main([*SMOKE, "--temperature", tau, "--model-from", str(trained), "--run", str(tmp_path / tau)])
    temperatures.main(words_of(trained, tmp_path))
    same_runs(tmp_path, alone)


def test_who_asks_less_often_waits_for_nobody():
    """Each is answered what it asked for at its own temperature, whatever the others ask for beside it."""

    def asks(name: str, sizes: list[int]):
        heard = []
        for size in sizes:
            answer, spent = yield np.full((size, 1), len(name)), np.arange(size)
            assert spent == 0
            heard.extend(answer[:, 0].tolist())
        return np.array(heard)

    def dreams(params, seeds, taus):
        return (params[:, :1] + seeds[:, None]) * np.array(taus)[:, None], 0

    ended: dict[float, list[float]] = {}
    both = {2.0: asks("a", [2, 1, 3]), 10.0: asks("bcd", [1]), 5.0: asks("", [])}
    temperatures.evolve_together(both, dreams, lambda tau, heard: ended.update({tau: heard.tolist()}))
    assert ended == {2.0: [2, 4, 2, 2, 4, 6], 10.0: [30], 5.0: []}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--temperatures", "1", "1"], "one of them comes twice"),
        (["--temperatures", "1", "0"], "temperature is 0"),
        (["--temperatures", "1", "nan"], "temperature must be a number"),
        (["--temperatures", "1", "2", "--runs", "a"], "--runs names 1 folders for 2 temperatures"),
        (["--temperatures", "1", "--run", "a"], "take --runs and --temperatures"),
        (["--temperatures", "1", "--temperature", "2"], "take --runs and --temperatures"),
        (["--temperatures", "1", "--task", "car"], "only doom is learnt in a dream"),
        (["--temperatures", "1", "--memory-lr", "0.5"], "M was made with other settings"),
        (["--temperatures", "1", "--z-size", "5"], "V was made with other settings"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(trained, words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        temperatures.main([*SMOKE, "--model-from", str(trained), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_ends_it_before_another_is_made(trained, alone, tmp_path, capsys):
    words = [*SMOKE, "--model-from", str(trained), "--temperatures", "0.7", "0.9"]
    with pytest.raises(SystemExit) as end:
        temperatures.main([*words, "--runs", str(tmp_path / "new"), str(alone["0.5"])])
    assert end.value.code == 2
    assert "temperature (was 0.5, now 0.9)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
