"""A stretch of toy steps for the tests of this folder, and the steps of all suites."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import suites
from benchmarks.gpu import manifest, parcel
from benchmarks.gpu.manifest import Places
from benchmarks.gpu.stretch import journal_of
from benchmarks.gpu.unpacking import unpack
from benchmarks.rows import Experiment
from benchmarks.speed.timing import Timing, figure
from benchmarks.steps import Step

WORLD = Experiment("night", "toy", "toy", (0,), 1)
RUN = replace(WORLD, settings=("x=1",), takes=("--model-from", WORLD))
FIGURE = figure("toy", "ms", Timing(0.1, 0.1, 0.1, 1))
STEPS = (
    Step("ha2018", "check", "tests", ("check",), 20),
    Step("ha2018", "one", "speed", ("one",), 20),
    Step("ha2018", "train", "training", ("x=1",), 20, 1, RUN, shares=("vision",)),
    Step("ha2018", "last", "speed", ("last",), 20),
)
NAME, SOURCE = "toy-smoke-toy-seed0", "toy-smoke-seed0"
# What a step of each kind does: leave something, then wait as long as it is told to.
PROGRAM = """
import json, os, pathlib, shutil, sys, time
kind, name, work, wait = sys.argv[1:]
work = pathlib.Path(work)
if kind == "speed":
    (work / "speed/ha2018").mkdir(parents=True, exist_ok=True)
    (work / f"speed/ha2018/{name}.json").write_text(json.dumps([dict(FIGURE, name=name)]))
if kind == "training":
    folder = pathlib.Path("runs/ha2018/NAME")
    shutil.copytree(work.parent / "ready", folder, dirs_exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"identity": "mine"}))
for file in ("KEY/kernel.cubin", "KEY/tmp.pid_1/half"):
    kernel = pathlib.Path(os.environ["TRITON_CACHE_DIR"], file)
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(b"compiled " * 100)
(work / f"waits-{name}").touch()
time.sleep(float(wait))
print("passed")
""".replace("NAME", NAME).replace("FIGURE", repr(FIGURE))


def patient(monkeypatch: pytest.MonkeyPatch, waits: str = "") -> None:
    """All steps end at once but the one called `waits`."""

    def commands(step: Step, places: Places, is_dry: bool) -> list[list[str]]:
        seconds = "60" if step.name == waits else "0"
        return [[sys.executable, "-c", PROGRAM, step.kind, step.name, str(places.work), seconds]]

    monkeypatch.setattr(manifest, "commands", commands)


def brought(places: Places, tmp_path: Path) -> dict[str, str]:
    """The outcomes of the steps, once everything has been unpacked beside the runs that were there."""
    unpack(places, tmp_path / "local" / "results", tmp_path / "local" / "runs", True)
    found = journal_of(parcel.read(places.out / manifest.RESULTS, ("journal.json", "speed")), places.out)
    return {name: step["outcome"] for name, step in found["steps"].items()}


def all_steps() -> list[Step]:
    return manifest.plan(suites.load(), False)
