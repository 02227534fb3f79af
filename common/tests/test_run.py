"""Run folders: made whole, continued, never mixed up."""

from __future__ import annotations

import builtins
import errno
import io
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from common import run as run_module
from common.checkpoint import save
from common.config import Preset, parse, setting
from common.files import atomic_write
from common.provenance import command_line
from common.record import as_text, of_run, sample, write_record
from common.run import (
    NonFiniteError,
    Run,
    check_finite,
    is_main_process,
    read_metrics,
    run_config,
    run_folder,
    seed_everything,
    usable_device,
)


@dataclass(frozen=True)
class Config:
    task: str = setting("doom", "world")
    seed: int = setting(0, "seed", low=0)
    device: str = setting("cpu", "device")
    sizes: tuple[int, ...] = setting((1, 2), "sizes")


FOLDER = Path("runs/run")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, function, *args):
    with pytest.raises(SystemExit) as stop:
        function(*args)
    text = capsys.readouterr().err
    assert stop.value.code == 2
    assert text.count("\n") == 1
    return text


def test_run_is_made_logged_and_continued(tmp_path):
    first = Run.open("ha2018", Config(), "smoke", FOLDER)
    assert sorted(os.listdir(first.folder)) == [".lock", ".metrics.sum", "config.json", "meta.json", "metrics.jsonl"]
    first.log("vision", 1, loss=torch.tensor(0.5))
    first.log("vision", 2, loss=math.nan)
    first.log("vision holdout", 2, loss=3.0)
    first.log("visions", 2, loss=4.0)
    first.flush()
    first.add_seconds(2.0, "vision")
    second = Run.open("ha2018", Config(), "smoke", FOLDER)
    second.add_seconds(1.0)
    assert second.wall_seconds == 3.0
    assert second.stage_seconds == {"vision": 2.0, "other": 1.0}
    assert [(line["step"], line["loss"]) for line in second.metrics()] == [(1, 0.5), (2, None), (2, 3.0), (2, 4.0)]
    second.forget("vision", after=1)
    second.log("vision", 2, loss=0.25)
    assert [line["loss"] for line in second.metrics()] == [0.5, 4.0, 0.25]
    assert second.metrics()[2]["wall"] >= 2.0
    info = Run.load("ha2018", first.folder)
    assert info["config"] == {"task": "doom", "seed": 0, "device": "cpu", "sizes": [1, 2]}
    assert len(info["meta"]["restarts"]) == 1
    assert of_run(info)["wall_seconds"] == 3.0
    assert info["meta"]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-5], lambda b: b[30:], lambda b: b.replace(b"2.0", b"9.0")]
)
def test_a_log_that_lost_or_changed_lines_is_refused(damage, capsys):
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    for step in range(3):
        run.log("vision", step, loss=float(step))
    run.forget("vision", after=1)
    run.log("vision", 2, loss=2.0)
    content = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(damage(content))
    for what in (lambda: Run.open("ha2018", Config(), "smoke", FOLDER), lambda: read_metrics(FOLDER)):
        assert "metrics.jsonl is damaged" in refused(capsys, what)
    run.metrics_path.write_bytes(content)
    assert len(Run.open("ha2018", Config(), "smoke", FOLDER).metrics()) == 3


def test_a_log_of_an_earlier_version_has_no_sum_and_goes_on():
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    run.log("vision", 1, loss=1.0)
    run.guard.sum_path.unlink()
    again = Run.open("ha2018", Config(), "smoke", FOLDER)
    again.log("vision", 2, loss=2.0)
    assert [line["step"] for line in again.metrics()] == [1, 2]


def test_a_torn_last_line_is_forgotten():
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    run.log("vision", 1, loss=1.0)
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"stage": "vis')
    again = Run.open("ha2018", Config(), "smoke", FOLDER)
    again.log("vision", 2, loss=2.0)
    assert [line["step"] for line in again.metrics()] == [1, 2]


def test_another_config_is_refused_and_named(capsys):
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    text = refused(capsys, Run.open, "ha2018", replace(Config(), sizes=(3,)), "smoke", run.folder)
    assert "sizes (was [1, 2], now [3])" in text
    assert "--run" in text
    assert "muzero" in refused(capsys, Run.open, "muzero", Config(), "smoke", run.folder)
    assert before == {path: path.read_bytes() for path in run.folder.iterdir()}


