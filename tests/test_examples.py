"""Every example runs, and does what its first line says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_saved_code_comes_back_to_the_bit(tmp_path: Path) -> None:
    assert example("round_trip").main(tmp_path) == 0


def test_a_denoiser_by_hand_reaches_its_distribution() -> None:
    mean, std = example("own_denoiser").main()
    assert mean == pytest.approx(2, abs=0.05)
    assert std == pytest.approx(0.5, abs=0.02)


def test_interpolation_writes_a_row_and_a_square(tmp_path: Path) -> None:
    assert all(file.is_file() for file in example("interpolate").main(tmp_path, steps=10))


def test_a_solver_of_ones_own_samples() -> None:
    assert example("add_a_solver").main(steps=5).shape == (4, 1, 32, 32)


def test_a_drawing_and_its_edits(tmp_path: Path) -> None:
    assert example("edit_with_words").main(tmp_path, steps=10) < 1e-3
    assert (tmp_path / "dog.png").is_file()


def test_no_example_is_left_out() -> None:
    tested = {"round_trip", "own_denoiser", "interpolate", "add_a_solver", "edit_with_words"}
    assert {file.stem for file in FOLDER.glob("*.py")} == tested
