"""The samplers of distilled models, LCM and TCD, against their formulas, and against DDIM where they are the same."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import Gaussian, noise_like
from refusals import refused

import ddim
from ddim.core.noise import SeededNoise
from ddim.core.process import sigma_hat
from ddim.core.schedule import Schedule

PATHS = {"one": ddim.ddpm_linear(), "first": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first")}
every_path = pytest.mark.parametrize("path", PATHS)
DATA = Gaussian(torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64))
X = noise_like((3, 1)).double()


@every_path
def test_lcm_jumps_to_the_boundary_function_and_adds_noise(path):
    grid = ddim.make_grid(PATHS[path], 4, "lcm")
    solver, t, s = ddim.LCM(), grid[1], grid[2]
    z = noise_like((3, 1), seed=5).double()
    timestep = PATHS[path].timestep(t.t)
    skip = 0.25 / ((10 * timestep) ** 2 + 0.25)
    out = 10 * timestep / math.sqrt((10 * timestep) ** 2 + 0.25)
    jumped = out * DATA(X, t).x0 + skip * X
    made = solver.step(DATA, {"x": X}, grid, 1, lambda _: z)["x"]
    torch.testing.assert_close(made, s.alpha * jumped + s.sigma * z, rtol=0, atol=1e-14)
    assert not torch.equal(made, s.alpha * DATA(X, t).x0 + s.sigma * z)  # c_skip is small, but it is there


@every_path
def test_the_last_step_of_lcm_ends_at_the_data_without_noise(path):
    grid = ddim.make_grid(PATHS[path], 1, "lcm")
    made = ddim.LCM(scaling=None).step(DATA, {"x": X}, grid, 0, None)["x"]
    assert torch.equal(made, DATA(X, grid[0]).x0)


@every_path
@pytest.mark.parametrize("scaling", [None, 1e308, 1e-300])
def test_no_boundary_and_extreme_ones_are_finite_at_every_timestep(path, scaling):
    """The first entry of a table has the timestep 0, where infinity times the timestep would be no number."""
    grid = ddim.make_grid(PATHS[path], 5, "leading")
    assert 0 in [PATHS[path].timestep(node.t) for node in grid.nodes]
    solver, state = ddim.LCM(scaling), {"x": X}
    for i in range(grid.steps):
        pair, timestep = DATA(state["x"], grid[i]), PATHS[path].timestep(grid[i].t)
        mean, std = solver.moments(DATA, state["x"], grid, i)
        jumped = state["x"] if scaling == 1e-300 or (timestep == 0 and scaling) else pair.x0
        last = i + 1 == grid.steps
        torch.testing.assert_close(mean, (1 if last else grid[i + 1].alpha) * jumped, rtol=1e-12, atol=1e-12)
        state = {"x": mean + std * noise_like((3, 1), seed=i).double()}


def test_options_by_name_may_be_none_where_a_solver_takes_none():
    for given in (None, "none", "None"):
        assert ddim.make_solver("lcm", {"scaling": given}) == ddim.LCM(None)
    assert ddim.make_solver("lcm", {"scaling": "5"}) == ddim.LCM(5.0)


@every_path
def test_tcd_goes_past_the_node_and_comes_back_with_the_noise_of_the_forward_process(path):
    grid = ddim.make_grid(PATHS[path], 4, "lcm")
    t, s = grid[0], grid[1]
    z = noise_like((3, 1), seed=5).double()
    shift = s.t - PATHS[path].timestep(s.t)
    past = PATHS[path].node(math.floor(0.7 * PATHS[path].timestep(s.t)) + shift)
    pair = DATA(X, t)
    there = past.alpha * pair.x0 + past.sigma * pair.eps
    wanted = s.alpha / past.alpha * there + sigma_hat(s, past) * z
    made = ddim.TCD(0.3).step(DATA, {"x": X}, grid, 0, lambda _: z)["x"]
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-14)
    # The noise of both parts together is that of the node: what DDPM's marginal has, for the true eps.
    assert math.hypot(s.alpha / past.alpha * past.sigma, sigma_hat(s, past)) == pytest.approx(s.sigma, rel=1e-12)


@every_path
def test_tcd_without_gamma_is_ddim_to_the_bit(path):
    grid = ddim.make_grid(PATHS[path], 8, "lcm")
    a, b = (ddim.solve(DATA, solver, {"x": X}, grid)["x"] for solver in (ddim.TCD(0.0), ddim.DDIM()))
    assert torch.equal(a, b)


def test_tcd_with_gamma_one_is_lcm_without_its_boundary_where_the_data_has_no_noise():
    path = ddim.RectifiedFlow()
    grid = ddim.make_grid(path, 4)
    a, b = (
        ddim.solve(DATA, solver, {"x": X}, grid, noise=SeededNoise([1, 2, 3]))["x"]
        for solver in (ddim.TCD(1.0), ddim.LCM(None))
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    other = ddim.solve(DATA, ddim.TCD(0.5), {"x": X}, grid, noise=SeededNoise([1, 2, 3]))["x"]
    assert (a - other).abs().max() > 0.01


def test_a_consistency_function_is_sampled_exactly_by_lcm():
    """For data at one point the exact x0 is a consistency function: any number of steps ends at the point."""
    point = Gaussian(torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64))
    for steps in (1, 2, 8):
        grid = ddim.make_grid(PATHS["one"], steps, "lcm")
        end = ddim.solve(point, ddim.LCM(None), {"x": X}, grid, noise=SeededNoise([1, 2, 3]))["x"]
        torch.testing.assert_close(end, torch.full_like(end, 0.7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_step_that_adds_noise_needs_a_source(name):
    grid = ddim.make_grid(PATHS["one"], 2, "lcm")
    with refused(None, name, kind=ValueError):
        ddim.make_solver(name).step(DATA, {"x": X}, grid, 0, None)


def test_a_grid_without_a_path_has_no_timesteps():
    nodes = ddim.make_grid(PATHS["one"], 2).nodes
    for solver in (ddim.LCM(), ddim.TCD()):
        with refused("grid", repr(solver.name)):
            solver.step(DATA, {"x": X}, ddim.Grid(nodes), 0, lambda like: like)


@pytest.mark.parametrize(
    ("name", "options", "key", "value"),
    [
        ("lcm", {"scaling": 0.0}, "scaling", "0.0"),
        ("lcm", {"scaling": math.inf}, "scaling", "inf"),  # no code could keep it
        ("lcm", {"scaling": math.nan}, "scaling", "nan"),
        ("lcm", {"scaling": "many"}, "scaling", "many"),
        ("tcd", {"gamma": 1.5}, "gamma", "1.5"),
        ("tcd", {"gamma": None}, "gamma", "None"),
    ],
)
def test_options_out_of_range(name, options, key, value):
    with refused(key, value):
        ddim.make_solver(name, options)


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("origin", [30, 50, 100])
def test_the_grid_is_that_of_diffusers(kind, origin):
    import diffusers

    scheduler = getattr(diffusers, kind)(original_inference_steps=origin)
    schedule = ddim.read_schedule({"_class_name": kind, **scheduler.config})
    assert schedule.solver == kind[:3].lower()
    for steps in (1, 2, 3, 4, 7, 8, 16, 30):
        scheduler.set_timesteps(steps)
        assert [schedule.timestep(node) for node in schedule.grid(steps).nodes[:-1]] == scheduler.timesteps.tolist()


def test_the_boundary_condition_of_a_config_is_read_for_lcm_and_ignored_for_tcd():
    assert ddim.read_schedule({"_class_name": "LCMScheduler"}).solver_options == {"scaling": 10.0}
    assert ddim.read_schedule({"_class_name": "LCMScheduler", "timestep_scaling": 5}).solver_options == {"scaling": 5.0}
    plain = ddim.read_schedule({"_class_name": "TCDScheduler"})
    other = ddim.read_schedule({"_class_name": "TCDScheduler", "timestep_scaling": 5.0})
    assert replace(other, path=plain.path) == plain
    assert plain.solver_options == {}
    with refused("timestep_scaling", "0"):
        ddim.read_schedule({"_class_name": "LCMScheduler", "timestep_scaling": 0})


@pytest.mark.parametrize("given", [5, {"scaling": math.inf}, {3: 1.0}, None, {"scaling": [1]}], ids=str)
def test_options_of_a_solver_that_a_schedule_cannot_have(given):
    with refused("solver_options"):
        Schedule(PATHS["one"], "eps", solver_options=given)


def test_more_steps_than_the_distillation_had_are_taken_from_all_levels():
    grid = ddim.make_grid(PATHS["one"], 100, "lcm")
    assert [node.t for node in grid.nodes[:3]] == [1000, 990, 980]
    with refused("origin", "0"):
        ddim.make_grid(PATHS["one"], 4, "lcm", origin=0)
