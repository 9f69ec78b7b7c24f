"""DDIM inversion as a fixed point: the implicit step, its iteration and its acceleration."""

import pytest
import torch
from oracles import arc, fitted_order, gaussian, mixture, noise_like
from refusals import refused, unknown

import ddim
from ddim.inversion import INVERSIONS, make_inversion
from ddim.solvers.one_stage import implicit_step

GRID = arc(8)
DATA = mixture(2, 4)
X0 = DATA.draw(5)
PLAIN = [name for name, method in INVERSIONS.items() if not method.needs and not method.keeps]


def residual(state: torch.Tensor, x: torch.Tensor, i: int) -> torch.Tensor:
    """How far DDIM's own step from the state misses x, a sample."""
    back = ddim.make_solver("ddim").step(DATA, {"x": state}, GRID, i, None)["x"]
    return (back - x).flatten(1).norm(dim=1)


def one_step(**options) -> torch.Tensor:
    inversion = make_inversion("ddim", options)
    return inversion.unstep(DATA, {"x": X0}, GRID, GRID.steps - 1)["x"]


def test_one_iteration_is_plain_ddim_inversion():
    grid, eps = arc(1), DATA(X0, arc(1)[0]).eps
    t, s = grid
    expected = t.alpha * (X0 - s.sigma * eps) / s.alpha + t.sigma * eps
    inversion = make_inversion("ddim", {"iterations": 1})
    assert torch.allclose(inversion.invert(DATA, X0, grid).state["x"], expected, rtol=0, atol=1e-14)


def test_the_iteration_is_the_implicit_step():
    i = GRID.steps - 1
    assert torch.equal(one_step(iterations=4), implicit_step(DATA, X0, GRID, i, 4))


