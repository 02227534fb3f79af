"""What travels to a GPU: the worlds and packages that the steps take, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import manifest, packing, parcel
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.manifest import Places
from benchmarks.gpu.packing import pack
from benchmarks.gpu.parcel import MEBI, ParcelError
from benchmarks.gpu.stretch import Stretch
from benchmarks.steps import Package, Step
from benchmarks.tests.toy_stretch import NAME, RUN, SOURCE, STEPS, all_steps
from common import checkpoint
from common.program import RunError


def test_recorded_play_is_made_when_a_stretch_is_packed(places: Places, tmp_path: Path, monkeypatch, capsys):
    """Once: the next stretch takes what is there."""
    words = ["diamond.recorder", "--preset", "smoke", "--task", "video_coin"]
    one = replace(RUN, settings=("data=runs/ha2018/play",), takes=None)
    step = Step("ha2018", "video", "training", one.settings, 20, 1, one, recorded_by=lambda job: words)
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: [step])
    runs = tmp_path / "local" / "runs"
    for number in range(2):
        pack(places, runs, True)
        assert ("recording" in capsys.readouterr().out) == (number == 0)
        inside = parcel.read(places.pack, ("facts.json", "runs", "site"))
        assert inside["runs/ha2018/play/data.json"] == (runs / "ha2018" / "play" / "data.json").read_bytes()
    cannot = replace(step, recorded_by=lambda job: [*words, "--no-such-option"])
    with pytest.raises(RunError, match="could not be recorded"):
        packing._carried(cannot, manifest.jobs_of(step, True), tmp_path / "elsewhere")


def test_a_world_travels_without_its_data_and_the_moments_of_its_optimiser(places: Places):
    inside = parcel.read(places.pack, ("facts.json", "runs", "site"))
    names = sorted(name.removeprefix(f"runs/ha2018/{SOURCE}/") for name in inside if "runs" in name)
    assert names == ["meta.json", "vision/step-000000002.safetensors"]
    Stretch(places, 5, True)
    found = checkpoint.load_latest(places.work / "runs" / "ha2018" / SOURCE / "vision", identity="theirs")
    assert found is not None
    assert found.tensors.keys() == {"V/w", "optimizer/group0/lr"}
    assert found.state["optimizer"] == {"group0": {"eps": 1.0, "params": [0]}}


def test_a_pack_that_is_too_large_is_refused_with_its_largest_parts(places, tmp_path, monkeypatch, capsys):
    source = tmp_path / "local" / "runs" / "ha2018" / SOURCE
    (source / "heavy.bin").write_bytes(os.urandom(MEBI))
    monkeypatch.setattr(packing, "MOST_IN", packing._checkout() + MEBI // 2)
    before = places.pack.read_bytes()
    code = pack_by_hand(places, tmp_path)
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"largest: runs/ha2018/{SOURCE}/heavy.bin 1.0 MB" in error
    assert places.pack.read_bytes() == before


def pack_by_hand(places: Places, tmp_path: Path) -> int:
    """The exit code of the command."""
    words = ["pack", "--dry", "--folder", str(places.folder), "--runs", str(tmp_path / "local" / "runs")]
    with pytest.raises(SystemExit) as found:
        main(words)
    return int(found.value.code or 0)


def test_a_pack_that_lacks_a_fact_is_packed_again(places: Places, capsys):
    contents = parcel.read(places.pack, ("facts.json", "runs"))
    facts = json.loads(contents["facts.json"])
    del facts["python"]
    parcel.write(places.pack, contents | {"facts.json": json.dumps(facts).encode()}, MEBI)
    with pytest.raises(SystemExit) as found:
        Stretch(places, 5, True)
    assert found.value.code == 2
    assert capsys.readouterr().err.strip().endswith("was packed by an earlier version: pack again")


def test_a_step_without_the_world_that_it_takes_is_left_out_of_the_pack(places: Places, tmp_path: Path, capsys):
    pack(places, tmp_path / "nothing", True)
    assert "ha2018 train: left out: " in capsys.readouterr().out
    facts = json.loads(parcel.read(places.pack, ("facts.json", "site"))["facts.json"])
    assert facts["steps"] == ["ha2018 check", "ha2018 one", "ha2018 last"]


def test_only_what_is_asked_for_is_packed(places: Places, tmp_path: Path, capsys):
    """By kind or by name; the worlds of other steps stay at home."""
    pack(places, tmp_path / "local" / "runs", True, ("speed", "ha2018 check"))
    inside = parcel.read(places.pack, ("facts.json", "site"))
    assert json.loads(inside["facts.json"])["steps"] == ["ha2018 check", "ha2018 one", "ha2018 last"]
    for words in (["pack"], ["run"]):
        with pytest.raises(SystemExit) as found:
            main([*words, "--dry", "--folder", str(places.folder), "--only", "sped"])
        assert found.value.code == 2
        assert "no step 'sped'; there are tests, speed, training, ha2018 " in capsys.readouterr().err


def test_a_run_that_has_a_record_is_not_trained_again(places: Places, tmp_path: Path):
    runs = tmp_path / "local" / "runs"
    (runs / "ha2018" / NAME).mkdir()
    (runs / "ha2018" / NAME / "record.json").touch()
    with pytest.raises(RunError, match="its run has a record"):
        packing._carried(STEPS[2], manifest.jobs_of(STEPS[2], True), runs)


def test_what_is_packed_can_be_imported_where_there_is_nothing_else():
    """Packages in plain Python beyond those of every machine, and small."""
    there = {"numba", "PIL", "lxml", "scipy"}
    assert {name for step in all_steps() for name in step.needs} == {"cma", "mlxtend", "absl", "dm_env"} | there
    found = packing._package("cma") | packing._package("mlxtend")
    assert sum(map(len, found.values())) < 6 * MEBI
    packing._check_packages(found, [], [])
    assert any(name.endswith(".dist-info/METADATA") for name in found), "records name its version"
    broken = found | {"site/cma/__init__.py": b"import gymnasium\n"}
    with pytest.raises(ParcelError, match="cma, mlxtend: not importable as packed: .*gymnasium"):
        packing._check_packages(broken, [], [])


def test_compiled_packages_do_not_travel(capsys):
    assert packing._package("numba") == {}
    assert capsys.readouterr().out == "numba: compiled, so it must be there already\n"


def test_a_package_may_travel_in_part():
    """The simulator of the one step that brings one: small, and still what the step imports."""
    (step,) = (step for step in all_steps() if step.brings)
    simulator, engine = step.brings
    assert step.experiment is not None
    assert simulator.module == f"dm_control.suite.{step.experiment.task.split('_')[2]}"
    parts = packing._brought(simulator, manifest.PYTHON, False)
    assert 0 < sum(map(len, parts.values())) < 2 * MEBI
    others = {name: data for need in ("absl", "dm_env") for name, data in packing._package(need).items()}
    there = (*step.needs, engine.name)
    packing._check_packages(parts | others, [simulator.module], there)
    less = replace(simulator, without=(*simulator.without, "dm_control/rl/"))
    parts = packing._brought(less, manifest.PYTHON, False)
    with pytest.raises(ParcelError, match=r"not importable as packed: .*dm_control.rl"):
        packing._check_packages(parts | others, [simulator.module], there)


def test_a_compiled_package_is_fetched_for_the_python_there(monkeypatch, capsys):
    """In the version of here, without its headers; what cannot be had is one line."""
    package = Package("numba", "numba", without=("numba/include/",), is_compiled=True)
    asked: list[list[str]] = []

    def pip(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        if "--python-version" in words and words[words.index("--python-version") + 1] == "3.0":
            return subprocess.CompletedProcess(words, 1, "", "WARNING: old\nERROR: No such wheel\nERROR: none")
        with zipfile.ZipFile(Path(words[words.index("--dest") + 1], "numba.whl"), "w") as wheel:
            for name in ("numba/a.cpython-39.so", "numba/include/a.h", "n.dist-info/METADATA", "n.dist-info/RECORD"):
                wheel.writestr(name, name)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    found = packing._brought(package, "3.9", False)
    assert sorted(found) == ["site/n.dist-info/METADATA", "site/numba/a.cpython-39.so"]
    assert asked[0][asked[0].index("--python-version") + 1] == "3.9"
    assert asked[0][-1].startswith("numba==0.")
    with pytest.raises(RunError, match=r"^numba for Python 3.0 could not be fetched: none$"):
        packing._brought(package, "3.0", False)
    with pytest.raises(RunError, match=r"^no_such is not installed here$"):
        packing._brought(replace(package, name="no_such"), "3.9", False)
    assert packing._brought(package, "3.9", True) == {}, "a dry stretch fetches nothing"
    assert "takes the one that is there" in capsys.readouterr().out


def test_a_step_without_its_package_is_left_out_of_the_pack(places: Places, tmp_path: Path, monkeypatch, capsys):
    step = replace(STEPS[1], brings=(Package("no_such", "no_such"),))
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: [STEPS[0], step])
    pack(places, tmp_path / "local" / "runs", True)
    assert "ha2018 one: left out: no_such is not installed here\n" in capsys.readouterr().out
    assert json.loads(parcel.read(places.pack, ("facts.json", "site"))["facts.json"])["steps"] == ["ha2018 check"]


def test_what_was_fetched_for_another_python_is_missing():
    step = replace(STEPS[1], brings=(Package("numba", "numba", is_compiled=True),))
    assert manifest.missing(step, manifest.PYTHON) == []
    assert manifest.missing(step, "3.0") == [f"numba for Python {manifest.PYTHON} (packed for 3.0)"]
    assert manifest.missing(STEPS[1], "3.0") == []
