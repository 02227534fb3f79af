"""What the tests of stretches begin with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import suites
from benchmarks.gpu import manifest
from benchmarks.gpu.manifest import Places
from benchmarks.gpu.packing import pack
from benchmarks.steps import in_order
from benchmarks.tests.toy_stretch import SOURCE, STEPS, patient
from common import checkpoint


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A toy manifest, packed."""
    toy = replace(next(suite for suite in suites.load() if suite.paper == "ha2018"), steps=STEPS, speed=("one", "last"))
    monkeypatch.setattr(suites, "load", lambda: (toy,))
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: in_order(STEPS))
    patient(monkeypatch)
    source = tmp_path / "local" / "runs" / "ha2018" / SOURCE
    tensors = {"V/w": torch.ones(3), "optimizer/0/exp_avg": torch.zeros(3), "optimizer/group0/lr": torch.ones(())}
    state = {"optimizer": {"0": {}, "group0": {"eps": 1.0, "params": [0]}}, "state": {}}
    for step in (1, 2):
        checkpoint.save(source / "vision", step, tensors, state, identity="theirs")
    (source / "meta.json").write_text(json.dumps({"identity": "theirs"}))
    (source / "frames").mkdir()
    (source / "frames" / "large.bin").write_bytes(b"x" * 1000)
    for step in (1, 2):
        checkpoint.save(tmp_path / "gpu" / "ready" / "controller", step, {}, {})
    found = Places(tmp_path / "gpu", tmp_path / "gpu" / "out")
    pack(found, tmp_path / "local" / "runs", True)
    return found
