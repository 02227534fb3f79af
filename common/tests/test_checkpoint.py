"""Checkpoints: bit exact, atomic, and never trusted blindly."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from common import checkpoint, dist
from common.config import setting
from common.program import RunError
from common.run import NonFiniteError, Run
from common.stage import Stage

ROOT = Path(checkpoint.__file__).parent.parent


def latest(folder, **options):
    found = checkpoint.load_latest(folder, **options)
    assert found is not None
    return found


def learner(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return module, torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.8, 0.99))


def train(module, optimizer, noise, steps):
    for _ in range(steps):
        x = torch.randn(8, 3, generator=noise)
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


def all_state(module, optimizer, noise):
    parts, rest = checkpoint.pack_optimizer("adam", optimizer)
    return {**checkpoint.module_tensors("model", module), **parts, "noise": noise.get_state()}, {"adam": rest}


def test_a_resumed_learner_equals_the_uninterrupted_one(tmp_path):
    module, optimizer = learner()
    noise = torch.Generator().manual_seed(1)
    train(module, optimizer, noise, 5)
    assert checkpoint.save(tmp_path, 5, *all_state(module, optimizer, noise))
    train(module, optimizer, noise, 5)
    found = latest(tmp_path)
    assert found.step == 5
    module2, optimizer2 = learner(seed=9)
    noise2 = torch.Generator()
    checkpoint.load_module("model", module2, found.tensors)
    checkpoint.unpack_optimizer("adam", optimizer2, found.tensors, found.state["adam"])
    noise2.set_state(found.tensors["noise"])
    train(module2, optimizer2, noise2, 5)
    wanted, wanted_state = all_state(module, optimizer, noise)
    got, got_state = all_state(module2, optimizer2, noise2)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert json.dumps(wanted_state) == json.dumps(got_state)


def test_dtypes_shapes_and_shared_memory_survive(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a": base,
        "view": base[1],
        "transposed": base.T,
        "scalar": torch.tensor(3),
        "half": base.half(),
    }
    tensors |= {"empty": torch.zeros(0, 2), "flag": torch.tensor([True, False]), "brain": base.bfloat16()}
    state = {"position": 12, "tau": 0.1 + 0.2, "name": 'a "quoted" \\ é', "checksum": "0" * 64}
    checkpoint.save(tmp_path, 1, tensors, state)
    found = latest(tmp_path)
    assert found.state == state
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_only_the_last_two_are_kept(tmp_path):
    (tmp_path / ".step-000000007.safetensors.tmp").write_bytes(b"left by a kill")
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, step, {}, {})
    assert sorted(os.listdir(tmp_path)) == ["step-000000010.safetensors", "step-000000011.safetensors"]
    assert checkpoint.load_latest(tmp_path / "absent") is None


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[:-5])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped payload":
        data[-3] ^= 1
        path.write_bytes(data)
    elif kind == "flipped state":
        at = data.index(b"seven")
        data[at] ^= 1
        path.write_bytes(data)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch pickle":
        torch.save({"x": Bomb()}, path)


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped payload", "flipped state", "pickle", "torch pickle"])
def test_a_damaged_newest_file_falls_back(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.full((40,), float(step))}, {"word": "seven"})
    newest = tmp_path / "step-000000002.safetensors"
    damage(newest, kind)
    found = latest(tmp_path)
    text = capsys.readouterr().err
    assert found.step == 1
    assert found.tensors["x"][0] == 1.0
    assert text.count("\n") == 1
    assert newest.name in text
    assert not (tmp_path / "exploded").exists()
    damage(tmp_path / "step-000000001.safetensors", kind)
    with pytest.raises(SystemExit) as end:
        checkpoint.load_latest(tmp_path)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: every checkpoint in ")


def test_every_single_flipped_bit_is_noticed(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(2)}, {"word": "seven"})
    path = tmp_path / "step-000000001.safetensors"
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(SystemExit):
            checkpoint.load_latest(tmp_path)
        assert "error: every checkpoint in " in capsys.readouterr().err


def test_after_a_fall_back_two_good_files_remain(tmp_path, capsys):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {}, {})
    damage(tmp_path / "step-000000003.safetensors", "truncated")
    assert latest(tmp_path).step == 2
    checkpoint.save(tmp_path, 2, {}, {"again": True})
    assert os.listdir(tmp_path) == ["step-000000002.safetensors"]
    assert latest(tmp_path).state == {"again": True}
    capsys.readouterr()


def test_a_full_disk_loses_the_write_and_not_the_run(tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)}, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert checkpoint.save(tmp_path, 2, {"x": torch.ones(3)}, {}) is False
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "disk full" in text
    assert os.listdir(tmp_path) == ["step-000000001.safetensors"]
    assert latest(tmp_path).step == 1


def test_other_write_errors_are_not_hidden(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists|Not a directory"):
        checkpoint.save(tmp_path / "file", 1, {}, {})


def test_sigkill_at_any_moment_leaves_an_intact_checkpoint(tmp_path, capfd):
    code = (
        "import sys, torch; from pathlib import Path; from common.checkpoint import save\n"
        "for step in range(1, 10**6):\n"
        "    save(Path(sys.argv[1]), step, {'x': torch.full((100_000,), step)}, {'step': step})\n"
    )
    draw = random.Random(0)
    child = None
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
        deadline = time.monotonic() + 30
        before = set(tmp_path.glob("step-*"))  # finished ones, not what is being written
        while set(tmp_path.glob("step-*")) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = latest(tmp_path)
        assert found.state == {"step": found.step}
        assert (found.tensors["x"] == found.step).all()
        assert capfd.readouterr().err == ""


def test_a_module_that_does_not_fit_is_named_in_one_line():
    tensors = checkpoint.module_tensors("v", nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"^v: weight is \[4, 3\], the module has \[4, 2\]$"):
        checkpoint.load_module("v", nn.Linear(2, 4), tensors)
    with pytest.raises(ValueError, match="bias is not part"):
        checkpoint.load_module("v", nn.Linear(3, 4, bias=False), tensors)
    with pytest.raises(ValueError, match="weight is missing"):
        checkpoint.load_module("other", nn.Linear(3, 4), tensors)


def test_a_checkpoint_of_another_run_is_none_of_ours(tmp_path, capsys):
    checkpoint.save(tmp_path / "train", 1, {"w": torch.zeros(2)}, {}, identity="seed 0")
    assert latest(tmp_path / "train", identity="seed 0").step == 1
    with pytest.raises(SystemExit):
        checkpoint.load_latest(tmp_path / "train", identity="seed 1")
    text = capsys.readouterr().err
    assert "another run" in text
    assert f"remove {tmp_path} to start again" in text


def test_a_checkpoint_of_an_earlier_version_has_no_identity_and_is_taken(tmp_path):
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(2)}, {})
    assert latest(tmp_path, identity="seed 1").step == 1


def test_a_folder_in_the_place_of_a_checkpoint_is_damage(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(2)}, {})
    (tmp_path / "step-000000002.safetensors").mkdir()
    assert latest(tmp_path).step == 1
    assert "damaged" in capsys.readouterr().err


def test_a_test_needs_the_last_checkpoint(tmp_path, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.zeros(2)}, {})
    assert checkpoint.load_final(tmp_path, 2).step == 2
    path = tmp_path / "step-000000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit) as stop:
        checkpoint.load_final(tmp_path, 2)
    assert stop.value.code == 2
    assert "step 1 of 2 steps" in capsys.readouterr().err


def test_a_copied_checkpoint_belongs_to_its_new_run(tmp_path, capsys):
    checkpoint.save(tmp_path / "old", 3, {"w": torch.ones(2)}, {"a": 1}, identity="old")
    checkpoint.copy(tmp_path / "old", tmp_path / "new", "new")
    found = latest(tmp_path / "new", identity="new")
    assert (found.step, found.state, found.tensors["w"].tolist()) == (3, {"a": 1}, [1.0, 1.0])


def new_run(folder: Path) -> Run:
    @dataclass(frozen=True)
    class Config:
        task: str = setting("doom", "world")
        seed: int = setting(0, "seed")
        device: str = setting("cpu", "device")

    return Run.open("ha2018", Config(), "smoke", folder / "run")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    """Between two lines of the log no loss is looked at, and a gradient may overflow where the loss does not."""
    module = nn.Linear(2, 2)
    stage = Stage(new_run(tmp_path), "vision", 20, 0.0, dist.setup("cpu"), {"network": module, "empty": nn.ReLU()})
    stage.save(2)
    with torch.no_grad():
        module.bias[1] = value
    with pytest.raises(NonFiniteError, match=f"vision step 4: a weight of network is {value}; .*step-000000003.safe"):
        stage.save(3)
    assert latest(stage.folder, identity=stage.run.identity).step == 3


def test_a_full_disk_costs_a_middle_checkpoint_and_refuses_to_lose_the_last(tmp_path, monkeypatch, capsys):
    stage = Stage(new_run(tmp_path), "vision", 2, 0.0, dist.setup("cpu"))

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    stage.save(0)
    assert "not written" in capsys.readouterr().err
    with pytest.raises(RunError, match="no space for the last checkpoint; make room, then: python"):
        stage.save(1)
