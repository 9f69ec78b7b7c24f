"""A model's schedule: what its network is told, its prior, and its grid with the time shift, against diffusers' own."""

import copy
import importlib
import math
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift as cogview_mu
from diffusers.pipelines.flux.pipeline_flux import calculate_shift as flux_mu
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from refusals import refused

import ddim
from ddim.core.prediction import Hold
from ddim.core.schedule import (
    NO_SHIFT,
    DynamicShift,
    Flux2Shift,
    Schedule,
    StaticShift,
    packed_tokens,
    shifted,
    shifted_by_odds,
)
from ddim.models.scheduler_config import read_schedule

EULER, FLOW, HEUN = "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
NARROW = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SDXL = {**NARROW, "_class_name": EULER, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
DYNAMIC = {"use_dynamic_shifting": True}


def levels(schedule: Schedule, steps: int, **options) -> list[float]:
    return [node.sigma for node in schedule.grid(steps, **options)]


# --- flow grids against the scheduler -------------------------------------------------------------------------------

TOKENS = (1, 256, 1024, 2304, 4096, 9216)
STEPS = (2, 4, 8, 28, 30, 50, 500)
STATIC = {
    "none": {},
    "sd3": {"shift": 3.0},
    "lumina": {"shift": 6.0},
    "towards-data": {"shift": 0.6},
    "terminal": {"shift": 3.0, "shift_terminal": 0.02},
    "terminal-alone": {"shift_terminal": 0.1},
    "whole-number": {"shift": 3, "num_train_timesteps": 500},
}
BY_SIZE = {
    "flux": DYNAMIC,
    "qwen": {**DYNAMIC, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
    "qwen-lightning": {**DYNAMIC, "base_shift": math.log(3), "max_shift": math.log(3), "max_image_seq_len": 8192},
    "linear": {**DYNAMIC, "base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear"},
    "linear-terminal": {**DYNAMIC, "time_shift_type": "linear", "shift_terminal": 0.05},
    "ignored-shift": {**DYNAMIC, "shift": 3.0},
}
given = pytest.mark.parametrize("given", [True, False], ids=["sigmas-given", "bare"])


def theirs(options: dict, steps: int, given: bool, **mu: float) -> list[float]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    if given:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    return scheduler.sigmas.tolist()


def ours(options: dict, given: bool) -> Schedule:
    return read_schedule({"_class_name": FLOW, **options}, flow_spacing="trailing" if given else "linspace")


@given
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", STATIC)
def test_a_static_shift_is_diffusers(name, steps, given):
    assert levels(ours(STATIC[name], given), steps) == theirs(STATIC[name], steps, given)


@given
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", BY_SIZE)
def test_a_dynamic_shift_is_diffusers(name, steps, given):
    options = BY_SIZE[name]
    config = diffusers.FlowMatchEulerDiscreteScheduler(**options).config
    for tokens in TOKENS:
        mu = flux_mu(tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
        found = levels(ours(options, given), steps, image_size=tokens)
        assert found == theirs(options, steps, given, mu=mu)


def test_the_rule_of_cogview_s_pipeline():
    options = BY_SIZE["linear"]
    schedule = ours(options, given=True)
    schedule = replace(schedule, shift=replace(schedule.shift, growth="root"))
    for tokens in TOKENS:
        mu = cogview_mu(tokens, 256, 0.25, 0.75)
        assert levels(schedule, 50, image_size=tokens) == theirs(options, 50, True, mu=mu)


def test_the_rule_of_flux_2s_pipeline():
    schedule = replace(ours(DYNAMIC, given=True), shift=Flux2Shift())
    for steps in (1, 4, 28, 50, 200):
        for tokens in (256, 1024, 4096, 4300, 4301, 9216):
            mu = compute_empirical_mu(tokens, steps)
            assert Flux2Shift().mu(steps, tokens) == pytest.approx(mu, abs=1e-12)
            found = levels(schedule, steps, image_size=tokens)
            assert found == theirs(DYNAMIC, steps, True, mu=mu)


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_nodes_of_flow_match_heun_are_diffusers(shift, steps):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    once = [*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1:-1:2].tolist(), 0.0]  # each inner one stands twice
    assert levels(read_schedule({"_class_name": HEUN, "shift": shift}), steps) == pytest.approx(once, abs=1e-6)


def test_the_nodes_on_record():
    # facts measured with diffusers 0.42.1, written down by hand
    sd3 = levels(ours({"shift": 3.0}, given=False), 28)
    assert sd3[:3] == pytest.approx([1, 0.98738, 0.97411], abs=1e-5)
    assert sd3[-4:] == pytest.approx([0.19983, 0.11091, 0.0089286, 0], abs=1e-5)
    assert levels(ours({"shift": 3.0}, given=False), 4) == pytest.approx([1, 0.858, 0.602, 0.009, 0], abs=1e-3)
    assert levels(ours({"shift": 3.0}, given=True), 28)[-2] == pytest.approx(0.1)
    dev = levels(ours(DYNAMIC, given=True), 28, image_size=4096)
    assert dev[-4:] == pytest.approx([0.2748, 0.1955, 0.1047, 0], abs=1e-4)
    assert levels(ours({}, given=True), 4) == [1, 0.75, 0.5, 0.25, 0]
    qwen = levels(ours(BY_SIZE["qwen"], given=True), 50, image_size=4096)
    assert qwen[-4:] == pytest.approx([0.0955, 0.0585, 0.02, 0], abs=1e-4)
    z_image = levels(ours({"shift": 3.0}, given=True), 8)
    assert z_image == pytest.approx([1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0], abs=1e-4)
    lumina = levels(ours({"shift": 6.0}, given=True), 30)
    assert lumina[-4:] == pytest.approx([0.4, 0.3, 0.1714, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("tokens", "mu"), [(1024, 0.63), (2304, 0.8467), (4096, 1.15), (9216, 2.0167)], ids=["512", "768", "1024", "1536"]
)
def test_mu_of_flux_on_record(tokens, mu):
    assert DynamicShift().mu(tokens) == pytest.approx(mu, abs=1e-4)
    qwen = DynamicShift(max_shift=0.9, max_image_seq_len=8192)
    assert qwen.mu(tokens) == pytest.approx({0.63: 0.5387, 0.8467: 0.6032, 1.15: 0.6935, 2.0167: 0.9516}[mu], abs=1e-4)


def test_one_step_to_a_terminal_level_starts_at_the_noise():
    # diffusers divides 0 by 0 there
    assert math.isnan(theirs(STATIC["terminal"], 1, given=True)[0])
    assert levels(ours(STATIC["terminal"], given=True), 1) == [1, 0]


def test_a_list_of_t_is_not_shifted():
    assert levels(ours(STATIC["sd3"], given=True), 50, spacing=[1.0, 0.4]) == [1, 0.4, 0]
    assert levels(ours(DYNAMIC, given=True), 50, spacing=[0.4]) == [0.4, 0]  # nor does it need a size


@pytest.mark.parametrize("factor", [1e-3, 0.3, 1.7, 3, 19.3, 1e6])
def test_a_shift_keeps_both_ends_to_the_bit(factor):
    sigma = torch.tensor([1.0, 0.37, 0.0], dtype=torch.float64)
    moved = shifted(sigma, factor)
    assert moved[0] == 1
    assert moved[2] == 0
    assert float(shifted(moved, 1 / factor)[1]) == pytest.approx(0.37)
    assert torch.allclose(shifted_by_odds(sigma, factor), moved, rtol=1e-15)


# --- the size of the image ------------------------------------------------------------------------------------------


def test_a_size_is_tokens_or_latent_pixels():
    assert packed_tokens(4096) == packed_tokens((128, 128)) == 4096
    assert packed_tokens((64, 97)) == 32 * 48
    schedule = ours(DYNAMIC, given=True)
    assert schedule.grid(4, image_size=(128, 64)) == schedule.grid(4, image_size=2048)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4096", True, (1, 64), (64,) * 3, (64, 1.5), (0, 4), ()])
def test_a_size_that_has_no_tokens(size):
    with pytest.raises(ddim.InputError) as caught:
        ours(DYNAMIC, given=True).grid(4, image_size=size)
    assert caught.value.parameter == "image_size"


@pytest.mark.parametrize("shift", [DynamicShift(), DynamicShift(kind="linear"), Flux2Shift()], ids=repr)
def test_a_dynamic_shift_asks_for_the_size(shift):
    with pytest.raises(ddim.InputError) as caught:
        Schedule(ddim.RectifiedFlow(), "flow", shift=shift).grid(4)
    assert caught.value.parameter == "image_size"
    assert shift.needs_size


def test_two_equal_shifts_need_no_size():
    schedule = ours(BY_SIZE["qwen-lightning"], given=True)
    assert not schedule.shift.needs_size
    assert schedule.grid(4) == schedule.grid(4, image_size=9216)
    assert levels(schedule, 4) == pytest.approx(levels(ours({"shift": 3.0}, given=True), 4))


def test_a_linear_shift_that_falls_below_0():
    with pytest.raises(ddim.InputError) as caught:
        DynamicShift(kind="linear", base_shift=0.1, max_shift=2.0).factor(4, 1)
    assert caught.value.parameter == "image_size"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ddim.ddpm_linear(), ddim.VEPath()], ids=["table", "ve"])
@pytest.mark.parametrize("shift", [StaticShift(3.0), StaticShift(terminal=0.1), DynamicShift(), Flux2Shift()], ids=repr)
def test_a_shift_is_refused_off_rectified_flow(path, shift):
    with pytest.raises(ddim.InputError) as caught:
        Schedule(path, "eps", shift=shift)
    assert caught.value.parameter == "shift"
    assert Schedule(path, "eps", shift=NO_SHIFT).grid(3) == ddim.make_grid(path, 3)


@pytest.mark.parametrize(
    ("key", "value"), [("prediction", "epsilon"), ("spacing", "trialing"), ("clock", "label"), ("prior", "one")]
)
def test_a_name_that_a_schedule_does_not_know(key, value):
    with pytest.raises(ddim.UnknownName) as caught:
        Schedule(ddim.ddpm_linear(), **{"prediction": "eps", key: value})
    assert caught.value.parameter == key


@pytest.mark.parametrize("key", ["prediction", "spacing", "clock", "prior", "solver", "span"])
@pytest.mark.parametrize("value", [["edm"], np.array(["edm", "eps"]), 3], ids=str)
def test_a_name_of_a_schedule_that_is_no_text(key, value):
    with refused(key, kind=ddim.UnknownName):
        Schedule(ddim.ddpm_linear(), **{"prediction": "eps", key: value})


@pytest.mark.parametrize("ends", [(0.5,), ("a", "b"), (1.0, 0.5, 0.0), 1.0, None, (0.0, 1.0), (2.0, 0.0)], ids=str)
def test_ends_that_are_not_two_sigmas(ends):
    with refused("ends"):
        Schedule(ddim.RectifiedFlow(), "flow", ends=ends)


@pytest.mark.parametrize("path", [ddim.ddpm_linear(), ddim.RectifiedFlow(), ddim.VEPath()], ids=["table", "flow", "ve"])
def test_a_spacing_may_be_an_array(path):
    """A comparison of an array with a name is an array, which is neither true nor false."""
    times = [0.75 * path.t_max, 0.5 * path.t_max, 0.25 * path.t_max]
    schedule = Schedule(path, "v")
    expected = schedule.grid(spacing=times)
    for given in (np.array(times), torch.tensor(times, dtype=torch.float64), tuple(times), np.array(times[::-1])):
        assert schedule.grid(spacing=given) == expected
        assert ddim.make_grid(path, spacing=given) == expected


@pytest.mark.parametrize("spacing", [5, ["a", "b"], [None]], ids=str)
def test_a_spacing_that_is_neither_a_name_nor_numbers(spacing):
    with refused("spacing"):
        Schedule(ddim.ddpm_linear(), "eps").grid(spacing=spacing)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        *(({"shift": v}, "shift") for v in (0, -3.0, None, "3", True, math.inf, math.nan)),
        *(({"shift_terminal": v}, "shift_terminal") for v in (1.5, -0.1, "no", math.nan, True)),
        *(({"use_dynamic_shifting": v}, "use_dynamic_shifting") for v in (1, None, "true")),
        *(({**DYNAMIC, key: v}, key) for key in ("base_shift", "max_shift") for v in (None, "1", math.inf, True)),
        *(
            ({**DYNAMIC, key: v}, key)
            for key in ("base_image_seq_len", "max_image_seq_len")
            for v in (None, 0, -1, 2.5, "256", 10**9)
        ),
        ({**DYNAMIC, "base_image_seq_len": 4096}, "max_image_seq_len"),
        *(({**DYNAMIC, "time_shift_type": v}, "time_shift_type") for v in ("cubic", None, 3)),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
    ],
    ids=str,
)
def test_a_flow_config_that_makes_no_grid(options, key):
    with pytest.raises(ddim.InputError) as caught:
        read_schedule({"_class_name": FLOW, **options})
    assert caught.value.parameter == key


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("DPMSolverMultistepScheduler", "use_dynamic_shifting", True),
        ("DEISMultistepScheduler", "use_dynamic_shifting", True),
        ("UniPCMultistepScheduler", "use_dynamic_shifting", True),
        ("UniPCMultistepScheduler", "shift_terminal", 0.02),
    ],
)
def test_shifts_of_schedulers_of_noise_levels_stay_refused(kind, key, value):
    with pytest.raises(ddim.InputError) as caught:
        read_schedule({"_class_name": kind, key: value})
    assert caught.value.parameter == key


