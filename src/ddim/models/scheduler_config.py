"""What a diffusers scheduler's config says: the path, what the network predicts, the grid, and how x0 is held.

Every field of every known class is taken, changes nothing here, or is refused where its value would change results.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import tensor

from .._utils.errors import InputError, UnknownName, is_number, is_whole
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
from ..core.prediction import Hold, Prediction, prediction_of
from ..core.schedule import DynamicShift, Prior, Schedule, Shift, StaticShift

# --- the classes ----------------------------------------------------------------------------------------------------

_BETAS = {
    **{"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    **{"trained_betas": None, "prediction_type": "epsilon"},
}
_GRID = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
_LAST = {"final_sigmas_type": "zero"}

_DDIM = {**_BETAS, **_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, "set_alpha_to_one": True}
_DDPM = {**_BETAS, **_LEADING, **_ZERO_SNR, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small"}
_KDPM2 = {**_BETAS, **_NARROW, **_GRID, **_SIGMAS}
_MULTISTEP = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
_DPM_INVERSE = {
    **{**_BETAS, **_GRID, **_ZERO_SNR, **_THRESHOLD, **_SIGMAS, **_FLOW, **_MULTISTEP, "algorithm_type": "dpmsolver++"},
    **{"euler_at_final": False, "lambda_min_clipped": -math.inf, "variance_type": None},
}
_DPM = {**_DPM_INVERSE, **_LAST, **_SHIFTING, "use_lu_lambdas": False}
_EDM = {
    **{"num_train_timesteps": 1000, "prediction_type": "epsilon", "sigma_min": 0.002, "sigma_max": 80.0},
    **{"sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0, **_LAST},
}


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in names}


_TABLES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDIMInverseScheduler": _without(_DDIM, *_THRESHOLD),
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": {**_BETAS, **_LEADING, "set_alpha_to_one": False, "skip_prk_steps": False},
    "EulerDiscreteScheduler": {
        **{**_BETAS, **_GRID, **_ZERO_SNR, **_SIGMAS, **_LAST, "interpolation_type": "linear"},
        **{"sigma_min": None, "sigma_max": None, "timestep_type": "discrete"},
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_GRID, **_ZERO_SNR},
    "HeunDiscreteScheduler": {**_KDPM2, "clip_sample": False, "clip_sample_range": 1.0},
    "LMSDiscreteScheduler": {**_BETAS, **_GRID, **_SIGMAS},
    "KDPM2DiscreteScheduler": _KDPM2,
    "KDPM2AncestralDiscreteScheduler": _KDPM2,
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverMultistepInverseScheduler": _without(_DPM_INVERSE, *_ZERO_SNR),
    "DPMSolverSinglestepScheduler": {
        **_without(_DPM, *_ZERO_SNR, *_GRID, "euler_at_final", "use_lu_lambdas"),
        "lower_order_final": False,
    },
    "DEISMultistepScheduler": {
        **{**_BETAS, **_GRID, **_THRESHOLD, **_SIGMAS, **_FLOW, **_SHIFTING, **_MULTISTEP},
        **{"algorithm_type": "deis", "solver_type": "logrho"},
    },
    "UniPCMultistepScheduler": {
        **{**_BETAS, **_GRID, **_ZERO_SNR, **_THRESHOLD, **_SIGMAS, **_FLOW, **_SHIFTING, **_MULTISTEP, **_LAST},
        **{"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None},
        **{"shift_terminal": None, "sigma_min": None, "sigma_max": None},
    },
    "SASolverScheduler": {
        **{**_BETAS, **_GRID, **_THRESHOLD, **_SIGMAS, **_FLOW, "lower_order_final": True, "variance_type": None},
        **{"algorithm_type": "data_prediction", "predictor_order": 2, "corrector_order": 2, "tau_func": None},
        "lambda_min_clipped": -math.inf,
    },
}
_FLOWS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {
        **{"num_train_timesteps": 1000, "shift": 1.0, **_SHIFTING, **_SIGMAS, "base_shift": 0.5, "max_shift": 1.15},
        **{"base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None},
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}
_VES: dict[str, dict[str, Any]] = {
    "ScoreSdeVeScheduler": {
        **{"num_train_timesteps": 2000, "snr": 0.15, "sigma_min": 0.01, "sigma_max": 1348.0},
        **{"sampling_eps": 1e-5, "correct_steps": 1},
    },
    "KarrasVeScheduler": {
        **{"sigma_min": 0.02, "sigma_max": 100, "s_noise": 1.007, "s_churn": 80, "s_min": 0.05, "s_max": 50}
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **{**_EDM, **_THRESHOLD, **_MULTISTEP, "algorithm_type": "dpmsolver++", "euler_at_final": False}
    },
}
SCHEDULERS: dict[str, dict[str, Any]] = {**_TABLES, **_FLOWS, **_VES}
"""Class -> its fields, with what each is where a config is silent: diffusers' own signatures."""

