"""The fields of diffusers' schedulers: which classes there are, and what becomes of each field of their configs.

Each field of each supported class is either read by ``scheduler_config``, ignored because it cannot change the result
here, or refused if its value would change the result in a way that this library does not support. So no config is
misread silently.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._utils.errors import InputError, UnknownName, is_number, is_whole
from ..core.schedule import Usual

# --- the classes ----------------------------------------------------------------------------------------------------

# Fields of diffusers' schedulers with their default values, in groups that several classes share.

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
_DISTILLED = {
    **{**_BETAS, **_NARROW, "beta_schedule": "scaled_linear", **_LEADING, **_ZERO_SNR, **_CLIP, "clip_sample": False},
    **{**_THRESHOLD, "set_alpha_to_one": True, "original_inference_steps": 50, "timestep_scaling": 10.0},
}
_EDM = {
    **{"num_train_timesteps": 1000, "prediction_type": "epsilon", "sigma_min": 0.002, "sigma_max": 80.0},
    **{"sigma_data": 0.5, "sigma_schedule": "karras", "rho": 7.0, **_LAST},
}


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns fields without those of the given names."""
    return {k: v for k, v in fields.items() if k not in names}


TABLES: dict[str, dict[str, Any]] = {
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
    "DPMSolverSDEScheduler": {**_KDPM2, "noise_sampler_seed": None},
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverMultistepInverseScheduler": _without(_DPM_INVERSE, *_ZERO_SNR),
    "DPMSolverSinglestepScheduler": {
        **_without(_DPM, *_ZERO_SNR, *_GRID, "euler_at_final", "use_lu_lambdas"),
        "lower_order_final": False,
    },
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
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
FLOWS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": {
        **{"num_train_timesteps": 1000, "shift": 1.0, **_SHIFTING, **_SIGMAS, "base_shift": 0.5, "max_shift": 1.15},
        **{"base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None},
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}
VES: dict[str, dict[str, Any]] = {
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
SCHEDULERS: dict[str, dict[str, Any]] = {**TABLES, **FLOWS, **VES}
"""Scheduler class -> its fields with their default values, as in the signatures of diffusers."""

_TOKENS, _VIDEO = "samples images made of discrete tokens", "samples a video model"
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler"), _TOKENS),
    **dict.fromkeys(("EntropyBoundScheduler", "VQDiffusionScheduler"), _TOKENS),
    **dict.fromkeys(
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "HeliosScheduler", "HeliosDMDScheduler"), _VIDEO
    ),
    **dict.fromkeys(("LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"), _VIDEO),
    "CMStochasticIterativeScheduler": "samples a consistency model, whose network has inputs and outputs of its own",
    "CosineDPMSolverMultistepScheduler": "samples an audio model",
    "DDPMWuerstchenScheduler": "samples the stages of Wuerstchen, on a continuous cosine path",
    "FlowMapEulerDiscreteScheduler": "samples a flow map, whose network takes two times",
    "FlowMatchLCMScheduler": "adds new noise to a flow model in each step",
    "IPNDMScheduler": "has a table of noise levels of its own, which no published image model was trained on",
    "PiflowScheduler": "samples a network that returns a policy for several steps",
    "RFD4ProteinaScheduler": "samples a protein model",
    "RePaintScheduler": "needs an image and a mask in every step (ddim.edit accepts a mask with any text model)",
    "SCMScheduler": "samples a continuous-time consistency model on a trigonometric path",
    "UnCLIPScheduler": "samples the prior and the decoder of an unCLIP model",
}
"""Other scheduler classes of diffusers -> what each of them does."""

_NAMELESS = {**{k: v for fields in TABLES.values() for k, v in fields.items()}, **_DDIM, "clip_sample": False}
"""The fields of a config that names no class: it is read as a DDIMScheduler's, but clips x0 only if it says so."""

OWN_SOLVER: dict[str, Usual] = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
"""Classes for distilled models, which have a grid of their own (``timestep_spacing`` is ignored) -> their solver."""

EULER_KIND = ("Euler", "Heun", "LMS", "KDPM2", "DPMSolverSDE")
"""Prefixes of classes that work with x / alpha. Their Karras and exponential grids span the sigmas of their
``timestep_spacing``, not those of the whole table, and their initial noise has the standard deviation of the grid's
first sigma."""

DPM = "DPMSolverMultistepScheduler"
DATA_COUNTS = frozenset(
    kind
    for kind in TABLES
    if kind.startswith(("DPMSolverMulti", "DPMSolverSingle", "DEIS", "UniPC", "SASolver")) and "Inverse" not in kind
)
"""Classes that count the data among the points of ``linspace`` and ``leading``; see ``Schedule.data_counts``."""

STOP_EARLY = ("DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler")
"""Classes whose last step always ends at the lowest noise level."""

# --- the fields -----------------------------------------------------------------------------------------------------

READ = frozenset(
    {
        *_DDIM,
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
        *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "final_sigmas_type", "rho", "flow_shift"),
        *("timestep_type", "original_inference_steps"),
    }
)
"""Fields that are read below: they determine path, prediction type, grid, timesteps and clipping of x0."""

READ_BY_FLOWS = frozenset(
    {
        *("shift", "use_dynamic_shifting", "time_shift_type", "base_shift", "max_shift", "shift_terminal"),
        *("base_image_seq_len", "max_image_seq_len"),
    }
)
"""Fields that are read below for flow-matching classes; for other classes ``IGNORED`` and ``REQUIRED`` apply."""

READ_BY_LCM = frozenset({"timestep_scaling"})
"""Fields that are read below for LCM; TCD has the same, and ``IGNORED`` says why its value does not matter."""

