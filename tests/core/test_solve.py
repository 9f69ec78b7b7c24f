import math

import pytest
import torch
from oracles import arc, gaussian, noise_like
from refusals import not_finite

import ddim
from ddim._utils.errors import NotFinite
from ddim.core.contracts import Inversion, Solver
from ddim.inversion import INVERSIONS
from ddim.solvers import REVERSIBLE, SOLVERS
from ddim.solvers.lattice import ReversibleSolver

DATA, GRID, X = gaussian(3), arc(6), noise_like((2, 3))
deterministic = pytest.mark.parametrize("name", [n for n in ddim.SOLVERS if not ddim.make_solver(n).stochastic])
reversible = pytest.mark.parametrize("name", REVERSIBLE)


def run(name: str, state=None, **options):
    solver = ddim.make_solver(name)
    return ddim.solve(DATA, solver, state or solver.init(X, GRID), GRID, **options)


@pytest.mark.parametrize("name", ddim.SOLVERS)
def test_what_is_registered_is_a_solver(name):
    solver = ddim.make_solver(name)
    assert isinstance(solver, Solver)
    assert isinstance(solver, ReversibleSolver) is (name in REVERSIBLE)
    assert solver.name == name
    assert solver.paper
    assert isinstance(solver.order, int)
    assert solver.nfe >= 1


@pytest.mark.parametrize("name", ddim.inversion_names())
def test_what_is_registered_is_an_inversion(name):
    method = ddim.make_inversion(name)
    assert isinstance(method, Inversion)
    assert method.name == name
    assert method.paper
    assert method.solver().name in ddim.SOLVERS
    assert ddim.make_inversion(name, method.options) == method
    assert ddim.make_solver(method.solver().name, method.solver().options) == method.solver()
    assert method.needs in ("", "conditions", "text")
    assert method.floor_db > 0
    assert method.exact == (method.floor_db == math.inf)


@reversible
def test_a_reversible_solver_is_its_own_inversion(name):
    assert SOLVERS[name] is INVERSIONS[name] is REVERSIBLE[name]
    solver = ddim.make_inversion(name)
    assert solver == ddim.make_solver(name)
    assert solver.solver() is solver


@deterministic
def test_a_walk_in_two_parts_is_one_walk(name):
    half = run(name, last=3)
    solver = ddim.make_solver(name)
    assert torch.equal(solver.read(run(name, half, first=3)), solver.read(run(name)))


@reversible
def test_a_walk_back_in_two_parts_is_one_walk(name):
    solver = ddim.make_solver(name)
    state = solver.from_image(DATA, X, GRID)
    half = ddim.solve_back(DATA, solver, state, GRID, last=3)
    assert torch.equal(
        solver.read(ddim.solve_back(DATA, solver, half, GRID, first=3, last=1)),
        solver.read(ddim.solve_back(DATA, solver, state, GRID, last=1)),
    )


@reversible
def test_part_of_the_way_back_and_forth_is_exact(name):
    # resuming in the middle: what an edit that starts at 60 % of the noise does
    solver = ddim.make_solver(name)
    lifted = solver.from_image(DATA, X, GRID)
    state = ddim.solve_back(DATA, solver, lifted, GRID, last=2)
    back = ddim.solve(DATA, solver, state, GRID, first=2)
    assert all(torch.equal(back[key], lifted[key]) for key in lifted)


@deterministic
def test_a_state_is_a_value(name):
    state = ddim.make_solver(name).init(X.clone(), GRID)
    run(name, state)
    again = ddim.make_solver(name).init(X, GRID)
    assert set(state) == set(again)
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_on_step_sees_every_node_forwards():
    seen = []
    end = run("ddim", on_step=lambda i, state: seen.append((i, state["x"])))
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] is end["x"]


def test_on_step_sees_every_node_backwards():
    seen, solver = [], ddim.make_solver("bdia")
    ddim.solve_back(DATA, solver, solver.from_image(DATA, X, GRID), GRID, last=1, on_step=lambda i, _: seen.append(i))
    assert seen == [5, 4, 3, 2, 1]


def test_no_gradient_is_kept():
    assert not run("ddim", {"x": X.clone().requires_grad_()})["x"].requires_grad


def broken(at: float):
    def denoise(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        pair = DATA(x, node)
        return ddim.Pair(pair.x0 * float("nan"), pair.eps) if node.t == at else pair

    return denoise


def test_nan_from_the_network_names_the_step():
    solver = ddim.make_solver("ddim")
    with not_finite(3, f"{GRID[2].t:g}", f"{GRID[3].t:g}"):
        ddim.solve(broken(GRID[2].t), solver, {"x": X}, GRID)


def test_nan_on_the_way_back_names_the_step():
    solver = ddim.make_solver("bdia")
    state = solver.from_image(DATA, X, GRID)
    with pytest.raises(NotFinite) as caught:
        ddim.solve_back(broken(GRID[2].t), solver, state, GRID, last=1)
    assert caught.value.step == 4  # from grid[3] to grid[2], where the answer is NaN, and which is the fourth of six


# lcm samples consistency functions, and shrinks the spread of data whose denoiser is none
@pytest.mark.parametrize("name", [name for name in ddim.SOLVERS if name != "lcm"])
def test_every_solver_starts_without_signal(name):
    path = ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar()))
    grid, solver = ddim.make_grid(path, 200), ddim.make_solver(name)
    x = noise_like((2000, 3))
    end = solver.read(ddim.solve(DATA, solver, solver.init(x, grid), grid, noise=lambda like: torch.randn_like(like)))
    assert torch.allclose(end.mean(0), DATA.mean, rtol=0, atol=0.1)
    assert torch.allclose(end.std(0), DATA.scale, rtol=0.15, atol=0)


@pytest.mark.parametrize("name", ["ddim", "heun", "bdia"])
def test_round_trips_from_zero_signal(name):
    path = ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar()))
    grid, method = ddim.make_grid(path, 100), ddim.make_inversion(name)
    x0 = DATA.draw(4)
    state, solver = method.invert(DATA, x0, grid).state, method.solver()
    back = solver.read(ddim.solve(DATA, solver, state, grid))
    # at alpha = 0 the oracle's x0 is its mean: one step of the way is lost, more so the naive the method
    assert (back - x0).abs().max() < 0.2
