"""Other people's learners: the option's bad input, and the line to a peer's process."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import records, suites, throughput
from benchmarks.peers import peer
from benchmarks.speed import ijepa, pretraining
from benchmarks.speed.timing import ROOT, Timing, figure, in_turns, peak_memory_of, timed

TOY = """
from benchmarks.peers.line import Line
line = Line()
order = line.start()
print("a word of the peer's own")
line.serve({"form": "float32", "parameters": order["size"], "unlike": "is a toy"}, lambda: None)
"""


def toy(code: str, size: int = 7) -> peer.Peer:
    """A peer that is this program, started as a peer is."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    found = peer.Peer("nm512", "NM512/dreamerv3-torch abc", process, io.StringIO("first\nno module named x\n"))
    found.facts = found.ask({"checkout": "", "size": size})
    return found


def test_work_that_is_only_promised_is_not_timed():
    with pytest.raises(TypeError, match="generator"):
        timed(lambda: (k for k in range(3)), torch.device("cpu"))
    assert timed(lambda: list(range(3)), torch.device("cpu"), repeats=3).repeats == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody=."], "expected NAME=DIR with a name of nm512"),
        (["nm512"], "expected NAME=DIR"),
        (["nm512=no/such/folder"], "no checkout of NM512/dreamerv3-torch there, dreamer.py is missing"),
        (["facebookresearch=."], "measured with ijepa, which is not among dreamerv3"),
    ],
)
def test_a_bad_peer_is_named_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    argv = ["dreamerv3", "--device", "cpu", *(part for word in words for part in ("--peer", word))]
    with pytest.raises(SystemExit) as exit_:
        throughput.main(argv)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "file", "device", "place"),
    [
        ("nm512", "dreamer.py", "cuda", "a CPU"),
        ("facebookresearch", "src/train.py", "cuda:1", "a CPU or the first GPU"),
    ],
)
def test_a_peer_is_measured_where_it_can_run(
    name: str, file: str, device: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "src").mkdir()
    (tmp_path / file).touch()
    monkeypatch.setattr(throughput, "usable_device", torch.device)
    with pytest.raises(SystemExit) as exit_:
        throughput.main([peer.ORIGINS[name].paper, "--device", device, "--peer", f"{name}={tmp_path}"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: --peer {name} is measured on {place}, not on {device}; use --device\n"


def test_a_part_runs_on_the_device_with_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").touch()
    seen = []

    def beside(checkouts, device):
        seen.append((checkouts, device))
        return [figure("beside", "ms", Timing(1.0, 1.0, 1.0, 1))]

    monkeypatch.setattr(throughput, "usable_device", torch.device)
    monkeypatch.setattr(ijepa, throughput.BESIDE, beside)
    part = f"ijepa/{throughput.BESIDE}"
    words = ["--peer", f"facebookresearch={tmp_path}", "--part", part, "--out", str(tmp_path / "out")]
    assert throughput.main(["ijepa", "--device", "cuda", *words]) == 0
    assert seen == [({"facebookresearch": tmp_path}, torch.device("cuda"))]
    assert [row["name"] for row in json.loads((tmp_path / "out" / f"{part}.json").read_text())] == ["beside"]


def test_a_part_that_fails_leaves_the_others_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(records, "FOLDER", tmp_path / "benchmarks" / "results")
    found = [figure("alone", "ms", Timing(1.0, 1.0, 1.0, 1))]
    parts = iter([found, None])
    monkeypatch.setattr(throughput, "_in_a_process", lambda *_: next(parts))
    suite = replace(next(one for one in suites.load() if one.paper == "ijepa"), speed=("measure", "broken"))
    monkeypatch.setattr(suites, "load", lambda: (suite,))
    assert throughput.main(["ijepa", "--device", "cpu"]) == 1
    (path,) = tmp_path.rglob("*.json")
    assert [row["name"] for row in json.loads(path.read_text())["measurements"]] == ["alone"]


def test_every_part_of_every_suite_exists():
    for suite in suites.load():
        module = importlib.import_module(f"benchmarks.speed.{suite.paper}")
        assert all(callable(getattr(module, part)) for part in suite.speed)


def test_a_share_of_the_peak_is_that_of_the_numbers_multiplied(monkeypatch: pytest.MonkeyPatch):
    """Products of bfloat16 beside the rate of bfloat16."""
    small, cpu = replace(ijepa.SMALL, encoder="nano", predictor_depth=1), torch.device("cpu")
    both = {name: replace(small, precision=name) for name in ("float32", "bfloat16")}
    product = {torch.float32: Timing(2.0, 2.0, 2.0, 1), torch.bfloat16: Timing(0.5, 0.5, 0.5, 1)}
    monkeypatch.setattr(pretraining, "precisions", lambda *_: both)
    monkeypatch.setattr(pretraining, "matrix_product", lambda dtype, _: (1000, product[dtype]))
    for module in (ijepa, pretraining):
        monkeypatch.setattr(module, "timed", lambda *_, **__: Timing(1.0, 1.0, 1.0, 1))
    rows = {row["name"]: row for row in ijepa.measure(cpu)}
    shares = [rows[name] for name in rows if "share of the" in name]
    assert [row["name"].split("share of the ")[1] for row in shares] == [f"{name} matrix product rate" for name in both]
    assert shares[0]["ratio"] == pytest.approx(4 * shares[1]["ratio"], rel=0.01)
    assert [rows[f"{name} matrix product 1000"]["value"] for name in both] == [1.0, 4.0]


def test_a_checkout_is_known_by_its_file(tmp_path: Path):
    (tmp_path / "dreamer.py").touch()
    assert peer.checkouts([f"nm512={tmp_path}"], ["dreamerv3"]) == {"nm512": tmp_path}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--part", "ijepa/measure"], "go together"),
        (["--smoke"], "goes with"),
        (["--out", "x"], "go together"),
        (["--part", "ijepa/nothing", "--out", "x"], "unknown part ijepa/nothing; there are "),
        (["--part", "nothing", "--out", "x"], "unknown part nothing"),
    ],
)
def test_parts_that_cannot_be_measured_are_one_line(words: list[str], complaint: str, capsys):
    with pytest.raises(SystemExit) as found:
        throughput.main([*words, "--device", "cpu"])
    error = capsys.readouterr().err
    assert (found.value.code, error.count("\n"), complaint in error) == (2, 1, True), error


