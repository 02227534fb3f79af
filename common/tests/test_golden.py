"""Comparison with golden numbers names the worst element and keeps a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import golden

ROOT = Path(golden.__file__).parent.parent


def test_the_worst_element_is_named():
    table = golden.Parity("ha2018")
    with pytest.raises(AssertionError, match=r"V: 2 of 4 elements differ, worst at \(1, 0\): ours 3.5, reference 3.0"):
        table.check("V", torch.tensor([[1.0, 2.1], [3.5, 4.0]]), np.array([[1.0, 2.0], [3.0, 4.0]]), atol=0.05)
    with pytest.raises(AssertionError, match="shape"):
        table.check("V", [1.0], [[1.0]], atol=1.0)
    with pytest.raises(AssertionError, match="nothing to compare"):
        table.check("V", [], [], atol=1.0)
    with pytest.raises(AssertionError, match="worst at"):
        table.check("V", [np.nan], [1.0], atol=9.0)
    with pytest.raises(AssertionError, match="worst at"):
        table.check("V", [np.inf], [-np.inf], atol=9.0)
    with pytest.raises(AssertionError, match="worst at"):
        table.check("V", np.array([255], np.uint8), np.array([0], np.uint8), atol=0)
    assert table.components == {}


def test_the_table_keeps_the_largest_deviation(tmp_path):
    table = golden.Parity("ha2018")
    table.check("V", [1.0, np.nan, np.inf], [1.5, np.nan, np.inf], atol=1.0)
    table.check("V", np.zeros((2, 2), np.float32), np.full((2, 2), 0.25), atol=0.1, rtol=1.0)
    table.check("M", [True], [True], atol=0)
    table.write(tmp_path / "parity.json")
    assert json.loads((tmp_path / "parity.json").read_text()) == {
        "paper": "ha2018",
        "components": [
            {
                "component": "V",
                "cases": 2,
                "elements": 7,
                "largest_deviation": 0.5,
                "tolerance": 1.0,
                "dtype": "float64",
            },
            {
                "component": "M",
                "cases": 1,
                "elements": 1,
                "largest_deviation": 0.0,
                "tolerance": 0.0,
                "dtype": "bool",
            },
        ],
    }


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    assert (golden.load(tmp_path / "a.npz")["x"] == np.arange(3)).all()
    np.savez(tmp_path / "b.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        golden.load(tmp_path / "b.npz")


@pytest.mark.parametrize("passes", [True, False])
def test_the_fixture_writes_the_table_only_after_success(tmp_path, passes):
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (tmp_path / "paper").mkdir()
    test = f"def test_v(parity):\n    parity.check('V', [1.0], [{1.0 if passes else 2.0}], atol=0)\n"
    (tmp_path / "paper" / "test_v.py").write_text(test)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    command += [
        str(tmp_path / "paper"),
        "--parity-record",
        str(tmp_path / "p.json"),
        "-o",
        f"pythonpath={ROOT}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    assert (tmp_path / "p.json").exists() is passes
    if passes:
        assert json.loads((tmp_path / "p.json").read_text())["paper"] == "paper"
