"""Draws the plots of the report as SVG whose colours follow the reader's light or dark theme.

The same inputs give the same bytes: no date, and identifiers salted with the name of the plot.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.compare import Result
from benchmarks.records import sample

# Each stands for a CSS variable: matplotlib writes the hex value, `_themed` puts the variable in its place.
INK, MUTED, LINE, OURS, PUBLISHED, CONTROL = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", OURS: "ours", PUBLISHED: "published", CONTROL: "muted"}
LIGHT = "--ink:#1d1c1a;--muted:#6a665e;--line:#e3dfd6;--ours:#1f5fbf;--published:#b5541c"
DARK = "--ink:#eceae4;--muted:#a5a197;--line:#36332f;--ours:#7fb0ff;--published:#ffa667"
STYLE = f"<style>svg{{{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}</style>"


@dataclass(frozen=True)
class Plot:
    """A drawn plot. `svg` takes its colours from the page around it; `file` brings its own style."""

    name: str
    caption: str
    svg: str

    @property
    def file(self) -> str:
        """The SVG as a file of its own."""
        return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + STYLE, self.svg, count=1) + "\n"


def draw(results: Sequence[Result]) -> list[Plot]:
    """A plot per curve row and per group of claim rows that share their runs, if one of these is finished."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        row = result.row
        if row.kind in ("curve", "claim") and any(seed.finished for seed in result.seeds):
            key = (result.paper, row.kind, row.suite, row.task, row.claim, row.quantity)
            groups.setdefault(key, []).append(result)
    return [_curve(group[0]) if group[0].row.kind == "curve" else _episodes(group) for group in groups.values()]


def _curve(result: Result) -> Plot:
    curve = result.curve
    assert curve is not None
    figure, axes = _figure(3.5)
    done = [seed for seed in result.seeds if seed.mean is not None]
    ours = [(seed.seed, seed.record.data["curves"][result.row.quantity]) for seed in done]
    last = max(max(line["x"]) for _, line in ours) if ours else curve.x[-1]
    shown = [i for i, x in enumerate(curve.x) if x <= max(2.5 * last, 20)]
    x, y, spread = ([values[i] for i in shown] for values in (curve.x, curve.y, curve.spread))
    low, high = (
        [a - b for a, b in zip(y, spread, strict=True)],
        [a + b for a, b in zip(y, spread, strict=True)],
    )
    band = "published, ± one standard deviation"
    axes.fill_between(x, low, high, color=PUBLISHED, alpha=0.16, linewidth=0, label=band)
    axes.plot(x, y, color=PUBLISHED, linewidth=1.4, label="published")
    for position, (seed, line) in enumerate(ours):
        style = ("-", "--", ":", "-.")[position % 4]
        marker = "o" if len(line["x"]) < 4 else None
        label = f"ours, seed {seed}"
        axes.plot(line["x"], line["y"], color=OURS, linewidth=1.8, linestyle=style, marker=marker, label=label)
    axes.set_xlabel(curve.x_unit)
    axes.set_ylabel(curve.y_unit)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    caption = f"{result.row.title}, preset {result.row.suite}"
    return _finish(figure, f"{result.paper}-{result.row.id}", caption, [x, y, spread, ours])


def _episodes(group: Sequence[Result]) -> Plot:
    """Every episode as a tick, means as dots: our seeds, controls and rivals of the first, the published ± std."""
    result = group[0]
    rows: list[tuple[str, list[float], str]] = []
    done = [seed for seed in result.seeds if seed.finished]
    for seed in done:
        rows.append((f"ours, seed {seed.seed}", list(seed.values), OURS))
    for name, control in done[0].record.data["controls"].items():
        rows.append((name, list(control["values"]), CONTROL))
    for other in group:
        rival = next((seed.rival for seed in other.seeds if seed.finished), None)
        found = sample(rival.data, other.row.quantity) if rival is not None else None
        if found is not None:
            rows.append((other.row.rival, list(found["values"]), CONTROL))
    reported = result.reported
    names = [name for name, _, _ in rows] + ([] if reported is None else ["published, ± std"])
    figure, axes = _figure(0.8 + 0.36 * len(names))
    for position, (_, values, colour) in enumerate(rows):
        axes.plot(values, [position] * len(values), "|", color=colour, alpha=0.45, markersize=11)
        axes.plot([sum(values) / len(values)], [position], "o", color=colour, markersize=7)
    if reported is not None:
        std = reported.std or 0.0
        axes.errorbar([reported.value], [len(rows)], xerr=[std], fmt="D", color=PUBLISHED, capsize=4, markersize=6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=min(0.0, *(min(values) for _, values, _ in rows)))
    data = done[0].record.data
    axes.set_xlabel(data["unit"] if reported is None else reported.unit)
    metric, protocol = (data["metric"], data["protocol"]) if reported is None else (reported.metric, reported.protocol)
    drawn = [rows] if reported is None else [rows, reported.value, reported.std]
    measured = f"{metric} of each episode ({protocol})"
    caption = f"{result.paper} {result.row.task}, preset {result.row.suite}: {measured}; dots are means"
    return _finish(figure, f"{result.paper}-{result.row.id}", caption, drawn)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.8, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    return figure, axes


def _finish(figure: Figure, name: str, caption: str, drawn: object) -> Plot:
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Plot(name, caption, _themed(buffer.getvalue(), name, caption, digest))


def _themed(text: str, name: str, caption: str, digest: str) -> str:
    """The bare <svg> element: theme colours, the reader's own font, identifiers that no other plot has.

    data-digest is that of what is drawn: another release of matplotlib may draw it with other bytes.
    """
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = "\n".join(line.rstrip() for line in svg.splitlines())
    label = caption.replace("&", "&amp;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" data-digest="{digest}" ', 1)