_NAMELESS = {**{k: v for fields in _TABLES.values() for k, v in fields.items()}, **_DDIM, "clip_sample": False}
"""A config that names no class says what it says, as DDIM's; what it does not say of clipping is not done."""

_EULER_KIND = ("Euler", "Heun", "LMS", "KDPM2")
"""Classes that see x / alpha: their Karras grid runs between the ends of their ``timestep_spacing``, not of the table,
and their noise has the first sigma of the grid."""

# --- the fields -----------------------------------------------------------------------------------------------------

TAKEN = frozenset(
    {
        *_DDIM,
        *("use_karras_sigmas", "sigma_min", "sigma_max"),
    }
)
"""Read below: path, prediction, grid and how x0 is held come from these."""

TAKEN_BY_FLOWS = frozenset(
    {
        *("shift", "use_dynamic_shifting", "time_shift_type", "base_shift", "max_shift", "shift_terminal"),
        *("base_image_seq_len", "max_image_seq_len"),
    }
)
"""Read below where the class is a flow model's; elsewhere they are what ``IGNORED`` and ``ONLY`` say."""

_SOLVERS = "the caller chooses the solver"
_UNLESS = "it acts only beside another field, which is refused"
IGNORED: dict[str, str] = {
    **dict.fromkeys(("solver_order", "solver_type", "solver_p", "algorithm_type", "predict_x0", "tau_func"), _SOLVERS),
    **dict.fromkeys(("lower_order_final", "euler_at_final", "disable_corrector", "skip_prk_steps"), _SOLVERS),
    **dict.fromkeys(("predictor_order", "corrector_order", "snr", "correct_steps", "sampling_eps"), _SOLVERS),
    **dict.fromkeys(("s_noise", "s_churn", "s_min", "s_max"), _SOLVERS),
    "variance_type": "the noise of a step is the solver's; a learned variance is left aside",
    "sigma_data": "it scales the network's input and output, not the path; pixel models on a VE path are refused",
    **dict.fromkeys(("flow_shift", "time_shift_type"), _UNLESS),
}
"""Fields whose value changes nothing here, and why."""

_OTHER_GRID = "a grid that this version does not make"
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_exponential_sigmas": ((False, None), _OTHER_GRID),
    "use_beta_sigmas": ((False, None), _OTHER_GRID),
    "use_lu_lambdas": ((False, None), _OTHER_GRID),
    "use_flow_sigmas": ((False, None), "a flow model in a scheduler of noise levels, which this version does not take"),
    "use_dynamic_shifting": ((False, None), "a flow model's grid on a table of noise levels, which no model here has"),
    "shift_terminal": ((None,), _OTHER_GRID),
    "invert_sigmas": ((False, None), "a time that runs the other way, which this version does not take"),
    "stochastic_sampling": ((False, None), "a sampler that draws noise anew at each step, which this version lacks"),
    "sigma_schedule": (("karras",), _OTHER_GRID),
    "rho": ((7,), _OTHER_GRID),
    "final_sigmas_type": (("zero",), "another last step than to the data, which this version does not make"),
    "interpolation_type": (("linear",), "other noise levels between those of the table, which this version lacks"),
    "timestep_type": (("discrete",), "a network with another clock, which this version does not take"),
    "lambda_min_clipped": (
        (-math.inf, None),
        "a grid that leaves out the noisiest levels; give such a list as spacing",
    ),
    "predict_epsilon": ((True, None), "a network that predicts x0; say so by prediction_type = 'sample'"),
}
"""Fields that are refused unless they have one of these values, and what another one would mean."""

_ELSEWHERE = frozenset(
    {
        *("original_inference_steps", "timestep_scaling", "snr_shift_scale", "set_alpha_to_zero"),
        *("tensor_format", "timestep_values"),
    }
)
"""Fields of classes that are not taken here, or of diffusers' first versions: no class above reads them."""


MOST_TOKENS = 10**7
"""The longest image that a config may name; a mistyped one is found by it."""


