"""The report is current, deterministic and self-contained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import content, ha2018, ijepa, markdown, plots, published, records, report
from benchmarks.compare import compare
from benchmarks.rows import Row
from benchmarks.tests.hand_made import record, sample
from benchmarks.tests.test_records import PARITY, SPEED

VOID = {"meta", "br", "img", "source", "link"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with hand-made records and a README."""
    results = tmp_path / "benchmarks" / "results" / "ha2018"
    (results / "cpu").mkdir(parents=True)
    (results / "throughput").mkdir()
    y = [300.0 + x for x in range(30)]
    curves = {"dream population mean": {"x": list(range(1, 31)), "y": y, "x_unit": "generation", "y_unit": "tics"}}
    for seed in (0, 1, 2):
        data = record([300.0, 320.0, 1000.0], seed, curves=curves, device="a <CPU> & more").data
        (results / "cpu" / f"doom-seed{seed}.json").write_text(json.dumps(data))
    (results / "cpu" / "doom-seed0.webm").write_bytes(b"video")
    (results / "throughput" / "a-cpu.json").write_text(json.dumps(SPEED))
    (results / "parity.json").write_text(json.dumps(PARITY))
    (tmp_path / "README.md").write_text(f"# Title\n\n{markdown.BEGIN}\nstale block\n{markdown.END}\n\nrest\n")
    return tmp_path


def build(root: Path) -> dict[Path, str]:
    return report.build(root, records.load(root / "benchmarks" / "results"))


def write(files: dict[Path, str]) -> None:
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_the_committed_report_is_current(capsys: pytest.CaptureFixture[str]):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def test_the_same_records_give_the_same_bytes(root: Path):
    assert build(root) == build(root)


def test_check_sees_a_changed_record_a_changed_file_and_a_left_over_plot(root: Path):
    files = build(root)
    assert len(report.stale(root, files)) == len(files)
    write(files)
    assert report.stale(root, build(root)) == []
    (root / "benchmarks" / "plots" / "old.svg").touch()
    assert [path.name for path in report.stale(root, build(root))] == ["old.svg"]
    data = record([301.0, 320.0, 1000.0], 0).data
    (root / "benchmarks/results/ha2018/cpu/doom-seed0.json").write_text(json.dumps({**data, "curves": {}}))
    assert {path.name for path in report.stale(root, build(root))} >= {
        "REPORT.md",
        "report.html",
        "README.md",
    }


def test_check_is_not_disturbed_by_a_matplotlib_that_draws_other_bytes():
    def page(digest: str, lines: str) -> str:
        return f'<p>a</p><svg role="img" data-digest="{digest}" width="1">{lines}</svg><p>b</p>'

    assert report.essence(page("1", "<path/>")) == report.essence(page("1", "<path d=''/>"))
    assert report.essence(page("1", "<path/>")) != report.essence(page("2", "<path/>"))


def test_a_claim_against_another_run_points_to_both_records_and_has_no_published_number():
    row = Row("a", "Title", "claim", "cpu", "doom", (0,), "dream-transfer", "", 1, rival="rival")
    ours, theirs = record([300.0, 320.0]), replace(record([250.0, 270.0], claim="rival"), path=Path("rival.json"))
    known = published.load()
    results = [compare(ha2018.SUITE, row, [ours, theirs], known)]
    table = content.verdict_table(results)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cells["reported"].text, cells["reported"].small) == ("", "")
    assert cells["row"].small == "tics survived; doom-100"
    assert (cells["budget"].text, cells["budget"].small) == ("", "")
    assert cells["preset, seeds"].text == "cpu"
    assert cells["preset, seeds"].small == "one seed"
    assert cells["preset, seeds"].links == (("seed 0", ours.path), ("seed 0 of rival", theirs.path))
    assert [line[0].text for line in content.protocol_table(results, known.protocols).rows] == ["doom-100"]
    (plot,) = plots.draw(results)
    worse = replace(theirs, data=record([25.0, 27.0], claim="rival").data)
    assert plot.svg != plots.draw([compare(ha2018.SUITE, row, [ours, worse], known)])[0].svg
    waiting = compare(ha2018.SUITE, row, [ours], known)
    assert content.protocol_table([waiting], known.protocols).rows == ()
    assert plots.draw([waiting]) == []


