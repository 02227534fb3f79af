"""A controller of its own on the V and M of another run: what is taken over, what is refused."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from common import checkpoint
from ha2018 import train, world
from ha2018.config import Config
from ha2018.tests.conftest import SMOKE

OTHER = (*SMOKE, "--temperature", "0.5", "--seed", "3")


def lines(folder, stage):
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"].startswith(stage)]


@pytest.fixture(scope="module")
def adopted(trained, start, tmp_path_factory):
    """A run at another temperature and seed that shares the world of `trained`."""
    folder = tmp_path_factory.mktemp("adopted") / "run"
    process = start("ha2018.train", *OTHER, "--run", str(folder), "--world-from", str(trained))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


def test_v_and_m_and_their_log_are_those_of_the_other_run(trained, adopted):
    for name in ("vision", "memory"):
        ours, theirs = (checkpoint.load_latest(folder / name) for folder in (adopted, trained))
        assert ours is not None
        assert theirs is not None
        assert ours.tensors.keys() == theirs.tensors.keys()
        assert all(torch.equal(tensor, theirs.tensors[key]) for key, tensor in ours.tensors.items())
        assert lines(adopted, name) == lines(trained, name)
    assert (adopted / "latents.safetensors").read_bytes() == (trained / "latents.safetensors").read_bytes()
    clocks = [json.loads((folder / "clock.json").read_text()) for folder in (adopted, trained)]
    assert clocks[0]["memory"] == pytest.approx(clocks[1]["memory"], rel=0.2, abs=0.2)
    assert clocks[0]["collect"] >= clocks[1]["collect"]


def test_the_controller_is_another(trained, adopted):
    ours, theirs = (safetensors.torch.load_file(folder / "controller.safetensors") for folder in (adopted, trained))
    assert torch.equal(ours["bank_mu"], theirs["bank_mu"])
    assert not torch.equal(ours["params"], theirs["params"])


def test_it_goes_on_with_and_without_the_option(trained, adopted, tmp_path, capsys):
    """Also after a kill in the middle of taking over."""
    before = (adopted / "controller.safetensors").read_bytes()
    folder = tmp_path / "run"
    shutil.copytree(adopted, folder, symlinks=True, ignore=shutil.ignore_patterns("frames", "controller*"))
    (folder / "memory" / ".step-000000020.safetensors.tmp").write_bytes(b"half")
    train.main([*OTHER, "--run", str(folder), "--world-from", str(trained)])
    assert (folder / "controller.safetensors").read_bytes() == before
    train.main([*OTHER, "--run", str(folder)])
    assert (folder / "controller.safetensors").read_bytes() == before
    assert lines(folder, "memory") == lines(trained, "memory")


def test_an_untrained_m_is_made_on_the_same_v(trained, tmp_path):
    folder = tmp_path / "run"
    train.main([*SMOKE, "--memory-updates", "0", "--run", str(folder), "--world-from", str(trained)])
    ours, theirs = (checkpoint.load_latest(f / "memory") for f in (folder, trained))
    assert ours is not None
    assert theirs is not None
    assert ours.step == 0
    assert not torch.equal(ours.tensors["M/kernel"], theirs.tensors["M/kernel"])
    assert not lines(folder, "memory")
    assert lines(folder, "vision") == lines(trained, "vision")
    found = checkpoint.load_latest(folder / "vision")
    assert found is not None
    assert found.step == 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--z-size", "16"], "z_size (was 64, now 16)"),
        (["--task", "car"], "task (was doom, now car)"),
        (["--world-from", "nowhere"], "is no run folder"),
    ],
)
def test_a_world_that_does_not_fit_is_refused_and_leaves_nothing(trained, tmp_path, words, complaint, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--run", str(folder), "--world-from", str(trained), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not folder.exists()


def test_a_run_with_a_world_of_its_own_does_not_take_another(trained, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--run", str(trained), "--world-from", str(source)])
    assert end.value.code == 2
    assert "has frames of its own" in capsys.readouterr().err


def test_an_unfinished_world_is_refused(trained, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(trained, source, ignore=shutil.ignore_patterns("controller*"))
    metrics = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (source / "metrics.jsonl").write_text("".join(line for line in metrics if "memory holdout" not in line))
    for name, part in (("memory", "its M is not finished"), ("latents.safetensors", "its V and latents")):
        with pytest.raises(SystemExit):
            train.main([*SMOKE, "--run", str(tmp_path / "run"), "--world-from", str(source)])
        assert part in capsys.readouterr().err
        if name == "memory":
            (source / "latents.safetensors").unlink()


def test_every_setting_of_v_and_m_decides():
    """A setting that is forgotten here would let one world pass for another."""
    names = {f"{part}_" for part in ("vision", "memory")}
    known = {*world.VISION_SETTINGS, *world.MEMORY_SETTINGS}
    fields = Config.__dataclass_fields__
    assert {name for name in fields if any(name.startswith(word) for word in names)} <= known
    assert known <= set(fields)
