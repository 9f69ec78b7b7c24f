"""What the benchmarks leave to chance: nothing."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def sensitivity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # they import each other by name
    spec = importlib.util.spec_from_file_location("guidance_sensitivity", FOLDER / "guidance_sensitivity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("missing", "batches"),
    [
        (list(range(7)), [[0, 1, 2], [3, 4, 5], [6]]),
        ([0, 2, 3, 4, 6], [[0], [2], [3, 4], [6]]),
        ([4, 5], [[4, 5]]),
        ([], []),
    ],
)
def test_a_batch_has_no_gaps_so_that_picture_k_has_seed_k(sensitivity: ModuleType, missing, batches):
    assert sensitivity.batches(missing, 3) == batches
