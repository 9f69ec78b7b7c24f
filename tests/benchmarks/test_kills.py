"""``benchmarks/kills.py`` in short: kills at random moments lose nothing and leave nothing behind."""

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

KINDS = ["invert", "invert --together", "edit", "train", "evaluate table2"]


def test_kills_lose_nothing_and_leave_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    words = ["--kills", str(len(KINDS)), "--part", "4", "--only", *KINDS]
    monkeypatch.setattr("sys.argv", ["benchmarks/kills.py", *words])
    code = importlib.import_module("kills").main()
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.startswith(f"{len(KINDS)} kills, moments from seed 11")
    assert len(said.splitlines()) == 2 + len(KINDS)
