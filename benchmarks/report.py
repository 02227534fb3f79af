"""Writes REPORT.md, report.html, the plots and the results blocks of the READMEs from the committed records.

A pure function of the files: no date, and nothing of this machine. `--check` writes nothing and exits 1 if a
tracked file is not current; the page is not tracked, since the films inside make it large.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import content, markdown, plots, published, records, suites
from benchmarks.compare import Result, compare
from benchmarks.content import Cell, Table
from benchmarks.page import Section, page
from benchmarks.rows import PAPERS, Number, Suite
from common.config import Parser
from common.files import atomic_write
from common.program import program

ROOT = suites.ROOT
PAGE = "report.html"
LEAD = (
    "Papers on world models, rebuilt from their equations and proven equal to the authors' code part by part: "
    "published numbers with their source beside what this code measured, from committed records only."
)
LOCAL_LEAD = (
    "Published numbers beside the runs of this machine; rows without a run of this machine show the committed records."
)
ById = Mapping[str, Result]


def results(found: Sequence[records.Record], papers: Sequence[Suite], known: published.Published) -> dict[str, ById]:
    """The verdict of every row of every suite, by paper and id."""
    return {suite.paper: {row.id: compare(suite, row, found, known) for row in suite.rows} for suite in papers}


def build(root: Path, measured: records.Results) -> dict[Path, str]:
    """Every generated file of the checkout in `root` and its text."""
    folder = root / "benchmarks"
    papers, known = suites.load(root), published.load(folder / "published")
    rows = results(measured.records, papers, known)
    sections = outline(papers, rows, measured, known, root)
    drawn = {plot.name: plot for section in sections for plot in section.plots}
    files = {folder / "plots" / f"{plot.name}.svg": plot.file for plot in drawn.values()}
    files[folder / "REPORT.md"] = markdown.report(sections, folder)
    files[folder / PAGE] = page(sections, folder, LEAD)
    blocks = {root: _whole_block(sections[0], folder, root)}
    blocks |= {root / one.paper: _paper_block(one, rows[one.paper], measured, folder, root) for one in papers}
    for place, block in blocks.items():
        path = place / "README.md"
        if path.is_file():
            files[path] = markdown.with_block(path.read_text(encoding="utf-8"), block, path)
    return files


def build_local(measured: records.Results, local: Sequence[records.Record], folder: Path) -> str:
    """The page of this machine, to lie in `folder`: local runs take the place of committed ones of an experiment."""
    mine = {_group(record) for record in local}
    merged = (*local, *(record for record in measured.records if _group(record) not in mine))
    papers, known = suites.load(), published.load()
    both = records.Results(merged, measured.speed, measured.parity, measured.harden)
    rows = results(merged, papers, known)
    return page(outline(papers, rows, both, known, ROOT), folder, LOCAL_LEAD)


def outline(
    papers: Sequence[Suite],
    rows: Mapping[str, ById],
    measured: records.Results,
    known: published.Published,
    root: Path,
) -> list[Section]:
    """The sections of the report, in order."""
    every = [result for by_id in rows.values() for result in by_id.values()]
    absent = [name for name in PAPERS if name not in rows]
    heads = [(f"{one.title}: {one.scale.split(',')[0]}", rows[one.paper][one.headline]) for one in papers]
    further = [
        (f"{result.row.title} ({result.row.ours.of.suite})", result)
        for one in papers
        for result in rows[one.paper].values()
        if isinstance(result.row, Number) and result.effect is not None and result.row.id != one.headline
    ]
    whole = content.headline_table(papers, rows, measured, absent)
    first = Section(
        "papers", whole.title, tables=(whole, content.tally_table(every)), plots=(plots.forest([*heads, *further]),)
    )
    sections = [first]
    for one in papers:
        by_id = rows[one.paper]
        tables = [*content.paper_tables(one, by_id, known), content.speed_table(measured, one.paper)]
        tables += deviations(root / one.paper / "README.md")
        drawn = [*one.plots(by_id, known), *plots.draw(list(by_id.values()))]
        links = (("how it is built, and how to run it", root / one.paper / "README.md"),)
        films = tuple(_films(one, measured.records))
        shown = tuple(table for table in tables if table.rows)
        sections.append(Section(one.paper, f"{one.title} ({one.citation})", "", shown, tuple(drawn), films, links))
    proofs = (
        content.source_table(every),
        content.parity_table(measured),
        content.harden_table(measured),
        content.protocol_table(every, known.protocols),
        content.runs_table(measured.records),
    )
    lead = "; ".join(f"{one.title}: {content.parity_words(measured, one.paper) or 'none yet'}" for one in papers)
    sections.append(
        Section("proof", "Parity and provenance", f"Components equal to the authors' code. {lead}.", proofs)
    )
    return sections


def deviations(readme: Path) -> list[Table]:
    """The deviations table of a package's README, folded."""
    if not readme.is_file():
        return []
    parts = re.split(r"^## +(.*)$", readme.read_text(encoding="utf-8"), flags=re.M)
    text = next(
        (body for title, body in zip(parts[1::2], parts[2::2], strict=True) if "deviation" in title.lower()), ""
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    if len(cells) < 3:
        return []
    head, rows = tuple(cells[0]), cells[2:]
    plain = tuple(tuple(Cell(cell.replace("`", "")) for cell in row) for row in rows if len(row) == len(head))
    return [Table("Deviations from the paper", head, plain, is_folded=True)]


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
        for text in files.values():
            text.encode("utf-8")  # a lone surrogate in a record must not leave half a report
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
            atomic_write(path, files[path].encode("utf-8"))
            print(f"wrote {path.relative_to(ROOT)}")
        else:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    return 1 if options.check and changed else 0


def _group(record: records.Record) -> tuple[str, ...]:
    return tuple(record.data[key] for key in ("paper", "suite", "task", "claim"))


def _films(suite: Suite, found: Sequence[records.Record]) -> list[tuple[str, Path]]:
    """The film of the experiment that the suite names, of its first seed that has one."""
    for record in found:
        data = record.data
        if data["paper"] == suite.paper and (data["suite"], data["task"], data["claim"]) == suite.film:
            for file in record.media:
                if file.suffix == ".webm":
                    return [(f"{data['task']}, preset {data['preset']}, seed {data['seed']}", file)]
    return []


def _whole_block(first: Section, folder: Path, root: Path) -> list[str]:
    link = markdown.relative(folder / "REPORT.md", root)
    words = "Every row with its interval, source and budget, the papers' own tables beside ours, curves and films:"
    return [
        *markdown.table(first.tables[0], root),
        "",
        f"{words} [REPORT.md]({link}); `make report` writes them as a page.",
    ]


def _paper_block(suite: Suite, rows: ById, measured: records.Results, folder: Path, root: Path) -> list[str]:
    place = root / suite.paper
    link = markdown.relative(folder / "REPORT.md", place)
    parity = content.parity_words(measured, suite.paper)
    lines = [*markdown.table(content.brief_table(suite, rows), place), ""]
    if parity:
        lines += [f"Parity: {parity} components equal the authors' code within their tolerance.", ""]
    return [*lines, f"All rows, with intervals, sources, budgets and records: [REPORT.md]({link})."]


def essence(text: str) -> str:
    """The text with plots reduced to the digest of what they draw: another matplotlib draws other bytes."""
    return re.sub(r'<svg [^>]*?data-digest="(\w+)".*?</svg>', r"<svg \1>", text, flags=re.S)


if __name__ == "__main__":
    program(main)
