"""Draws the plots of the report as SVG whose colours follow the reader's light or dark theme.

The same inputs give the same bytes: no date, and identifiers salted with the name of the plot.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.compare import Result
from benchmarks.rows import Curve, Number
from benchmarks.scale import SAME_BUDGET, percent

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
    """A plot per curve row that has run."""
    return [_curve(result) for result in results if isinstance(result.row, Curve) and result.is_run]


def forest(results: Sequence[tuple[str, Result]]) -> Plot:
    """The effect of each (label, result) with its interval, from the floor (0) to the published number (1).

    The shade says how much of the published budget was spent.
    """
    shown = [(label, result) for label, result in results if result.effect is not None]
    figure, axes = _figure(1.0 + 0.5 * len(shown))
    ends = [value for _, result in shown if result.effect for value in result.effect]
    left, right = min(-0.1, *ends) - 0.05 if ends else -0.2, max(1.15, *ends) + 0.05 if ends else 1.5
    for at, (label, result) in enumerate(shown):
        assert result.effect is not None
        mean, low, high = result.effect
        share = 1.0 if result.share is None else min(1.0, result.share)
        is_full = isinstance(result.row, Number) and (result.row.is_official or share > 1 - SAME_BUDGET)
        axes.plot([low, high], [at, at], color=OURS, linewidth=2.2, alpha=0.35 + 0.65 * share)
        face = OURS if is_full else "none"
        axes.plot([mean], [at], "o", color=OURS, markerfacecolor=face, markeredgewidth=1.8, markersize=7)
        words = "all of the budget" if is_full else percent(share)
        name = axes.text(left, at - 0.36, f"{shorten(label, 80, placeholder=' ...')}; {words}", color=INK, fontsize=7.5)
        name.set_in_layout(False)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.axvline(1, color=PUBLISHED, linewidth=1.6)
    axes.set_yticks([])
    axes.set_ylim(len(shown) - 0.5, -0.8)
    axes.set_xlim(left, right)
    axes.set_xlabel("0 = has learnt nothing, 1 = the published number")
    caption = (
        "How far each result comes on the way from having learnt nothing to the published number, with its 95 % "
        "interval. Filled: at the published budget; hollow: with less, the share is written beside it."
    )
    drawn = [[label, result.effect, result.share] for label, result in shown]
    return _finish(figure, "effects", caption, drawn)


def over_settings(
    name: str, caption: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, Result]]]
) -> tuple[Plot, ...]:
    """Ours and the published numbers over a setting: series named "... (ours)" or "... (published)" of (x, result).

    No plot where there is no number.
    """
    figure, axes = _figure(3.6)
    drawn: list[object] = []
    places = list(dict.fromkeys(label.rsplit(" (", 1)[0] for label in series))
    for label, points in series.items():
        place, whose = label.rsplit(" (", 1)
        is_ours = whose.startswith("ours")
        style = ("-", "--")[places.index(place) % 2]
        found = []
        for x, result in points:
            if is_ours and result.ours is not None:
                found.append((x, result.ours.mean, *result.ours.interval))
            elif not is_ours and result.reported is not None:
                value, std = result.reported.value, result.reported.std or 0.0
                half = 1.96 * std / (result.reported.n or 1) ** 0.5 if result.reported.n else std
                found.append((x, value, value - half, value + half))
        if not found:
            continue
        xs, ys, lows, highs = zip(*found, strict=True)
        colour = OURS if is_ours else PUBLISHED
        axes.plot(xs, ys, style, color=colour, marker="o", markersize=4, linewidth=1.8, label=label)
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
        drawn.append([label, found])
    if not drawn:
        return ()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=1, frameon=False, labelcolor=INK, fontsize=8)
    return (_finish(figure, name, f"{caption}; shaded: 95 % intervals", drawn),)


def dots(name: str, caption: str, x_label: str, lines: Sequence[tuple[str, Mapping[str, tuple[float, str]]]]) -> Plot:
    """A line a case, a dot a method: (case, {method: (value, "ours" | "published" | "control")})."""
    figure, axes = _figure(1.7 + 0.5 * len(lines))
    markers = {"ours": "o", "control": "s", "published": "D"}
    methods = list(dict.fromkeys(method for _, found in lines for method in found))
    fills = {kind: [m for m in methods if any(m in f and f[m][1] == kind for _, f in lines)] for kind in markers}
    for at, (_, found) in enumerate(lines):
        for method, (value, kind) in found.items():
            colour = {"ours": OURS, "control": CONTROL, "published": PUBLISHED}[kind]
            order = fills[kind].index(method)
            face = colour if order == 0 else "none"
            marker = markers[kind] if order < 2 else ("^", "v")[order % 2]
            label = method if at == 0 else None
            axes.plot(
                [value], [at], marker, color=colour, markerfacecolor=face, markersize=7, label=label, linestyle="none"
            )
    axes.set_yticks(range(len(lines)), [case for case, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=INK, fontsize=8)
    return _finish(figure, name, caption, [[case, dict(found)] for case, found in lines])


def _curve(result: Result) -> Plot:
    """Our seeds over the published curve and its spread, as far as ours go."""
    curve, side = result.curve, result.ours
    assert curve is not None
    assert side is not None
    assert isinstance(result.row, Curve)
    figure, axes = _figure(3.4)
    ours = [(record.seed, record.data["curves"][result.row.ours.name]) for record in side.records]
    last = max(max(line["x"]) for _, line in ours)
    shown = [i for i, x in enumerate(curve.x) if x <= max(2.5 * last, curve.x[min(4, len(curve.x) - 1)])]
    x, y, spread = ([values[i] for i in shown] for values in (curve.x, curve.y, curve.spread))
    low, high = [a - b for a, b in zip(y, spread, strict=True)], [a + b for a, b in zip(y, spread, strict=True)]
    axes.fill_between(x, low, high, color=PUBLISHED, alpha=0.16, linewidth=0, label="± one standard deviation")
    axes.plot(x, y, color=PUBLISHED, linewidth=1.4, label="published")
    for position, (seed, line) in enumerate(ours):
        style = ("-", "--", ":", "-.")[position % 4]
        marker = "o" if len(line["x"]) < 5 else None
        label = f"ours, seed {seed}"
        axes.plot(line["x"], line["y"], color=OURS, linewidth=1.8, linestyle=style, marker=marker, label=label)
    axes.set_xlabel(curve.x_unit)
    axes.set_ylabel(curve.y_unit)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    caption = f"{result.row.title} (preset {result.row.ours.of.suite})"
    return _finish(figure, f"{result.paper}-{result.row.id}", caption, [x, y, spread, ours])


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.7, height), layout="constrained")
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
