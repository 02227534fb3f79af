"""A record that does not keep the schema is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.tests.hand_made import record, sample
from common.record import RECORD_KEYS

SPEED = {
    "schema": 1, "paper": "ha2018", "device": "d", "revision": "r", "packages": {}, "command": "c",
    "measurements": [{
        "name": "dream", "value": 2.0, "unit": "steps/s", "low": 1.0, "high": 3.0, "repeats": 5, "peer": None,
        "ratio": None, "published": None, "published_source": "", "note": "",
    }],
}  # fmt: skip
PARITY = {
    "paper": "ha2018",
    "components": [{
        "component": "V", "cases": 1, "elements": 2,
        "largest_deviation": 0.0, "tolerance": 0.1, "dtype": "float32",
    }],
}  # fmt: skip


def write(folder: Path, data: Any, name: str = "ha2018/cpu/doom-seed0.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_the_committed_records_load():
    records.load()


def test_a_good_folder_loads_with_media_of_the_same_seed_only(tmp_path: Path):
    path = write(tmp_path, record([1.0, 2.0], seed=1).data, "ha2018/cpu/doom-seed1.json")
    for name in ("doom-seed1.webm", "doom-seed1-curves.png", "doom-seed10.webm"):
        (path.parent / name).touch()
    write(tmp_path, SPEED, "ha2018/throughput/a-cpu.json")
    write(tmp_path, PARITY, "ha2018/parity.json")
    found = records.load(tmp_path)
    assert [file.name for file in found.records[0].media] == ["doom-seed1-curves.png", "doom-seed1.webm"]
    assert len(found.speed) == len(found.parity) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 3.0}, "is not the mean of values"),
        ({"episodes": 3}, "episodes is 3, but there are 2 values"),
        ({"values": [float("nan"), 1.0]}, "no finite number"),
        ({"extra": 1}, "unknown extra"),
        ({"schema": 2}, "schema 2"),
        ({"device": ""}, "device must be a text"),
        ({"finished": "yes"}, "finished must be true or false"),
        ({"controls": {"random": {"value": 1.0}}}, "controls/random: missing"),
        ({"controls": {"random": {**sample([1.0]), "value": 2.0}}}, "controls/random: value"),
        ({"budget": {"env_frames": "many"}}, "budget: 'many' is no finite number"),
        ({"curves": {"c": {"x": [1], "y": [], "x_unit": "a", "y_unit": "b"}}}, "of one length"),
        ({"suite": "gpu"}, "holds a record of ha2018/gpu"),
        ({"seed": 4}, "expected the name doom-seed4.json"),
    ],
)
def test_a_bad_record_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    write(tmp_path, record([1.0, 2.0], **changes).data)
    with pytest.raises(ValueError, match=message):
        records.load(tmp_path)


def test_a_missing_key_is_named(tmp_path: Path):
    data = dict(record([1.0]).data)
    del data["revision"]
    write(tmp_path, data)
    with pytest.raises(ValueError, match=r"doom-seed0\.json: missing revision"):
        records.load(tmp_path)


def test_one_seed_does_not_count_twice(tmp_path: Path):
    write(tmp_path, record([1.0]).data)
    write(tmp_path, record([1.0]).data, "ha2018/cpu/doom-again-seed0.json")
    with pytest.raises(ValueError, match="same run as"):
        records.load(tmp_path)


def test_an_unfinished_record_may_have_no_values(tmp_path: Path):
    write(tmp_path, record([1.0], finished=False, value=None, values=[], episodes=0).data)
    assert not records.load(tmp_path).records[0].finished


@pytest.mark.parametrize("name", ["ha2018/throughput/a.json", "ha2018/parity.json", "stray.json"])
def test_a_bad_speed_or_parity_file_or_a_stray_one_is_refused(tmp_path: Path, name: str):
    write(tmp_path, {"paper": "ha2018"}, name)
    with pytest.raises(ValueError, match=r"missing|expected <paper>"):
        records.load(tmp_path)


def test_runs_in_folders_of_other_names_are_no_runs_of_a_row(tmp_path: Path):
    write(tmp_path, record([1.0]).data, "ha2018/doom-cpu-seed0/record.json")
    write(tmp_path, record([1.0]).data, "ha2018/my-experiment/record.json")
    assert [found.path.parent.name for found in records.load_runs(tmp_path)] == ["doom-cpu-seed0"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", '"x"', "[" * 100_000, '{"schema": ' + "9" * 400 + "}", "\ud83d", '{"a": NaN}',
        '{"paper": "\\ud800"}',
    ],
)  # fmt: skip
def test_a_hostile_record_is_one_line(text: str, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"record\.json") as error:
        records.read(path, records.check_record)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("key", sorted(RECORD_KEYS))
@pytest.mark.parametrize("value", [None, [], {}, "", "x", -1, int("9" * 400), [[]], {"a": "b"}])
def test_no_value_of_a_key_is_more_than_a_line(key: str, value: Any, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**record([1.0, 2.0]).data, key: value}))
    with suppress(ValueError):
        records.read(path, records.check_record)
