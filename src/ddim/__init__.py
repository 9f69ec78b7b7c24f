"""Diffusion that runs both ways: sample, invert, reconstruct and interpolate with the DDIM family.

Nothing heavy is imported until a name is used: torch and diffusers load with the first one that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._utils.errors import DDIMError, DDIMWarning, InputError, Interrupted, NotFinite, UnknownName
    from .core.denoiser import Denoiser, from_network
    from .core.grid import SPACINGS, Grid, make_grid
    from .core.guidance import Guidance
    from .core.path import (
        GaussianPath,
        Node,
        RectifiedFlow,
        TablePath,
        VEPath,
        cosine_alpha_bar,
        ddpm_linear,
        linear_alpha_bar,
        scaled_linear_alpha_bar,
        zero_terminal_snr,
    )
    from .core.prediction import Pair, from_pair, to_pair
    from .core.slerp import slerp
    from .core.solve import solve, solve_back
    from .data.images import save_image, sheet, to_pil
    from .editing.attention import AttentionEdit
    from .inversion import inversion_names, make_inversion
    from .inversion.latent_code import LatentCode
    from .models import bundled_models, bundled_test_images, load, load_classifier, load_features
    from .models.scheduler_config import from_scheduler_config
    from .pipelines.edit import Edited, edit
    from .pipelines.interpolate import interpolate, interpolate_grid
    from .pipelines.verbs import invert, reconstruct, sample
    from .solvers import SOLVERS, make_solver

_WHERE = {
    "inversion.latent_code": ["LatentCode"],
    "core.denoiser": ["Denoiser", "from_network"],
    "editing.attention": ["AttentionEdit"],
    "pipelines.edit": ["Edited", "edit"],
    "_utils.errors": ["DDIMError", "DDIMWarning", "InputError", "Interrupted", "NotFinite", "UnknownName"],
    "core.grid": ["SPACINGS", "Grid", "make_grid"],
    "core.guidance": ["Guidance"],
    "data.images": ["save_image", "sheet", "to_pil"],
    "core.slerp": ["slerp"],
    "inversion": ["inversion_names", "make_inversion"],
    "models": ["bundled_models", "bundled_test_images", "load", "load_classifier", "load_features"],
    "core.path": [
        *("GaussianPath", "Node", "RectifiedFlow", "TablePath", "VEPath", "cosine_alpha_bar", "ddpm_linear"),
        *("linear_alpha_bar", "scaled_linear_alpha_bar", "zero_terminal_snr"),
    ],
    "core.prediction": ["Pair", "from_pair", "to_pair"],
    "core.solve": ["solve", "solve_back"],
    "models.scheduler_config": ["from_scheduler_config"],
    "solvers": ["SOLVERS", "make_solver"],
    "pipelines.interpolate": ["interpolate", "interpolate_grid"],
    "pipelines.verbs": ["invert", "reconstruct", "sample"],
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "AttentionEdit",
    "DDIMError",
    "DDIMWarning",
    "Denoiser",
    "Edited",
    "GaussianPath",
    "Grid",
    "Guidance",
    "InputError",
    "Interrupted",
    "LatentCode",
    "Node",
    "NotFinite",
    "Pair",
    "RectifiedFlow",
    "TablePath",
    "UnknownName",
    "VEPath",
    "bundled_models",
    "bundled_test_images",
    "cosine_alpha_bar",
    "ddpm_linear",
    "edit",
    "from_network",
    "from_pair",
    "from_scheduler_config",
    "interpolate",
    "interpolate_grid",
    "inversion_names",
    "invert",
    "linear_alpha_bar",
    "load",
    "load_classifier",
    "load_features",
    "make_grid",
    "make_inversion",
    "make_solver",
    "reconstruct",
    "sample",
    "save_image",
    "scaled_linear_alpha_bar",
    "sheet",
    "slerp",
    "solve",
    "solve_back",
    "to_pair",
    "to_pil",
    "zero_terminal_snr",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ddim' has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
