"""What a GPU's steps do, traced without one: nothing in two places at once, and every wait for the device known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import suites
from common import fake_cuda

UPDATES, ONCE = "the data of an update", "made once and kept"
# Dream, V, M, update, search, self-play, micro-steps, planning; DIAMOND's package traces its own. Of each, in which
# functions it may wait for the device or be given something by the host, and why.
PARTS: dict[str, dict[str, str]] = {
    "ha2018/measure_dream": {
        "ha2018/dream.py: __init__": ONCE,
        "ha2018/dream.py: rollout_returns": "the population of a generation",
        "ha2018/dream.py: _compact": "once in a chunk of steps: how many still dream",
        "ha2018/dream.py: _lengths": "the returns of a generation",
    },
    "ha2018/measure_vision": {},
    "ha2018/measure_memory": {},
    "dreamerv3/measure_12m": {},
    "muzero/measure": {
        "muzero/search.py: select": "the readable form, which walks as deep as the deepest",
        "muzero/search.py: backup": "the readable form, which walks as deep as the deepest",
        "muzero/gumbel.py: halving_table": ONCE,
    },
    "muzero/measure_connect4": {
        "muzero/self_play.py: step": "boards are on the host",
        "muzero/self_play.py: _choose": "boards are on the host",
    },
    "ijepa/measure": {},
    "vjepa/measure_large": {},
    "vjepa/measure_planning": {
        "vjepa/ac/planner.py: __init__": "a plan's settings",
        "vjepa/ac/planner.py: __call__": "a plan's settings",
        "vjepa/ac/recipe.py: <genexpr>": "two constants of the normalisation",
        "vjepa/ac/recipe.py: scaled_place": "two constants of the normalisation",
        "vjepa/ac/worlds/sampling.py: von_mises": UPDATES,
        "vjepa/ac/worlds/sampling.py: <listcomp>": UPDATES,
    },
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> dict[str, Any]:
    """All parts, traced in one process."""
    try:
        library = fake_cuda.library(tmp_path_factory.mktemp("fake"))
    except RuntimeError as error:
        pytest.skip(str(error))
    variables = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(suites.ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tests.fake_cuda", *PARTS], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_on_the_device_and_waits_where_it_is_known_to(traced: dict[str, Any], part: str):
    found = traced[part]
    assert found["error"] == ""
    assert found["operations"] > 500
    assert [line for line in found["found"] if " of tensors on " in line] == []
    places = {line.split(" in ")[-1] for line in found["found"]}
    assert places - PARTS[part].keys() == set(), "a new wait for the device"
