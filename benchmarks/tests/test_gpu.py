"""A stretch on a GPU leaves what was finished, whatever it is cut off by, and nothing that comes back does harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import records
from benchmarks.gpu import manifest, packing, parcel, stretch, unpacking
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.manifest import Places
from benchmarks.gpu.packing import pack
from benchmarks.gpu.parcel import MEBI, ParcelError
from benchmarks.gpu.stretch import Stretch, journal_of
from benchmarks.gpu.travel import progress
from benchmarks.steps import Step, in_order
from benchmarks.tests.hand_made import record
from benchmarks.tests.toy_stretch import NAME, PROGRAM, RUN, STEPS, brought, patient
from common import checkpoint
from common.program import RunError


def test_a_stretch_brings_back_what_its_steps_leave(places: Places, tmp_path: Path, capsys):
    assert Stretch(places, 5, True).run([])
    assert set(brought(places, tmp_path).values()) == {manifest.DONE}
    speed = next((tmp_path / "local" / "results" / "ha2018" / "throughput").iterdir())
    found = records.read(speed, records.check_speed)
    assert [row["name"] for row in found["measurements"]] == ["one", "last"]
    run = tmp_path / "local" / "runs" / "ha2018" / NAME
    assert [path.name for path in sorted(run.glob("*/*"))] == ["step-000000002.safetensors"] * 2, "the last of each"
    # V did not travel back: it is that of the run it was taken from, under the new run's name.
    shared = checkpoint.load_latest(run / "vision", identity="mine")
    assert shared is not None
    assert torch.equal(shared.tensors["V/w"], torch.ones(3))
    with zipfile.ZipFile(places.out / "run-ha2018-train.zip") as archive:
        assert not any("vision" in name for name in archive.namelist())


def test_one_process_may_train_several_runs(places: Places, tmp_path: Path, monkeypatch):
    """They come back in one parcel, and are no more trained when all of them have records."""
    other = replace(RUN, claim="other", settings=("x=2",))
    step = replace(STEPS[2], words=("x=1", "x=2"), also=(other,), together=lambda jobs: [])
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: [step])
    names = [job.name for job in manifest.jobs_of(step, True)]
    assert [job.overrides for job in manifest.jobs_of(step, True)] == [("x=1",), ("x=2",)]
    both = PROGRAM.replace(f"runs/ha2018/{NAME}", "runs/ha2018/HERE").replace(
        'if kind == "training":', "for here in NAMES:"
    )
    both = both.replace("runs/ha2018/HERE", 'runs/ha2018/" + here + "').replace("NAMES", repr(names))
    monkeypatch.setattr(
        manifest, "commands", lambda *_: [[sys.executable, "-c", both, "training", "train", str(places.work), "0"]]
    )
    local = tmp_path / "local" / "runs"
    pack(places, local, True)
    assert Stretch(places, 5, True).run([])
    assert [path.name for path in places.out.glob("run-*")] == ["run-ha2018-train.zip"]
    brought(places, tmp_path)
    for name in names:
        assert (local / "ha2018" / name / "controller" / "step-000000002.safetensors").is_file()
        assert (local / "ha2018" / name / "vision").is_dir(), "shared with the run that it takes"
    (local / "ha2018" / names[0] / "record.json").write_text(json.dumps(record([1.0]).data))
    assert packing._carried(step, manifest.jobs_of(step, True), local), "the other has none"
    (local / "ha2018" / names[1] / "record.json").touch()
    with pytest.raises(RunError, match="its runs have records"):
        packing._carried(step, manifest.jobs_of(step, True), local)


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_that_is_tested_there_brings_its_record_alone(places, tmp_path, monkeypatch, is_finished):
    """Its checkpoint is too large to travel; without a record nothing of it is worth the way."""
    step = replace(STEPS[2], shares=(), is_tested=True)
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: [step])
    kept = json.dumps({**record([1.0]).data, "suite": "smoke", "task": "toy", "claim": "toy"})
    test = f"import pathlib, sys; pathlib.Path('runs/ha2018/{NAME}/record.json').write_text({kept!r})"
    train = [sys.executable, "-c", PROGRAM, "training", "train", str(places.work), "0"]
    programs = [train, [sys.executable, "-c", test if is_finished else "import sys; sys.exit(1)"]]
    monkeypatch.setattr(manifest, "commands", lambda *_: programs)
    assert Stretch(places, 5, True).run([]) == is_finished
    assert list((places.work / "runs" / "ha2018" / NAME / "controller").iterdir()), "it was trained there"
    assert brought(places, tmp_path) == {"ha2018 train": manifest.DONE if is_finished else manifest.FAILED}
    run = tmp_path / "local" / "runs" / "ha2018" / NAME
    names = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
    assert names == (["meta.json", "record.json"] if is_finished else [])
    assert len(list((tmp_path / "local" / "results").rglob("toy-*.json"))) == is_finished


def test_a_test_has_the_time_that_training_leaves(places, monkeypatch):
    """Both programs of a step share its deadline."""
    slow = [sys.executable, "-c", "import time; time.sleep(30)"]
    monkeypatch.setattr(manifest, "commands", lambda *_: [[sys.executable, "-c", ""], slow])
    started = time.monotonic()
    code, _ = Stretch(places, 5, True)._process(STEPS[1], 2.0, "")
    assert code is None
    assert time.monotonic() - started < 20


def test_what_is_trained_as_far_as_the_time_goes_is_tested_unfinished(places, tmp_path, monkeypatch):
    """The seconds kept for the test are its own; what was finished in time is tested as such."""
    step = replace(STEPS[1], test_seconds=8.0)
    show = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'told')!r}).write_text(' '.join(sys.argv[1:]))"
    for seconds, words in ((60, "--unfinished"), (0, "")):
        train = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
        monkeypatch.setattr(manifest, "commands", lambda *_, train=train: [train, [sys.executable, "-c", show]])
        code, _ = Stretch(places, 5, True)._process(step, 10.0, "")
        assert (code, (tmp_path / "told").read_text()) == (0, words)


def test_compiled_kernels_come_back_and_go_with_the_next_stretch(places: Places, tmp_path: Path):
    Stretch(places, 5, True).run([])
    brought(places, tmp_path)
    pack(places, tmp_path / "local" / "runs", True)
    again = Places(tmp_path / "again", tmp_path / "again" / "out")
    again.pack.parent.mkdir(parents=True)
    again.pack.write_bytes(places.pack.read_bytes())
    Stretch(again, 5, True)
    found = parcel.files_below(again.work / "cache")
    assert found.keys() == {"KEY/kernel.cubin"}, "nothing half-written"
    assert found["KEY/kernel.cubin"].read_bytes() == b"compiled " * 100


def test_compiled_kernels_are_left_out_first(places: Places, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(stretch, "MOST_FILES", 2)
    Stretch(places, 5, True).run([])
    assert "left behind: cache.zip would be more than 2 parcels" in capsys.readouterr().err
    assert sorted(path.name for path in places.out.iterdir()) == [manifest.RESULTS, "run-ha2018-train.zip"]
    places.cache.mkdir()
    (places.cache / "large").write_bytes(os.urandom(MEBI))
    monkeypatch.setattr(packing, "MOST_IN", packing._checkout() + MEBI // 2)
    pack(places, tmp_path / "local" / "runs", True)
    assert f"left out, for want of room: {places.cache}" in capsys.readouterr().out
    assert not any(name.startswith("cache") for name in parcel.read(places.pack, ("facts.json", "runs", "site")))


@pytest.mark.parametrize("name", [step.name for step in in_order(STEPS)])
def test_a_stretch_killed_in_any_step_leaves_what_was_finished_and_goes_on(places, tmp_path, monkeypatch, name):
    patient(monkeypatch, waits=name)
    process = multiprocessing.get_context("fork").Process(target=lambda: Stretch(places, 5, True).run([]))
    process.start()
    wait_for(places.work / f"waits-{name}")
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    before = [f"ha2018 {step.name}" for step in in_order(STEPS)]
    before = before[: before.index(f"ha2018 {name}")]
    if before:
        assert brought(places, tmp_path) == dict.fromkeys(before, manifest.DONE)
    else:
        with pytest.raises(SystemExit):  # nothing was finished
            brought(places, tmp_path)
    patient(monkeypatch)
    assert Stretch(places, 5, True).run([])
    assert list(brought(places, tmp_path).values()) == [manifest.DONE] * 4


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def test_what_a_step_has_started_ends_with_it_at_its_deadline(tmp_path: Path):
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    with open(tmp_path / "log", "wb") as log:
        started = time.monotonic()
        assert stretch.run_group([sys.executable, "-c", code], 1.0, tmp_path, {}, log.fileno()) is None
    assert time.monotonic() - started < 20
    # Whoever still held the log open would be a child that lives on.
    while any(_links_to(path, tmp_path / "log") for path in Path("/proc").glob("[0-9]*/fd/1")):
        assert time.monotonic() - started < 20
        time.sleep(0.02)


def _links_to(path: Path, target: Path) -> bool:
    try:
        return path.readlink() == target
    except OSError:
        return False


def test_a_training_stopped_at_its_deadline_comes_back_as_far_as_it_came(places, tmp_path, monkeypatch):
    patient(monkeypatch, waits="train")
    slow = [replace(step, seconds=2) if step.kind == "training" else step for step in in_order(STEPS)]
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: slow)
    assert Stretch(places, 5, True).run(["training"])
    assert brought(places, tmp_path) == {"ha2018 train": manifest.STOPPED}
    assert (tmp_path / "local" / "runs" / "ha2018" / NAME / "controller" / "step-000000002.safetensors").is_file()


def test_no_step_is_begun_when_the_time_is_over(places, tmp_path):
    assert Stretch(places, 0.001, True).run([])
    assert set(brought(places, tmp_path).values()) == {manifest.LEFT_OUT}


def test_a_step_that_fails_on_a_gpu_is_tried_once_more_without_graphs(places, monkeypatch):
    found = Stretch(places, 5, True)
    found.is_dry = False
    reasons: list[str] = []

    def process(step: Step, seconds: float, reason: str) -> tuple[int, str]:
        reasons.append(reason)
        return (0 if reason else 1), "text"

    monkeypatch.setattr(found, "_process", process)
    found._step(STEPS[1])
    assert reasons == ["", "one failed with exit code 1"]
    assert found.journal["steps"]["ha2018 one"]["outcome"] == manifest.DONE
    # A device whose tests fail gets no graphs at all.
    found._note(STEPS[0], manifest.FAILED, 1.0, "")
    reasons.clear()
    found._step(STEPS[3])
    assert reasons == ["the tests of this device failed"]


def test_missing_packages_are_named_before_anything_starts(places, monkeypatch, capsys):
    lacking = [replace(step, needs=("no_such_package",)) if step.kind == "speed" else step for step in STEPS]
    monkeypatch.setattr(manifest, "plan", lambda papers, is_dry: in_order(lacking))
    found = Stretch(places, 5, True)
    found.run(["speed", "tests"])
    out = capsys.readouterr().out
    assert out.startswith("missing: no_such_package, needed by ha2018 one, ha2018 last\n")
    assert found.journal["steps"]["ha2018 one"]["outcome"] == manifest.LEFT_OUT
    assert found.journal["steps"]["ha2018 check"]["outcome"] == manifest.DONE
    monkeypatch.setattr(manifest, "EVERYWHERE", ("no_such_package",))
    with pytest.raises(SystemExit):
        Stretch(places, 5, True).run([])
    assert "error: no step can run here" in capsys.readouterr().err


def test_a_run_that_is_too_large_to_come_back_is_named_and_the_rest_comes(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stretch, "MOST_FILE", 3000)
    real = progress
    monkeypatch.setattr(stretch, "progress", lambda *parts: real(*parts) | {"heavy.bin": os.urandom(4000)})
    Stretch(places, 5, True).run([])
    assert "left behind: run-ha2018-train.zip would take" in capsys.readouterr().err
    assert set(brought(places, tmp_path).values()) == {manifest.DONE}
    assert "heavy.bin" in capsys.readouterr().out
    assert not (tmp_path / "local" / "runs" / "ha2018" / NAME).exists()


def test_no_more_parcels_than_may_travel(places, monkeypatch, capsys):
    monkeypatch.setattr(stretch, "MOST_FILES", 1)
    Stretch(places, 5, True).run([])
    assert [path.name for path in places.out.iterdir()] == [manifest.RESULTS]
    assert "more than 1 parcels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["../escaped", "/escaped", "runs/../../escaped", "runs\\escaped", "elsewhere/x", "runs/./x", "runs//x"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "bad.zip"
    parcel.write(path, {name: b"x"}, MEBI)
    with pytest.raises(ParcelError, match="has no place here"):
        parcel.read(path, ("runs",))


def test_a_link_is_refused(tmp_path: Path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("runs/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "elsewhere")
    with pytest.raises(ParcelError, match="no plain file"):
        parcel.read(path, ("runs",))


def test_a_changed_parcel_is_refused_before_anything_is_written(places: Places, tmp_path: Path):
    Stretch(places, 5, True).run([])
    good = parcel.read(places.out / "run-ha2018-train.zip", ("runs",))
    name = next(name for name in good if name.endswith(".safetensors"))
    contents = {**good, name: good[name][:-1] + b"!"}
    for sums in (json.dumps(dict.fromkeys(contents, "0" * 64)), None):
        with zipfile.ZipFile(places.out / "run-ha2018-train.zip", "w") as archive:
            for key, data in {**contents, **({} if sums is None else {parcel.SUMS: sums.encode()})}.items():
                archive.writestr(key, data)
        with pytest.raises(ParcelError, match=r"not those that were packed|has no checksums\.json"):
            brought(places, tmp_path)
    (places.out / "run-ha2018-train.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ParcelError, match=r"run-ha2018-train\.zip: "):
        brought(places, tmp_path)
    assert not (tmp_path / "local" / "results").exists()
    assert not (tmp_path / "local" / "runs" / "ha2018" / NAME).exists()


def test_what_has_come_further_or_has_a_record_stays(places: Places, tmp_path: Path, capsys):
    Stretch(places, 5, True).run([])
    run = tmp_path / "local" / "runs" / "ha2018" / NAME
    checkpoint.save(run / "controller", 7, {}, {})
    (run / "meta.json").write_text('{"identity": "mine"}')
    brought(places, tmp_path)
    assert "which has come further" in capsys.readouterr().out
    assert [path.name for path in (run / "controller").iterdir()] == ["step-000000007.safetensors"]
    (run / "controller" / "step-000000007.safetensors").unlink()
    (run / "record.json").write_text(json.dumps(record([1.0]).data))
    brought(places, tmp_path)
    assert "which has a record" in capsys.readouterr().out
    assert not list((run / "controller").iterdir())


def test_a_finished_record_never_gives_way_to_one_that_is_not(places: Places, tmp_path: Path):
    runs, results = tmp_path / "local" / "runs", tmp_path / "local" / "results"
    (job,) = manifest.jobs_of(STEPS[2], True)
    data = {**record([1.0]).data, "suite": "smoke", "task": "toy", "claim": "toy"}
    (runs / "ha2018" / NAME).mkdir(parents=True)
    path = runs / "ha2018" / NAME / "record.json"
    path.write_text(json.dumps({**data, "finished": False, "wall_seconds": 1.0}))
    unpacking._keep_record(job, runs, results)
    (target,) = results.rglob("*.json")
    assert not json.loads(target.read_text())["finished"]
    path.write_text(json.dumps({**data, "wall_seconds": 2.0}))
    unpacking._keep_record(job, runs, results)
    path.write_text(json.dumps({**data, "finished": False, "wall_seconds": 3.0}))
    unpacking._keep_record(job, runs, results)
    found = json.loads(target.read_text())
    assert (found["finished"], found["wall_seconds"]) == (True, 2.0)


def test_figures_of_a_later_stretch_take_the_place_of_those_of_the_same_names(places: Places, tmp_path: Path):
    Stretch(places, 5, True).run([])
    brought(places, tmp_path)
    path = next((tmp_path / "local" / "results" / "ha2018" / "throughput").iterdir())
    data = json.loads(path.read_text())
    data["measurements"] = [{**data["measurements"][0], "value": 7.0}, {**data["measurements"][1], "name": "other"}]
    path.write_text(json.dumps(data))
    brought(places, tmp_path)
    rows = json.loads(path.read_text())["measurements"]
    assert [(row["name"], row["value"]) for row in rows] == [("one", 100.0), ("other", 100.0), ("last", 100.0)]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--minutes", "0"],
        ["run", "--dry", "--minutes", "nan"],
        ["unpack", "--dry"],
        ["run", "--dry"],
        ["fly"],
        ["pack", "--dry", "--python", "abc"],
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], capsys):
    with pytest.raises(SystemExit) as found:
        main([*words, "--folder", str(tmp_path / "empty")])
    assert found.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_journal_is_one_line(tmp_path: Path):
    for data in (b"[]", b"{}", b'{"steps": {"a": 1}}', b"\xff"):
        with pytest.raises(ParcelError, match="not what a stretch writes"):
            journal_of({"journal.json": data}, tmp_path)
