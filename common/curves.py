"""The curves of a record as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from PIL import Image

COLOURS = 128
LOG_RANGE = 20  # a curve of positive values that spans more is drawn on a logarithmic axis


def draw_curves(record: Mapping[str, Any], path: Path, *, from_zero: bool = False) -> None:
    """Writes one panel a curve to `path`; no picture without curves. from_zero: the y axes begin at 0, or below it."""
    curves = record["curves"]
    if not curves:
        return
    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3), layout="constrained", squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        axis.plot(curve["x"], curve["y"], color="#2a6f97")
        axis.set(title=name, xlabel=curve["x_unit"], ylabel=curve["y_unit"])
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if from_zero:
            axis.set_ylim(bottom=None if min(curve["y"]) < 0 else 0)
        elif min(curve["y"]) > 0 and max(curve["y"]) > LOG_RANGE * min(curve["y"]):
            axis.set_yscale("log")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    # Few colours take a third of the room, and some of these pictures are committed.
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
