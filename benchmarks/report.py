"""Writes REPORT.md, report.html, the plots and the results blocks of the READMEs from the committed records.

A pure function of the files: no date, and nothing of this machine. `--check` writes nothing and exits 1 if a
tracked file is not current; the page is not tracked, since the films inside make it large.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import content, markdown, plots, published, records
from benchmarks.compare import Result, compare
from benchmarks.page import page
from benchmarks.rows import PAPERS
from benchmarks.suites import SUITES
from common.config import Parser

ROOT = Path(__file__).parent.parent
PAGE = "report.html"
LEAD = (
    "Reported numbers with their source beside numbers measured with this code, one verdict per row, "
    "from committed records only."
)
LOCAL_LEAD = (
    "Reported numbers beside the runs of this machine; rows without a run of this machine show the committed records."
)


def results(found: Sequence[records.Record]) -> list[Result]:
    """The verdict of every row of every suite."""
    known = published.load()
    return [compare(suite, row, found, known) for suite in SUITES for row in suite.rows]


def build(root: Path, measured: records.Results) -> dict[Path, str]:
    """Every generated file of the checkout in `root` and its text."""
    folder = root / "benchmarks"
    rows = results(measured.records)
    drawn = plots.draw(rows)
    files = {folder / "plots" / f"{plot.name}.svg": plot.file for plot in drawn}
    tables = _tables(rows, measured)
    captions = [(plot.caption, folder / "plots" / f"{plot.name}.svg") for plot in drawn]
    files[folder / "REPORT.md"] = markdown.report(tables, captions, folder)
    files[folder / PAGE] = page(tables, drawn, _videos(measured.records), folder, LEAD)
    for name in ("", *PAPERS):
        path = root / name / "README.md"
        if path.is_file():
            table = content.brief_table(rows, name)
            block = [
                *markdown.table(table, path.parent),
                "",
                *_parity_line(measured, name),
                _report_link(folder, path),
            ]
            files[path] = markdown.with_block(path.read_text(encoding="utf-8"), block, path)
    return files


def build_local(measured: records.Results, local: Sequence[records.Record], folder: Path) -> str:
    """The page of this machine, to lie in `folder`: local runs take the place of committed ones of a row."""
    mine = {_group(record) for record in local}
    merged = (*local, *(record for record in measured.records if _group(record) not in mine))
    both = records.Results(merged, measured.speed, measured.parity)
    rows = results(merged)
    return page(_tables(rows, both), plots.draw(rows), _videos(merged), folder, LOCAL_LEAD)


def stale(root: Path, files: dict[Path, str], view: Callable[[str], str] = str) -> list[Path]:
    """The generated files that are missing, differ in `view`, or are left over from an earlier plot."""
    left = [path for path in sorted((root / "benchmarks" / "plots").glob("*.svg")) if path not in files]
    changed = [
        path
        for path, text in files.items()
        if not path.is_file() or view(path.read_text(encoding="utf-8")) != view(text)
    ]
    return changed + left


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.report", description=(__doc__ or "").strip())
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a tracked file is not current")
    options = parser.parse_args(argv)
    try:
        files = build(ROOT, records.load())
    except ValueError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    changed = stale(ROOT, files, essence if options.check else str)
    if options.check:
        changed = [path for path in changed if path.name != PAGE]
    for path in changed:
        if options.check:
            print(f"not current: {path.relative_to(ROOT)} (run: make report)", file=sys.stderr)
        elif path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8", newline="\n")
            print(f"wrote {path.relative_to(ROOT)}")
        else:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    return 1 if options.check and changed else 0


def _tables(rows: Sequence[Result], measured: records.Results) -> list[content.Table]:
    known = published.load()
    return [
        content.verdict_table(rows),
        content.speed_table(measured),
        content.parity_table(measured),
        content.parts_table(rows, known),
        content.runs_table(measured.records),
        content.protocol_table(rows, known.protocols),
    ]


def _group(record: records.Record) -> tuple[str, ...]:
    return tuple(record.data[key] for key in ("paper", "suite", "task", "claim"))


def _videos(found: Sequence[records.Record]) -> list[tuple[str, Path]]:
    return [
        (f"{data['paper']} {data['task']}, {data['claim']}, preset {data['preset']}, seed {data['seed']}", file)
        for data, media in ((record.data, record.media) for record in found)
        for file in media
        if file.suffix == ".webm"
    ]


def _parity_line(measured: records.Results, paper: str) -> list[str]:
    tables = [data for data in measured.parity.values() if paper in ("", data["paper"])]
    components = [component for data in tables for component in data["components"]]
    if not components:
        return []
    equal = sum(c["largest_deviation"] <= c["tolerance"] for c in components)
    return [
        f"Parity: {equal} of {len(components)} components equal the authors' code within their tolerance.",
        "",
    ]


def _report_link(folder: Path, readme: Path) -> str:
    link = f"[REPORT.md]({markdown.relative(folder / 'REPORT.md', readme.parent)})"
    words = "`make report` writes them as a page with curves and films."
    return f"Records, sources, intervals and budgets of every row: {link}; {words}"


def essence(text: str) -> str:
    """The text with plots reduced to the digest of what they draw: another matplotlib draws other bytes."""
    return re.sub(r'<svg [^>]*?data-digest="(\w+)".*?</svg>', r"<svg \1>", text, flags=re.S)


if __name__ == "__main__":
    sys.exit(main())