def test_a_spacing_for_flow_models_that_is_none():
    with pytest.raises(ddim.UnknownName):
        read_schedule({"_class_name": FLOW}, flow_spacing="trialing")


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_what_a_network_is_told():
    sd3 = ours({"shift": 3.0}, given=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    told = [sd3.timestep(node) for node in sd3.grid(28).nodes[:-1]]
    assert told == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)
    flux, z_image = replace(sd3, clock="sigma"), replace(sd3, clock="signal")
    for node in sd3.grid(28):
        assert flux.timestep(node) == node.sigma
        assert z_image.timestep(node) == 1 - node.sigma
    table = Schedule(ddim.ddpm_linear(), "eps")
    assert table.timestep(table.path.node(1000)) == 999
    assert all(isinstance(s.timestep(s.path.node(0.3)), float) for s in (sd3, flux, z_image, table))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"flow_shift": 3.0}),
        ("UniPCMultistepScheduler", {"flow_shift": 5.0, "num_train_timesteps": 500}),
    ],
)
@pytest.mark.parametrize("steps", [4, 20, 50])
def test_flow_sigmas_of_a_scheduler_for_tables_are_diffusers(kind, options, steps):
    """Sigmas, timesteps and the deviation of the noise, as Sana and Wan use them."""
    scheduler = getattr(diffusers, kind)(use_flow_sigmas=True, prediction_type="flow_prediction", **options)
    scheduler.set_timesteps(steps)
    schedule = read_schedule({**scheduler.config, "_class_name": kind})
    grid = schedule.grid(steps)
    assert isinstance(schedule.path, ddim.RectifiedFlow)
    assert schedule.prediction == "flow"
    assert [n.sigma for n in grid] == pytest.approx(scheduler.sigmas.tolist(), abs=2e-6)
    assert [schedule.timestep(n) for n in grid.nodes[:-1]] == scheduler.timesteps.tolist()
    assert schedule.prior_std(grid) == 1 == scheduler.init_noise_sigma


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_rounded_timesteps_are_diffusers(kind):
    for options in ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}):
        scheduler = getattr(diffusers, kind)(**options)
        scheduler.set_timesteps(20)
        schedule = read_schedule({**scheduler.config, "_class_name": kind})
        told = [schedule.timestep(n) for n in schedule.grid(20).nodes[:-1]]
        assert all(t == int(t) for t in told)
        assert (
            np.abs(np.subtract(told, scheduler.timesteps.tolist())).max() <= 1
        )  # theirs are interpolated in log sigma


