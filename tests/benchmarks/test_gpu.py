"""benchmarks/gpu.py, on a CPU with tiny networks: every section runs, and both sides of a ratio do the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


def test_what_the_time_does_not_reach_is_named(tmp_path: Path):
    said, written = run(tmp_path, "--minutes", "0", "--only", "exact,edit")
    assert written["tables"] == {}
    assert [note.split(" ")[0] for note in written["notes"][1:]] == ["exact", "edit"]
    assert "the time is used up" in said