def test_foreign_folders_are_refused(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "no run folder" in refused(capsys, Run.open, "ha2018", Config(), "smoke", tmp_path / "mine")
    assert "no run folder" in refused(capsys, Run.load, "ha2018", tmp_path / "none")
    (tmp_path / "file").touch()
    assert "cannot make" in refused(capsys, Run.open, "ha2018", Config(), "smoke", tmp_path / "file" / "run")
    run = Run.open("muzero", Config(), "smoke", FOLDER)
    assert "a run of muzero" in refused(capsys, Run.load, "ha2018", run.folder)
    (run.folder / "config.json").write_text("{")
    assert "damaged" in refused(capsys, Run.open, "muzero", Config(), "smoke", FOLDER)


def test_a_bad_option_leaves_no_folder(capsys, tmp_path):
    def program(*argv):
        presets = {"cpu": Preset("claim")}
        config, options = parse(Config, {"doom": {}}, presets, argv, prog="x", description="y")
        Run.open("ha2018", config, options.preset, run_folder("ha2018", config, options))

    refused(capsys, program, "--seed", "-1")
    assert os.listdir(tmp_path) == []
    program("--seed", "1")
    program("--seed", "1", "--set", "sizes=3,4", "--device", "cpu:0")
    program("--run", "elsewhere")
    folders = {"doom-cpu-seed1", "doom-cpu-seed1-device=cpu_0-sizes=3,4"}
    assert set(os.listdir(tmp_path / "runs" / "ha2018")) == folders
    assert (tmp_path / "elsewhere" / "config.json").is_file()


def test_only_the_first_rank_writes(monkeypatch, tmp_path):
    job = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    run.log("vision", 1, loss=1.0)
    run.add_seconds(1.0)
    run.flush()
    run.forget("vision", after=0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_loses_the_line_not_the_run(monkeypatch, capsys):
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    run.log("vision", 1, loss=1.0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullDisk(io.BufferedWriter):
        def close(self):
            super().close()
            full()

    def open_half(path, mode):
        return FullDisk(io.FileIO(path, mode))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_half)
        run.log("vision", 2, loss=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        run.add_seconds(1.0)
    assert capsys.readouterr().err.count("disk full") == 2
    run.log("vision", 3, loss=1.0)
    assert [line["step"] for line in run.metrics()] == [1, 3]


def test_progress_is_silent_without_a_terminal(capsys):
    with Run.open("ha2018", Config(), "smoke", FOLDER).progress(3, "vision") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    atomic_write(tmp_path / "a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    check_finite("vision", 3, {"kl": 1.0}, tmp_path)
    with pytest.raises(NonFiniteError, match="vision step 3: kl is nan; no checkpoint yet"):
        check_finite("vision", 3, {"recon": 1.0, "kl": torch.tensor(math.nan)}, tmp_path)
    save(tmp_path, 2, {}, {})
    with pytest.raises(NonFiniteError, match=r"recon is inf; last good checkpoint: .*step-000000002.safetensors"):
        check_finite("vision", 3, {"recon": math.inf}, tmp_path)


def test_seeding_repeats_the_global_generators():
    draws = []
    for _ in range(2):
        seed_everything(5)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_records_are_checked(tmp_path):
    record = of_run(Run.load("ha2018", Run.open("ha2018", Config(), "smoke", FOLDER).folder))
    record |= {
        "suite": "cpu",
        "claim": "c",
        "metric": "return",
        "unit": "tics",
        "value": 1.5,
        "values": [1.0, 2.0],
    }
    record |= {"episodes": 2, "policy": "p", "protocol": "doom-100", "budget": {}, "controls": {}}
    record |= {"measurements": {}, "curves": {}, "parameters": {}, "finished": True}
    write_record(tmp_path / "record.json", record)
    assert json.loads((tmp_path / "record.json").read_text()) == record
    for change, message in (
        ({"extra": 1}, "extra"),
        ({"episodes": 3}, "3 episodes"),
        ({"value": math.nan}, "JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            write_record(tmp_path / "bad.json", {**record, **change})
    with pytest.raises(ValueError, match="suite"):
        write_record(tmp_path / "bad.json", {key: value for key, value in record.items() if key != "suite"})
    assert not (tmp_path / "bad.json").exists()


def test_a_list_of_numbers_is_one_line_of_a_record_and_nothing_else_is_changed():
    record = {
        "values": [1.5, -2e-7, 3],
        "words": ["a [ b ]", "[\n 1\n]"],
        "inside": [{"x": [1]}, []],
        "rest": [[1, 2], []],
    }
    assert json.loads(as_text(record)) == record
    assert '"values": [1.5, -2e-07, 3]' in as_text(record)
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_text({"values": [float("nan")]})


def test_values_are_kept_to_eight_digits_and_their_mean_is_the_value():
    found = sample([2 / 3, -1e-9 / 3, 12345678.9, 7], "doom-100")
    assert found["values"] == [0.66666667, -3.3333333e-10, 12345679.0, 7.0]
    assert found["value"] == sum(found["values"]) / 4
    assert sample(torch.tensor([0.1]).numpy(), "doom-100")["values"] == [0.1]
    with pytest.raises(ValueError, match="needs a value"):
        sample([], "doom-100")


def test_the_command_is_kept_without_paths():
    code = "from common.provenance import command_line; print(command_line())"
    root = run_module.__file__.rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", code, "--seed", "1"], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == f"python -c '{code}' --seed 1"


def test_a_record_does_not_name_the_run_folder(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "ha2018.train", "--run", "../elsewhere/run", "--seed", "1"])
    record = of_run(Run.load("ha2018", Run.open("ha2018", Config(), "smoke", FOLDER).folder))
    assert record["command"] == "python -m ha2018.train --seed 1"


def test_a_stray_rank_in_the_environment_is_no_job(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RANK", "1")
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    run.log("vision", 1, loss=1.0)
    assert len(run.metrics()) == 1
    for name, value in {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "RANK=1" in refused(capsys, is_main_process)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "cuda:99", "cpu:x", "nonsense"])
def test_an_unusable_device_is_one_line(name, capsys):
    assert "device" in refused(capsys, usable_device, name)


def test_the_same_command_twice_at_once_is_refused_and_names_the_process(tmp_path):
    program = (
        "import sys, time; from common.tests.test_run import Config, Run, FOLDER;"
        "Run.open('ha2018', Config(), 'smoke', FOLDER); print('open', flush=True); time.sleep(float(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def begin(seconds):
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, seconds], stdout=pipe, stderr=pipe, text=True, env=environment)

    first = begin("60")
    assert first.stdout.readline() == "open\n"
    second = begin("0")
    _, errors = second.communicate()
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in errors
    assert errors.count("\n") == 1
    first.kill()
    first.communicate()
    third = begin("0")
    third.communicate()
    assert third.returncode == 0


def test_a_run_of_an_earlier_version_goes_on_if_new_fields_have_their_default(capsys):
    @dataclass(frozen=True)
    class Later(Config):
        added: int = setting(3, "new")
        pair: tuple[int, ...] = setting((1,), "new")

    changed = replace(Later(), added=4)

    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    Run.open("ha2018", Later(), "smoke", FOLDER)
    assert "added (was 3, now 4)" in refused(capsys, Run.open, "ha2018", changed, "smoke", FOLDER)
    assert run_config(Later, Run.load("ha2018", run.folder)) == Later()


@pytest.mark.parametrize("name", ["config.json", "meta.json", "clock.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": Infinity}', b'{"a": "b"}']
)
def test_a_damaged_file_of_a_run_is_one_line(name, content, capsys):
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    (run.folder / name).write_bytes(content + b"\n")

    def whole():
        Run.open("ha2018", Config(), "smoke", FOLDER)
        run_config(Config, Run.load("ha2018", FOLDER))
        read_metrics(FOLDER)

    if (name, content) not in {("clock.json", b"{}"), ("metrics.jsonl", b"")}:
        assert str(FOLDER) in refused(capsys, whole)


@pytest.mark.parametrize("name", ["config.json", "meta.json", "metrics.jsonl"])
def test_a_lost_file_of_a_run_is_one_line(name, capsys):
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    (run.folder / name).unlink()

    def whole():
        Run.open("ha2018", Config(), "smoke", FOLDER)

    assert str(FOLDER) in refused(capsys, whole)


@pytest.mark.parametrize("folder", ["/x/my secret/run", "it's mine", "a\\b"])
def test_no_part_of_a_folder_of_this_machine_reaches_the_command(folder, monkeypatch):
    for words in (["--run", folder], [f"--run={folder}"]):
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ha2018.train", *words, "--seed", "1"])
        assert command_line() == "python -m ha2018.train --seed 1"


def test_a_run_of_an_earlier_version_hides_its_folder_too():
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    info = Run.load("ha2018", run.folder)
    info["meta"]["command"] = "python -m ha2018.train --run '/x/my secret/run' --seed 1"
    assert of_run(info)["command"] == "python -m ha2018.train --seed 1"


def test_without_a_terminal_progress_is_a_line_a_minute(monkeypatch, capsys):
    monkeypatch.setattr(run_module, "LINE_SECONDS", 0.05)
    with run_module.progress_bar(4, "vision", unit="update") as bar:
        for _ in range(4):
            time.sleep(0.06)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("vision:") for line in lines)
    assert "4/4" in lines[-1]
    with run_module.progress_bar(4, "quick") as bar:
        bar.update(4)
    assert "\r" not in capsys.readouterr().err


def test_seconds_of_a_long_block_are_on_the_clock_before_its_end():
    run = Run.open("ha2018", Config(), "smoke", FOLDER)
    with run.timed("collect") as tick:
        time.sleep(0.02)
        tick(0.0)
        assert run.stage_seconds["collect"] >= 0.02
        before = run.stage_seconds
        tick()
        assert run.stage_seconds == before
    assert run.stage_seconds["collect"] >= before["collect"]