def test_published_variables_of_a_calibration_stand_beside_the_mean_over_seeds():
    row = Row("a", "Title", "calibration", "calibration", "pong", (0, 1), "control-random-cnn", "pong-random-cnn", 1)
    runs = [
        record(
            [20.0], seed, paper="ijepa", suite="calibration", claim="control-random-cnn", task="pong", budget={},
            protocol="atariari-f1",
            measurements={"ball_x": sample([x], "atariari-f1-part"), "not published": sample([x], "atariari-f1-part")},
        )
        for seed, x in enumerate((14.0, 17.0))
    ]  # fmt: skip
    known = published.load()
    result = compare(ijepa.SUITE, row, runs, known)
    majority = replace(result, row=replace(row, quantity="controls/majority"))
    (line,) = content.parts_table([result, majority], known).rows
    assert [cell.text for cell in line] == ["ijepa", "pong: ball_x", "15", "15.5", "+0.5"]
    assert line[3].small == "14.0, 17.0"


def test_the_readme_block_is_replaced_and_the_rest_kept(root: Path):
    text = build(root)[root / "README.md"]
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nrest\n")
    assert "claim holds" in text
    assert "stale block" not in text


def test_the_readme_of_the_suite_is_short_and_that_of_a_paper_has_hardware_and_records(root: Path):
    (root / "ha2018").mkdir()
    (root / "ha2018" / "README.md").write_text(f"{markdown.BEGIN}\n{markdown.END}\n")
    files = build(root)
    whole, paper = (files[root / name / "README.md"].splitlines() for name in ("", "ha2018"))
    head = "| paper | row | preset | seeds | minutes per seed | measured | published | verdict |"
    assert [line for line in whole if line.startswith("| paper")] == [head]
    assert any(line.startswith("| ha2018 ") and "| cpu | 3 seeds |" in line for line in whole)
    assert any("<sub>against " in line for line in whole)
    assert any("not run" in line and line.startswith("| dreamerv3 ") for line in whole)
    assert not any("doom-seed0.json" in line for line in whole)
    head = "| row | preset | hardware | minutes per seed | measured | published | verdict | records |"
    assert [line for line in paper if line.startswith("| row")] == [head]
    assert any("(../benchmarks/results/ha2018/cpu/doom-seed0.json)" in line for line in paper)
    assert not any("DreamerV3" in line for line in paper)


def test_a_readme_without_markers_is_an_error(root: Path):
    (root / "README.md").write_text("# Title\n")
    with pytest.raises(ValueError, match="results:begin"):
        build(root)


def test_links_of_the_report_lead_to_files(root: Path):
    files = build(root)
    write(files)
    for name in ("REPORT.md", "report.html"):
        text = files[root / "benchmarks" / name]
        links = re.findall(r"\]\(([^)]+)\)", text) if name.endswith(".md") else re.findall(r'<a href="([^#"]+)"', text)
        assert links
        for link in links:
            assert (root / "benchmarks" / link).is_file(), link


class Balance(HTMLParser):
    """Checks that tags close in order and that no identifier stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.sources += [found[key] for key in ("src", "data") if key in found]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(root: Path):
    page = build(root)[root / "benchmarks" / "report.html"]
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.sources == ["data:video/webm;base64,dmlkZW8="]
    assert not re.search(r"<script|<link|@import|url\(\s*['\"]?http", page)
    assert "a &lt;CPU&gt; &amp; more" in page
    assert page.count("<svg ") == 2


def test_the_local_page_puts_runs_of_this_machine_first(root: Path):
    folder = root / "runs" / "ha2018" / "doom-cpu-seed0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record([100.0, 120.0], 0).data))
    local = records.load_runs(root / "runs")
    page = report.build_local(records.load(root / "benchmarks" / "results"), local, root / "runs")
    assert "claim fails (0 of 1 seeds)" in page
    assert 'href="ha2018/doom-cpu-seed0/record.json"' in page
