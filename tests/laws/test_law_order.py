"""Law 1: on data whose exact eps is known the endpoint is the closed form, at the order that each method states.

Grids: see ``oracles.arc`` for why orders are fitted on smooth grids that end at finite noise.
"""

from functools import cache

import pytest
import torch
from oracles import arc, fitted_order, gaussian, mixture, noise_like, shifted, straight, whole, whole_shifted

import ddim
from ddim.inversion import INVERSIONS, make_inversion

STEPS = [32, 64, 128, 256]
GRIDS = {"arc": arc, "straight": straight, "shifted": shifted, "whole": whole, "whole shifted": whole_shifted}
"""All but the first are on rectified flow, and the last two go from pure noise to the data, as its models do."""

ONLY_INSIDE = ("dpm++2m", "edict")
"""Solvers whose coordinate is infinite at an end of the path (the log-SNR; x / alpha): there they converge, but the
order shows at more steps than these."""
PROBLEMS = {"gaussian": gaussian(3), "mixture": mixture(3)}
X = noise_like((4, 3))
PLAIN = [n for n, m in INVERSIONS.items() if not m.needs and not m.keeps]  # the others: test_law_guided
EVERY_SOLVER = [name for name in ddim.SOLVERS if not ddim.make_solver(name).stochastic]
WITH_OPTIONS = [
    *(("ddim", {"eta": 0.0}, 1), ("bdia", {"gamma": 0.87}, 1), ("edict", {"p": 0.97}, 1)),
    *(("rex", {"tableau": "euler"}, 1), ("rex", {"tableau": "rk4"}, 4), ("rex", {"zeta": 1.0}, 2)),
]
problems = pytest.mark.parametrize("problem", PROBLEMS)
grids = pytest.mark.parametrize("grid", GRIDS)


def order_of(errors: list[float], grid: str) -> float:
    """The fitted order; near pure noise and near the data it shows from 64 steps on."""
    skip = 1 if "whole" in grid else 0
    return fitted_order(STEPS[skip:], errors[skip:])


def agrees(problem: str, fitted: float, stated: int) -> bool:
    """Whether a fitted order is the stated one, ±0.15.

    On the Gaussian the ODE is linear, and the leading errors of a method can cancel there, in part or wholly: up to one
    order more is no fault. The mixture is not linear, and shows the order that users get.
    """
    return stated - 0.15 <= fitted <= stated + 0.15 + (problem == "gaussian")


def reached(problem: str, grid: str, t: ddim.Node, s: ddim.Node) -> torch.Tensor:
    """Where the ODE takes X from a node of a grid to another one."""
    oracle = PROBLEMS[problem]
    return (oracle.endpoint if grid == "arc" else oracle.flow_endpoint)(X, t, s)


@cache
def truth(problem: str, grid: str) -> torch.Tensor:
    nodes = GRIDS[grid](STEPS[0]).nodes  # the two ends are the same for every number of steps
    return reached(problem, grid, nodes[0], nodes[-1])


def errors_forward(solver, problem: str, grid: str) -> list[float]:
    errors = []
    for steps in STEPS:
        nodes = GRIDS[grid](steps)
        end = ddim.solve(PROBLEMS[problem], solver, solver.init(X, nodes), nodes)
        errors.append(float((solver.read(end) - truth(problem, grid)).abs().max()))
    return errors


@problems
@grids
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_order_of_a_solver_is_the_one_it_states(name, problem, grid, record_property):
    solver = ddim.make_solver(name)
    errors = errors_forward(solver, problem, grid)
    if "whole" in grid and name in ONLY_INSIDE:
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.01
        return
    order = order_of(errors, grid)
    record_property("fitted_order", order)
    print(f"order {name:16} {problem:9} {grid:9} {order:.3f}  error at {STEPS[-1]}: {errors[-1]:.1e}")
    assert agrees(problem, order, solver.order)
    assert errors[-1] < 20 / STEPS[-1] ** solver.order  # and it converges to the closed form, not to something near


@pytest.mark.parametrize(("grid", "problem"), [("arc", "gaussian"), ("arc", "mixture"), ("straight", "mixture")])
@pytest.mark.parametrize(("name", "options", "order"), WITH_OPTIONS)
def test_order_with_options(name, options, order, problem, grid):
    solver = ddim.make_solver(name, options)
    fitted = fitted_order(STEPS, errors_forward(solver, problem, grid))
    print(f"order {name} {options} {problem:9} {grid:9} {fitted:.3f}")
    assert agrees(problem, fitted, order)


