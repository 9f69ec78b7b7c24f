"""One-stage methods against the formulas of their papers, written out on rectified flow and in x / alpha."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import Mixture, arc, fitted_order, mixture, noise_like, shifted, straight, whole, whole_shifted
from refusals import refused, unknown
from torch import Tensor

import ddim
from ddim.core.contracts import InversionProblem
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS, make_inversion
from ddim.inversion.base import pivot_of
from ddim.inversion.direct_edit import DirectEdit
from ddim.inversion.replay import PinnedSolver, replay
from ddim.inversion.rf_inversion import RFInversion
from ddim.inversion.uni_inv import UniInv
from ddim.solvers.base import path_ode
from ddim.solvers.bdia import BDIA
from ddim.solvers.one_stage import implicit_step, one_stage

DATA = mixture(2, 3)
X = DATA.draw(4)
SEEDS = range(4)
CLOSE = {"rtol": 0, "atol": 1e-12}
ZERO_SNR = ddim.make_grid(ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())), 6, "trailing")
GRIDS = {
    "arc": arc(6),
    "straight": straight(6),
    "whole": whole(6),
    "whole shifted": whole_shifted(6),
    "ddpm": ddim.make_grid(ddim.ddpm_linear(), 6),
    "zero snr": ZERO_SNR,
    "ve": ddim.make_grid(ddim.VEPath(), 6),
}
grids = pytest.mark.parametrize("name", GRIDS)
flows = pytest.mark.parametrize("grid", [straight(6), shifted(6)], ids=["straight", "shifted"])


def velocity(x: Tensor, sigma: float) -> Tensor:
    """The velocity of the straight path, v = eps - x0."""
    pair = DATA(x, ddim.Node(sigma, 1 - sigma, sigma))
    return pair.eps - pair.x0


def sampled(name: str, x: Tensor, grid: ddim.Grid) -> Tensor:
    return ddim.solve(DATA, ddim.make_solver(name), {"x": x}, grid)["x"]


def inverted(name: str, grid: ddim.Grid, **options) -> Tensor:
    problem = InversionProblem.of(DATA, SeededNoise(SEEDS))
    return make_inversion(name, options).invert(problem, X, grid).state["x"]


# --- RF-Solver and FireFlow ------------------------------------------------------------------------------------------


def rf_solver(x: Tensor, sigmas: list[float]) -> Tensor:
    """RF-Solver as its paper writes it: a Taylor expansion with the derivative by a finite difference."""
    for t, s in pairwise(sigmas):
        h = s - t
        v = velocity(x, t)
        derivative = (velocity(x + h / 2 * v, t + h / 2) - v) / (h / 2)
        x = x + h * v + h**2 / 2 * derivative
    return x


def fireflow(x: Tensor, sigmas: list[float]) -> Tensor:
    """FireFlow: the half step is along the velocity in the middle of the step before."""
    v = velocity(x, sigmas[0])
    for t, s in pairwise(sigmas):
        h = s - t
        v = velocity(x + h / 2 * v, t + h / 2)
        x = x + h * v
    return x


PAPERS = {"midpoint": ("rf-solver", rf_solver), "fireflow": ("fireflow", fireflow)}


@flows
@pytest.mark.parametrize("solver", PAPERS)
def test_rf_solver_and_fireflow_are_their_papers_in_both_directions(solver, grid):
    inversion, formula = PAPERS[solver]
    sigmas, x = [node.sigma for node in grid], noise_like((4, 2, 3))
    assert torch.allclose(sampled(solver, x, grid), formula(x, sigmas), **CLOSE)
    assert torch.allclose(inverted(inversion, grid), formula(X, sigmas[::-1]), **CLOSE)


@pytest.mark.parametrize("solver", PAPERS)
def test_from_pure_noise_too(solver):
    grid, x = whole(6), noise_like((4, 2, 3))
    assert torch.allclose(sampled(solver, x, grid), PAPERS[solver][1](x, [node.sigma for node in grid]), **CLOSE)


def test_midpoint_in_x_over_alpha():
    """On a variance-preserving path: du / dr = eps with u = x / alpha and r = sigma / alpha."""
    grid, x = arc(6), noise_like((4, 2, 3))
    u = x / grid[0].alpha
    for t, s in zip(grid.nodes, grid.nodes[1:], strict=False):
        h = s.ratio - t.ratio
        eps = DATA(u * t.alpha, t).eps
        angle = math.atan(t.ratio + h / 2)
        middle = ddim.Node(angle, math.cos(angle), math.sin(angle))
        u = u + h * DATA((u + h / 2 * eps) * middle.alpha, middle).eps
    assert torch.allclose(sampled("midpoint", x, grid), u * grid[-1].alpha, **CLOSE)


# --- Uni-Inv, DNAEdit and the fixed point ----------------------------------------------------------------------------


def uni_inv(x: Tensor, sigmas: list[float], v: Tensor) -> Tensor:
    """Uni-Inv from data to noise, with the first velocity v."""
    for s, t in pairwise(sigmas):
        v = velocity(x + (t - s) * v, t)
        x = x + (t - s) * v
    return x


def dna_edit(x: Tensor, sigmas: list[float], n: Tensor) -> Tensor:
    """DNAEdit's inversion: a straight line to a noise that is moved after every step."""
    for s, t in pairwise(sigmas):
        h = t - s
        moved = x + h / (1 - s) * (n - x)
        difference = (moved - x) / h - velocity(moved, t)
        x, n = moved - h * difference, n - (1 - s) * difference
    return x


