"""Scheduler configs: every field of every known class is read, ignored or refused."""

import inspect
import json
import math
from dataclasses import fields

import diffusers
import numpy as np
import pytest
import tiny
import torch

import ddim
from ddim.core.path import MOST_LEVELS
from ddim.core.prediction import Hold
from ddim.models.scheduler_config import read_schedule
from ddim.models.scheduler_fields import IGNORED, READ, REQUIRED, SCHEDULERS, UNSUPPORTED, fields_read_by

DPM, EULER, FLOW = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"


def signature(kind: str) -> dict[str, object]:
    """A class's fields with what each is by default; empty where the class is a stand-in (some need scipy)."""
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and k != "self"}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_table_is_diffusers_signature(kind):
    """A field that a newer diffusers adds, or another default, fails here until it is looked at."""
    if fields := signature(kind):
        assert SCHEDULERS[kind] == fields


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_field_is_met_in_one_way(kind):
    for key in SCHEDULERS[kind]:
        assert (key in fields_read_by(kind)) or ((key in IGNORED) + (key in REQUIRED) == 1), key


def test_every_rule_is_for_a_field_that_some_class_has():
    fields = {key for known in SCHEDULERS.values() for key in known}
    taken = set().union(*map(fields_read_by, SCHEDULERS))
    assert fields | {"predict_epsilon"} == taken | set(IGNORED) | set(REQUIRED)
    assert not READ & set(IGNORED)
    assert not READ & set(REQUIRED)
    assert not set(IGNORED) & set(REQUIRED)


def without_path(schedule):
    return {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.name != "path"}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_what_a_class_takes_for_granted_is_taken(kind):
    by_name, in_full = {"_class_name": kind}, {"_class_name": kind, **SCHEDULERS[kind]}
    one, other = read_schedule(by_name), read_schedule(in_full)
    assert without_path(one) == without_path(other)
    assert one.path.levels == other.path.levels


ANOTHER = {
    **dict.fromkeys(REQUIRED, True),
    "shift_terminal": 0.02,
    **{"interpolation_type": "log_linear", "lambda_min_clipped": -5.1},
    "predict_epsilon": False,
}


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (kind, key)
        for kind in SCHEDULERS
        for key in REQUIRED
        if key in SCHEDULERS[kind] and key not in fields_read_by(kind)
    ],
)
def test_a_field_that_would_change_results_is_refused_by_name(kind, key):
    with pytest.raises(ddim.InputError) as caught:
        ddim.from_scheduler_config({"_class_name": kind, key: ANOTHER[key]})
    assert caught.value.parameter == key
    assert repr(ANOTHER[key]) in str(caught.value)


@pytest.mark.parametrize("key", ["beta_shedule", "solver_oder", "rescale_zero_snr"])
def test_a_field_that_nobody_knows_is_refused_unless_it_says_nothing(key):
    with pytest.raises(ddim.InputError) as caught:
        ddim.from_scheduler_config({"_class_name": "DDIMScheduler", key: 2})
    assert caught.value.parameter == key
    for nothing in (None, False):
        assert ddim.from_scheduler_config({"_class_name": "DDIMScheduler", key: nothing}).levels == 1000
    assert ddim.from_scheduler_config({"_class_name": "DDIMScheduler", "_note": "mine"}).levels == 1000


def test_x0_prediction_by_its_first_name_is_refused():
    with pytest.raises(ddim.InputError) as caught:
        ddim.from_scheduler_config({"_class_name": "DDPMScheduler", "predict_epsilon": False})
    assert caught.value.parameter == "predict_epsilon"


def test_a_field_of_another_class_says_nothing_as_in_diffusers():
    # SDXL's config names Euler and keeps set_alpha_to_one = false of another class: Euler walks to alpha = 1
    config = {"_class_name": EULER, "set_alpha_to_one": False, "clip_sample": True, "use_flow_sigmas": True}
    said = read_schedule(config)
    assert said.path.data == "one"
    assert not said.hold.acts
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[-1] == 0
    assert read_schedule({"_class_name": "DDIMScheduler", "use_karras_sigmas": True}).spacing == "leading"
    assert (
        ddim.from_scheduler_config({"_class_name": "DEISMultistepScheduler", "rescale_betas_zero_snr": True})
        .node(999)
        .alpha
    )