@pytest.mark.parametrize(("tableau", "order", "calls"), [("euler", 1, 2), ("midpoint", 2, 4), ("rk4", 4, 8)])
def test_rex_states_the_order_and_the_calls_of_its_runge_kutta_method(tableau, order, calls):
    solver, grid, made = ddim.make_solver("rex", {"tableau": tableau}), arc(3), []

    def counted(x, node):
        made.append(node)
        return PROBLEMS["mixture"](x, node)

    ddim.solve(counted, solver, solver.init(X, grid), grid)
    assert (solver.order, solver.nfe, len(made)) == (order, calls, calls * grid.steps)


@pytest.mark.parametrize("name", ddim.SOLVERS)
def test_order_zero_means_noise_and_nothing_else(name):
    assert (ddim.SOLVERS[name].order == 0) == ddim.make_solver(name).stochastic


def neutral(name: str) -> bool:
    """Whether it can be followed to 256 steps on the way back without its own amplification drowning the order."""
    return make_inversion(name).amplification(arc(STEPS[-1])) < 100


@problems
@grids
@pytest.mark.parametrize("name", [n for n in PLAIN if neutral(n)])
def test_inversion_reaches_the_closed_form_code_at_its_solvers_order(name, problem, grid):
    inversion, errors = make_inversion(name), []
    solver = inversion.solver()
    for steps in STEPS:
        nodes = GRIDS[grid](steps)
        state = inversion.invert(PROBLEMS[problem], X, nodes).state
        expected = reached(problem, grid, nodes[-1], nodes[solver.first(nodes)])
        errors.append(float((solver.read(state) - expected).abs().max()))
    order = order_of(errors, grid)
    print(f"order back {name:11} {problem:9} {grid:9} {order:.3f}  error at {STEPS[-1]}: {errors[-1]:.1e}")
    assert agrees(problem, order, inversion.solver().order)


def round_trips(inversion, problem: str, grid: str) -> list[float]:
    solver, errors = inversion.solver(), []
    for steps in STEPS:
        nodes = GRIDS[grid](steps)
        state = inversion.invert(PROBLEMS[problem], X, nodes).state
        back = solver.read(ddim.solve(PROBLEMS[problem], solver, state, nodes))
        errors.append(float((back - X).abs().max()))
    return errors


APPROXIMATE = [(name, {}) for name in PLAIN if not INVERSIONS[name].exact]
OPTIONS = [
    *(("ddim", {"timestep": "source"}), *(("ddim", {"iterations": k}) for k in (2, 3, 4))),
    *(("renoise", {"iterations": k, "average": m}) for k, m in ((0, 1), (2, 1), (3, 2), (3, 4))),
    ("renoise", {"iterations": 3, "near": 1.0}),
    ("uni-inv", {"start": "zero"}),
]


@problems
@grids
@pytest.mark.parametrize(("name", "options"), APPROXIMATE + OPTIONS, ids=str)
def test_round_trip_order_of_an_inversion_is_the_one_it_states(name, options, problem, grid, record_property):
    inversion = make_inversion(name, options)
    order = order_of(round_trips(inversion, problem, grid), grid)
    record_property("fitted_order", order)
    print(f"order trip {name} {options} {problem:9} {grid:9} {order:.3f}")
    assert agrees(problem, order, inversion.order)


@pytest.mark.parametrize("name", [n for n in PLAIN if INVERSIONS[n].exact])
def test_order_of_an_exact_inversion_is_its_solvers(name):
    assert make_inversion(name).order == ddim.make_solver(name).order


# beta's last step is too long for this bound: its quantiles of sigma / alpha leave few nodes near the data
@pytest.mark.parametrize("spacing", [name for name in ddim.SPACINGS if name != "beta"])
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_on_a_real_table_down_to_the_data_the_endpoint_is_the_closed_form(name, spacing):
    # all the way to the data, through a table's rounding, no order is claimed; the limit is
    oracle, solver = PROBLEMS["gaussian"], ddim.make_solver(name)
    errors = []
    for steps in (50, 200):
        nodes = ddim.make_grid(ddim.ddpm_linear(), steps, spacing)
        end = solver.read(ddim.solve(oracle, solver, solver.init(X, nodes), nodes))
        errors.append(float((end - oracle.endpoint(X, nodes[0], nodes[-1])).abs().max()))
    assert errors[1] < errors[0], errors
    assert errors[1] < 0.03, errors