@flows
def test_uni_inv_is_its_paper(grid):
    sigmas = [node.sigma for node in grid][::-1]
    first = velocity(X, sigmas[0])
    assert torch.allclose(inverted("uni-inv", grid), uni_inv(X, sigmas, first), **CLOSE)
    zero = torch.zeros_like(X)
    assert torch.allclose(inverted("uni-inv", grid, start="zero"), uni_inv(X, sigmas, zero), **CLOSE)


@pytest.mark.parametrize("grid", [whole(7), whole_shifted(7), straight(7)], ids=["whole", "whole shifted", "straight"])
def test_dna_edits_inversion_is_uni_inv_from_the_velocity_to_its_noise(grid):
    sigmas, n = [node.sigma for node in grid][::-1], SeededNoise(SEEDS)(X)
    found = inverted("uni-inv", grid, start="noise")
    assert torch.allclose(found, dna_edit(X, sigmas, n), **CLOSE)
    if sigmas[0] == 0:
        assert torch.allclose(found, uni_inv(X, sigmas, n - X), **CLOSE)
    assert (found - inverted("uni-inv", grid)).abs().max() > 1e-4


@grids
def test_dna_edits_first_guess_is_the_noised_image(name):
    """On every path: the first call is at alpha x0 + sigma n."""
    grid, calls = GRIDS[name], []

    def listens(x, node):
        calls.append((x, node))
        return DATA(x, node)

    UniInv("noise").invert(InversionProblem.of(listens, SeededNoise(SEEDS)), X, grid)
    (x, node), data, n = calls[0], grid[-1], SeededNoise(SEEDS)(X)
    clean = (X - data.sigma * n) / data.alpha
    assert node == grid[-2]
    assert torch.allclose(x, node.alpha * clean + node.sigma * n, rtol=1e-12, atol=1e-12)
    assert len(calls) == grid.steps


@pytest.mark.parametrize("name", ["arc", "straight", "whole"])
def test_uni_inv_iterated_is_the_fixed_point(name):
    grid = GRIDS[name]
    many = inverted("uni-inv", grid, iterations=60)
    assert torch.allclose(many, inverted("ddim", grid, iterations=60), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("iterations", [2, 3])
@pytest.mark.parametrize("grid", [arc, straight])
def test_every_iteration_of_uni_inv_adds_an_order(grid, iterations):
    method, errors = UniInv(iterations=iterations), []
    for steps in (32, 64, 128):
        nodes = grid(steps)
        back = sampled("ddim", method.invert(DATA, X, nodes).state["x"], nodes)
        errors.append(float((back - X).abs().max()))
    assert fitted_order([32, 64, 128], errors) == pytest.approx(method.order, abs=0.15)
    assert method.order == method.nfe + 1 == iterations + 1


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_implicit_step_is_the_one_stage_step_with_part_one(iterations):
    grid = arc(6)
    back = one_stage(DATA, X, X, grid.reversed(), 0, 1, iterations)[0]
    assert torch.equal(back, implicit_step(DATA, X, grid, 5, iterations))
    guess = X
    for _ in range(iterations):
        eps = DATA(guess, grid[5]).eps
        guess = grid[5].alpha * (X / grid[6].alpha + (grid[5].ratio - grid[6].ratio) * eps)
    assert torch.allclose(back, guess, **CLOSE)


def test_dna_edit_needs_a_seed():
    with refused("seed", "'uni-inv'"):
        UniInv("noise").invert(DATA, X, whole(4))


@pytest.mark.parametrize(
    ("options", "refusal"),
    [({"start": "nose"}, unknown("start", "nose", nearest="noise")), ({"iterations": 0}, refused("iterations", 0))],
)
def test_options_of_uni_inv(options, refusal):
    with refusal:
        make_inversion("uni-inv", options)


# --- the regression figures ------------------------------------------------------------------------------------------

ANGLES = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
RING = Mixture(
    torch.full((5,), 0.2, dtype=torch.float64),
    3 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.full((5,), 0.4, dtype=torch.float64),
)
"""Five modes on a circle."""

TRIPS = {
    ("even", "ddim", "source"): (0.321, 0.163, 0.082, 0.044, 0.024),
    ("even", "uni-inv", ""): (0.083, 0.030, 0.010, 0.0035, 0.0011),
    ("even", "rf-solver", ""): (0.053, 0.010, 0.0018, 2.7e-4, 3.4e-5),
    ("even", "fireflow", ""): (0.044, 0.011, 0.0024, 4.2e-4, 5.9e-5),
    ("shifted", "ddim", "source"): (0.294, 0.192, 0.108, 0.063, 0.036),
    ("shifted", "uni-inv", ""): (0.164, 0.069, 0.024, 0.0074, 0.0024),
    ("shifted", "fireflow", ""): (0.067, 0.030, 0.0074, 0.0015, 2.4e-4),
}
"""Round-trip errors (root mean square) with 8 to 128 steps that another implementation measured on a mixture in two
dimensions of its own, which is not known in full."""


@pytest.mark.parametrize("row", TRIPS, ids=str)
def test_round_trips_on_a_ring_are_those_of_another_implementation(row):
    spacing, name, timestep = row
    method, x = make_inversion(name, {"timestep": timestep} if timestep else {}), RING.draw(256)
    for steps, expected in zip((8, 16, 32, 64, 128), TRIPS[row], strict=True):
        grid = {"even": whole, "shifted": whole_shifted}[spacing](steps)
        back = ddim.solve(RING, method.solver(), method.invert(RING, x, grid).state, grid)["x"]
        error = float((back - x).square().mean().sqrt())
        print(f"{spacing} {name} {steps} {error:.2e} ({expected:.2e})")
        assert expected / 2.5 < error < expected * 1.5


# --- DirectEdit ------------------------------------------------------------------------------------------------------


def direct_edit(x: Tensor, sigmas: list[float]) -> list[Tensor]:
    """The inversion of DirectEdit as the paper writes it, from data to noise; returns all samples."""
    nodes = [x]
    for s, t in pairwise(sigmas):
        nodes.append(nodes[-1] + (t - s) * velocity(nodes[-1], s))
    return nodes


@flows
def test_direct_edit_is_its_paper(grid):
    """For the source and for a target beside it, which is moved by the source's offset."""
    sigmas = [node.sigma for node in grid]
    nodes = direct_edit(X, sigmas[::-1])[::-1]
    found = DirectEdit().invert(DATA, X, grid)
    assert torch.allclose(found.state["x"], nodes[0], **CLOSE)
    assert torch.allclose(found.extras["asked"], torch.stack(nodes[1:], 1), **CLOSE)
    source, target = nodes[0], nodes[0] + 0.1 * noise_like((4, 2, 3))
    begin = torch.stack([source, target], 1).flatten(0, 1)
    for i, (t, s) in enumerate(pairwise(sigmas)):
        source = source + (s - t) * velocity(source + (nodes[i + 1] - nodes[i]), s)
        target = target + (s - t) * velocity(target + (nodes[i + 1] - nodes[i]), s)
    assert torch.allclose(source, X, **CLOSE)
    pinned = PinnedSolver(ddim.make_solver("ddim"), found.extras, rows=slice(0, None, 2))
    end = ddim.solve(DATA, pinned, {"x": begin}, grid)["x"]
    assert torch.equal(end[::2], X)
    assert torch.allclose(end[1::2], target, **CLOSE)


@pytest.mark.parametrize("name", ["arc", "ddpm", "zero snr"])
def test_direct_edit_in_x_over_alpha(name):
    """A target on a variance-preserving path is moved by the offset of its source in x / alpha."""
    grid = GRIDS[name]
    found = DirectEdit().invert(DATA, X, grid)
    nodes = [found.state["x"], *found.extras["asked"].unbind(1)]
    kick = 0.1 * noise_like((4, 2, 3))
    target = begin = nodes[1] + kick
    for i in range(1, grid.steps):
        t, s = grid[i], grid[i + 1]
        told = s if s.sigma > 0 else t
        moved = target / t.alpha + (nodes[i + 1] / told.alpha - nodes[i] / t.alpha)
        eps = DATA(moved * told.alpha, told).eps
        target = s.alpha * (target / t.alpha + (s.ratio - t.ratio) * eps)
    pinned = PinnedSolver(ddim.make_solver("ddim"), found.extras, rows=slice(0, None, 2))
    both = torch.stack([nodes[1], begin], 1).flatten(0, 1)
    end = ddim.solve(DATA, pinned, {"x": both}, grid, first=1)["x"]
    assert torch.equal(end[::2], X)
    assert torch.allclose(end[1::2], target, **CLOSE)


def wild(x: Tensor, node: ddim.Node) -> ddim.Pair:
    """A network that follows no data: its answer jumps about."""
    eps = torch.sin(4 * x + 9 * node.sigma) + 0.5 * x.roll(1, -1)
    return ddim.to_pair("flow", eps, x, node)


@grids
@pytest.mark.parametrize("steps", [1, 6])
def test_the_offset_alone_brings_any_network_back(name, steps):
    """A row beside the source, which nothing puts back, comes back too, for one call per step in each direction."""
    grid, calls = GRIDS[name].rest(6 - steps), []

    def counted(x, node):
        calls.append(node)
        return wild(x, node)

    found = DirectEdit().invert(counted, X, grid)
    begin = found.state["x"].repeat_interleave(2, 0)
    pinned = PinnedSolver(ddim.make_solver("ddim"), found.extras, rows=slice(0, None, 2))
    end = ddim.solve(counted, pinned, {"x": begin}, grid)["x"]
    assert len(calls) == 2 * steps
    assert calls[:steps] == calls[steps:][::-1]
    assert torch.equal(end[::2], X)
    assert torch.allclose(end[1::2], X, rtol=0, atol=1e-10 * max(1, float(begin.abs().max())))
    assert (sampled_by(wild, found.state["x"], grid) - X).abs().max() > 0.01


def sampled_by(denoise: ddim.Denoiser, x: Tensor, grid: ddim.Grid) -> Tensor:
    return ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"]


@pytest.mark.parametrize("method", ["direct", "bdia"])
def test_the_offset_goes_with_any_trajectory(method):
    """A pivot of another method as the points of the calls: the source comes back, and a target beside it moves."""
    grid = whole(6)
    pivot = pivot_of(InversionProblem.of(DATA), X, grid)
    if method == "bdia":
        path, solver = [], BDIA()
        code = solver.invert(DATA, X, grid).state
        ddim.solve(DATA, solver, code, grid, on_step=lambda i, state: path.append(solver.read(state)))
        pivot, grid = torch.stack([solver.read(code), *path], 1), grid.rest(solver.first(grid))
    both = pivot[:, 0].repeat_interleave(2, 0)
    pinned = PinnedSolver(ddim.make_solver("ddim"), {"asked": pivot[:, 1:]}, rows=slice(0, None, 2))
    end = ddim.solve(DATA, pinned, {"x": both}, grid)["x"]
    assert torch.equal(end[::2], pivot[:, -1])
    assert torch.isfinite(end).all()
    assert (end[1::2] - sampled("ddim", pivot[:, 0], grid)).abs().max() > 1e-3


# --- RF-Inversion ----------------------------------------------------------------------------------------------------


@flows
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_rf_inversion_is_its_paper(grid, gamma):
    x, sigmas, y1 = X, [node.sigma for node in grid][::-1], SeededNoise(SEEDS)(X)
    for s, t in pairwise(sigmas):
        v = velocity(x, s)
        x = x + (t - s) * (v + gamma * ((y1 - x) / (1 - s) - v))
    assert torch.allclose(inverted("rf-inversion", grid, gamma=gamma), x, **CLOSE)


@grids
def test_without_its_controller_rf_inversion_is_eulers_method(name):
    grid = GRIDS[name]
    euler = DirectEdit().invert(DATA, X, grid).state["x"]
    assert torch.allclose(inverted("rf-inversion", grid, gamma=0.0), euler, rtol=1e-12, atol=1e-12)


@grids
def test_the_controller_alone_ends_at_the_noise(name):
    """Where no signal is left at y1 itself, elsewhere at the image noised by it."""
    grid, y1 = GRIDS[name], SeededNoise(SEEDS)(X)
    end, data = inverted("rf-inversion", grid, gamma=1.0), grid[-1]
    clean = (X - data.sigma * y1) / data.alpha
    assert torch.allclose(end, grid[0].alpha * clean + grid[0].sigma * y1, rtol=1e-12, atol=1e-12)
    if grid[0].alpha == 0:
        assert torch.allclose(end, y1, **CLOSE)


def test_rf_inversion_keeps_the_image_and_sampling_ignores_it():
    grid = whole(6)
    found = RFInversion().invert(InversionProblem.of(DATA, SeededNoise(SEEDS)), X, grid)
    assert torch.equal(found.extras["source"][:, 0], X)
    assert torch.equal(
        replay(DATA, ddim.make_solver("ddim"), found.state, grid, found.extras)["x"],
        sampled("ddim", found.state["x"], grid),
    )


def test_rf_inversion_needs_a_seed_and_a_gamma_in_its_range():
    with refused("seed", "'rf-inversion'"):
        RFInversion().invert(DATA, X, whole(4))
    for gamma in (-0.1, 1.1, float("nan")):
        with refused("gamma", f"{gamma:g}"):
            RFInversion(gamma)


# --- the ends of a path ----------------------------------------------------------------------------------------------

NEW = ["rf-solver", "fireflow", "uni-inv", "direct-edit", "rf-inversion"]


@grids
@pytest.mark.parametrize("method", NEW)
def test_no_network_is_asked_where_there_is_no_noise(method, name):
    grid, asked = GRIDS[name], []

    def listens(x, node):
        asked.append(node)
        return DATA(x, node)

    inversion = INVERSIONS[method]()
    found = inversion.invert(InversionProblem.of(listens, SeededNoise(SEEDS)), X, grid)
    back = replay(listens, inversion.solver(), found.state, grid, found.extras)["x"]
    assert all(node.sigma > 0 for node in asked)
    assert found.state.keys() == {"x"}
    assert torch.isfinite(found.state["x"]).all()
    assert torch.isfinite(back).all()


@grids
def test_a_step_along_a_slope_and_back_cancels(name):
    """With any pair, also from a node without signal: so does every method that repeats its calls on the way back."""
    grid, x = GRIDS[name], noise_like((4, 2, 3))
    ode, pair = path_ode(grid), ddim.Pair(noise_like((4, 2, 3), 5), noise_like((4, 2, 3), 6))
    for t, s in pairwise(grid.nodes):
        if s.sigma > 0 or t.alpha > 0:
            there = ode.along(x, pair, t, s)
            assert torch.allclose(ode.along(there, pair, s, t), x, **CLOSE)
            assert (there - ode.along(x + 1, pair, t, s)).abs().min() > 1e-3  # x itself has a say
            moved = ode.moved(pair, x, t)
            assert torch.allclose(t.alpha * moved.x0 + t.sigma * moved.eps, x, **CLOSE)
            assert torch.allclose(s.alpha * moved.x0 + s.sigma * moved.eps, there, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ["rf-solver", "fireflow"])
def test_the_order_holds_where_no_signal_is_left(method):
    """From alpha = 0 the step is Euler's for x / sigma, whose slope in the middle is second order too."""
    path, errors = ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())), []
    inversion = make_inversion(method)
    for steps in (50, 200):
        grid = ddim.make_grid(path, steps, "trailing")
        state = inversion.invert(DATA, X, grid).state
        back = ddim.solve(DATA, inversion.solver(), state, grid)["x"]
        errors.append(float((back - X).abs().max()))
    assert errors[1] < errors[0] / 20