@pytest.mark.parametrize("kind", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_silent_betas_are_those_of_the_class(kind):
    made = getattr(diffusers, kind)()
    path = ddim.from_scheduler_config({"_class_name": kind})
    assert torch.allclose(path.alpha_bar, made.alphas_cumprod.double(), rtol=1e-4)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_from_config_defaults_are_ddpms():
    path = ddim.from_scheduler_config({})
    assert torch.equal(path.alpha_bar, ddim.linear_alpha_bar())
    assert path.data == "one"


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_every_beta_schedule_is_diffusers(schedule, steps):
    made = diffusers.DDPMScheduler(num_train_timesteps=steps, beta_schedule=schedule)
    path = ddim.from_scheduler_config({**made.config, "_class_name": "DDPMScheduler"})
    # their betas and products are float32: a thousand roundings of 6e-8 each
    assert torch.allclose(path.alpha_bar, made.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize(
    "scheduler", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
)
def test_from_config_reads_what_diffusers_writes(scheduler):
    made = getattr(diffusers, scheduler)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    path = ddim.from_scheduler_config(dict(made.config) | {"_class_name": scheduler})
    assert torch.allclose(path.alpha_bar, made.alphas_cumprod.double(), rtol=1e-4)
    # PNDM's default differs from DDIM's: set_alpha_to_one=False
    assert path.data == ("first" if scheduler == "PNDMScheduler" else "one")


def test_from_config_of_stable_diffusion():
    path = ddim.from_scheduler_config(tiny.STABLE_DIFFUSION)
    assert torch.equal(path.alpha_bar, ddim.scaled_linear_alpha_bar())
    assert path.data == "first"


def test_from_config_with_zero_terminal_snr():
    path = ddim.from_scheduler_config({"rescale_betas_zero_snr": True})
    assert path.node(1000).alpha == 0


def test_from_config_with_trained_betas():
    path = ddim.from_scheduler_config({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3})
    assert path.alpha_bar.tolist() == pytest.approx([0.9, 0.72, 0.504])


def test_from_config_of_flow_and_ve():
    flow = ddim.from_scheduler_config({"_class_name": FLOW, "num_train_timesteps": 500})
    assert flow == ddim.RectifiedFlow(levels=500)
    ve = ddim.from_scheduler_config({"_class_name": "EDMEulerScheduler", "sigma_max": 50.0, "sigma_min": 0.01})
    assert ve == ddim.VEPath(50.0, 0.01)
    assert ddim.from_scheduler_config({"_class_name": "KarrasVeScheduler"}) == ddim.VEPath(50.0, 0.01)


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DPM, {}), (DPM, {"timestep_spacing": "leading"}), (EULER, {}), ("UniPCMultistepScheduler", {})],
)
def test_karras_sigmas_are_our_spacing_of_that_name(kind, options):
    made = getattr(diffusers, kind)(use_karras_sigmas=True, **options)
    made.set_timesteps(12)
    said = read_schedule({**made.config, "_class_name": kind})
    assert said.spacing == "karras"
    ratios = [node.ratio for node in ddim.make_grid(said.path, 12, said.spacing)]
    assert np.allclose(ratios[:-1], made.sigmas[:12], rtol=1e-4)


@pytest.mark.parametrize("kind", [EULER, "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("switch", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_these_classes_span_the_levels_of_their_spacing(kind, spacing, switch):
    made = getattr(diffusers, kind)(**{switch: True, "timestep_spacing": spacing, "steps_offset": 1})
    made.set_timesteps(10)
    said = read_schedule({**made.config, "_class_name": kind})
    theirs = sorted({float(s) for s in made.sigmas if s > 0}, reverse=True)
    ratios = [node.ratio for node in said.grid(10)]
    assert np.allclose(ratios[:-1], theirs, rtol=3e-4)
    assert said.prior_std(said.grid(10)) == pytest.approx(
        float(made.init_noise_sigma) * said.grid(10)[0].alpha, rel=1e-4
    )


def test_switches_that_exclude_each_other_are_refused_by_name():
    for options in ({"use_exponential_sigmas": True}, {"use_lu_lambdas": True}, {"use_flow_sigmas": True}):
        with pytest.raises(ddim.InputError) as caught:
            read_schedule({"_class_name": DPM, "use_karras_sigmas": True, **options})
        assert caught.value.parameter == "use_karras_sigmas"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"_class_name": "EDMEulerScheduler", "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"_class_name": DPM, "use_flow_sigmas": True, "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"_class_name": DPM, "final_sigmas_type": "sigma_mid"}, "final_sigmas_type"),
        ({"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": EULER, "use_karras_sigmas": True, "sigma_max": 700.0}, "sigma_max"),
        ({"_class_name": EULER, "timestep_type": "continuos"}, "timestep_type"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "linear"}, "sigma_schedule"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "beta"}, "sigma_schedule"),  # diffusers has no such one
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": ["karras"]}, "sigma_schedule"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0}, "sigma_data"),
        ({"_class_name": "EDMEulerScheduler", "rho": "7"}, "rho"),
        (
            {
                "_class_name": EULER,
                "timestep_type": "continuous",
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
            },
            "timestep_type",
        ),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_taken_is_refused_by_name(config, key):
    with pytest.raises(ddim.InputError) as caught:
        read_schedule(config)
    assert caught.value.parameter == key