def test_the_clock_of_edm_and_the_least_level_at_the_data():
    ve = Schedule(ddim.VEPath(), "edm", "karras", clock="edm")
    assert ve.timestep(ve.path.node(2.0)) == math.log(2.0) / 4
    assert ve.timestep(ve.path.node(0.0)) == math.log(0.002) / 4
    score = Schedule(ddim.VEPath(50.0, 0.01), "score")
    assert (score.timestep(score.path.node(7.0)), score.timestep(score.path.node(0.0))) == (7.0, 0.01)
    table = Schedule(ddim.ddpm_linear(), "v", clock="edm")
    assert table.timestep(table.path.node(0.0)) == table.timestep(table.path.node(1.0))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"sigma_data": 0}, "sigma_data"),
        ({"sigma_data": "1"}, "sigma_data"),
        ({"rho": -7.0}, "rho"),
        ({"ends": (0.0, 1.0)}, "ends"),
        ({"ends": (1.5, 0.0)}, "ends"),
        ({"span": "karras"}, "span"),
        ({"span": "leadin"}, "span"),
    ],
    ids=str,
)
def test_a_number_of_a_schedule_that_is_out_of_range(options, key):
    with pytest.raises(ddim.InputError) as caught:
        Schedule(ddim.VEPath(), "edm", **options)
    assert caught.value.parameter == key