def test_iterations_converge_to_the_implicit_step():
    sizes = [float(residual(one_step(iterations=k), X0, GRID.steps - 1).max()) for k in (1, 2, 4, 8, 40)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-12


@pytest.mark.parametrize("memory", [1, 2, 3, 5])
def test_anderson_converges_faster_than_the_plain_iteration(memory):
    plain = residual(one_step(iterations=6), X0, GRID.steps - 1)
    mixed = residual(one_step(iterations=6, anderson=memory), X0, GRID.steps - 1)
    assert (mixed < plain).all()
    assert mixed.max() < plain.max() / 3


def test_anderson_solves_a_linear_problem_in_as_many_iterations_as_unknowns():
    # on a Gaussian the map is affine: mixing d + 1 iterates of a sample with d unknowns is exact (Walker & Ni 2011)
    data, grid = gaussian(2), arc(4)
    x = data.draw(3)

    def miss(**options) -> float:
        state = make_inversion("ddim", options).unstep(data, {"x": x}, grid, 3)
        return float((ddim.make_solver("ddim").step(data, state, grid, 3, None)["x"] - x).abs().max())

    # the first mixing is at the second iterate; after d of them one plain step remains
    assert miss(iterations=5, anderson=3) < 1e-6
    assert miss(iterations=5) > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations", [30, 100])
def test_anderson_after_convergence_stays_there(dtype, iterations):
    # residuals of exactly zero once divided nothing by nothing
    state = make_inversion("ddim", {"iterations": iterations, "anderson": 3}).invert(DATA, X0.to(dtype), GRID).state
    plain = make_inversion("ddim", {"iterations": 100}).invert(DATA, X0.to(dtype), GRID).state
    assert torch.allclose(state["x"], plain["x"], rtol=0, atol=1e4 * torch.finfo(dtype).eps)


def test_anderson_with_a_network_that_answers_nothing():
    def silent(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        return ddim.to_pair("eps", torch.zeros_like(x), x, node)

    state = make_inversion("ddim", {"iterations": 5, "anderson": 2}).invert(silent, X0, GRID).state
    assert torch.allclose(state["x"], X0 * GRID[0].alpha / GRID[-1].alpha)


@pytest.mark.parametrize("options", [{"iterations": 6}, {"iterations": 6, "anderson": 3}], ids=["plain", "anderson"])
def test_a_samples_result_does_not_depend_on_its_batch(options):
    inversion = make_inversion("ddim", options)
    easy = torch.zeros(1, 2, 4, dtype=torch.float64)  # converges at another pace than its neighbours
    batch = torch.cat([X0, easy, 3 * X0[:1]])
    together = inversion.invert(DATA, batch, GRID).state["x"]
    for k in range(len(batch)):
        alone = inversion.invert(DATA, batch[k : k + 1], GRID).state["x"]
        assert torch.allclose(alone, together[k : k + 1], rtol=0, atol=1e-10)


def test_anderson_leaves_no_state_behind():
    inversion = make_inversion("ddim", {"iterations": 5, "anderson": 3})
    once, again = (inversion.invert(DATA, X0, GRID).state["x"] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("iterations", [1, 3])
def test_nfe_is_what_it_states(iterations):
    calls = []

    def counted(x, node):
        calls.append(node)
        return DATA(x, node)

    inversion = make_inversion("ddim", {"iterations": iterations})
    inversion.invert(counted, X0, GRID)
    assert len(calls) == inversion.nfe * GRID.steps


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "ddim"])
def test_nfe_of_the_others(name):
    calls = []

    def counted(x, node):
        calls.append(node)
        return DATA(x, node)

    inversion = make_inversion(name)
    inversion.invert(counted, X0, GRID)
    extra = len(calls) - inversion.nfe * GRID.steps
    assert abs(extra) <= 3  # two-value methods pay at the data end, once


@pytest.mark.parametrize("name", ddim.SOLVERS)
def test_nfe_of_solvers(name):
    calls = []

    def counted(x, node):
        calls.append(node)
        return DATA(x, node)

    solver = ddim.make_solver(name)
    noise = torch.zeros_like
    ddim.solve(counted, solver, solver.init(X0, GRID), GRID, noise=noise)
    assert len(calls) == solver.nfe * GRID.steps + solver.extra_calls


def predicts_x0(x, node):
    return ddim.to_pair("x0", DATA(x, node).x0, x, node)


@pytest.mark.parametrize("name", PLAIN)
def test_the_first_step_from_clean_data(name):
    # sigma = 0 at the data: the label of the destination keeps every prediction away from where it says nothing
    method, grid = make_inversion(name), ddim.make_grid(ddim.ddpm_linear(), 10)
    if method.solver().asks_data:
        with refused("prediction", "'x0'"):
            method.invert(predicts_x0, X0, grid)
    else:
        assert method.invert(predicts_x0, X0, grid).state["x"].isfinite().all()


def test_heun_from_clean_data_solves_the_implicit_step_twice():
    grid = ddim.make_grid(ddim.ddpm_linear(), 10)
    state = make_inversion("heun").unstep(DATA, {"x": X0}, grid, 9)
    expected = implicit_step(DATA, X0, grid, 9, iterations=2)
    assert torch.allclose(state["x"], expected, rtol=0, atol=1e-14)


def test_the_implicit_steps_order():
    """One iteration misses by O(h^2) a step, k by O(h^(k+1))."""
    for k in (1, 2, 3):
        errors = []
        for steps in (32, 64, 128, 256):
            grid = arc(steps)
            guess = implicit_step(DATA, X0, grid, steps - 1, k)
            exact = implicit_step(DATA, X0, grid, steps - 1, 60)
            errors.append(float((guess - exact).abs().max()))
        assert fitted_order([32, 64, 128, 256], errors) == pytest.approx(k + 1, abs=0.2)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"iterations": 0}, refused("iterations", 0)),
        ({"iterations": 1.5}, refused("iterations", 1.5, "'ddim'")),
        ({"iterations": float("inf")}, refused("iterations", "inf")),
        ({"anderson": -1}, refused("anderson", -1)),
        ({"timestep": "surce"}, unknown("timestep", "surce", nearest="source")),
        ({"timestep": "source", "iterations": 2}, refused("iterations", 2, "timestep = 'destination'")),
        ({"iteration": 2}, unknown("options", "iteration", nearest="iterations")),
    ],
)
def test_options_that_cannot_be(options, refusal):
    with refusal:
        make_inversion("ddim", options)


def test_noise_reaches_no_inversion():
    x = noise_like((2, 2, 4))
    before = torch.get_rng_state()
    for name in PLAIN:
        make_inversion(name).invert(DATA, x, GRID)
    assert torch.equal(torch.get_rng_state(), before)
