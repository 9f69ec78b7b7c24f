"""The plot beside a table."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim.evaluation.plots import COLOURS, Point, line_plot, readable


def colours(file: Path) -> set[tuple[int, ...]]:
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {tuple(int(v) for v in p) for p in np.unique(pixels, axis=0)}


def test_every_line_with_points_is_drawn_in_its_colour(tmp_path: Path):
    pytest.importorskip("matplotlib")
    series = {
        "a": [Point(10, 2.0, 1.0, 3.0), Point(20, 1.0)],
        "b": [Point(10, float("nan"))],
        "c": [Point(10, 5), Point(20, 4)],
    }
    file = line_plot(tmp_path / "plot.png", series, "S", "distance", log_y=True)
    assert file == tmp_path / "plot.png"
    found = colours(file)
    rgb = [tuple(int(c[k : k + 2], 16) for k in (1, 3, 5)) for c in COLOURS[:3]]
    assert rgb[0] in found
    assert rgb[1] in found
    assert rgb[2] not in found  # the line without a point has no colour


def test_nothing_to_draw_and_no_matplotlib_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert line_plot(tmp_path / "plot.png", {"a": []}, "S", "y") is None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert line_plot(tmp_path / "plot.png", {"a": [Point(1, 1)]}, "S", "y") is None
    assert list(tmp_path.iterdir()) == []


def test_labels_of_an_axis_keep_apart():
    assert readable({39, 41, 12, 300}) == [12, 39, 300]
    assert readable([10, 20, 50, 100, 1000]) == [10, 20, 50, 100, 1000]
    assert readable([10]) == [10]
    assert readable([0, 10]) == [10]
