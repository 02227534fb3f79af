"""The log of a run as TensorBoard's event files."""

from __future__ import annotations

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from common import tensorboard


def points(run):
    """(tag, step, value, seconds) of all event files; a record is its length, a checksum, the event, a checksum."""
    found = []
    for path in (run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value, event.wall_time) for value in event.summary.value]
            data = data[16 + length :]
    return found


def log(run, *lines, end="\n"):
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + end)


def line(step, loss):
    return {"stage": "agent", "step": step, "loss": loss, "wall": step / 2}


def test_every_number_stands_at_its_step_once(tmp_path, capsys):
    run = tmp_path / "run"
    log(run, line(10, 2.0), {**line(20, None), "return": 5.0})
    for _ in range(2):  # the second time in the place of the first
        tensorboard.main([str(run)])
        assert sorted(points(run)) == [("agent/loss", 10, 2.0, 5.0), ("agent/return", 20, 5.0, 10.0)]
    assert capsys.readouterr().out.endswith("run/tensorboard: 2 lines of the log\n")


def test_lines_are_added_and_those_of_a_resumed_run_replaced(tmp_path):
    run = tmp_path / "run"
    log(run, line(10, 2.0))
    copy = tensorboard.Copy(run)
    copy.update()
    log(run, line(10, 2.0), line(20, 1.0), line(30, 0.5), end="")  # the last one is still being written
    assert copy.update() == 2
    assert [point[1] for point in points(run)] == [10, 20]
    for lines in ((line(10, 2.0),), (line(10, 3.0),)):  # gone back to a checkpoint, begun anew
        log(run, *lines)
        copy.update()
        assert [point[1:3] for point in points(run)] == [(one["step"], one["loss"]) for one in lines]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no metrics.jsonl"), ("[1]\n", "none of ours"), ("{\n", "none of ours"), ('{"step": 1}\n', "none of ours")],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as end:
        tensorboard.main([str(tmp_path)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
