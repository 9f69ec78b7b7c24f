"""Tables as files, and how rows become their lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from ddim.evaluation import evaluate
from ddim.evaluation.columns import (
    FAILED,
    count,
    derived,
    first,
    formats,
    key,
    keys,
    largest,
    least,
    mean,
    measured,
    summarise,
    with_interval,
)
from ddim.evaluation.rows import RowColumns
from ddim.evaluation.tables import markdown, write_table


def test_a_mean_leaves_out_what_is_no_number():
    rows = [{"v": v} for v in (1.0, None, float("inf"), 3.0, float("nan"))]
    assert mean(rows, "v") == 2.0
    assert mean(rows[1:3], "v") is None


def test_what_is_not_there_is_a_dash():
    assert markdown([{"m": "x", "v": None}], {"m": "", "v": ".1%"}) == "| m | v |\n|---|---|\n| x | – |"


def test_a_table_in_three_formats(tmp_path: Path):
    files = write_table(tmp_path, "t", [{"m": "x", "v": 0.123}], {"m": "", "v": ".1%"}, {"command": "ddim"})
    assert [f.suffix for f in files] == [".md", ".csv", ".json"]
    assert "| x | 12.3% |" in files[0].read_text()
    assert json.loads(files[2].read_text())["about"] == {"command": "ddim"}


def test_a_table_may_tell_of_a_name_that_is_not_utf_8(tmp_path: Path):
    files = write_table(tmp_path, "t", [{"m": "caf\udce9"}], {"m": ""}, {"command": "ddim caf\udce9"})
    assert r"caf\xe9" in files[0].read_text(encoding="utf-8")
    assert r"caf\xe9" in files[1].read_text(encoding="utf-8")
    json.loads(files[2].read_text(encoding="utf-8"))


COLUMNS = (
    *keys("image"),
    key("steps", "int64", "d"),
    derived("images", "d", count),
    *with_interval(measured("psnr", ".2f", title="PSNR")),
    measured("worst", ".2f", value=least),
    measured("hidden"),
    FAILED,
)


def test_a_column_is_declared_once_for_rows_table_and_format():
    stored = RowColumns.of(COLUMNS)
    assert stored.identity == {"image": "string", "steps": "int64"}
    assert stored.measured == {"psnr": "float64", "worst": "float64", "hidden": "float64", "failed": "string"}
    assert formats(COLUMNS) == {
        **{"steps": "d", "images": "d", "PSNR": ".2f", "psnr_low": ".2f", "psnr_high": ".2f"},
        **{"worst": ".2f", "failed": "d"},
    }


def test_rows_become_a_line():
    shared = {"image": "a", "steps": 5, "hidden": 1.0}
    rows: list[dict[str, Any]] = [
        {**shared, "psnr": 20.0, "worst": 3.0, "failed": ""},
        {**shared, "psnr": 22.0, "worst": float("inf"), "failed": ""},
        {**shared, "psnr": None, "worst": None, "failed": "diverged"},
    ]
    line = summarise(COLUMNS, rows)
    assert (line["steps"], line["images"], line["PSNR"], line["worst"], line["failed"]) == (5, 3, 21.0, 3.0, 1)
    assert (line["psnr_low"], line["psnr_high"]) == pytest.approx((21 - 1.96, 21 + 1.96))  # s = sqrt 2, n = 2
    assert largest(rows, "psnr") == 22.0
    assert (largest([], "psnr"), least([], "psnr"), first([], "psnr")) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("table2", "images", "4"), ("table2", "steps", "five"), ("consistency", "samples", 2.5), ("fid", "features", 3)],
)
def test_options_of_another_type_are_refused_from_python_too(name: str, option: str, value: object, tmp_path: Path):
    with refused(option, value):
        evaluate(name, out=tmp_path, **{option: value})