class Said(NamedTuple):
    """A config as its class reads it.

    Attributes:
        kind: the class's name; empty where the config names none.
        fields: every field that the class has, with its value.
    """

    kind: str
    fields: Mapping[str, Any]

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.fields[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not is_whole(value) or not low <= value <= high:
            raise InputError(f"{_shown(value)} is not a whole number from {low} to {high}.", parameter=key)
        return int(value)

    def number(self, key: str, low: float, high: float = math.inf) -> float:
        """A finite number above ``low`` and at most ``high``."""
        value = self.fields[key]
        if not is_number(value) or not low < value <= high:
            most = "" if high == math.inf else f" and at most {high:g}"
            raise InputError(f"{_shown(value)} is not a number above {low:g}{most}.", parameter=key)
        return float(value)

    def switch(self, key: str) -> bool:
        """true or false; false where the class has no such field."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            raise InputError(f"{_shown(value)} is neither true nor false.", parameter=key)
        return value


def fields_read_by(kind: str) -> frozenset[str]:
    """The fields that are read below of a config of this class."""
    return TAKEN | TAKEN_BY_FLOWS if kind in _FLOWS else TAKEN


def said_by(config: Mapping[str, Any]) -> Said:
    """What a config says to its own class.

    As in diffusers, a field that only other classes have says nothing, and one with an underscore is a note.

    Raises:
        InputError: a class or a field that is not known; a value that would change results and is not taken.
    """
    kind = config.get("_class_name") or ""
    if kind and (not isinstance(kind, str) or kind not in SCHEDULERS):
        raise UnknownName("scheduler", kind, SCHEDULERS)
    usual = SCHEDULERS[kind] if kind else _NAMELESS
    for key, value in config.items():
        known = (
            key in TAKEN | TAKEN_BY_FLOWS or key in IGNORED or key in ONLY or key in _ELSEWHERE or key.startswith("_")
        )
        if not known and value is not None and value is not False:
            raise InputError(
                f"{_shown(value)}: no scheduler that is known has such a field, so what it changes is not known; "
                "take it out of the scheduler's config if it changes nothing.",
                parameter=key,
            )
        fine, means = ONLY.get(key, ((), ""))
        reads = (key in usual and key not in fields_read_by(kind)) or key == "predict_epsilon"
        if fine and reads and not any(value is v or (_same(value, v)) for v in fine):
            raise InputError(f"{_shown(value)} means {means}; {_shown(fine[0])} is taken.", parameter=key)
    return Said(kind, {key: config.get(key, value) for key, value in usual.items()})


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- what they say --------------------------------------------------------------------------------------------------

_SCHEDULES = {
    "linear": linear_alpha_bar,
    "scaled_linear": scaled_linear_alpha_bar,
    "sigmoid": sigmoid_alpha_bar,
    "squaredcos_cap_v2": cosine_alpha_bar,
    "laplace": laplace_alpha_bar,
}


def read_schedule(config: Mapping[str, Any], *, flow_spacing: str = "linspace") -> Schedule:
    """The schedule that a diffusers scheduler's config describes.

    Args:
        config: the dict in ``scheduler_config.json``. A field that it leaves out is what its class takes for granted.
        flow_spacing: the spacing of a flow model's own grid, which no config names. ``linspace``: what the scheduler
            does by itself (SD3, Sana). ``trailing``: sigma = 1, 1 - 1/S, ..., 1/S before the shift, as the pipelines of
            FLUX, Qwen-Image, Z-Image and Lumina 2 hand it over.

    Raises:
        InputError: a scheduler, prediction type, spacing or field that is not known; a value of the wrong kind, or one
            that would change results and is not taken.
    """
    said = said_by(config)
    return Schedule(
        path_of(said),
        prediction_from(said),
        spacing_from(said, flow_spacing),
        offset_from(said),
        hold_from(said),
        shift=shift_from(said),
        prior=prior_from(said),
    )


def from_scheduler_config(config: Mapping[str, Any]) -> GaussianPath:
    """The path that a diffusers scheduler config describes.

    Args:
        config: the dict in ``scheduler_config.json``. A field that it leaves out is what its class takes for granted.

    Raises:
        InputError: a scheduler, schedule or field this library does not know, named with the nearest known one; a
            value of the wrong kind, or one that would change results and is not taken (see ``ONLY``).
    """
    return path_of(said_by(config))


def path_of(said: Said) -> GaussianPath:
    """As ``from_scheduler_config``."""
    if said.kind in _FLOWS:
        return RectifiedFlow(levels=said.whole("num_train_timesteps", 1, MOST_LEVELS))
    if said.kind in _VES:
        return VEPath(sigma_max=said.number("sigma_max", 0), sigma_min=said.number("sigma_min", 0))
    for key in ("sigma_min", "sigma_max"):
        if said.fields.get(key) is not None:
            raise InputError(f"{_shown(said.fields[key])} means {_OTHER_GRID}; null is taken.", parameter=key)
    table = _table(said)
    if said.switch("rescale_betas_zero_snr"):
        table = zero_terminal_snr(table)
    at_one = said.switch("set_alpha_to_one") if "set_alpha_to_one" in said.fields else True
    return TablePath(table, "one" if at_one else "first")


def _table(said: Said) -> Any:
    steps = said.whole("num_train_timesteps", 2, MOST_LEVELS)
    if (betas := said.fields["trained_betas"]) is not None:
        if not isinstance(betas, (list, tuple)) or not all(is_number(b) and 0 < b < 1 for b in betas):
            raise InputError(f"{_shown(betas)} is not a list of numbers in (0, 1).", parameter="trained_betas")
        if len(betas) != steps:
            raise InputError(f"it has {len(betas)} numbers for {steps} num_train_timesteps.", parameter="trained_betas")
        return alpha_bar_of(tensor(betas).double())
    schedule = said.fields["beta_schedule"]
    if not isinstance(schedule, str) or schedule not in _SCHEDULES:
        raise UnknownName("beta schedule", schedule, _SCHEDULES, parameter="beta_schedule")
    if schedule in ("squaredcos_cap_v2", "laplace"):
        return _SCHEDULES[schedule](steps)
    return _SCHEDULES[schedule](steps, said.fields["beta_start"], said.fields["beta_end"])


def prediction_from(said: Said) -> Prediction:
    """What the network predicts: ``prediction_type``, and flow for a flow model."""
    if said.kind in _FLOWS:
        return "flow"
    told = said.fields.get("prediction_type", "epsilon")
    prediction = prediction_of(told if isinstance(told, str) else repr(told))
    if prediction == "flow":
        raise InputError(
            f"{told!r} does not go with {said.kind or 'a table of noise levels'}, which knows no flow.",
            parameter="prediction_type",
        )
    return prediction


def spacing_from(said: Said, flow_spacing: str = "linspace") -> str:
    """The spacing that the config asks for, or its class takes for granted; ``flow_spacing`` for flow models."""
    if said.kind in _FLOWS:
        spacing = flow_spacing
    elif said.kind in _VES:
        spacing = "karras"
    else:
        spacing = said.fields.get("timestep_spacing", "linspace")
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise UnknownName("spacing", spacing, SPACINGS, parameter="timestep_spacing")
    if not said.switch("use_karras_sigmas"):
        return spacing
    if said.kind in _FLOWS or (spacing != "linspace" and said.kind.startswith(_EULER_KIND)):
        raise InputError(
            f"True means {_OTHER_GRID} for {said.kind} with the spacing {spacing!r}; False is taken.",
            parameter="use_karras_sigmas",
        )
    return "karras"


def offset_from(said: Said) -> int:
    """``steps_offset``, 0 where the class has none."""
    return said.whole("steps_offset", 0, MOST_LEVELS) if "steps_offset" in said.fields else 0


def shift_from(said: Said) -> Shift:
    """How a flow model's grid is shifted: by the picture's size where the config says so, else by its ``shift``."""
    if said.kind not in _FLOWS:
        return StaticShift()
    stretched = said.fields.get("shift_terminal") not in (None, 0)
    terminal = said.number("shift_terminal", 0, 1) if stretched else None
    if not said.switch("use_dynamic_shifting"):
        return StaticShift(said.number("shift", 0), terminal=terminal)
    return DynamicShift(
        kind=said.fields["time_shift_type"],
        base_shift=said.number("base_shift", -math.inf),
        max_shift=said.number("max_shift", -math.inf),
        base_image_seq_len=said.whole("base_image_seq_len", 1, MOST_TOKENS),
        max_image_seq_len=said.whole("max_image_seq_len", 1, MOST_TOKENS),
        terminal=terminal,
    )


def prior_from(said: Said) -> Prior:
    """Which noise the class starts from, its ``init_noise_sigma``."""
    if said.kind.startswith("EDM"):
        return "edm"
    return "euler" if said.kind in _TABLES and said.kind.startswith(_EULER_KIND) else "path"


def hold_from(said: Said) -> Hold:
    """How x0 is held: dynamic thresholding where the config says so, else clipping where it does."""
    if said.switch("thresholding"):
        return Hold(
            threshold=said.number("dynamic_thresholding_ratio", 0, 1), largest=said.number("sample_max_value", 0)
        )
    return Hold(clip_x0=said.number("clip_sample_range", 0)) if said.switch("clip_sample") else Hold()
