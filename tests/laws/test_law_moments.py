"""Law 5, continued: sampling with the exact eps keeps the data's mean and variance.

A Gaussian's exact eps is linear in x, so a step is too: mean and variance travel along the grid in closed form, with
the solver's own step as the only source of the coefficients. No Monte Carlo, so the bounds are sharp.
"""

import math

import pytest
import torch
from oracles import Gaussian, mixture

import ddim
from ddim.core.schedule import Schedule, StaticShift

DATA = Gaussian(torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64))
PATH = ddim.ddpm_linear()
FLOW = Schedule(ddim.RectifiedFlow(), "flow", shift=StaticShift(3.0))
MAKE_GRID = {"ddpm": lambda steps: ddim.make_grid(PATH, steps), "flow": FLOW.grid}
paths = pytest.mark.parametrize("path", MAKE_GRID)
FAMILY = [("ddim", {"eta": 0.0}), ("ddim", {"eta": 0.3}), ("ddim", {"eta": 1.0}), ("ddpm", {})]


def moments(solver, grid: ddim.Grid) -> tuple[float, float]:
    """Mean and standard deviation at the data end, from the prior N(0, 1)."""
    mean, variance = 0.0, 1.0
    probe = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    unit = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    for i in range(grid.steps):
        base, x, z = solver.step(DATA, {"x": probe}, grid, i, lambda like: unit)["x"].flatten().tolist()
        mean, variance = base + (x - base) * mean, (x - base) ** 2 * variance + (z - base) ** 2
    return mean, math.sqrt(variance)


@paths
@pytest.mark.parametrize(("name", "options"), FAMILY, ids=str)
def test_all_thousand_steps_keep_the_marginal(name, options, path):
    mean, std = moments(ddim.make_solver(name, options), MAKE_GRID[path](1000))
    print(f"moments {name} {options} {path}: mean {mean:.4f} (0.7), std {std:.4f} (0.4)")
    assert mean == pytest.approx(0.7, abs=0.01)
    assert std == pytest.approx(0.4, rel=0.02)


@paths
@pytest.mark.parametrize(("name", "options"), FAMILY, ids=str)
def test_the_error_of_the_moments_falls_with_the_steps(name, options, path):
    solver = ddim.make_solver(name, options)
    errors = [abs(moments(solver, MAKE_GRID[path](steps))[1] - 0.4) for steps in (50, 100, 200, 400)]
    assert errors == sorted(errors, reverse=True)


@paths
@pytest.mark.parametrize("steps", [10, 50, 200, 1000])
def test_sigma_hat_ends_wider_than_the_posterior_variance(steps, path):
    grid = MAKE_GRID[path](steps)
    assert moments(ddim.make_solver("ddpm"), grid)[1] > moments(ddim.make_solver("ddim", {"eta": 1.0}), grid)[1]


def test_monte_carlo_of_the_mixture():
    data, count = mixture(2), 20_000
    solver, grid = ddim.make_solver("ddim", {"eta": 1.0}), ddim.make_grid(PATH, 250)
    g = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=g, dtype=like.dtype)

    x = noise(torch.empty(count, 2, dtype=torch.float64))
    samples = solver.read(ddim.solve(data, solver, solver.init(x, grid), grid, noise=noise))
    truth = data.draw(count, seed=9)
    error = truth.std(0) * math.sqrt(2 / count)  # of the difference of two means
    assert ((samples.mean(0) - truth.mean(0)).abs() < 5 * error).all()
    assert torch.allclose(samples.std(0), truth.std(0), rtol=0.05)  # 250 steps narrow it by a few percent
