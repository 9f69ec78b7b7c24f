"""Law 4: for every path and spacing, exactly the steps asked for, strictly monotone, down to the data."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from refusals import refused, unknown

import ddim
from ddim.core.grid import karras
from ddim.core.schedule import NO_SHIFT, RAMPS, DynamicShift, Flux2Shift, Schedule, StaticShift

PATHS = {
    "ddpm": ddim.ddpm_linear(),
    "stable-diffusion": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"),
    "zero-terminal-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.scaled_linear_alpha_bar())),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "ve": ddim.VEPath(),
    "rectified-flow": ddim.RectifiedFlow(),
    "ten-levels": ddim.TablePath(ddim.linear_alpha_bar(10, 0.01, 0.3)),
    "ten-levels-first": ddim.TablePath(ddim.linear_alpha_bar(10, 0.01, 0.3), "first"),
    "ten-levels-zero-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar(10, 0.01, 0.3))),
    "two-levels": ddim.TablePath(ddim.linear_alpha_bar(2, 0.1, 0.3)),
    "fifty-cosine": ddim.TablePath(ddim.cosine_alpha_bar(50)),
    "flow-of-seven": ddim.RectifiedFlow(levels=7),
}
every_path = pytest.mark.parametrize("path", PATHS)
every_spacing = pytest.mark.parametrize("spacing", ddim.SPACINGS)


def step_counts(levels: int, spacing: str) -> list[int]:
    """All of 1..levels where that is quick; else the first hundred, both sides of every divisor, and the last ten.

    Of ramps, which lie at real t and know no divisors, the first twenty and some more.
    """
    if levels <= 50:
        return list(range(1, levels + 1))
    if spacing in RAMPS:
        return [*range(1, 21), *range(21, levels, 97), levels - 1, levels]
    divisors = [d for d in range(1, levels + 1) if levels % d == 0]
    near = {d + k for d in divisors for k in (-1, 0, 1)}
    chosen = near | set(range(1, 101)) | set(range(levels - 9, levels + 1)) | set(range(100, levels, 97))
    return sorted(k for k in chosen if 1 <= k <= levels)


def check(grid: ddim.Grid, path, steps: int) -> None:
    assert grid.steps == steps == len(grid) - 1
    assert all(b.t < a.t for a, b in pairwise(grid))
    assert all(b.ratio < a.ratio for a, b in pairwise(grid))
    assert 0 < grid[0].t <= path.t_max
    assert grid[-1] == path.node(0.0)


@every_spacing
@every_path
def test_exactly_the_steps_asked_for_and_strictly_monotone(path, spacing):
    for steps in step_counts(PATHS[path].levels, spacing):
        check(ddim.make_grid(PATHS[path], steps, spacing), PATHS[path], steps)


SHIFTS = {
    "none": NO_SHIFT,
    "static": StaticShift(3.0),
    "static-odd": StaticShift(1.7),
    "towards-data": StaticShift(0.05),
    "extreme": StaticShift(60.0),
    "terminal": StaticShift(3.0, terminal=0.02),
    "terminal-near-noise": StaticShift(terminal=0.9),
    "terminal-near-data": StaticShift(terminal=1e-4),
    "dynamic": DynamicShift(),
    "dynamic-terminal": DynamicShift(max_shift=0.9, max_image_seq_len=8192, terminal=0.02),
    "linear": DynamicShift(kind="linear", base_shift=0.25, max_shift=0.75),
    "root": DynamicShift(kind="linear", base_shift=0.25, max_shift=0.75, growth="root"),
    "by-steps": Flux2Shift(),
}


@every_spacing
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("path", ["rectified-flow", "flow-of-seven"])
def test_exactly_the_steps_asked_for_under_every_shift(path, shift, spacing):
    schedule = Schedule(PATHS[path], "flow", shift=SHIFTS[shift])
    counts = step_counts(PATHS[path].levels, spacing)  # of which every one is tried without a shift
    for steps in counts if len(counts) < 100 else counts[:10] + counts[10::4]:
        for tokens in (1, 256, 4096, 36864) if steps in (1, 2, 7, 50, 1000) and SHIFTS[shift].needs_size else (1024,):
            grid = schedule.grid(steps, spacing, tokens)
            check(grid, PATHS[path], steps)
            assert grid.spacing == spacing
            assert grid[0].t == 1 or spacing == "leading"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
def test_every_step_count_of_the_thousand_level_table(spacing):
    for steps in range(1, 1001):
        check(ddim.make_grid(PATHS["ddpm"], steps, spacing), PATHS["ddpm"], steps)


@every_path
def test_the_data_end_is_alpha_one_or_the_tables_first_entry(path):
    p = PATHS[path]
    end = ddim.make_grid(p, 2)[-1]
    if isinstance(p, ddim.TablePath) and p.data == "first":
        first = float(p.alpha_bar[0])
        assert (end.alpha, end.sigma) == pytest.approx((math.sqrt(first), math.sqrt(1 - first)), abs=1e-12)
    else:
        assert (end.alpha, end.sigma) == (1.0, 0.0)


@every_spacing
@every_path
def test_the_first_node_is_the_noisiest_except_for_leading(path, spacing):
    p = PATHS[path]
    for steps in (1, 2, min(7, p.levels), p.levels):
        first = ddim.make_grid(p, steps, spacing)[0].t
        assert first == p.t_max or spacing == "leading"


on_levels = pytest.mark.parametrize("spacing", [s for s in ddim.SPACINGS if s not in RAMPS])  # which are at real t
discrete = pytest.mark.parametrize("path", [n for n, p in PATHS.items() if p.discrete])


@on_levels
@discrete
def test_discrete_paths_keep_to_trained_levels(path, spacing):
    p = PATHS[path]
    for steps in (1, 2, p.levels):
        assert all(node.t == int(node.t) for node in ddim.make_grid(p, steps, spacing))


@on_levels
@discrete
def test_as_many_steps_as_levels_visits_every_level(path, spacing):
    p = PATHS[path]
    assert [n.t for n in ddim.make_grid(p, p.levels, spacing)] == list(range(p.levels, -1, -1))


@every_path
def test_nodes_are_the_paths_own(path):
    p = PATHS[path]
    for node in ddim.make_grid(p, min(7, p.levels), "karras"):
        assert node == p.node(node.t)


# --- against diffusers, where it is right ---------------------------------------------------------------------------


def labels(path, steps: int, spacing: str, offset: int = 0) -> list[int]:
    """What the network is told at each step; the data node is not asked."""
    return [int(path.timestep(n.t)) for n in ddim.make_grid(path, steps, spacing, offset=offset).nodes[:-1]]


def their_list(scheduler: DDIMScheduler, steps: int) -> list[int]:
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def test_leading_is_diffusers_list_for_every_step_count():
    scheduler = DDIMScheduler(timestep_spacing="leading")
    for steps in range(1, 1001):
        assert labels(PATHS["ddpm"], steps, "leading") == their_list(scheduler, steps)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 250, 999])
def test_leading_with_offset_is_diffusers_list(steps):
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    assert labels(PATHS["ddpm"], steps, "leading", offset=1) == their_list(scheduler, steps)


def test_leading_of_stable_diffusion_is_diffusers_list_for_every_step_count():
    # there t counts diffusers' timesteps, and their offset 1 is the first level that is not data
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    for steps in range(1, 1000):
        assert labels(PATHS["stable-diffusion"], steps, "leading") == their_list(scheduler, steps)


def test_leading_with_all_steps_and_an_offset_stays_in_the_table():
    # diffusers issue 10003: T steps with offset 1 ask for timestep T
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    assert max(their_list(scheduler, 1000)) == 1000
    assert max(labels(PATHS["ddpm"], 1000, "leading", offset=1)) == 999


def test_trailing_is_diffusers_list_for_every_step_count():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in range(1, 1001):
        ours, theirs = labels(PATHS["ddpm"], steps, "trailing"), their_list(scheduler, steps)
        if len(theirs) != steps:
            continue  # their float arange runs one too far, see below
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            tie = 2 * i * 1000 % (2 * steps) == steps  # exactly between two levels: their product in floats decides
            assert a == b or (tie and abs(a - b) == 1), (steps, i)


def test_trailing_of_diffusers_has_a_step_too_many_at_61():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    assert len(their_list(scheduler, 61)) == 62
    assert len(labels(PATHS["ddpm"], 61, "trailing")) == 61


def test_linspace_is_diffusers_list_for_every_step_count():
    scheduler = DDIMScheduler(timestep_spacing="linspace")
    for steps in range(2, 1001):
        assert labels(PATHS["ddpm"], steps, "linspace") == their_list(scheduler, steps)


def test_linspace_of_one_step_starts_at_the_noisiest_level():
    # diffusers' list is [0], a step from the level next to the data: no sample comes of it
    assert their_list(DDIMScheduler(timestep_spacing="linspace"), 1) == [0]
    assert labels(PATHS["ddpm"], 1, "linspace") == [999]


# --- what each formula says -----------------------------------------------------------------------------------------


def test_quadratic_is_its_formula_away_from_the_data():
    # appendix D.2 of Song et al. 2021: tau_i = floor(c i^2), here with c = T / S^2 so that the last is T
    times = [n.t for n in ddim.make_grid(PATHS["ddpm"], 10, "quadratic")]
    assert times == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]


def test_quadratic_repeats_are_spread_to_neighbouring_levels():
    # the reference code repeats level 0 at S = 50 and pays a network call for a step that goes nowhere
    # c i^2 at S = 300 begins 0.01, 0.04, 0.1, 0.18, ...: eight times level 0 or 1 after rounding
    times = [n.t for n in ddim.make_grid(PATHS["ddpm"], 300, "quadratic")]
    assert times[-10:] == list(range(9, -1, -1))


def test_karras_is_even_in_the_seventh_root():
    grid = ddim.make_grid(ddim.VEPath(80.0, 0.002), 18, "karras")
    roots = [n.sigma ** (1 / 7) for n in grid.nodes[:-1]]
    gaps = [a - b for a, b in pairwise(roots)]
    assert grid[0].sigma == pytest.approx(80)
    assert grid[-2].sigma == pytest.approx(0.002)
    assert gaps == pytest.approx([gaps[0]] * 17)


def test_exponential_is_even_in_the_logarithm():
    grid = ddim.make_grid(ddim.VEPath(80.0, 0.002), 18, "exponential")
    gaps = [math.log(a.sigma / b.sigma) for a, b in pairwise(grid.nodes[:-1])]
    assert grid[0].sigma == 80
    assert grid[-2].sigma == pytest.approx(0.002)
    assert gaps == pytest.approx([gaps[0]] * 17)


def test_exponential_is_the_limit_of_karras():
    path = ddim.ddpm_linear()
    limit = [n.t for n in ddim.make_grid(path, 18, "exponential")]
    assert [n.t for n in karras(path, 18, rho=1e6)] == pytest.approx(limit, rel=1e-4)
    assert [n.t for n in karras(path, 18)] != pytest.approx(limit, rel=0.05)


@pytest.mark.parametrize("spacing", RAMPS)
@pytest.mark.parametrize("span", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("path", ["ddpm", "stable-diffusion", "zero-terminal-snr", "ve", "rectified-flow"])
def test_a_span_bounds_the_first_and_the_last_step(path, span, spacing):
    """Exactly the steps asked for, between the ends of the other spacing."""
    schedule = Schedule(PATHS[path], "v", spacing, span=span, rho=5.0)
    for steps in (1, 2, 7, 50):
        grid, ends = schedule.grid(steps), schedule.grid(steps, span)
        assert grid.steps == steps
        assert grid[0] == ends[0]
        assert grid[-2].t == pytest.approx(ends[-2].t, rel=1e-6)
        assert grid[-1] == PATHS[path].node(0)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@discrete
def test_exactly_the_steps_asked_for_where_the_data_counts(path, spacing):
    """And with as many steps as levels each level, as for the other spacings."""
    schedule = Schedule(PATHS[path], "v", spacing, data_counts=True)
    for steps in step_counts(PATHS[path].levels, spacing):
        check(schedule.grid(steps), PATHS[path], steps)
    assert [n.t for n in schedule.grid(PATHS[path].levels)] == list(range(PATHS[path].levels, -1, -1))


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 333])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("path", ["ddpm", "stable-diffusion"])
def test_where_the_data_counts_the_list_is_that_of_dpm_solver(path, spacing, offset, steps):
    scheduler = DPMSolverMultistepScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    schedule = Schedule(PATHS[path], "eps", spacing, offset=offset, data_counts=True)
    assert [schedule.timestep(n) for n in schedule.grid(steps).nodes[:-1]] == scheduler.timesteps.tolist()


def test_trailing_of_the_ten_level_table():
    assert [n.t for n in ddim.make_grid(PATHS["ten-levels"], 3, "trailing")] == [10, 7, 3, 0]


# --- explicit lists -------------------------------------------------------------------------------------------------


def test_an_explicit_list_is_kept_and_data_is_added():
    assert [n.t for n in ddim.make_grid(PATHS["ddpm"], spacing=[900, 400.5, 3])] == [900, 400.5, 3, 0]


def test_an_explicit_list_may_run_either_way():
    up, down = (ddim.make_grid(PATHS["ddpm"], spacing=t) for t in ([3, 400, 900], [900, 400, 3]))
    assert up == down


@pytest.mark.parametrize(
    ("times", "refusal"),
    [
        ([], refused("spacing")),
        ([0, 10], refused("t", 0, 1000)),
        ([10, 1001], refused("t", 1001, 1000)),
        ([-3], refused("t", -3, 1000)),
        ([float("nan")], refused("t", "nan", 1000)),
        ([900, 400, 400], refused(None, 400)),
        ([900, 400, 500], refused(None, 500, 400)),
    ],
)
def test_an_explicit_list_that_cannot_be_walked(times, refusal):
    with refusal:
        ddim.make_grid(PATHS["ddpm"], spacing=times)


@every_spacing
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, float("inf"), float("nan")])
def test_a_step_count_that_does_not_fit(spacing, steps):
    with refused("steps", steps, 1000):
        ddim.make_grid(PATHS["ddpm"], steps, spacing)


def test_stable_diffusion_has_a_level_less_than_its_table():
    with refused("steps", 1000, 999):
        ddim.make_grid(PATHS["stable-diffusion"], 1000)


def test_an_unknown_spacing_names_the_nearest():
    with unknown("spacing", "trialing", nearest="trailing"):
        ddim.make_grid(PATHS["ddpm"], 10, "trialing")


def test_a_grid_needs_falling_nodes():
    node = PATHS["ddpm"].node
    with refused():
        ddim.Grid((node(5),))
    with refused(None, 5, 0):
        ddim.Grid((node(0), node(5)))


def test_a_reversed_grid_walks_from_data_to_noise():
    grid = ddim.make_grid(PATHS["ddpm"], 5)
    assert grid.reversed().nodes == grid.nodes[::-1]
    assert grid.reversed().reversed().nodes == grid.nodes


def test_the_second_node_of_a_step_is_the_first_of_the_next():
    """The label that the network is told is the level where x lies: what ``t - T // N`` breaks."""
    told = []

    def watch(x, node):
        told.append(node)
        return ddim.Pair(x, torch.zeros_like(x))

    grid = ddim.make_grid(PATHS["ddpm"], 7, "linspace")
    ddim.solve(watch, solver := ddim.make_solver("ddim"), solver.init(torch.ones(1, 2), grid), grid)
    assert tuple(told) == grid.nodes[:-1]
