"""The attacks: their judge sees what it should, and a toy that keeps nothing is caught."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import harden, suites
from benchmarks.harden import Target, tables


@pytest.mark.parametrize(
    ("code", "text", "found"),
    [
        (0, "", "equal"),
        (0, "warning: checkpoint a is damaged\n", "equal"),
        (2, "error: a is no b\n", "refused"),
        (1, "error: no space\n", "refused"),
        (1, "", "silent"),
        (3, "word\n", "silent"),
        (1, "Traceback (most recent call last):\n  ...\nValueError: x\n", "traceback"),
        (None, "", "hang"),
    ],
)
def test_an_outcome_is_judged_by_exit_code_and_words(code, text, found, tmp_path: Path):
    (tmp_path / "err").write_text(text)
    assert Target.judge(object.__new__(Target), code, tmp_path) == found


def test_tables_and_records_are_refused_or_read_as_they_were(tmp_path: Path):
    outcomes = set()
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        outcomes.add(tables(random.Random(number), tmp_path / str(number)))
    assert outcomes <= {"equal", "refused"}
    assert "refused" in outcomes


def test_what_was_attacked_is_not_attacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harden, "KINDS", {"tables": 3})
    suite = suites.load()[0]
    first = harden.attack(suite, 1.0, 0, tmp_path, 1)
    lines = (tmp_path / f"{suite.paper}.jsonl").read_text()
    monkeypatch.setattr(harden, "tables", lambda *_: pytest.fail("again"))
    assert harden.attack(suite, 1.0, 0, tmp_path, 1) == first
    assert (tmp_path / f"{suite.paper}.jsonl").read_text() == lines
    assert [json.loads(line)["number"] for line in lines.splitlines()] == [0, 1, 2]
