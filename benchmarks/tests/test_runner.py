"""The runner starts each run once, goes on where it stopped, and the tour sees a resume that is not exact."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import ha2018, records, report, runner, smoke, suites
from benchmarks.rows import experiments, first
from benchmarks.tests.hand_made import record, sample
from common.testing import ProgramError

TOY_TRAIN = """
import json, pathlib, signal, sys
folder = pathlib.Path(next(word for word in sys.argv if word.startswith("--run="))[6:])
folder.mkdir(exist_ok=True)
path = folder / "metrics.jsonl"
start = len(path.read_text().splitlines()) if path.exists() else 0
for step in range(start, 6):
    if folder.name == "killed" and start == 0 and step == 4:
        signal.pause()
    with path.open("a") as file:
        line = {"stage": "s", "step": step, "loss": step + DRIFT * (start > 0), "wall": start}
        file.write(json.dumps(line) + "\\n")
"""
TOY_EVALUATE = """
import pathlib, sys
folder = pathlib.Path(next(word for word in sys.argv if word.startswith("--run="))[6:])
(folder / "record.json").write_text(pathlib.Path(RECORD).read_text())
"""


def toy(folder: Path, drift: int) -> None:
    """A paper whose first run in a folder named "killed" waits to be killed after four lines."""
    (folder / "toy").mkdir()
    (folder / "record.json").write_text(json.dumps(record([1.0, 2.0]).data))
    (folder / "toy" / "train.py").write_text(f"DRIFT = {drift}\n" + TOY_TRAIN)
    (folder / "toy" / "evaluate.py").write_text(f"RECORD = {str(folder / 'record.json')!r}\n" + TOY_EVALUATE)


def test_the_tour_passes_where_resume_is_exact(tmp_path: Path):
    toy(tmp_path, drift=0)
    assert smoke.tour("toy", "doom", tmp_path) > 0


def test_the_tour_fails_where_resume_is_not_exact(tmp_path: Path):
    toy(tmp_path, drift=1)
    with pytest.raises(ProgramError, match="differs"):
        smoke.tour("toy", "doom", tmp_path)


def test_the_tour_names_a_program_that_fails(tmp_path: Path):
    with pytest.raises(ProgramError, match=r"nothing\.train .*exit code 1"):
        smoke.tour("nothing", "doom", tmp_path)


def test_rows_that_share_a_run_start_it_once():
    rows = [row for row in ha2018.SUITE.rows if first(row).suite in ("cpu", "calibration")]
    names = [job.name for job in runner.jobs(ha2018.SUITE, rows, None)]
    assert names == [
        "doom-cpu-seed0", "doom-cpu-seed1", "doom-cpu-seed2",
        "doom-random-uniform-seed0", "doom-random-held-seed0",
    ]  # fmt: skip
    assert len(runner.jobs(ha2018.SUITE, rows, [5])) == 3


def test_runs_with_settings_take_what_they_share_from_the_run_without_them():
    rows = [row for row in ha2018.SUITE.rows if (first(row).suite, first(row).task) == ("night", "car")]
    base, *others = runner.jobs(ha2018.SUITE, rows, [2], ["episodes=50"])
    assert base.name == "car-night-seed2-episodes=50"
    assert [job.name for job in others] == [
        "car-night-real-z-seed2-episodes=50",
        "car-night-real-z-hidden40-seed2-episodes=50",
        "car-night-real-zh-untrained-seed2-episodes=50",
    ]
    assert ha2018.MODEL_FROM not in base.commands()[0]
    for job in others:
        command = job.commands()[0]
        assert command[command.index(ha2018.MODEL_FROM) + 1] == "runs/ha2018/car-night-seed2-episodes=50"
        assert "episodes=50" in command
    assert "controller_inputs=z" in others[0].commands()[0]


def test_a_control_is_a_run_of_its_own_and_comes_after_the_run_it_takes_from():
    rows = [row for row in ha2018.SUITE.rows if row.id == "night-beats-tau0.50"]
    base, half = runner.jobs(ha2018.SUITE, rows, None)
    assert [base.name, half.name] == ["doom-night-seed0", "doom-night-dream-transfer-tau0.50-seed0"]
    assert (base.part, half.part) == ("", "dream-transfer-tau0.50")
    assert "--set" not in base.commands()[0]
    assert "temperature=0.5" in half.commands()[0]
    assert half.takes == (ha2018.MODEL_FROM, "doom-night-seed0")


def test_settings_cannot_lead_out_of_the_folder_of_runs():
    rows = [row for row in ha2018.SUITE.rows if row.id == "score"]
    job = runner.jobs(ha2018.SUITE, rows, [0], ["data=../../../../escaped/here", "x=" + "y" * 500])[0]
    assert job.folder.parent == runner.RUNS / "ha2018"
    assert "/" not in job.name
    assert len(job.name) < 250


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[runner.Job]:
    """The jobs that `reproduce` starts, none of which is really run."""
    found: list[runner.Job] = []

    def run(job: runner.Job) -> bool:
        found.append(job)
        return False

    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(report, "build_local", lambda *parts: "")
    return found


def test_reproduce_leaves_long_controls_to_bench(started: list[runner.Job]):
    options = argparse.Namespace(seeds=None, preset=None, task=None, set=[])
    assert runner.reproduce(suites.load(), options) == 1  # nothing was really run
    assert {(job.paper, job.task, job.preset) for job in started} == {
        ("ha2018", "doom", "cpu"),
        ("ha2018", "doom", "calibration"),
        ("dreamerv3", "dmc_proprio_cartpole_balance", "cpu"),
        ("muzero", "tictactoe", "cpu"),
        ("diamond", "video_pong", "cpu"),
        ("ijepa", "digits", "cpu"),
        ("vjepa", "shapes", "cpu"),
        ("vjepa", "two-rooms", "cpu"),
    }
    assert {job.overrides for job in started} == {(), ("updates=0",)}  # an untrained control takes no time


def test_no_two_experiments_of_a_suite_have_one_place_for_the_records_of_other_runs():
    for suite in suites.load():
        runs: dict[tuple[str, ...], set[object]] = {}
        for one in (one for row in suite.rows for one in experiments(row)):
            how = one.settings, one.takes, one.evaluate, one.is_trained, one.needs
            runs.setdefault((suite.paper, one.suite, one.task, one.claim), set()).add(how)
        assert [place for place, ways in runs.items() if len(ways) > 1] == []


OWN, FILE = ("data=a.csv", "test_data=b.csv"), "init_from=vitl16.pth.tar"


@pytest.mark.parametrize(
    ("paper", "words", "claim", "is_trained"),
    [
        ("vjepa", OWN, "", True),
        ("vjepa", (*OWN, "init_from="), "", True),
        ("vjepa", (*OWN, "probe_segments=2"), "probe-accuracy-2x3", True),
        ("vjepa", (*OWN, FILE), "probe-accuracy-8x3-official", False),
        ("vjepa", (*OWN, FILE, "probe_segments=2"), "probe-accuracy-2x3-official", False),
        ("ijepa", OWN[:1], "", True),
        ("ijepa", (*OWN[:1], FILE), "probe-accuracy-official", False),
    ],
)
def test_the_authors_weights_are_probed_if_they_are_named_and_else_a_training_is(
    started: list[runner.Job], paper, words, claim, is_trained
):
    options = argparse.Namespace(seeds=None, preset="paper", task=None, set=list(words))
    assert runner.reproduce([suite for suite in suites.load() if suite.paper == paper], options) == 1
    (job,) = started
    assert (job.part, "updates=0" in job.overrides) == (claim, not is_trained)
    assert (claim or "paper-seed0") in job.name


def test_bench_says_which_settings_a_row_lacks(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(runner, "run", lambda job: False)
    options = argparse.Namespace(seeds=None, preset="paper", task="imagenet", set=["data=images"])
    assert runner.bench([suite for suite in suites.load() if suite.paper == "ijepa"], options) == 1
    out = capsys.readouterr().out
    assert "left out: ijepa imagenet-h14-official (it needs --set init_from)" in out
    assert out.count("left out") == 1


@pytest.mark.parametrize(("paper", "task"), [("ha2018", "car"), ("ijepa", "boxing"), ("dreamerv3", "crafter")])
def test_a_task_without_rows_is_reproduced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, paper, task
):
    def run(job: runner.Job) -> bool:
        (tmp_path / job.folder).mkdir(parents=True)
        data = dict(record([1.5]).data) | {"paper": paper, "task": task, "preset": "cpu", "seed": 0, "config": {}}
        (tmp_path / job.folder / "record.json").write_text(json.dumps(data))
        (tmp_path / job.folder / "config.json").write_text("{}")
        return True

    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(report, "build_local", lambda *parts: "")
    options = argparse.Namespace(seeds=None, preset=None, task=task, set=[])
    assert runner.reproduce(suites.load(), options) == 0
    out = capsys.readouterr().out
    assert f"{task}-cpu-seed0: no row has this task at preset cpu" in out
    assert "Take Cover" not in out  # rows of other tasks
    with pytest.raises(ValueError, match="unknown task 'nothing'; there are ha2018: doom, car; "):
        runner.reproduce(suites.load(), argparse.Namespace(seeds=None, preset=None, task="nothing", set=[]))


def test_the_numbers_of_a_preset_without_rows_stand_beside_the_calibrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def run(job: runner.Job) -> bool:
        (tmp_path / job.folder).mkdir(parents=True)
        claim = job.name.removeprefix("doom-").removesuffix("-seed0") if not job.is_trained else "dream-transfer"
        words = {"task": "doom", "preset": job.preset, "suite": job.preset, "claim": claim, "config": {}, "seed": 0}
        kept = {"kept length": sample([300.0, 310.0], "doom-collect")}
        data = dict(record([210.0, 190.0]).data) | words | {"measurements": kept}
        (tmp_path / job.folder / "record.json").write_text(json.dumps(data))
        (tmp_path / job.folder / "config.json").write_text("{}")
        return True

    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(report, "build_local", lambda *parts: "")
    options = argparse.Namespace(seeds=None, preset="smoke", task="doom", set=[])
    assert runner.reproduce([ha2018.SUITE], options) == 0
    out = capsys.readouterr().out
    assert "Take Cover: uniform random play" in out
    assert "doom-smoke-seed0: no row has this task at preset smoke" in out


def test_records_of_rows_with_settings_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "results")
    rows = [row for row in ha2018.SUITE.rows if (first(row).suite, first(row).task) == ("night", "doom")]
    places = []
    for job in runner.jobs(ha2018.SUITE, rows, [0]):
        claim = job.part or "dream-transfer"
        data = dict(record([1.0]).data) | {"suite": "night", "preset": "night", "claim": claim}
        (tmp_path / job.folder).mkdir(parents=True)
        (tmp_path / job.folder / "record.json").write_text(json.dumps(data))
        places.append(runner.collect(job, ("", "", "")).name)
    assert places[:2] == ["doom-seed0.json", "doom-dream-transfer-tau0.10-seed0.json"]
    assert len(records.load(tmp_path / "results").records) == len(set(places)) == 5
    assert len(records.load_runs(tmp_path / "runs")) == 5


def test_commands_name_no_folder_of_this_machine():
    for job in runner.jobs(ha2018.SUITE, ha2018.SUITE.rows, None, ["epochs=1"]):
        for command in job.commands():
            assert not any(Path(word).is_absolute() for word in command[1:])
            assert ("epochs=1" in command) == command[2].endswith(".train")


def test_a_finished_record_of_the_same_config_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    job = runner.jobs(ha2018.SUITE, ha2018.SUITE.rows[:1], [0])[0]
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    assert not job.is_done()
    data = record([1.0]).data
    (folder / "record.json").write_text(json.dumps(data))
    (folder / "config.json").write_text(json.dumps(data["config"]))
    assert job.is_done()
    changed = runner.jobs(ha2018.SUITE, ha2018.SUITE.rows[:1], [0], ["epochs=1"])[0]
    assert not changed.is_done()
    (folder / "config.json").write_text("{}")
    assert not job.is_done()
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is damaged or missing"):
        job.is_done()


@pytest.mark.parametrize(
    ("text", "value", "is_same"),
    [
        ("1", 1.0, True), ("1e-3", 0.001, True), ("0.002", 0.001, False), ("x", 1, False),
        ("false", False, True), ("True", True, True), ("1", True, False), ("none", None, True), ("0", None, False),
        ("1,2", [1, 2], True), ("1,2,", [1, 2], True), ("1", [1, 2], False), ("a,b", ["a", "b"], True),
        ("doom", "doom", True), ("doom", "car", False),
    ],
)  # fmt: skip
def test_a_setting_is_known_again_however_it_was_written(text, value, is_same):
    assert runner.reads_as(text, value) == is_same
    job = runner.Job("toy", "doom", "cpu", 0, "name", (), True, ("some-field=7", f"some-field={text}"))
    assert job._has({"some_field": value}) == is_same, "the last one counts"
    assert not job._has({})


def test_bench_takes_no_settings_that_make_a_run_of_no_row(monkeypatch: pytest.MonkeyPatch, capsys):
    """Its record would take the place of the row's."""
    started: list[runner.Job] = []
    monkeypatch.setattr(runner, "run", started.append)
    assert runner.main(["bench", "ha2018", "--preset", "cpu", "--set", "workers=1", "longest-hold=3"]) == 2
    assert capsys.readouterr().err.endswith("not longest-hold=3; reproduce sets all\n")
    assert not started
    assert runner.main(["bench", "ha2018", "--preset", "cpu", "--seeds", "0", "--set", "workers=1"]) == 1
    assert [job.overrides for job in started] == [("workers=1",)]


