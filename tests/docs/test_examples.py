"""Every example runs, and does what its first line says."""

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracles import fitted_order, mixture, noise_like

import ddim
from ddim.core.contracts import Solver

FOLDER = Path(__file__).parents[2] / "examples"


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


PATHS = {
    "ddpm": ddim.ddpm_linear(),
    "stable-diffusion": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"),
    "stable-diffusion-to-one": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "one"),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "zero-terminal-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.scaled_linear_alpha_bar())),
    "rectified-flow": ddim.RectifiedFlow(),
    "ve": ddim.VEPath(),
}
STEPS = [25, 50, 100, 200]
MIXTURE, START = mixture(3), noise_like((4, 3))


@cache
def truth(path: str, points: int = 2000) -> torch.Tensor:
    """Where the ODE takes ``START`` from the path's noise to its data, by Runge-Kutta's method of order 4.

    With y = x / (alpha + sigma) and s = sigma / (alpha + sigma) it is dy/ds = eps - x0, finite at both ends; any path's
    y at equal s is the same. Points lie even in sqrt(s), closer towards the data.
    """
    ends = [PATHS[path].node(PATHS[path].t_max), PATHS[path].node(0.0)]

    def slope(y: torch.Tensor, s: float) -> torch.Tensor:
        pair = MIXTURE(y, ddim.Node(s, 1 - s, s))
        return pair.eps - pair.x0

    begin, end = (node.sigma / (node.alpha + node.sigma) for node in ends)
    times = torch.linspace(begin**0.5, end**0.5, points + 1, dtype=torch.float64).square().tolist()
    y = START / (ends[0].alpha + ends[0].sigma)
    for s, after in pairwise(times):
        h = after - s
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        k4 = slope(y + h * k3, after)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return (ends[1].alpha + ends[1].sigma) * y


def errors(solver: Solver, path: str, spacing: str) -> list[float]:
    found = []
    for steps in STEPS:
        grid = ddim.make_grid(PATHS[path], steps, spacing)
        end = solver.read(ddim.solve(MIXTURE, solver, solver.init(START, grid), grid))
        found.append(float((end - truth(path)).abs().max()))
    return found


@pytest.mark.parametrize("path", [name for name in PATHS if name != "ve"])
def test_the_order_of_a_solver_of_ones_own_is_the_one_it_states(path: str) -> None:
    # The first edition's, with its middle node on DDPM's table, stayed at 0.1 on Stable Diffusion's and at 0.2 on the
    # cosine, and divided by zero on rectified flow.
    solver = example("add_a_solver").Midpoint()
    found = errors(solver, path, "linspace")
    print(f"order {path:24} {fitted_order(STEPS, found):.3f}  errors {found}")
    assert fitted_order(STEPS, found) == pytest.approx(solver.order, abs=0.15)
    assert found[-1] < 4e-5  # four times as much in another coordinate than the path's own


def test_a_solver_of_ones_own_on_a_variance_exploding_path() -> None:
    solver = example("add_a_solver").Midpoint()
    found = errors(solver, "ve", "karras")
    print(f"order ve {fitted_order(STEPS, found):.3f}  errors {found}")
    assert fitted_order(STEPS, found) == pytest.approx(solver.order, abs=0.15)


def test_a_drawing_and_its_edits(tmp_path: Path) -> None:
    assert example("edit_with_words").main(tmp_path, steps=10) < 1e-3
    assert (tmp_path / "dog.png").is_file()


def test_batches_of_pictures_one_of_which_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 < example("thousands").main(tmp_path) < 1e-15
    assert capsys.readouterr().out.startswith("1 of 2 batches computed again")


def test_no_example_is_left_out() -> None:
    tested = {"round_trip", "own_denoiser", "interpolate", "add_a_solver", "edit_with_words", "thousands"}
    assert {file.stem for file in FOLDER.glob("*.py")} == tested
