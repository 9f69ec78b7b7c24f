"""The plot beside a table."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim.evaluation.plots import COLOURS, Plot, Point, by_line, draw, spaced_ticks


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
    file = draw(Plot(series, "S", "distance", log_y=True), tmp_path / "plot.png")
    assert file == tmp_path / "plot.png"
    found = colours(file)
    rgb = [tuple(int(c[k : k + 2], 16) for k in (1, 3, 5)) for c in COLOURS[:3]]
    assert rgb[0] in found
    assert rgb[1] in found
    assert rgb[2] not in found  # the line without a point has no colour


def test_nothing_to_draw_and_no_matplotlib_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert draw(Plot({"a": []}, "S", "y"), tmp_path / "plot.png") is None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(Plot({"a": [Point(1, 1)]}, "S", "y"), tmp_path / "plot.png") is None
    assert list(tmp_path.iterdir()) == []


def test_labels_of_an_axis_keep_apart():
    assert spaced_ticks({39, 41, 12, 300}) == [12, 39, 300]
    assert spaced_ticks([10, 20, 50, 100, 1000]) == [10, 20, 50, 100, 1000]
    assert spaced_ticks([10]) == [10]
    assert spaced_ticks([0, 10]) == [10]


def test_rows_become_a_line_for_each_name():
    rows = [{"m": "a", "x": 1, "y": 2.0, "y_low": 1.0, "y_high": 3.0}, {"m": "b", "x": 1, "y": None}]
    assert by_line([*rows, {"m": "a", "x": 2, "y": 1.0}], "m", "x", "y") == {"a": [Point(1, 2, 1, 3), Point(2, 1)]}