def test_bench_takes_the_settings_that_its_rows_need(monkeypatch: pytest.MonkeyPatch):
    started: list[runner.Job] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(runner, "run", started.append)
    words = ["probe_segments=2", "init_from=x", "data=y", "test_data=z"]
    assert runner.main(["bench", "vjepa", "--preset", "paper", "--task", "videos", "--set", *words]) == 1
    assert [job.part for job in started] == ["probe-accuracy-2x3-official"]


def test_a_run_with_settings_of_ones_own_is_printed_beside_the_rows(tmp_path: Path, monkeypatch, capsys):
    def run(job: runner.Job) -> bool:
        (tmp_path / job.folder).mkdir(parents=True)
        data = dict(record([1.5]).data) | {"task": job.task, "preset": "cpu", "seed": 0, "config": {"generations": 2}}
        (tmp_path / job.folder / "record.json").write_text(json.dumps(data))
        (tmp_path / job.folder / "config.json").write_text(json.dumps(data["config"]))
        return True

    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(report, "build_local", lambda *parts: "")
    monkeypatch.setattr(records, "load_runs", lambda folder: (record([300.0, 310.0]),))
    options = argparse.Namespace(seeds=None, preset=None, task="doom", set=["generations=2"])
    runner.reproduce([ha2018.SUITE], options)
    out = capsys.readouterr().out
    assert "Take Cover" in out
    assert "doom-cpu-seed0-generations=2: settings of your own" in out