def test_ends_without_a_grid_between_them_say_nothing():
    assert read_schedule({"_class_name": EULER, "sigma_max": 700.0}) is not None


@pytest.mark.parametrize("kind", [DPM, EULER])
def test_a_last_step_to_the_lowest_level_ends_at_the_first_entry(kind):
    assert ddim.from_scheduler_config({"_class_name": kind, "final_sigmas_type": "sigma_min"}).data == "first"


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_classes_of_diffusers_are_refused_with_what_they_do(kind):
    with pytest.raises(ddim.InputError) as caught:
        read_schedule({"_class_name": kind})
    assert caught.value.parameter == "scheduler"
    assert kind in str(caught.value)


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("offset", [0, 1, 7])
def test_an_offset_is_diffusers_steps_offset_on_stable_diffusions_table(steps, offset):
    """The list of diffusers, but for its entry 0: from there to the data, which is that entry, is no step."""
    config = {**tiny.STABLE_DIFFUSION, "steps_offset": offset}
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    path = ddim.from_scheduler_config(config)
    labels = [int(path.timestep(n.t)) for n in ddim.make_grid(path, steps, "leading", offset=offset).nodes[:-1]]
    first = max(offset, 1)
    assert labels == [t + first - offset for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("offset", [-1, 0.5, "1", None, True])
def test_an_offset_that_counts_no_levels_is_refused(offset):
    with pytest.raises(ddim.InputError) as caught:
        ddim.make_grid(ddim.ddpm_linear(), 10, "leading", offset=offset)
    assert caught.value.parameter == "offset"


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "karras", [900, 400]])
def test_an_offset_goes_with_leading_only(spacing):
    with pytest.raises(ddim.InputError) as caught:
        ddim.make_grid(ddim.ddpm_linear(), 10, spacing, offset=1)
    assert caught.value.parameter == "offset"


# --- x0 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "hold"),
    [
        ({"_class_name": "DDIMScheduler"}, Hold(clip_x0=1.0)),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, Hold()),
        ({"_class_name": "DDPMScheduler", "clip_sample_range": 2.0}, Hold(clip_x0=2.0)),
        ({"_class_name": "PNDMScheduler", "clip_sample": True}, Hold()),
        ({"_class_name": "HeunDiscreteScheduler"}, Hold()),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, Hold(threshold=0.995, largest=1.0)),
        ({"_class_name": DPM, "thresholding": True, "sample_max_value": 4.0}, Hold(threshold=0.995, largest=4.0)),
        ({}, Hold()),
    ],
    ids=str,
)
def test_what_a_config_says_of_clipping(config, hold):
    assert read_schedule(config).hold == hold


def test_dynamic_thresholding_is_diffusers():
    scheduler = diffusers.DDIMScheduler(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9)
    torch.manual_seed(0)
    x0 = torch.randn(3, 1, 8, 8) * torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1, 1)
    hold = read_schedule({**scheduler.config, "_class_name": "DDIMScheduler"}).hold
    node = ddim.ddpm_linear().node(500)
    x = node.alpha * x0 + node.sigma * torch.randn_like(x0)
    held = hold(ddim.Pair(x0, (x - node.alpha * x0) / node.sigma), x, node)
    assert torch.allclose(held.x0, scheduler._threshold_sample(x0), atol=1e-6)
    assert torch.allclose(node.alpha * held.x0 + node.sigma * held.eps, x, atol=1e-5)


