"""benchmarks/gpu.py, on a CPU with tiny networks: every section runs, and both sides of a ratio do the same work."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What the script prints, and what it writes."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny", "--json", str(file)]
    paths = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={**os.environ, **paths}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_every_section_runs_and_compares_equal_work(tmp_path: Path):
    said, written = run(tmp_path, "--minutes", "10")
    tables = written["tables"]
    assert not [note for note in written["notes"] if "failed" in note or "skipped" in note]
    assert list(tables) == ["sampling", "null-text", "edit", "exact", "training", "memory", "layouts"]
    assert all(f"### {name}" in said for name in tables)
    for row in tables["sampling"]:
        assert row["float32 latents differ by"] < 1e-4
        assert row["another prompt changes"] > 1e-2
        assert row["evaluations an image, ours"] == row["theirs"]
        assert row["torch"]
        assert row["diffusers"]
    for row in tables["null-text"]:
        reference = next(r for r in tables["null-text"] if r["who"] == "reference" and r["stop"] == row["stop"])
        assert row["mean loss"] == pytest.approx(reference["mean loss"], rel=0.1)
        assert row["distance from the pivot"] < 0.9 * row["distance, untuned"]
    (row,) = tables["edit"]
    assert row["float32 pictures differ by"] < 1e-4
    assert row["attention control changes"] > 1e-2
    for row in tables["exact"]:
        several = {row[name] for name in ("integers", "pictures", "alone", "another batch", "second process")}
        assert len(several) == 1
        (counts,) = several
        assert len({*counts.split(" of ")}) == 1
    assert "exact, failures" not in tables


def raising(bench: Any) -> None:
    bench.row("table", found=1)
    raise ValueError("this one fails")


def hanging(bench: Any) -> None:
    bench.row("table", found=2)
    time.sleep(60)


def dying(bench: Any) -> None:
    bench.row("table", found=3)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("section", "minutes", "rows", "says"),
    [
        (raising, 1.0, [{"found": 1}], "ValueError: this one fails"),
        (dying, 1.0, [{"found": 3}], "its process ended with -9"),
        (hanging, 1.0, [{"found": 2}], "was ended after"),
        (raising, 0.0, [], "skipped"),
    ],
)
def test_a_section_that_fails_loses_nothing(section, minutes, rows, says, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("gpu_bench")
    monkeypatch.setattr(module, "GRACE", 1.0 - 60 * minutes * 0.5)
    bench = module.Bench(torch.device("cpu"), True, 60 * minutes)
    bench.section("this section", 0.5, section)
    assert bench.tables.get("table", []) == rows
    assert len(bench.notes) == 1
    assert says in bench.notes[0]
    assert says in bench.report()
