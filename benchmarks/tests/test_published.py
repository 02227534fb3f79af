"""The published numbers are whole, and a row without source, protocol or budget does not get in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import published, suites
from benchmarks.rows import Claim, Curve

HEAD = "key,task,method,metric,unit,value,std,std_over,n,budget,env_frames,protocol,source\n"
GOOD = "a,doom,M,return,tics,1.5,0.5,episodes,100,all of it,10,p,table 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "protocols.csv").write_text("protocol,description\np,a protocol\n")
    (tmp_path / "curves.csv").write_text(",".join(published.CURVE_COLUMNS) + "\n")
    return tmp_path


def test_committed_tables_load_with_the_printed_numbers():
    known = published.load()
    best = known.numbers["ha2018", "doom-real-tau1.15"]
    assert (best.value, best.std, best.n, best.protocol) == (1092.0, 556.0, 100, "doom-100")
    assert best.spent["rollouts"] == 1800 * 64 * 16
    assert known.numbers["ha2018", "carracing-vm"].value == 906.0
    curve = known.curves["ha2018", "doom-population"]
    assert (len(curve.x), curve.x[0], curve.y[0], curve.spread[0]) == (1800, 1.0, 305.45, 84.82)


def test_every_row_of_every_suite_has_its_published_entry_and_every_size_its_words():
    known = published.load()
    for suite in suites.load():
        by_id = {row.id: row for row in suite.rows}
        assert len(by_id) == len(suite.rows)
        assert suite.headline in by_id
        for row in suite.rows:
            if not isinstance(row, Claim):
                table = known.curves if isinstance(row, Curve) else known.numbers
                assert (suite.paper, row.published) in table, row.id
        sizes = {name for (paper, _), n in known.numbers.items() if paper == suite.paper for name in n.spent}
        assert sizes <= suite.budget.keys()


def test_half_a_unit_of_the_last_printed_digit_is_uncertain(folder: Path):
    for text, rounding in (("210", 0.5), ("0.61", 0.005), ("28.0", 0.5), ("988.442", 0.0005)):
        (folder / "x.csv").write_text(HEAD + GOOD.replace("1.5,0.5", f"{text},0.5"))
        assert published.load(folder).numbers["x", "a"].rounding == pytest.approx(rounding)


def test_a_good_row_is_read(folder: Path):
    (folder / "x.csv").write_text(HEAD + GOOD)
    number = published.load(folder).numbers["x", "a"]
    assert (number.value, number.std, number.spent) == (1.5, 0.5, {"env_frames": 10.0})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",table 1", ",", r"x\.csv:2: no source"),
        (",p,", ",,", r"x\.csv:2: no protocol"),
        ("all of it", "", r"x\.csv:2: no budget"),
        (",p,", ",q,", r"x\.csv:2: unknown protocol 'q'"),
        ("1.5", "1.5x", r"x\.csv:2: value is no number"),
        ("1.5", "nan", r"x\.csv:2: value is not finite"),
        ("1.5", "", r"x\.csv:2: no value"),
        ("episodes", "", r"x\.csv:2: std without std_over"),
        (",10,p", ",p", r"x\.csv:2: 13 cells expected"),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(folder: Path, old: str, new: str, message: str):
    (folder / "x.csv").write_text(HEAD + GOOD.replace(old, new))
    with pytest.raises(ValueError, match=message):
        published.load(folder)


def test_a_duplicate_key_is_refused(folder: Path):
    (folder / "x.csv").write_text(HEAD + GOOD + GOOD)
    with pytest.raises(ValueError, match=r"x\.csv:3: key 'x a' stands twice"):
        published.load(folder)


def test_a_further_column_is_a_size_of_the_budget_and_must_hold_numbers(folder: Path):
    (folder / "x.csv").write_text(HEAD.replace("env_frames", "clips") + GOOD)
    assert published.load(folder).numbers["x", "a"].spent == {"clips": 10.0}
    (folder / "x.csv").write_text(HEAD.replace("env_frames", "remark") + GOOD.replace(",10,", ",many,"))
    with pytest.raises(ValueError, match="remark is no number: 'many'"):
        published.load(folder)


def test_a_file_that_is_not_in_the_manifest_is_refused(folder: Path):
    shutil.copy(published.FOLDER / "ha2018_doom_cma_history.csv", folder)
    with pytest.raises(ValueError, match=r"history\.csv:1: no column 'value', and not listed in curves\.csv"):
        published.load(folder)


def test_a_curve_without_budget_or_file_is_refused(folder: Path):
    manifest = folder / "curves.csv"
    line = "c.csv,c,doom,x,y,s,step,tics,p,{},table 1\n"
    manifest.write_text(manifest.read_text() + line.format(""))
    with pytest.raises(ValueError, match=r"curves\.csv:2: no budget"):
        published.load(folder)
    manifest.write_text(manifest.read_text().replace(",p,,", ",p,all,"))
    with pytest.raises(ValueError, match=r"curves\.csv:2: no file c\.csv"):
        published.load(folder)
    (folder / "c.csv").write_text("x,y,s\n1,2,3\n1,2,3\n")
    with pytest.raises(ValueError, match="does not rise"):
        published.load(folder)


@pytest.mark.parametrize("name", ["x.csv", "protocols.csv", "curves.csv"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b'a,b\n"' + b"x" * 200_000, b"a,b\n1,2\n", b"\x00,\x00\n1,2\n"])
def test_a_file_that_is_no_table_of_ours_is_one_line(name: str, content: bytes, folder: Path):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.split(".")[0]):
        published.load(folder)
