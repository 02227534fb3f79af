"""The picture of a record's curves."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.curves import draw_curves


def test_one_panel_a_curve_and_no_picture_without_curves(tmp_path):
    curve = {"x": [10_000, 20_000, 40_000], "y": [1.0, 5.0, 500.0], "x_unit": "frame", "y_unit": "return"}
    widths, pictures = [], {}
    for count in (1, 3):
        draw_curves({"curves": {f"curve {k}": curve for k in range(count)}}, tmp_path / f"{count}.png")
        pictures[count] = np.asarray(Image.open(tmp_path / f"{count}.png"))
        widths.append(pictures[count].shape[1])
    assert widths == [360, 1080]
    draw_curves({"curves": {"curve 0": curve}}, tmp_path / "linear.png", from_zero=True)
    linear = np.asarray(Image.open(tmp_path / "linear.png"))
    assert not np.array_equal(linear, pictures[1])  # what spans so much is drawn on a logarithmic axis, unless from 0
    draw_curves({"curves": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("lowest", "bottom"), [(-1.0, -1.1), (0.5, 0.0)])
def test_axes_begin_at_zero_or_below_it(tmp_path, monkeypatch, lowest, bottom):
    curve = {"x": [0, 1], "y": [lowest, 1.0], "x_unit": "game", "y_unit": "score"}
    limits, save = [], Figure.savefig

    def spy(figure, *words, **options):
        limits.append(figure.axes[0].get_ylim()[0])
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    draw_curves({"curves": {"score": curve}}, tmp_path / "a.png", from_zero=True)
    assert limits == [pytest.approx(bottom)]
