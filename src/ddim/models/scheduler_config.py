"""Reads a diffusers scheduler's config: the path, the prediction type, the grid, and the clipping of x0.

``scheduler_fields`` says which classes and fields there are, and checks a config.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import tensor

from .._utils.errors import InputError, UnknownName, is_number
from ..core.grid import SPACINGS
from ..core.path import (
    MOST_LEVELS,
    GaussianPath,
    RectifiedFlow,
    TablePath,
    VEPath,
    alpha_bar_of,
    cosine_alpha_bar,
    laplace_alpha_bar,
    linear_alpha_bar,
    scaled_linear_alpha_bar,
    sigmoid_alpha_bar,
    zero_terminal_snr,
)
from ..core.prediction import SIGMA_DATA, Hold, Prediction, prediction_of
from ..core.schedule import Clock, DynamicShift, Prior, Schedule, Shift, StaticShift
from .scheduler_fields import (
    DATA_COUNTS,
    DPM,
    EULER_KIND,
    FLOWS,
    MOST_TOKENS,
    OWN_SOLVER,
    STOP_EARLY,
    TABLES,
    VES,
    ParsedConfig,
    parse_config,
    shown,
)

_SCHEDULES = {
    "linear": linear_alpha_bar,
    "scaled_linear": scaled_linear_alpha_bar,
    "sigmoid": sigmoid_alpha_bar,
    "squaredcos_cap_v2": cosine_alpha_bar,
    "laplace": laplace_alpha_bar,
}


def read_schedule(config: Mapping[str, Any], *, flow_spacing: str = "linspace") -> Schedule:
    """Makes the schedule that a diffusers scheduler's config describes.

    Args:
        config: the content of ``scheduler_config.json``; missing fields have the defaults of their class.
        flow_spacing: the spacing of a flow model's own grid, which no config contains. ``linspace`` is what the
            scheduler does by itself (SD3, Sana). ``trailing`` is sigma = 1, 1 - 1/S, ..., 1/S before the shift, which
            the pipelines of FLUX, Qwen-Image, Z-Image and Lumina 2 pass to their scheduler.

    Raises:
        InputError: the scheduler, prediction type, spacing or a field is unknown, or a value has the wrong type or is
            not supported.
    """
    parsed = parse_config(config)
    spacing, span = spacing_from(parsed, flow_spacing)
    return Schedule(
        path_of(parsed),
        prediction_from(parsed),
        spacing,
        offset_from(parsed),
        hold_from(parsed),
        shift=shift_from(parsed),
        clock=clock_from(parsed, spacing),
        prior=prior_from(parsed),
        origin=origin_from(parsed),
        solver=OWN_SOLVER.get(parsed.kind, "ddim"),
        sigma_data=parsed.number("sigma_data", 0) if "sigma_data" in parsed.fields else SIGMA_DATA,
        rho=parsed.number("rho", 0) if "rho" in parsed.fields else 7.0,
        span=span,
        data_counts=parsed.kind in DATA_COUNTS,
        ends=ends_from(parsed),
        solver_options=solver_options_from(parsed),
    )


def from_scheduler_config(config: Mapping[str, Any]) -> GaussianPath:
    """Makes the path (the noise levels) that a diffusers scheduler's config describes.

    Args:
        config: the content of ``scheduler_config.json``; missing fields have the defaults of their class.

    Raises:
        InputError: the scheduler, beta schedule or a field is unknown (the most similar known name is suggested), or a
            value has the wrong type or is not supported (see ``REQUIRED``).
    """
    return path_of(parse_config(config))


def path_of(parsed: ParsedConfig) -> GaussianPath:
    """Makes the path of a parsed config; raises as ``from_scheduler_config``."""
    ends_at_data = _ends_at_data(parsed)
    if is_flow(parsed):
        return RectifiedFlow(levels=parsed.whole("num_train_timesteps", 1, MOST_LEVELS))
    if parsed.kind in VES:
        # KarrasVePipeline scales x from [-1, 1] to [0, 1] for its network, and the noise with it.
        unit = 0.5 if parsed.kind == "KarrasVeScheduler" else 1.0
        levels = parsed.whole("num_train_timesteps", 1, MOST_LEVELS) if "num_train_timesteps" in parsed.fields else 1000
        high, low = parsed.number("sigma_max", 0) * unit, parsed.number("sigma_min", 0) * unit
        return VEPath(sigma_max=high, sigma_min=low, levels=levels)
    for key in ("sigma_min", "sigma_max"):
        if parsed.fields.get(key) is not None and _ramp_of(parsed):
            raise InputError(
                f"{shown(parsed.fields[key])} means a grid whose ends are not those of the table, which this version "
                "does not support; use null.",
                parameter=key,
            )
    table = _table(parsed)
    if parsed.switch("rescale_betas_zero_snr"):
        table = zero_terminal_snr(table)
    if "set_alpha_to_one" in parsed.fields and parsed.kind not in STOP_EARLY:
        ends_at_data = parsed.switch("set_alpha_to_one")
    return TablePath(table, "one" if ends_at_data else "first")


def is_flow(parsed: ParsedConfig) -> bool:
    """Whether a config is that of a flow model: by its class, or by ``use_flow_sigmas`` of a class for tables."""
    return parsed.kind in FLOWS or _switched(parsed, "use_flow_sigmas")


def _switched(parsed: ParsedConfig, key: str) -> bool:
    """Whether a switch is on that may also be null."""
    return parsed.fields.get(key) is not None and parsed.switch(key)


def _ends_at_data(parsed: ParsedConfig) -> bool:
    """Whether the last step ends at the data, and not at the lowest noise level of the table.

    Raises:
        InputError: it would end at a noise level that cannot be the end of a grid here.
    """
    last = parsed.fields.get("final_sigmas_type", "zero")
    if last not in ("zero", "sigma_min"):
        raise UnknownName("final sigma", last, ["zero", "sigma_min"], parameter="final_sigmas_type")
    if last == "sigma_min" and (is_flow(parsed) or parsed.kind in VES):
        raise InputError(
            f"for {parsed.kind}, 'sigma_min' means a last step that stops before the data, which only grids on a table "
            "of noise levels can have here; use 'zero'.",
            parameter="final_sigmas_type",
        )
    if parsed.kind in STOP_EARLY and is_flow(parsed):
        raise InputError(
            f"for {parsed.kind}, True means a last step that stops before the data, which this version does not "
            "support; use a DPMSolverMultistepScheduler.",
            parameter="use_flow_sigmas",
        )
    return last == "zero" and parsed.kind not in STOP_EARLY


def _ramp_of(parsed: ParsedConfig) -> str:
    """Returns the spacing that a switch of the config chooses, one of ``RAMPS``, or empty.

    Raises:
        InputError: two of the switches are on, or one beside ``use_flow_sigmas``.
    """
    switches = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta",
        "use_lu_lambdas": "exponential",  # an even log-SNR is an even log(sigma / alpha)
    }
    parsed.switch("use_karras_sigmas")
    on = [key for key in (*switches, "use_flow_sigmas") if _switched(parsed, key)]
    if len(on) > 1:
        raise InputError(f"True does not go with {on[1]}; switch one of the two off.", parameter=on[0])
    return switches.get(on[0], "") if on else ""


def _table(parsed: ParsedConfig) -> Any:
    """Returns the table of alpha_bar, from ``trained_betas`` or from the beta schedule."""
    steps = parsed.whole("num_train_timesteps", 2, MOST_LEVELS)
    if (betas := parsed.fields["trained_betas"]) is not None:
        if not isinstance(betas, (list, tuple)) or not all(is_number(b) and 0 < b < 1 for b in betas):
            raise InputError(f"{shown(betas)} is not a list of numbers in (0, 1).", parameter="trained_betas")
        if len(betas) != steps:
            raise InputError(f"it has {len(betas)} numbers for {steps} num_train_timesteps.", parameter="trained_betas")
        return alpha_bar_of(tensor(betas).double())
    schedule = parsed.fields["beta_schedule"]
    if not isinstance(schedule, str) or schedule not in _SCHEDULES:
        raise UnknownName("beta schedule", schedule, _SCHEDULES, parameter="beta_schedule")
    if schedule in ("squaredcos_cap_v2", "laplace"):
        return _SCHEDULES[schedule](steps)
    return _SCHEDULES[schedule](steps, parsed.fields["beta_start"], parsed.fields["beta_end"])


def prediction_from(parsed: ParsedConfig) -> Prediction:
    """Returns what the network predicts: by the class for flow, score and EDM networks, or else ``prediction_type``."""
    if parsed.kind in FLOWS:
        return "flow"
    if parsed.kind in VES and "prediction_type" not in parsed.fields:
        return "score"
    name = parsed.fields.get("prediction_type", "epsilon")
    prediction = prediction_of(name if isinstance(name, str) else repr(name))
    if parsed.kind in VES and prediction in ("eps", "v"):
        return "edm" if prediction == "eps" else "edm_v"
    if prediction == "flow" and not is_flow(parsed):
        raise InputError(
            f"{name!r} does not fit {parsed.kind or 'a table of noise levels'}, which has no flow prediction unless "
            "use_flow_sigmas is true.",
            parameter="prediction_type",
        )
    if parsed.kind in VES:
        raise InputError(
            f"{name!r} does not fit {parsed.kind}, whose networks are trained with EDM's preconditioning; use "
            "'epsilon' or 'v_prediction'.",
            parameter="prediction_type",
        )
    return prediction


def spacing_from(parsed: ParsedConfig, flow_spacing: str = "linspace") -> tuple[str, str]:
    """Returns the spacing of the grid and the spacing whose ends bound it (see ``Schedule.span``).

    Both are those of the config, or else of its class; ``flow_spacing`` is that of flow-matching classes.
    """
    if parsed.kind in FLOWS:
        spacing = flow_spacing
    elif parsed.kind in VES:
        spacing = parsed.fields.get("sigma_schedule", "exponential")
        if not isinstance(spacing, str) or spacing not in ("karras", "exponential"):
            raise UnknownName("sigma schedule", spacing, ["karras", "exponential"], parameter="sigma_schedule")
    elif is_flow(parsed):
        spacing = "trailing"
    else:
        spacing = "lcm" if parsed.kind in OWN_SOLVER else parsed.fields.get("timestep_spacing", "linspace")
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise UnknownName("spacing", spacing, SPACINGS, parameter="timestep_spacing")
    ramp = _ramp_of(parsed)
    if not ramp:
        return spacing, ""
    bounded = parsed.kind in FLOWS or (spacing != "linspace" and parsed.kind.startswith(EULER_KIND))
    return ramp, spacing if bounded else ""


def clock_from(parsed: ParsedConfig, spacing: str) -> Clock:
    """Returns which timestep the network takes: the path's own, EDM's, or one that the scheduler rounds."""
    kind = parsed.fields.get("timestep_type", "discrete")
    if kind not in ("discrete", "continuous"):
        raise UnknownName("timestep type", kind, ["discrete", "continuous"], parameter="timestep_type")
    if kind == "continuous" and parsed.fields.get("prediction_type") == "v_prediction":  # as in diffusers
        if parsed.switch("rescale_betas_zero_snr"):
            raise InputError(
                "'continuous' means a network that takes the logarithm of sigma / alpha, which is infinite at zero "
                "terminal SNR (rescale_betas_zero_snr); use 'discrete'.",
                parameter="timestep_type",
            )
        return "edm"
    if parsed.kind.startswith("EDM"):
        return "edm"
    if parsed.kind not in TABLES or parsed.kind.startswith(("Euler", "Heun", "LMS", "DPMSolverSDE")):
        return "path"
    if is_flow(parsed):
        return "floor"
    if spacing == "karras" or _switched(parsed, "use_lu_lambdas"):
        smooth = parsed.kind == DPM and parsed.fields["beta_schedule"] == "squaredcos_cap_v2"
        return "floor" if smooth else "round"
    return "floor" if spacing in ("exponential", "beta") and not parsed.kind.startswith("KDPM2") else "path"


def ends_from(parsed: ParsedConfig) -> tuple[float, float]:
    """Returns the ends of the grid of a flow model before its shift; see ``Schedule.ends``."""
    if parsed.kind in FLOWS or not is_flow(parsed):
        return 1.0, 0.0
    lowest = 1 / parsed.whole("num_train_timesteps", 2, MOST_LEVELS)
    return (1.0, lowest) if parsed.kind.startswith("UniPC") else (1 - lowest, 0.0)


def offset_from(parsed: ParsedConfig) -> int:
    """Returns ``steps_offset``, or 0 if the class has no such field."""
    return parsed.whole("steps_offset", 0, MOST_LEVELS) if "steps_offset" in parsed.fields else 0


def origin_from(parsed: ParsedConfig) -> int:
    """Returns ``original_inference_steps``, or its default if the class has no such field."""
    if "original_inference_steps" not in parsed.fields:
        return 50
    return parsed.whole("original_inference_steps", 1, parsed.whole("num_train_timesteps", 2, MOST_LEVELS))


def solver_options_from(parsed: ParsedConfig) -> dict[str, float]:
    """Returns the options that the class gives to its own solver: the ``scaling`` of LCM."""
    return {"scaling": parsed.number("timestep_scaling", 0)} if parsed.kind == "LCMScheduler" else {}


def shift_from(parsed: ParsedConfig) -> Shift:
    """Returns the time shift of a flow model's grid: one that depends on the image size, or the constant ``shift``.

    Of a class for tables it is ``flow_shift``. Other models have no shift.
    """
    if parsed.kind not in FLOWS:
        return StaticShift(parsed.number("flow_shift", 0)) if is_flow(parsed) else StaticShift()
    stretched = parsed.fields.get("shift_terminal") not in (None, 0)
    terminal = parsed.number("shift_terminal", 0, 1) if stretched else None
    if not parsed.switch("use_dynamic_shifting"):
        return StaticShift(parsed.number("shift", 0), terminal=terminal)
    return DynamicShift(
        kind=parsed.fields["time_shift_type"],
        base_shift=parsed.number("base_shift", -math.inf),
        max_shift=parsed.number("max_shift", -math.inf),
        base_image_seq_len=parsed.whole("base_image_seq_len", 1, MOST_TOKENS),
        max_image_seq_len=parsed.whole("max_image_seq_len", 1, MOST_TOKENS),
        terminal=terminal,
    )


def prior_from(parsed: ParsedConfig) -> Prior:
    """Returns which initial noise the class samples from (its ``init_noise_sigma``)."""
    if parsed.kind.startswith("EDM"):
        return "edm"
    if parsed.kind in TABLES and is_flow(parsed):
        return "unit"
    return "euler" if parsed.kind in TABLES and parsed.kind.startswith(EULER_KIND) else "path"


def hold_from(parsed: ParsedConfig) -> Hold:
    """Returns how x0 is limited: by dynamic thresholding, by clipping, or not at all."""
    if parsed.switch("thresholding"):
        return Hold(
            threshold=parsed.number("dynamic_thresholding_ratio", 0, 1), largest=parsed.number("sample_max_value", 0)
        )
    return Hold(clip_x0=parsed.number("clip_sample_range", 0)) if parsed.switch("clip_sample") else Hold()