@pytest.mark.parametrize("has_peer", [False, True])
def test_a_record_has_rows_of_peers_only_with_the_option(
    has_peer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "dreamer.py").touch()
    timing = Timing(1.0, 1.0, 1.0, 1)
    found = peer.Peer("nm512", "NM512/dreamerv3-torch abc", subprocess.Popen(["true"], text=True), io.StringIO())
    found.facts = {"form": "float32", "parameters": 9, "unlike": "is a toy"}
    beside = peer.compared("beside", "ms", timing, Timing(2.0, 2.0, 2.0, 1), found, 8, 0.5)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "benchmarks" / "results")
    parts = {"measure": [figure("alone", "ms", timing)], throughput.BESIDE: [beside]}
    monkeypatch.setattr(throughput, "_in_a_process", lambda paper, part, *_: parts.get(part, []))
    option = ["--peer", f"nm512={tmp_path}"] if has_peer else []
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "benchmarks.throughput", "dreamerv3", *option])
    assert throughput.main(["dreamerv3", "--device", "cpu", *option]) == 0
    (path,) = tmp_path.rglob("*.json")
    record = json.loads(path.read_text())
    named = f" --peer nm512={tmp_path.name}" if has_peer else ""
    assert record["command"] == f"python -m benchmarks.throughput dreamerv3{named}"
    rows = record["measurements"]
    assert [row["name"] for row in rows] == ["alone", "beside"][: 1 + has_peer]
    if has_peer:
        assert rows[1]["ratio"] == 2.0
        assert rows[1]["peer"] == "NM512/dreamerv3-torch abc, float32: 2000.0 ms"
        assert "8 parameters, the peer 9; peak memory 0.50 GiB, the peer " in rows[1]["note"]


def test_a_peer_answers_orders_whatever_it_prints():
    found = toy(TOY)
    with found.process:
        assert found.facts == {"form": "float32", "parameters": 7, "unlike": "is a toy"}
        assert 0 <= found.update() < 1
        assert 0 <= found.update() < 1
        assert 0.005 < found.memory < 0.5  # an interpreter, no torch
        found.process.kill()


def test_a_peer_that_stops_is_named_with_its_last_word(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        toy("raise SystemExit(3)")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: --peer nm512: it stopped with exit code 3: no module named x\n"


def hold(mebibytes: str):
    bytearray(b"x" * (int(mebibytes) << 20))


def test_peak_memory_is_that_of_a_process_of_its_own():
    small, large = (peak_memory_of(hold, size) for size in ("1", "500"))
    assert 0.4 < large - small < 1.2  # the bytes, and once more while they are copied


def test_calls_in_turns_leave_the_warm_up_out():
    seconds = iter([9.0, 9.0, 1.0, 2.0, 3.0, 6.0, 2.0, 4.0])
    ours, theirs = in_turns([lambda: next(seconds)] * 2, repeats=3, warmup=1)
    assert ours == Timing(2.0, 1.0, 3.0, 3)
    assert theirs == Timing(4.0, 2.0, 6.0, 3)
