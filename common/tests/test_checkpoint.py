"""Checkpoints: bit exact, atomic, and never trusted blindly."""

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint

ROOT = Path(checkpoint.__file__).parent.parent


def latest(folder):
    found = checkpoint.load_latest(folder)
    assert found is not None
    return found


def learner(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return module, torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.8, 0.99))


def train(module, optimizer, noise, world, steps):
    for _ in range(steps):
        x = torch.randn(8, 3, generator=noise) + torch.as_tensor(world.normal(size=(8, 3)), dtype=torch.float32)
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


def all_state(module, optimizer, noise, world):
    parts, rest = checkpoint.pack_optimizer("adam", optimizer)
    rng, numpy_state = checkpoint.pack_rng({"noise": noise}, {"world": world})
    tensors = {**checkpoint.module_tensors("model", module), **parts, **rng}
    return tensors, {"adam": rest, "numpy": numpy_state}


@pytest.mark.parametrize("make_world", [np.random.default_rng, np.random.RandomState])
def test_a_resumed_learner_equals_the_uninterrupted_one(tmp_path, make_world):
    module, optimizer = learner()
    noise, world = torch.Generator().manual_seed(1), make_world(2)
    train(module, optimizer, noise, world, 5)
    world.normal()  # RandomState now holds half a pair of Gaussians
    assert checkpoint.save(tmp_path, 5, *all_state(module, optimizer, noise, world))
    train(module, optimizer, noise, world, 5)
    found = latest(tmp_path)
    assert found.step == 5
    module2, optimizer2 = learner(seed=9)
    noise2, world2 = torch.Generator(), make_world(0)
    checkpoint.load_module("model", module2, found.tensors)
    checkpoint.unpack_optimizer("adam", optimizer2, found.tensors, found.state["adam"])
    checkpoint.unpack_rng({"noise": noise2}, {"world": world2}, found.tensors, found.state["numpy"])
    train(module2, optimizer2, noise2, world2, 5)
    wanted, wanted_state = all_state(module, optimizer, noise, world)
    got, got_state = all_state(module2, optimizer2, noise2, world2)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert json.dumps(wanted_state) == json.dumps(got_state)


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_every_numpy_generator_survives_json(bits):
    generator, other = np.random.Generator(bits(3)), np.random.Generator(bits(4))
    generator.integers(10, size=7, dtype=np.int32)
    _, state = checkpoint.pack_rng({}, {"g": generator})
    checkpoint.unpack_rng({}, {"g": other}, {}, json.loads(json.dumps(state)))
    assert (generator.integers(1 << 30, size=9) == other.integers(1 << 30, size=9)).all()


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
