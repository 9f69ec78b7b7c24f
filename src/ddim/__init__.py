"""Diffusion that runs both ways: sample, invert, reconstruct and interpolate with the DDIM family.

Nothing heavy is imported until a name is used: torch and diffusers load with the first one that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .between import interpolate, interpolate_grid
    from .code import LatentCode
    from .denoiser import Denoiser, from_network
    from .editing.control import AttentionEdit
    from .editing.edit import Edited, edit
    from .errors import DDIMError, DDIMWarning, InputError, Interrupted, NotFinite, UnknownName
    from .grid import SPACINGS, Grid, make_grid
    from .guidance import Guidance
    from .images import save_image, sheet, to_pil
    from .interpolation import slerp
    from .inversion import inversion_names, make_inversion
    from .loop import solve, solve_back
    from .models import bundled_models, bundled_test_images, load, load_classifier, load_features
    from .path import (
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
    from .prediction import Pair, from_pair, to_pair
    from .scheduler import from_scheduler_config
    from .solvers import SOLVERS, make_solver
    from .verbs import invert, reconstruct, sample

_WHERE = {
    "code": ["LatentCode"],
    "denoiser": ["Denoiser", "from_network"],
    "editing.control": ["AttentionEdit"],
    "editing.edit": ["Edited", "edit"],
    "errors": ["DDIMError", "DDIMWarning", "InputError", "Interrupted", "NotFinite", "UnknownName"],
    "grid": ["SPACINGS", "Grid", "make_grid"],
    "guidance": ["Guidance"],
    "images": ["save_image", "sheet", "to_pil"],
    "interpolation": ["slerp"],
    "inversion": ["inversion_names", "make_inversion"],
    "models": ["bundled_models", "bundled_test_images", "load", "load_classifier", "load_features"],
    "path": [
        *("GaussianPath", "Node", "RectifiedFlow", "TablePath", "VEPath", "cosine_alpha_bar", "ddpm_linear"),
        *("linear_alpha_bar", "scaled_linear_alpha_bar", "zero_terminal_snr"),
    ],
    "prediction": ["Pair", "from_pair", "to_pair"],
    "loop": ["solve", "solve_back"],
    "scheduler": ["from_scheduler_config"],
    "solvers": ["SOLVERS", "make_solver"],
    "between": ["interpolate", "interpolate_grid"],
    "verbs": ["invert", "reconstruct", "sample"],
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
