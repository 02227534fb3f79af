"""A controller of its own on the V and M of another run: what is taken over, what is refused."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from common import checkpoint
from common.files import write_checked
from common.testing import log_lines
from ha2018 import encoding, train, world_model
from ha2018.config import Config
from ha2018.tests.conftest import SMOKE, params_of

OTHER = (*SMOKE, "--temperature", "0.5", "--seed", "3")


def lines(folder, stage):
    return [line for line in log_lines(folder) if line["stage"].startswith(stage)]


def bank(folder):
    """The first frames without their checksum, which is that of the run."""
    return (folder / encoding.FIRST_FRAMES).read_bytes()[:-73]


@pytest.fixture(scope="module")
def source(trained, tmp_path_factory):
    """`trained` without its frames, moved to another place."""
    folder = tmp_path_factory.mktemp("moved") / "source"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames"))
    return folder


@pytest.fixture(scope="module")
def adopted(source, start, tmp_path_factory):
    """A run at another temperature and seed that shares the world model of `trained`."""
    folder = tmp_path_factory.mktemp("adopted") / "run"
    process = start("ha2018.train", *OTHER, "--run", str(folder), "--model-from", str(source))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


def test_v_and_m_and_their_log_are_those_of_the_other_run(trained, adopted):
    for name in ("vision", "memory"):
        ours, theirs = (checkpoint.load_latest(folder / name) for folder in (adopted, trained))
        assert ours is not None
        assert theirs is not None
        assert ours.step == theirs.step
        assert ours.tensors.keys() == theirs.tensors.keys()
        assert all(torch.equal(tensor, theirs.tensors[key]) for key, tensor in ours.tensors.items())
        assert lines(adopted, name) == lines(trained, name)
    assert bank(adopted) == bank(trained)
    clocks = [json.loads((folder / "clock.json").read_text()) for folder in (adopted, trained)]
    assert clocks[0]["memory"] == pytest.approx(clocks[1]["memory"], rel=0.2, abs=0.2)
    assert clocks[0]["collect"] >= clocks[1]["collect"]


def test_it_needs_no_frames_and_no_latents(adopted):
    assert not (adopted / "frames").exists()
    assert not (adopted / "latents").exists()
    assert sum(path.stat().st_size for path in adopted.rglob("*")) < 200e6


def test_the_controller_is_another(trained, adopted):
    assert not torch.equal(params_of(trained), params_of(adopted))


def test_it_goes_on_with_and_without_the_option(source, adopted, tmp_path):
    """Also after a kill in the middle of taking over, and when the other run is gone."""
    before = (adopted / "controller.safetensors").read_bytes()
    folder = tmp_path / "run"
    shutil.copytree(adopted, folder, ignore=shutil.ignore_patterns("first_frames*", "controller*"))
    (folder / "memory" / ".step-000000020.safetensors.tmp").write_bytes(b"half")
    (folder / "metrics.jsonl").write_bytes(b"")
    (folder / ".metrics.sum").unlink()
    train.main([*OTHER, "--run", str(folder), "--model-from", str(source)])
    assert (folder / "controller.safetensors").read_bytes() == before
    (folder / "controller.safetensors").unlink()
    log = (folder / "metrics.jsonl").read_bytes()
    for words in (["--model-from", str(source)], []):
        train.main([*OTHER, "--run", str(folder), *words])
        assert (folder / "metrics.jsonl").read_bytes() == log
    assert (folder / "controller.safetensors").read_bytes() == before
    assert lines(folder, "memory") == lines(source, "memory")


def test_the_log_survives_a_move_of_both_folders(source, adopted, tmp_path):
    """Links to the frames of a run that has moved made it begin again, with an empty log."""
    ours, theirs = tmp_path / "elsewhere" / "run", tmp_path / "source"
    ours.parent.mkdir()
    shutil.copytree(adopted, ours)
    shutil.copytree(source, theirs)
    log = (ours / "metrics.jsonl").read_bytes()
    train.main([*OTHER, "--run", str(ours), "--model-from", str(theirs)])
    assert (ours / "metrics.jsonl").read_bytes() == log


def test_another_m_is_trained_on_the_same_latents(source, tmp_path):
    """Untrained it needs none; trained anew it takes them along."""
    for updates, needs_latents in ((0, False), (3, True)):
        folder = tmp_path / f"run{updates}"
        words = [*SMOKE, "--memory-updates", str(updates), "--run", str(folder), "--model-from", str(source)]
        train.main([*words, "--stage", "memory"])
        ours, theirs = (checkpoint.load_latest(f / "memory") for f in (folder, source))
        assert ours is not None
        assert theirs is not None
        assert ours.step == updates
        assert not torch.equal(ours.tensors["M/kernel"], theirs.tensors["M/kernel"])
        assert len([line for line in lines(folder, "memory") if line["stage"] == "memory"]) == min(updates, 2)
        assert lines(folder, "vision") == lines(source, "vision")
        found = checkpoint.load_latest(folder / "vision")
        assert found is not None
        assert found.step == 4
        assert (folder / "latents").exists() is needs_latents


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--z-size", "16"], "z_size (was 64, now 16)"),
        (["--task", "car"], "task (was doom, now car)"),
        (["--model-from", "nowhere"], "is no run folder"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_leaves_nothing(trained, tmp_path, words, complaint, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--run", str(folder), "--model-from", str(trained), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not folder.exists()


def test_a_run_with_a_model_or_frames_of_its_own_does_not_take_another(trained, adopted, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    identity = json.loads((folder / "meta.json").read_text())["identity"]
    other = safetensors.torch.save({"mu": torch.zeros(8, 64), "logvar": torch.zeros(8, 64), "frames": torch.tensor(9)})
    write_checked(folder / encoding.FIRST_FRAMES, other, encoding.first_frames_identity(identity))
    log = (folder / "metrics.jsonl").read_bytes()
    for complaint in ("a world model of its own", "frames of its own"):
        with pytest.raises(SystemExit) as end:
            train.main([*SMOKE, "--run", str(folder), "--model-from", str(adopted)])
        assert end.value.code == 2
        assert complaint in capsys.readouterr().err
        assert (folder / "metrics.jsonl").read_bytes() == log
        (folder / encoding.FIRST_FRAMES).unlink(missing_ok=True)


def test_an_unfinished_model_is_refused(trained, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(trained, source, ignore=shutil.ignore_patterns("controller*", "step-000000020*"))
    for name, part in (("memory", "step 19 of 20"), (encoding.FIRST_FRAMES, "its V is not finished")):
        with pytest.raises(SystemExit):
            train.main([*SMOKE, "--run", str(tmp_path / "run"), "--model-from", str(source)])
        assert part in capsys.readouterr().err
        if name == "memory":
            (source / encoding.FIRST_FRAMES).unlink()
    assert not (tmp_path / "run").exists()


def test_every_setting_of_v_and_m_decides():
    """A setting that is forgotten here would let one world model pass for another."""
    names = {f"{part}_" for part in ("vision", "memory")}
    known = {*world_model.VISION_SETTINGS, *world_model.MEMORY_SETTINGS}
    fields = Config.__dataclass_fields__
    assert {name for name in fields if any(name.startswith(word) for word in names)} <= known
    assert known <= set(fields)