# --- values of the wrong kind ---------------------------------------------------------------------------------------

WHOLE = {"num_train_timesteps": (2, MOST_LEVELS), "steps_offset": (0, MOST_LEVELS)}
NUMBERS = ("beta_start", "beta_end", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")
SWITCHES = ("set_alpha_to_one", "rescale_betas_zero_snr", "clip_sample", "thresholding", "use_karras_sigmas")
NAMES = ("beta_schedule", "prediction_type", "timestep_spacing")
NO_NUMBER = (None, "10", "many", True, [1], {}, math.inf, -math.inf, math.nan, -1)
WRONG = {
    **{key: (*NO_NUMBER, 10.5, low - 1, high + 1, 10**9) for key, (low, high) in WHOLE.items()},
    **dict.fromkeys(NUMBERS, NO_NUMBER),
    **{key: (None, "true", 1, 0, []) for key in SWITCHES},
    **{key: (None, 3, True, "nonsense", ["linear"], {}) for key in NAMES},
    "trained_betas": (
        "abc",
        0.5,
        {},
        [],
        [0.1],
        ["0.1"] * 1000,
        [[0.1] * 1000],
        [0.1] * 999 + [2.0],
        [math.nan] * 1000,
    ),
}


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, wrong in WRONG.items() for v in wrong], ids=lambda v: repr(v)[:30]
)
def test_a_value_of_the_wrong_kind_is_one_sentence(key, value):
    # switched on where they are read
    reads = {"clip_sample_range": {"clip_sample": True}, "dynamic_thresholding_ratio": {"thresholding": True}}
    reads["sample_max_value"] = {"thresholding": True}
    config = {"_class_name": DPM if key == "use_karras_sigmas" else "DDIMScheduler", **reads.get(key, {}), key: value}
    with pytest.raises(ddim.InputError) as caught:
        read_schedule(config)
    assert caught.value.parameter == key


def test_infinity_in_a_file_is_no_number_of_levels():
    with pytest.raises(ddim.InputError) as caught:
        read_schedule(json.loads('{"num_train_timesteps": 1e999}'))
    assert caught.value.parameter == "num_train_timesteps"


@pytest.mark.parametrize("key", ["sigma_min", "sigma_max"])
@pytest.mark.parametrize("value", ["80", None, True, -1, math.inf])
def test_a_wrong_end_of_a_ve_path(key, value):
    with pytest.raises(ddim.InputError) as caught:
        ddim.from_scheduler_config({"_class_name": "EDMEulerScheduler", key: value})
    assert caught.value.parameter == key


def test_whole_floats_count():
    assert ddim.from_scheduler_config({"num_train_timesteps": 100.0}).levels == 100


@pytest.mark.parametrize("make", [ddim.linear_alpha_bar, ddim.scaled_linear_alpha_bar, ddim.cosine_alpha_bar])
@pytest.mark.parametrize("steps", [10**9, 10.5, math.inf, "10"])
def test_a_table_too_long_for_any_memory_is_refused(make, steps):
    with pytest.raises(ddim.InputError) as caught:
        make(steps)
    assert caught.value.parameter == "steps"


@pytest.mark.parametrize(
    ("config", "nearest"),
    [
        ({"_class_name": "DDIMSchedular"}, "DDIMScheduler"),
        ({"beta_schedule": "scaled-linear"}, "scaled_linear"),
        ({"prediction_type": "v-prediction"}, "v_prediction"),
        ({"timestep_spacing": "trialing"}, "trailing"),
    ],
)
def test_the_nearest_known_name_is_offered(config, nearest):
    with pytest.raises(ddim.UnknownName) as caught:
        read_schedule(config)
    assert caught.value.nearest == nearest


@pytest.mark.parametrize("kind", [3, ["DDIMScheduler"], {"a": 1}])
def test_a_class_that_is_no_name(kind):
    with pytest.raises(ddim.UnknownName):
        ddim.from_scheduler_config({"_class_name": kind})


def test_flow_prediction_goes_with_flow_only():
    assert read_schedule({"_class_name": FLOW}).prediction == "flow"
    with pytest.raises(ddim.InputError) as caught:
        read_schedule({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"})
    assert caught.value.parameter == "prediction_type"