_SOLVERS = "the caller chooses the solver"
_UNLESS = "it has an effect only together with use_dynamic_shifting, which is refused"
IGNORED: dict[str, str] = {
    **dict.fromkeys(("solver_order", "solver_type", "solver_p", "algorithm_type", "predict_x0", "tau_func"), _SOLVERS),
    **dict.fromkeys(("lower_order_final", "euler_at_final", "disable_corrector", "skip_prk_steps"), _SOLVERS),
    "noise_sampler_seed": "the caller chooses the seeds",
    **dict.fromkeys(("predictor_order", "corrector_order", "snr", "correct_steps"), _SOLVERS),
    "sampling_eps": "the grid ends at sigma_min, from which sampling_eps differs by less than 0.02 %",
    **dict.fromkeys(("s_noise", "s_churn", "s_min", "s_max"), _SOLVERS),
    "variance_type": "the solver determines the noise of a step; a learned variance is ignored",
    "time_shift_type": _UNLESS,
    "timestep_scaling": "it belongs to the boundary condition of consistency models, which TCD has none of",
}
"""Field -> why its value cannot change the result here."""

_OTHER_GRID = "a grid that this version does not support"
REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_dynamic_shifting": (
        (False, None),
        "a shift of flow sigmas that its pipeline computes from the size of the image, which this version supports for "
        "FlowMatchEulerDiscreteScheduler only",
    ),
    "shift_terminal": ((None,), _OTHER_GRID),
    "invert_sigmas": ((False, None), "a time that runs in the other direction, which this version does not support"),
    "stochastic_sampling": (
        (False, None),
        "a sampler that adds new noise in each step, which this version does not support",
    ),
    "interpolation_type": (
        ("linear",),
        "noise levels that do not belong to the timesteps of their steps (use_exponential_sigmas makes the same levels "
        "with their own timesteps)",
    ),
    "lambda_min_clipped": (
        (-math.inf, None),
        "a grid without the noisiest levels (which can be given as a list of timesteps for the spacing)",
    ),
    "predict_epsilon": ((True, None), "a network that predicts x0, which is written prediction_type = 'sample'"),
}
"""Field -> the values that are accepted (the first is suggested), and what any other value would mean."""

_ELSEWHERE = frozenset(
    {
        *("snr_shift_scale", "set_alpha_to_zero"),
        *("tensor_format", "timestep_values"),
    }
)
"""Fields of classes that are not supported, or of diffusers' first versions: no class above reads them."""


MOST_TOKENS = 10**7
"""The largest number of image tokens that a config may have; it catches mistyped numbers."""


class ParsedConfig(NamedTuple):
    """A scheduler config as its class in diffusers reads it.

    Attributes:
        kind: the name of the class; empty if the config names none.
        fields: every field of the class, with its value in the config or its default.
    """

    kind: str
    fields: Mapping[str, Any]

    def whole(self, key: str, low: int, high: int) -> int:
        """Returns a field that must be a whole number in [low, high]."""
        value = self.fields[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not is_whole(value) or not low <= value <= high:
            raise InputError(f"{shown(value)} is not a whole number from {low} to {high}.", parameter=key)
        return int(value)

    def number(self, key: str, low: float, high: float = math.inf) -> float:
        """Returns a field that must be a finite number above ``low`` and at most ``high``."""
        value = self.fields[key]
        if not is_number(value) or not low < value <= high:
            most = "" if high == math.inf else f" and at most {high:g}"
            raise InputError(f"{shown(value)} is not a number above {low:g}{most}.", parameter=key)
        return float(value)

    def switch(self, key: str) -> bool:
        """Returns a field that must be a bool; False if the class has no such field."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            raise InputError(f"{shown(value)} is neither true nor false.", parameter=key)
        return value


def fields_read_by(kind: str) -> frozenset[str]:
    """Returns the names of the fields that this module reads for a scheduler class."""
    return READ | (READ_BY_FLOWS if kind in FLOWS else READ_BY_LCM if kind == "LCMScheduler" else frozenset())


def parse_config(config: Mapping[str, Any]) -> ParsedConfig:
    """Checks a config, and completes it with the defaults of its class.

    As in diffusers, fields that only other classes have are ignored, and so are fields that start with an underscore.

    Raises:
        InputError: the class or a field is unknown, or a field has a value that is not supported (see ``REQUIRED``).
    """
    kind = config.get("_class_name") or ""
    if isinstance(kind, str) and kind in UNSUPPORTED:
        raise InputError(f"a {kind} {UNSUPPORTED[kind]}, which this version does not support.", parameter="scheduler")
    if kind and (not isinstance(kind, str) or kind not in SCHEDULERS):
        raise UnknownName("scheduler", kind, SCHEDULERS)
    usual = SCHEDULERS[kind] if kind else _NAMELESS
    for key, value in config.items():
        known = (
            key in READ | READ_BY_FLOWS or key in IGNORED or key in REQUIRED or key in _ELSEWHERE or key.startswith("_")
        )
        if not known and value is not None and value is not False:
            raise InputError(
                f"{shown(value)} is the value of a field that no known scheduler has, so its effect is unknown; if it "
                "has none, remove it from the scheduler's config.",
                parameter=key,
            )
        fine, means = REQUIRED.get(key, ((), ""))
        reads = (key in usual and key not in fields_read_by(kind)) or key == "predict_epsilon"
        if fine and reads and not any(value is v or (_same(value, v)) for v in fine):
            raise InputError(f"{shown(value)} means {means}; use {shown(fine[0])}.", parameter=key)
    return ParsedConfig(kind, {key: config.get(key, value) for key, value in usual.items()})


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal, where a bool never equals a number."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def shown(value: Any) -> str:
    """Returns the repr of a value, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