def test_collect_keeps_the_media_of_the_film_of_the_paper_alone_and_none_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "results")
    job = runner.jobs(ha2018.SUITE, ha2018.SUITE.rows[:1], [0])[0]
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record([1.0]).data))
    for name in ("video.webm", "curves.png", "weights.safetensors"):
        (folder / name).touch()
    runner.collect(job, ("night", "doom", "dream-transfer"))
    assert records.load(tmp_path / "results").records[0].media == ()
    runner.collect(job, ("cpu", "doom", "dream-transfer"))
    found = records.load(tmp_path / "results").records
    assert [file.name for file in found[0].media] == ["doom-seed0-curves.png", "doom-seed0.webm"]
    (folder / "video.webm").write_bytes(b"x" * 600_001)
    runner.collect(job, ("cpu", "doom", "dream-transfer"))
    assert "600,001 bytes are more than" in capsys.readouterr().out
    (folder / "record.json").write_text(json.dumps({**record([1.0]).data, "seed": 1}))
    runner.collect(job, ("cpu", "doom", "dream-transfer"))
    assert not list((tmp_path / "results").rglob("*seed1*.png"))  # a film is of one seed


def test_an_unknown_task_of_bench_lists_the_tasks():
    options = argparse.Namespace(seeds=None, preset=None, task="dom", set=[])
    with pytest.raises(ValueError, match="no row of task 'dom'; there are doom, car"):
        runner.bench([ha2018.SUITE], options)


def test_an_unknown_paper_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    assert runner.main(["smoke", "ha2019"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_papers_of_other_checkouts_are_named_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    assert runner.main(["smoke"]) == 0
    assert capsys.readouterr().out.count("not part of this checkout yet") == 6
