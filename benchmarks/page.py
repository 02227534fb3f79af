"""Prints the report as one HTML page that needs no network: styles, plots and films are inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.content import HOW_TO_READ, NOTES, SCALE, Cell, Table
from benchmarks.markdown import relative
from benchmarks.plots import DARK, LIGHT, Plot

# The plots bring the first variables, the rest of the style stands in page.css.
STYLE = f":root{{{LIGHT}}}\n@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}\n" + Path(__file__).with_name(
    "page.css"
).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Section:
    """One heading of the report with what stands below it, in this order; films are (caption, file)."""

    anchor: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    films: tuple[tuple[str, Path], ...] = ()
    links: tuple[tuple[str, Path], ...] = ()


def page(sections: Sequence[Section], folder: Path, lead: str) -> str:
    """The page as it lies in `folder`."""
    nav = "".join(f'<a href="#{one.anchor}">{escape(one.title)}</a>' for one in sections)
    body = "".join(_section(one, folder, is_first=k == 0) for k, one in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>World models, reported and reproduced</title>\n<style>{STYLE}</style></head>\n<body><main>"
        f'<h1>World models, reported and reproduced</h1><p class="lead">{escape(lead)}</p>\n<nav>{nav}</nav>\n'
        f"{body}</main></body></html>\n"
    )


def _section(one: Section, folder: Path, is_first: bool) -> str:
    parts = [f'<section id="{one.anchor}"><h2>{escape(one.title)}</h2>\n']
    if one.lead:
        parts.append(f"<p>{escape(one.lead)}</p>\n")
    if one.links:
        links = " · ".join(f'<a href="{escape(relative(path, folder))}">{escape(name)}</a>' for name, path in one.links)
        parts.append(f"<p>{links}</p>\n")
    open_tables = [table for table in one.tables if not table.is_folded]
    if is_first:
        parts += [_table(table, folder) for table in open_tables[:1]]
        open_tables = open_tables[1:]
    figures = [_figure(plot) for plot in one.plots] + [_film(caption, path) for caption, path in one.films]
    if figures:
        parts.append(f'<div class="figures">{"".join(figures)}</div>\n')
    parts += [f"<h3>{escape(table.title)}</h3>\n{_table(table, folder)}" for table in open_tables]
    if is_first:
        parts.append(_legend())
    for table in one.tables:
        if table.is_folded:
            parts.append(f"<details><summary>{escape(table.title)}</summary>\n{_table(table, folder)}</details>\n")
    return "".join(parts) + "</section>\n"


def _table(one: Table, folder: Path) -> str:
    if not one.rows:
        return f"<p>{escape(one.empty)}</p>\n"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in one.columns)
    lines = []
    for row in one.rows:
        cells = "".join(_cell(cell, column, folder) for cell, column in zip(row, one.columns, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll cards" tabindex="0" role="region" aria-label="{escape(one.title)}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _cell(cell: Cell, column: str, folder: Path) -> str:
    text = escape(cell.text)
    if cell.tone and text:
        text = f'<span class="badge {cell.tone}">{text}</span>'
    elif cell.is_code and text:
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
    notes = f"<p>{escape(SCALE)}</p><p>{escape(NOTES)}</p>"
    return f"<details><summary>How to read a verdict</summary>{notes}<dl>{items}</dl></details>\n"


def _figure(plot: Plot) -> str:
    return f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>\n"


def _film(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:video/webm;base64,{data}"
    return (
        f'<figure><video controls loop muted playsinline preload="metadata" src="{source}"></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )
