"""ReNoise: its formula, its averages, samplers that add noise, and the losses that keep the noise white."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles import arc, conditional, gaussian, mixture, noise_like, prompts, straight
from refusals import refused, unknown
from torch import Tensor

import ddim
from ddim.core.contracts import InversionProblem
from ddim.core.guidance import Guidance
from ddim.core.noise import SeededNoise
from ddim.inversion import make_inversion
from ddim.inversion.renoise import ReNoise, autocorrelation, patch_divergence, regularized
from ddim.inversion.replay import replay

DATA = mixture(2, 4)
X0 = DATA.draw(5)
GRIDS = {"arc": arc(8), "flow": straight(8), "ve": ddim.make_grid(ddim.VEPath(sigma_max=8.0), 8)}
TABLE = ddim.make_grid(ddim.ddpm_linear(), 6)
PICTURES = mixture(2, 16, 12)
FEW_STEPS: dict[str, Any] = {
    **{"iterations": 9, "average": 2, "near": 0.25, "eta": 1.0, "regularize": 4},
    "correct": True,
}


def problem(oracle: Any = DATA, count: int = 5) -> InversionProblem:
    return InversionProblem.of(oracle, SeededNoise(range(count)))


def back(found: Any, solver: ddim.Solver, oracle: Any = DATA) -> Tensor:
    return replay(oracle, solver, found.state, found.grid, found.extras)["x"]


# --- the iteration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_without_an_average_it_is_the_fixed_point_iteration(grid, iterations):
    ours = ReNoise(iterations).invert(DATA, X0, GRIDS[grid]).state["x"]
    theirs = make_inversion("ddim", {"iterations": iterations + 1}).invert(DATA, X0, GRIDS[grid]).state["x"]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("average", "near"), [(1, 0.0), (2, 0.0), (5, 0.0), (2, 1.0)])
def test_the_step_is_the_paper_s_along_the_mean_prediction(average, near):
    """One step from x_s along the mean of eps, written out as the paper does."""
    grid, count = arc(5), 4
    first = count + 1 - average
    if near:
        count, first = 3, 0
    x = X0
    for s, t in pairwise(grid.nodes[::-1]):
        guess, used = x, []
        for k in range(count + 1):
            eps = DATA(guess, t).eps
            used += [eps] if k >= first else []
            guess = t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * eps
        mean = sum(used) / len(used)
        x = t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * mean
    found = ReNoise(4, average, near, near_iterations=3).invert(DATA, X0, grid)
    assert torch.allclose(found.state["x"], x, rtol=0, atol=1e-12)
    assert not found.extras


def test_on_a_flow_the_mean_is_of_velocities():
    grid, x = straight(5), X0
    for s, t in pairwise(grid.nodes[::-1]):
        guess, used = x, []
        for _ in range(3):
            pair = DATA(guess, t)
            used.append(pair.eps - pair.x0)
            guess = x + (t.sigma - s.sigma) * used[-1]
        x = x + (t.sigma - s.sigma) * (used[1] + used[2]) / 2
    assert torch.allclose(ReNoise(2, 2).invert(DATA, X0, grid).state["x"], x, rtol=0, atol=1e-12)


def test_near_the_data_is_a_part_of_the_time_axis():
    """Of ten even nodes, those with t below 0.25 have fewer iterations."""
    asked: list[float] = []

    def counted(x: Tensor, node: ddim.Node) -> ddim.Pair:
        asked.append(node.t)
        return DATA(x, node)

    grid = ddim.make_grid(ddim.RectifiedFlow(), 10)
    ReNoise(6, near=0.25, near_iterations=2).invert(counted, X0, grid)
    assert {t: asked.count(t) for t in asked} == {node.t: 3 if node.t < 0.25 else 7 for node in grid.nodes[:-1]}


@pytest.mark.parametrize("options", [{}, {"iterations": 3, "average": 2}, FEW_STEPS, {"eta": 0.5, "correct": True}])
def test_nfe_is_what_it_states(options):
    made = 0

    def counted(x: Tensor, node: ddim.Node) -> ddim.Pair:
        nonlocal made
        made += 1
        return PICTURES(x, node)

    method = make_inversion("renoise", {**options, "near": 0.0})
    method.invert(problem(counted, 2), PICTURES.draw(2), TABLE)
    assert method.nfe * TABLE.steps - made == options.get("correct", False)  # the last step is not corrected


# --- samplers that add noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        *(({"eta": eta}, grid) for eta in (0.3, 1.0) for grid in (TABLE, straight(6), GRIDS["ve"])),
        ({"eta": 0.5, "noise": "independent"}, TABLE),
        ({"sampler": "tcd", "eta": 0.3}, TABLE),
        ({"sampler": "lcm"}, ddim.make_grid(ddim.ddpm_linear(), 4, [400, 300, 200, 100])),
    ],
)
def test_enough_iterations_invert_a_sampler_with_its_stored_noise(options, grid):
    """On a Gaussian, where the iteration contracts; the mean of each step plus its noise must then be where it ends."""
    data, x0 = gaussian(2, 3), gaussian(2, 3).draw(3)
    method = make_inversion("renoise", {"iterations": 1500, **options})
    found = method.invert(problem(data, 3), x0, grid)
    x, solver = found.state["x"], method.solver()
    assert (back(found, solver, data) - x0).abs().max() < 1e-6
    noise = SeededNoise(range(3))
    drawn = [noise(x0) for _ in range(grid.steps)][::-1]  # from the data on
    for i in range(grid.steps - 1):
        s = grid[i + 1]
        mean, std = solver.moments(data, x, grid, i)
        x = mean + std * found.extras["noise"][:, i]
        part = std / s.sigma
        matched = part * data(x, s).eps + max(1 - part**2, 0) ** 0.5 * drawn[i]
        expected = drawn[i] if method.options["noise"] == "independent" else matched
        assert torch.allclose(found.extras["noise"][:, i], expected, rtol=0, atol=1e-4)
        assert std > 0


def test_matched_noise_keeps_the_scale_of_the_samples_and_independent_noise_does_not():
    grid, x0 = ddim.make_grid(ddim.ddpm_linear(), 20), PICTURES.draw(4)
    matched, independent = (
        float(ReNoise(9, eta=1.0, noise=noise).invert(problem(PICTURES, 4), x0, grid).state["x"].std())
        for noise in ("matched", "independent")
    )
    assert 0.8 < matched < 1.25
    assert independent > 3


def test_corrected_noise_leaves_the_error_of_the_last_step_only():
    grid = ddim.make_grid(ddim.ddpm_linear(), 6)
    plain, mended = (ReNoise(eta=1.0, correct=on).invert(problem(), X0, grid) for on in (False, True))
    assert torch.equal(plain.state["x"], mended.state["x"])
    solver = ddim.make_solver("ddim", {"eta": 1.0})
    x = mended.state["x"]
    trail: list[Tensor] = []
    ReNoise(eta=1.0).invert(problem(), X0, grid, on_step=lambda _, state: trail.append(state["x"]))
    for i in range(grid.steps - 1):
        mean, std = solver.moments(DATA, x, grid, i)
        x = mean + std * mended.extras["noise"][:, i]
        assert torch.allclose(x, trail[::-1][i + 1], rtol=0, atol=1e-10)
    worse, better = ((back(f, solver) - X0).square().mean() for f in (plain, mended))
    assert better < worse / 2
    assert not mended.extras["noise"][:, -1].any()


def test_a_step_that_forgets_its_begin_is_refused():
    path = ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar(100)))
    grid = ddim.make_grid(path, 4, "trailing")
    assert grid[0].alpha == 0
    found = ReNoise(40).invert(DATA, X0, grid)
    assert torch.allclose(back(found, ddim.make_solver("ddim")), X0, atol=0.2)
    with refused("eta", f"{grid[0].t:g}"):
        ReNoise(eta=1.0).invert(problem(), X0, grid)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"regularize": 2}])
def test_without_a_source_of_noise(options):
    with refused("seed"):
        make_inversion("renoise", options).invert(PICTURES, PICTURES.draw(2), TABLE)


# --- noise that stays white ------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_normal_distributions():
    eps, other = noise_like((2, 3, 8, 12)), noise_like((2, 3, 8, 12), 7)
    expected = torch.zeros(2).double()
    for n in range(2):
        for c in range(3):
            for top in range(0, 8, 4):
                for left in range(0, 12, 4):
                    parts = [e[n, c, top : top + 4, left : left + 4] for e in (eps, other)]
                    normal = [torch.distributions.Normal(p.mean(), p.std(correction=0)) for p in parts]
                    expected[n] += torch.distributions.kl_divergence(*normal)
    assert torch.allclose(patch_divergence(eps, other), expected)
    assert torch.allclose(patch_divergence(eps, eps), torch.zeros(2).double(), atol=1e-12)
    assert patch_divergence(eps[..., :7, :], other[..., :7, :]).shape == (2,)  # 4 does not divide it


def test_the_autocorrelation_is_that_of_every_level():
    eps, expected = noise_like((2, 3, 16, 20)), torch.zeros(2).double()
    level = eps
    for height, width in ((16, 20), (8, 10)):
        for dim, size in ((2, height), (3, width)):
            for k in range(3):
                shift = 1 + k * (size // 2) // 3
                for n in range(2):
                    for c in range(3):
                        plane = level[n, c]
                        order = [(j - shift) % size for j in range(size)]
                        moved = plane[order] if dim == 2 else plane[:, order]
                        expected[n] += float((plane * moved).mean()) ** 2 / 3
        level = (level[..., ::2, ::2] + level[..., 1::2, ::2] + level[..., ::2, 1::2] + level[..., 1::2, 1::2]) / 4
    assert torch.allclose(autocorrelation(eps, 3), expected)


def test_a_step_goes_down_both_losses():
    """The gradient of the divergence against finite differences, that of the autocorrelation against torch's own."""
    eps, other = noise_like((1, 1, 8, 8)), noise_like((1, 1, 8, 8), 7)
    by_kl = (eps - regularized(eps, other, 1, 0.0, 0.1, 2)) / 0.1
    by_ac = (eps - regularized(eps, None, 1, 3.0, 0.1, 2)) / 3.0
    for place in ((0, 0, 0, 0), (0, 0, 3, 5)):
        kick = torch.zeros_like(eps)
        kick[place] = 1e-6
        for slope, loss in ((by_kl, lambda e: patch_divergence(e, other)), (by_ac, lambda e: autocorrelation(e, 2))):
            rise = float((loss(eps + kick) - loss(eps - kick)) / 2e-6)
            assert math.isclose(float(slope[place]), rise, rel_tol=1e-5, abs_tol=1e-8)
    smooth = eps.cumsum(2).cumsum(3) / 8
    after = regularized(smooth, other, 4, 20.0, 0.065, 5)
    assert autocorrelation(after, 5) < autocorrelation(smooth, 5)
    assert patch_divergence(after, other) < patch_divergence(smooth, other)


def test_regularized_predictions_are_those_that_are_averaged():
    x0, grid = PICTURES.draw(2), arc(3)
    found = ReNoise(2, 2, regularize=2).invert(problem(PICTURES, 2), x0, grid)
    noise, x = SeededNoise(range(2)), x0
    for s, t in pairwise(grid.nodes[::-1]):
        other = PICTURES(t.alpha * x0 + t.sigma * noise(x0), t).eps
        guess, used = x, []
        for k in range(3):
            eps = PICTURES(guess, t).eps
            if k:
                eps = regularized(eps, other, 2, 20.0, 0.065, 5)
                used.append(eps)
            guess = t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * eps
        x = t.alpha / s.alpha * x + (t.sigma - t.alpha / s.alpha * s.sigma) * sum(used) / 2
    assert torch.allclose(found.state["x"], x, rtol=0, atol=1e-10)
    assert not torch.allclose(found.state["x"], ReNoise(2, 2).invert(PICTURES, x0, grid).state["x"], atol=1e-3)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_settings_for_few_steps_work_on_batches_of_a_network(prediction):
    data = conditional(PICTURES, schedule=ddim.Schedule(ddim.ddpm_linear(), prediction))
    both = prompts(noise_like((3, 4, 6), 5), noise_like((1, 4, 6), 6).expand(3, -1, -1).clone())
    x0 = PICTURES.draw(3) + data.move(both.cond.tensors["text"])
    grid = ddim.make_grid(ddim.ddpm_linear(), 4)

    def found(rows: list[int]) -> Any:
        at = InversionProblem(data, both[rows], Guidance(), noise=SeededNoise(rows))
        return make_inversion("renoise", FEW_STEPS).invert(at, x0[rows], grid)

    together = found([0, 1, 2])
    for k in range(3):
        alone = found([k])
        assert torch.allclose(alone.state["x"][0], together.state["x"][k], rtol=0, atol=1e-8)
        assert torch.allclose(alone.extras["noise"][0], together.extras["noise"][k], rtol=0, atol=1e-8)
    assert 0.5 < together.state["x"].std() < 1.5


def test_regularizing_needs_a_height_and_a_width():
    with refused("regularize", 4, (5, 2, 4)):
        ReNoise(regularize=4).invert(problem(), X0, TABLE)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"iterations": -1}, refused("iterations", -1)),
        ({"near_iterations": -1}, refused("near_iterations", -1)),
        ({"regularize": -1}, refused("regularize", -1)),
        ({"average": 0}, refused("average", 0)),
        ({"average": 3}, refused("average", 3, 2)),
        ({"near": 1.5}, refused("near", 1.5)),
        ({"eta": 1.5}, refused("eta", 1.5)),
        ({"sampler": "lmc"}, unknown("sampler", "lmc", nearest="lcm")),
        ({"sampler": "lcm", "eta": 1.0}, refused("eta", "'lcm'")),
        ({"correct": True}, refused("correct")),
        ({"noise": "matchd"}, unknown("noise", "matchd", nearest="matched")),
        ({"lambda_ac": -1.0}, refused("lambda_ac", -1)),
        ({"lambda_kl": float("nan")}, refused("lambda_kl", "nan")),
        ({"rolls": 0}, refused("rolls", 0)),
    ],
    ids=str,
)
def test_bad_options(options, refusal):
    with refusal:
        make_inversion("renoise", options)