# --- the prior ------------------------------------------------------------------------------------------------------

EULER_KIND = [EULER, "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"]
EULER_KIND += ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
FROM_ONE = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
FROM_ONE += ["DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"]


def lms() -> type:
    """The class behind the stand-in that diffusers exports without scipy; only its step integrates anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scipy", SimpleNamespace(integrate=None))
        return importlib.import_module("diffusers.schedulers.scheduling_lms_discrete").LMSDiscreteScheduler


def made(kind: str, options: dict):
    return (lms() if kind.startswith("LMS") else getattr(diffusers, kind))(**options)


@pytest.mark.parametrize("steps", [2, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", EULER_KIND)
def test_the_euler_kind_starts_from_the_first_sigma(kind, spacing, steps):
    scheduler = made(kind, {**NARROW, "timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    schedule = read_schedule({**scheduler.config, "_class_name": kind})
    grid = schedule.grid(steps)
    # their x is ours over alpha
    assert schedule.prior_std(grid) == pytest.approx(float(scheduler.init_noise_sigma) * grid[0].alpha, rel=2e-5)
    assert (schedule.prior_std(grid) == 1) == (spacing == "leading")


def test_the_prior_of_euler_on_stable_diffusions_table():
    schedule = read_schedule({**NARROW, "_class_name": EULER, "timestep_spacing": "trailing"})
    assert schedule.prior_std(schedule.grid(20)) == pytest.approx(0.99767, abs=1e-5)
    assert schedule.prior_std(schedule.grid(20, "leading")) == 1
    by_list = schedule.grid(spacing=[700.0, 300.0])
    assert schedule.prior_std(by_list) == by_list[0].sigma
    leading = replace(schedule, spacing="leading")
    assert leading.prior_std(by_list) == leading.prior_std(leading.grid(20, "quadratic")) == 1
    assert leading.prior_std(leading.grid(20, "trailing")) == pytest.approx(0.99767, abs=1e-5)


def test_the_prior_of_euler_with_karras_sigmas():
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **NARROW)
    scheduler.set_timesteps(12)
    schedule = read_schedule({**scheduler.config, "_class_name": EULER})
    grid = schedule.grid(12)
    assert schedule.prior_std(grid) == pytest.approx(float(scheduler.init_noise_sigma) * grid[0].alpha, rel=2e-5)


@pytest.mark.parametrize("kind", FROM_ONE)
def test_the_others_start_from_one(kind):
    scheduler = made(kind, NARROW)
    schedule = read_schedule({**scheduler.config, "_class_name": kind})
    for spacing in ddim.SPACINGS:
        assert schedule.prior_std(schedule.grid(10, spacing)) == 1 == scheduler.init_noise_sigma


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "ScoreSdeVeScheduler"])
def test_variance_exploding_models_start_as_their_scheduler_does(kind):
    scheduler = made(kind, {})
    schedule = read_schedule({**scheduler.config, "_class_name": kind})
    assert schedule.prior_std(schedule.grid(10)) == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-12)


def test_the_prior_of_a_path_alone():
    assert Schedule(ddim.ddpm_linear(), "eps").prior_std(ddim.make_grid(ddim.ddpm_linear(), 5)) == 1
    ve, flow = Schedule(ddim.VEPath(), "eps"), Schedule(ddim.RectifiedFlow(), "flow")
    assert ve.prior_std(ve.grid(5)) == 80
    assert flow.prior_std(flow.grid(5)) == 1
    assert flow.prior_std(flow.grid(5, [0.6, 0.2])) == 0.6


# --- Stable Diffusion XL --------------------------------------------------------------------------------------------


def test_the_config_of_sdxl_ends_at_sigma_0():
    """Euler has no set_alpha_to_one, and ignores the one that SDXL's config kept of another class."""
    schedule = read_schedule(SDXL)
    grid = schedule.grid(50)
    told = [schedule.timestep(node) for node in grid.nodes[:-1]]
    assert told == [*range(981, 20, -20), 1]
    ratios = [node.ratio for node in grid]
    assert ratios[0] == pytest.approx(13.1204, abs=1e-4)
    assert ratios[-2:] == pytest.approx([0.0413, 0], abs=1e-4)
    assert grid[-1] == ddim.Node(0.0, 1.0, 0.0)
    scheduler = diffusers.EulerDiscreteScheduler.from_config({k: v for k, v in SDXL.items() if k != "_class_name"})
    scheduler.set_timesteps(50)
    assert told == scheduler.timesteps.tolist()
    assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=2e-5)
    assert schedule.prior_std(grid) == 1
    assert float(scheduler.init_noise_sigma) == pytest.approx(13.158, abs=1e-3)


