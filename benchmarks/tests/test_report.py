"""The report is current, deterministic and self-contained."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks import content, ijepa, markdown, published, records, report
from benchmarks.compare import compare
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
    shutil.copytree(report.ROOT / "benchmarks" / "published", tmp_path / "benchmarks" / "published")
    (tmp_path / "ha2018").mkdir()
    (tmp_path / "ha2018" / "train.py").touch()
    (tmp_path / "ha2018" / "README.md").write_text(f"{markdown.BEGIN}\n{markdown.END}\n")
    shutil.copy(report.ROOT / "benchmarks" / "ha2018.py", tmp_path / "benchmarks" / "ha2018.py")
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
    path = root / "benchmarks/results/ha2018/cpu/doom-seed0.json"
    changed = {key: record([301.0, 320.0, 1000.0], 0).data[key] for key in ("value", "values")}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert {path.name for path in report.stale(root, build(root))} >= {"REPORT.md", "report.html"}


def test_check_is_not_disturbed_by_a_matplotlib_that_draws_other_bytes():
    def page(digest: str, lines: str) -> str:
        return f'<p>a</p><svg role="img" data-digest="{digest}" width="1">{lines}</svg><p>b</p>'

    assert report.essence(page("1", "<path/>")) == report.essence(page("1", "<path d=''/>"))
    assert report.essence(page("1", "<path/>")) != report.essence(page("2", "<path/>"))


def test_published_variables_of_a_calibration_stand_beside_the_mean_over_seeds():
    runs = [
        record(
            [20.0], seed, paper="ijepa", suite="calibration", claim="control-random-cnn", task="pong", budget={},
            protocol="atariari-f1",
            measurements={"ball_x": sample([x], "atariari-f1-part"), "not published": sample([x], "atariari-f1-part")},
        )
        for seed, x in enumerate((14.0, 17.0))
    ]  # fmt: skip
    known = published.load()
    results = {row.id: compare(ijepa.SUITE, row, runs, known) for row in ijepa.SUITE.rows}
    (line,) = ijepa.variables(results, known).rows
    assert [cell.text for cell in line] == ["Pong: ball_x", "15", "15.5", "+0.5"]
    assert line[2].small == "14.0, 17.0"


def test_digits_are_compared_with_their_controls_and_shown_by_read_out():
    known = published.load()
    names = {readout: f"digits-{readout.split(',')[0].split()[-1]}" for readout in ijepa.READOUTS}

    def reads(first: float) -> list[dict[str, Any]]:
        return [sample([first + k, first + k + 1], protocol) for k, protocol in enumerate(names.values())]

    parts = {"": reads(90), **{f", {name}": reads(50 + k) for k, name in enumerate(ijepa.READ)}}
    watch = {
        "error saved": 40.0,
        "error saved, constant": 0.0,
        "target renewed": 90.0,
        "target renewed, asked for": 95.0,
    }
    run = record(
        [90.0, 91.0], paper="ijepa", suite="cpu", claim="probe-accuracy", task="digits", protocol="digits-linear",
        controls={end[2:]: reading[0] for end, reading in parts.items() if end},
        measurements={
            **{f"{name}{end}": reading[k] for end, reading in parts.items() for k, name in enumerate(names) if k},
            **{name: sample([value], "digits-watch") for name, value in watch.items()},
        },
    )  # fmt: skip
    results = {row.id: compare(ijepa.SUITE, row, [run], known) for row in ijepa.SUITE.rows}
    found = {id: result.verdict.text.split(" (")[0] for id, result in results.items() if result.is_run}
    passed = ("untrained", "tokens-untrained", "tokens-pixels", "predicts")
    assert found == {f"cpu-digits-{word}": "passed" for word in passed} | {"cpu-digits-moved": "not passed"}
    ours, untrained, *_ = ijepa.readouts(results, ijepa.DIGITS, "Digits").rows
    assert [cell.text for cell in ours] == ["I-JEPA", "90.5", "91.5", "92.5", "93.5"]
    assert [cell.text for cell in untrained] == ["untrained encoder", "50.5", "51.5", "52.5", "53.5"]


def test_many_checks_are_folded_below_their_counts(root: Path, monkeypatch: pytest.MonkeyPatch):
    """A few stand open. Either way the title says how they came out, so that none that failed is hidden."""
    title = re.search(r"^### (Checks of ours: .*)$", build(root)[root / "benchmarks" / "REPORT.md"], re.MULTILINE)
    assert title is not None
    counts = [int(count) for count in re.findall(r"\d+", title[1])]
    monkeypatch.setattr(content, "MOST_OPEN", sum(counts))
    assert f"### {title[1]}\n" in build(root)[root / "benchmarks" / "REPORT.md"]
    monkeypatch.setattr(content, "MOST_OPEN", sum(counts) - 1)
    files = build(root)
    assert f"<summary>{title[1]}</summary>" in files[root / "benchmarks" / "REPORT.md"]
    assert f"<details><summary>{title[1]}</summary>" in files[root / "benchmarks" / "report.html"]


def test_the_readme_block_is_replaced_and_the_rest_kept(root: Path):
    text = build(root)[root / "README.md"]
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nrest\n")
    assert "World Models" in text
    assert "stale block" not in text


def test_the_readme_of_the_whole_has_six_rows_and_that_of_a_paper_at_most_eight(root: Path):
    files = build(root)
    whole, paper = (files[root / name / "README.md"].splitlines() for name in ("", "ha2018"))
    rows = [line for line in whole if line.startswith("| ") and not line.startswith("| paper")]
    assert len(rows) == 6
    assert sum("not part of this checkout yet" in line for line in rows) == 5
    assert 1 <= sum(line.startswith("| ") for line in paper) - 1 <= 8


def test_a_new_paper_is_its_folder_and_one_suite_file(root: Path):
    """Nothing else names it, and it has its section, its six-row line, its README block and its curve."""
    (root / "toy").mkdir()
    (root / "toy" / "train.py").touch()
    (root / "toy" / "README.md").write_text(f"# Toy\n\n{markdown.BEGIN}\n{markdown.END}\n\n{DEVIATIONS}")
    (root / "benchmarks" / "toy.py").write_text(TOY)
    (root / "benchmarks" / "published" / "toy.csv").write_text(
        "key,task,method,metric,unit,value,std,std_over,n,budget,clips,protocol,source,certainty\n"
        "best,t,Toy,score,points,10,1,seeds,5,100 clips,100,toy-test,table 1,\n"
    )
    with (root / "benchmarks" / "published" / "protocols.csv").open("a") as file:
        file.write("toy-test,a test\n")
    folder = root / "benchmarks" / "results" / "toy" / "cpu"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        data = record(
            [9.0, 10.0], seed, paper="toy", task="t", claim="learns", protocol="toy-test", budget={"clips": 50},
            controls={"random": sample([1.0, 2.0], "toy-test")},
        ).data  # fmt: skip
        (folder / f"t-seed{seed}.json").write_text(json.dumps(data))
    files = build(root)
    report_text = files[root / "benchmarks" / "REPORT.md"]
    assert "## Toy (Nobody 2026)" in report_text
    assert "reduced: 94 % of the effect at 50 % of the budget" in report_text
    assert "50 % of the clips seen" in report_text
    assert "| D1 | nothing |" in report_text
    assert "Toy, reproduced" in files[root / "toy" / "README.md"]
    assert "| Toy<br><sub>toy</sub> |" in files[root / "README.md"]


DEVIATIONS = "## Deviations\n\n| # | what |\n|---|---|\n| D1 | nothing |\n"
TOY = """
from benchmarks.rows import Experiment, Number, Quantity, Suite
RUN = Experiment("cpu", "t", "learns", (0, 1), 1)
ROW = Number("best", "Toy, reproduced", Quantity(RUN), Quantity(RUN, "controls/random"), "best")
SUITE = Suite("toy", "Toy", "Nobody 2026", ("t",), (ROW,), "best", "all of it", {"clips": "clips seen"})
"""


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
    text = build(root)[root / "benchmarks" / "report.html"]
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"<script|@import|url\(\s*['\"]?http|(?:src|href)=\"(?:https?:)?//", text)
    assert "a &lt;CPU&gt; &amp; more" in text


def test_the_committed_page_is_small():
    files = report.build(report.ROOT, records.load())
    assert len(files[report.ROOT / "benchmarks" / "report.html"].encode()) < 6_000_000


def test_the_local_page_puts_runs_of_this_machine_first(root: Path):
    folder = root / "runs" / "ha2018" / "doom-cpu-seed0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record([100.0, 120.0], 0).data))
    local = records.load_runs(root / "runs")
    text = report.build_local(records.load(root / "benchmarks" / "results"), local, root / "runs")
    assert "not passed (one seed of 3 planned)" in text
    assert 'href="ha2018/doom-cpu-seed0/record.json"' in text


def test_a_damaged_record_of_another_run_does_not_block_the_table(root: Path, capsys: pytest.CaptureFixture[str]):
    good = root / "runs" / "ha2018" / "doom-cpu-seed0"
    bad = root / "runs" / "ha2018" / "doom-cpu-seed1"
    for folder in (good, bad):
        folder.mkdir(parents=True)
    (good / "record.json").write_text(json.dumps(record([100.0, 120.0], 0).data))
    (bad / "record.json").write_text("{")
    assert len(records.load_runs(root / "runs")) == 1
    assert "left out" in capsys.readouterr().err


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load",()=>{const width=document.documentElement.clientWidth,bad=[];
for(const e of document.querySelectorAll("main *")){if(e.closest(".scroll")||e.closest("svg"))continue;
const r=e.getBoundingClientRect();if(r.width&&r.right>width+1)bad.push(e.tagName+" "+e.className)}
for(const s of document.querySelectorAll(".scroll"))if(width<760&&s.scrollWidth>s.clientWidth+1)bad.push("hidden");
for(const i of document.querySelectorAll("img")){if(!i.complete||!i.naturalWidth)bad.push("picture")}
const labels=[...document.querySelectorAll("figure svg text")].map(t=>t.getBoundingClientRect().height).filter(h=>h);
document.title=JSON.stringify({height:document.documentElement.scrollHeight,bad,
label:Math.min(...labels),pictures:document.querySelectorAll("svg,video").length})})</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not looked at in a browser")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_shows_the_page_without_overflow_errors_or_requests(width: int, tmp_path: Path):
    text = report.build(report.ROOT, records.load())[report.ROOT / "benchmarks" / "report.html"]
    (tmp_path / "page.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    # Headless windows are at least 500 px wide, so the phone is a frame of its own width.
    frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
    script = (
        '<script>addEventListener("load",()=>setTimeout(()=>{document.title=frames[0].document.title},300))</script>'
    )
    (tmp_path / "frame.html").write_text(f"<!doctype html><body style='margin:0'>{frame}{script}</body>")
    quiet = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=8000",
    ]  # fmt: skip
    command = [str(CHROMIUM), *quiet, f"--window-size={max(width, 500)},1000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    seen = json.loads(html.unescape(title[1]))
    assert seen["bad"] == []
    assert seen["pictures"] > 5
    assert seen["label"] >= 8  # px: smaller cannot be read
    if width == 1400:
        assert seen["height"] < 25_000
    assert "CONSOLE" not in done.stderr
