"""The steps of all suites: what they name exists, and they run to their end where no world is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import suites
from benchmarks.gpu import manifest, parcel, stretch
from benchmarks.gpu.manifest import Places
from benchmarks.gpu.packing import pack
from benchmarks.gpu.stretch import Stretch, journal_of
from benchmarks.gpu.unpacking import unpack
from benchmarks.rows import Suite
from benchmarks.steps import in_order
from benchmarks.tests.toy_stretch import STEPS, all_steps

WORLDS = (
    "gymnasium", "gymnasium_robotics", "ale_py", "vizdoom", "dm_control", "crafter", "Box2D", "box2d", "mujoco",
    "pyspiel", "open_spiel", "pygame",
)  # fmt: skip
UNBROUGHT = set(WORLDS) - {"dm_control", "mujoco"}  # those that no step brings
# Put before all other modules of a process: no game, simulator or emulator can be imported in it.
REFUSE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(WORLDS)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: refused", name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def refusing(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has no world."""
    (tmp_path / "refuse").mkdir()
    (tmp_path / "refuse" / "sitecustomize.py").write_text(REFUSE)
    return {"PYTHONPATH": os.pathsep.join((str(tmp_path / "refuse"), str(suites.ROOT)))}


def test_the_modules_that_steps_import_import_no_world(refusing: dict[str, str]):
    """Of each paper by itself, so that the line says whose import it is."""
    names = {step.paper: [f"benchmarks.speed.{step.paper}", f"{step.paper}.train"] for step in all_steps()}
    names["vjepa"].append("vjepa.ac.train")
    code = f"""
import importlib, traceback
for paper, modules in {names}.items():
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{{module}}: {{error}} at {{traceback.extract_tb(error.__traceback__)[-2].filename}}")
try:
    import gymnasium
    print("nothing is refused")
except ImportError:
    pass
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=suites.ROOT, env={**os.environ, **refusing}, capture_output=True, text=True
    )
    assert (found.stdout, found.returncode) == ("", 0), found.stderr


def test_every_step_of_the_suites_runs_to_its_end_on_a_cpu_without_a_world(tmp_path: Path, monkeypatch, refusing):
    """No world but what a step brings. All but those that take a finished one, which is not there: they stay out."""
    (tmp_path / "refuse" / "sitecustomize.py").write_text(REFUSE.replace(f"{sorted(WORLDS)}", f"{sorted(UNBROUGHT)}"))
    places = Places(tmp_path / "gpu", tmp_path / "out")
    pack(places, tmp_path / "runs", True)
    monkeypatch.setenv("PYTHONPATH", refusing["PYTHONPATH"])
    assert Stretch(places, 60, True).run([])
    unpack(places, tmp_path / "results", tmp_path / "runs", True)
    journal = journal_of(parcel.read(places.out / manifest.RESULTS, ("journal.json", "speed")), places.out)
    assert {step["outcome"] for step in journal["steps"].values()} == {manifest.DONE}
    measured = {path.parts[-3] for path in (tmp_path / "results").glob("*/throughput/*.json")}
    assert measured == {suite.paper for suite in suites.load()}
    trained = {path.parts[-3] for path in (tmp_path / "runs").glob("*/*/meta.json")}
    assert trained == {step.paper for step in all_steps() if step.kind == "training"} - {"ha2018"}
    assert len(list(places.out.iterdir())) <= stretch.MOST_FILES


def test_tests_come_before_speed_and_training_by_its_worth_a_second():
    steps = all_steps()
    kinds = [step.kind for step in steps]
    assert kinds == sorted(kinds, key=("tests", "speed", "training").index)
    worth = [step.worth / step.seconds for step in steps if step.kind == "training"]
    assert worth == sorted(worth, reverse=True)
    with pytest.raises(ValueError, match="two steps are called ha2018 one"):
        in_order([STEPS[1], STEPS[1]])


def test_each_step_of_a_suite_names_what_exists():
    root = suites.ROOT
    papers: dict[str, Suite] = {suite.paper: suite for suite in suites.load()}
    for step in all_steps():
        if step.kind == "tests":
            assert all((root / word).is_file() for word in step.words)
        elif step.kind == "speed":
            assert step.words[0].split("/") in [[step.paper, part] for part in papers[step.paper].speed]
        else:
            dry, jobs = ({job.name: job for job in manifest.jobs_of(step, is_dry)} for is_dry in (True, False))
            assert len(dry) == len(jobs) == 1 + len(step.also)
            assert not dry.keys() & jobs.keys()
            assert all("device=cuda" in job.overrides or job.preset == "gpu" for job in jobs.values())