def test_the_same_config_named_ddim_ends_at_the_first_entry():
    schedule = read_schedule({**SDXL, "_class_name": "DDIMScheduler"})
    assert schedule.grid(50)[-1].sigma > 0


@pytest.mark.parametrize(
    ("steps", "told", "ratios"),
    [(1, [999], [14.6146, 0]), (4, [999, 749, 499, 249], [14.6146, 4.0817, 1.6129, 0.6932, 0])],
)
def test_the_grids_of_sdxl_turbo(steps, told, ratios):
    schedule = read_schedule({**SDXL, "timestep_spacing": "trailing"})
    grid = schedule.grid(steps)
    assert [schedule.timestep(node) for node in grid.nodes[:-1]] == told
    assert [node.ratio for node in grid] == pytest.approx(ratios, abs=1e-4)


# --- a value --------------------------------------------------------------------------------------------------------


def test_a_schedule_is_a_value():
    schedule = Schedule(ddim.RectifiedFlow(), "flow", hold=Hold(clip_x0=1.0), shift=DynamicShift(terminal=0.02))
    assert copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    assert Schedule(ddim.RectifiedFlow(), "flow").shift is NO_SHIFT
    assert torch.is_tensor(Schedule(ddim.ddpm_linear(), "eps").path.alpha(torch.tensor(3)))


def test_without_a_shift_the_grid_is_make_grids():
    for config in ({"_class_name": FLOW}, {"_class_name": "DDIMScheduler", "steps_offset": 1}):
        schedule = read_schedule(config)
        for spacing in ddim.SPACINGS:
            offset = schedule.offset if spacing == "leading" else 0
            ours, plain = schedule.grid(13, spacing), ddim.make_grid(schedule.path, 13, spacing, offset=offset)
            rounded = 0.0 if "steps_offset" in config else 1e-7  # flow models have diffusers' float32 levels
            assert [node.t for node in ours] == pytest.approx([node.t for node in plain], rel=rounded, abs=0)
