"""Prints the report as one HTML page that needs no network: styles, plots and videos are inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.content import HOW_TO_READ, NOTES, Cell, Table
from benchmarks.markdown import relative
from benchmarks.plots import DARK, LIGHT, Plot

# The plots bring the first variables, the rest of the style stands in page.css.
STYLE = f":root{{{LIGHT}}}\n@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}\n" + Path(__file__).with_name(
    "page.css"
).read_text(encoding="utf-8")


def page(
    tables: Sequence[Table],
    plots: Sequence[Plot],
    videos: Sequence[tuple[str, Path]],
    folder: Path,
    lead: str,
) -> str:
    """The page as it lies in `folder`. The first table has the verdicts; videos are (caption, file)."""
    verdicts, *others = tables
    sections = [("verdicts", verdicts.title, _table(verdicts, folder, "cards") + _legend())]
    if plots:
        figures = "".join(
            f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>\n" for plot in plots
        )
        sections.append(("plots", "Curves and episodes", f'<div class="figures">{figures}</div>'))
    if videos:
        figures = "".join(_video(caption, path) for caption, path in videos)
        sections.append(("videos", "Videos", f'<div class="figures">{figures}</div>'))
    for one in others:
        sections.append((one.title.split()[0].lower(), one.title, _table(one, folder, "")))
    nav = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{html}</section>\n' for anchor, title, html in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>World models, reported and reproduced</title>\n<style>{STYLE}</style></head>\n<body><main>"
        f'<h1>World models, reported and reproduced</h1><p class="lead">{escape(lead)}</p>\n<nav>{nav}</nav>'
        f"{_tally(verdicts)}\n{body}</main></body></html>\n"
    )


def _table(one: Table, folder: Path, style: str) -> str:
    if not one.rows:
        return f"<p>{escape(one.empty)}</p>"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in one.columns)
    lines = []
    for position, row in enumerate(one.rows):
        anchor = f' id="{escape(one.anchors[position])}"' if one.anchors else ""
        cells = "".join(_cell(cell, column, folder) for cell, column in zip(row, one.columns, strict=True))
        lines.append(f"<tr{anchor}>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll {style}" tabindex="0" role="region" aria-label="{escape(one.title)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _cell(cell: Cell, column: str, folder: Path) -> str:
    text = escape(cell.text)
    if cell.tone:
        text = f'<span class="badge {cell.tone}">{text}</span>'
    elif cell.is_code:
        text = f"<code>{text}</code>"
    elif text:
        text = f"<span>{text}</span>"
    small = f"<small>{escape(cell.small)}</small>" if cell.small else ""
    links = ", ".join(f'<a href="{escape(relative(path, folder))}">{escape(name)}</a>' for name, path in cell.links)
    links = f"<small>{links}</small>" if links else ""
    is_empty = not (text or small or links)
    kind = "empty" if is_empty else "wide" if len(cell.text) > 40 or len(cell.small) > 40 else ""
    return f'<td data-label="{escape(column)}" class="{kind}">{text}{small}{links}</td>'


def _legend() -> str:
    items = "".join(
        f'<dt><span class="badge {tone}">{escape(name)}</span></dt><dd>{escape(text)}</dd>'
        for name, tone, text in HOW_TO_READ
    )
    notes = f"<p>{escape(NOTES)}</p>"
    return f"<h2>How to read a verdict</h2><dl>{items}</dl>{notes}"


def _tally(verdicts: Table) -> str:
    """How often each verdict stands in the table, numbers and seeds left aside."""
    counts: dict[tuple[str, str], int] = {}
    for row in verdicts.rows:
        for cell in row:
            if cell.tone:
                key = (cell.text.split(" (")[0], cell.tone)
                counts[key] = counts.get(key, 0) + 1
    badges = "".join(
        f'<span class="badge {tone}">{count} × {escape(name)}</span>' for (name, tone), count in counts.items()
    )
    return f'<div class="tally">{badges}</div>'


def _video(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:video/webm;base64,{data}"
    return (
        f'<figure><video controls loop muted playsinline src="{source}"></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )
