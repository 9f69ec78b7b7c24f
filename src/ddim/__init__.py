"""Diffusion that runs both ways: sample, invert, reconstruct and interpolate with the DDIM family.

Nothing heavy is imported until a name is used: torch and diffusers load with the first one that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._utils.openmp import bound_spinning as _bound_spinning

__version__ = "0.1.0"

_bound_spinning()  # before torch is loaded, which reads the variables only once

if TYPE_CHECKING:
    from ._utils.errors import DDIMError, DDIMWarning, InputError, Interrupted, NotFinite, UnknownName
    from .core.conditioning import Conditioning, PromptConditioning
    from .core.contracts import Inversion, InversionInterrupted, InversionProblem, InversionResult, Solver
    from .core.denoiser import Call, Denoiser, from_network
    from .core.grid import SPACINGS, Grid, make_grid
    from .core.guidance import Guidance, Proximal, SkipLayers
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
        sigmoid_alpha_bar,
        zero_terminal_snr,
    )
    from .core.prediction import Hold, Pair, from_pair, to_pair
    from .core.schedule import DynamicShift, Flux2Shift, Schedule, StaticShift
    from .core.slerp import slerp
    from .core.solve import solve, solve_back
    from .data.images import save_image, sheet, to_pil
    from .editing.auto_mask import AutoMask
    from .editing.editors import EDITORS, make_editor
    from .editing.editors.base import Editor, EditProblem, Usual
    from .editing.editors.flow_edit import FlowEdit
    from .editing.plan import AttentionEdit
    from .editing.sides import Question, Side
    from .editing.strength import even_strengths
    from .inversion import INVERSIONS, inversion_names, make_inversion
    from .inversion.ddim import DDIMInversion
    from .inversion.direct import DirectInversion
    from .inversion.direct_edit import DirectEdit
    from .inversion.edit_friendly import EditFriendly
    from .inversion.fireflow import FireFlowInversion
    from .inversion.heun import HeunInversion
    from .inversion.latent_code import LatentCode
    from .inversion.negative_prompt import NegativePrompt
    from .inversion.null_text import NullText
    from .inversion.prox_npi import ProxNPI
    from .inversion.renoise import ReNoise
    from .inversion.rf_inversion import RFInversion
    from .inversion.rf_solver import RFSolver
    from .inversion.spd import SPDInversion
    from .inversion.uni_inv import UniInv
    from .models import bundled_models, bundled_test_images, load, load_classifier, load_features
    from .models.base import Model
    from .models.families import FAMILIES
    from .models.info import ModelInfo
    from .models.scheduler_config import from_scheduler_config, read_schedule
    from .models.sdxl import SizeIds
    from .pipelines.capabilities import capabilities
    from .pipelines.edit import Edited, edit
    from .pipelines.events import CodeEvent, EngineEvent, Event, ImagesEvent, LossEvent, StepEvent
    from .pipelines.interpolate import interpolate, interpolate_grid
    from .pipelines.invert import invert
    from .pipelines.reconstruct import reconstruct
    from .pipelines.sample import sample, seeded_code
    from .solvers import SOLVERS, make_solver
    from .solvers.bdia import BDIA
    from .solvers.belm import BELM
    from .solvers.consistency import LCM, TCD
    from .solvers.ddim import DDIM
    from .solvers.ddpm import DDPM
    from .solvers.edict import EDICT
    from .solvers.fireflow import FireFlow
    from .solvers.heun import Heun
    from .solvers.lattice import LatticeState, Lift, ReversibleSolver
    from .solvers.midpoint import Midpoint
    from .solvers.multistep import AdamsBashforth, DPMSolverPP
    from .solvers.reversible_heun import ReversibleHeun
    from .solvers.rex import Rex

_WHERE = {
    "_utils.errors": ["DDIMError", "DDIMWarning", "InputError", "Interrupted", "NotFinite", "UnknownName"],
    "core.conditioning": ["Conditioning", "PromptConditioning"],
    "core.contracts": ["Inversion", "InversionInterrupted", "InversionProblem", "InversionResult", "Solver"],
    "core.denoiser": ["Call", "Denoiser", "from_network"],
    "core.grid": ["SPACINGS", "Grid", "make_grid"],
    "core.guidance": ["Guidance", "Proximal", "SkipLayers"],
    "core.path": [
        *("GaussianPath", "Node", "RectifiedFlow", "TablePath", "VEPath", "cosine_alpha_bar", "ddpm_linear"),
        *("linear_alpha_bar", "scaled_linear_alpha_bar", "sigmoid_alpha_bar", "zero_terminal_snr"),
    ],
    "core.prediction": ["Hold", "Pair", "from_pair", "to_pair"],
    "core.schedule": ["DynamicShift", "Flux2Shift", "Schedule", "StaticShift"],
    "core.slerp": ["slerp"],
    "core.solve": ["solve", "solve_back"],
    "data.images": ["save_image", "sheet", "to_pil"],
    "editing.auto_mask": ["AutoMask"],
    "editing.editors": ["EDITORS", "make_editor"],
    "editing.editors.base": ["EditProblem", "Editor", "Usual"],
    "editing.plan": ["AttentionEdit"],
    "editing.sides": ["Question", "Side"],
    "editing.strength": ["even_strengths"],
    "inversion": ["INVERSIONS", "inversion_names", "make_inversion"],
    "inversion.latent_code": ["LatentCode"],
    "models": ["bundled_models", "bundled_test_images", "load", "load_classifier", "load_features"],
    "models.base": ["Model"],
    "models.families": ["FAMILIES"],
    "models.info": ["ModelInfo"],
    "models.scheduler_config": ["from_scheduler_config", "read_schedule"],
    "pipelines.capabilities": ["capabilities"],
    "pipelines.edit": ["Edited", "edit"],
    "pipelines.events": ["CodeEvent", "EngineEvent", "Event", "ImagesEvent", "LossEvent", "StepEvent"],
    "models.sdxl": ["SizeIds"],
    "pipelines.interpolate": ["interpolate", "interpolate_grid"],
    "pipelines.invert": ["invert"],
    "pipelines.reconstruct": ["reconstruct"],
    "pipelines.sample": ["sample", "seeded_code"],
    "solvers": ["SOLVERS", "make_solver"],
    "solvers.lattice": ["LatticeState", "Lift", "ReversibleSolver"],
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "BDIA",
    "BELM",
    "DDIM",
    "DDPM",
    "EDICT",
    "EDITORS",
    "FAMILIES",
    "INVERSIONS",
    "LCM",
    "SOLVERS",
    "SPACINGS",
    "TCD",
    "AdamsBashforth",
    "AttentionEdit",
    "AutoMask",
    "Call",
    "CodeEvent",
    "Conditioning",
    "DDIMError",
    "DDIMInversion",
    "DDIMWarning",
    "DPMSolverPP",
    "Denoiser",
    "DirectEdit",
    "DirectInversion",
    "DynamicShift",
    "EditFriendly",
    "EditProblem",
    "Edited",
    "Editor",
    "EngineEvent",
    "Event",
    "FireFlow",
    "FireFlowInversion",
    "FlowEdit",
    "Flux2Shift",
    "GaussianPath",
    "Grid",
    "Guidance",
    "Heun",
    "HeunInversion",
    "Hold",
    "ImagesEvent",
    "InputError",
    "Interrupted",
    "Inversion",
    "InversionInterrupted",
    "InversionProblem",
    "InversionResult",
    "LatentCode",
    "LatticeState",
    "Lift",
    "LossEvent",
    "Midpoint",
    "Model",
    "ModelInfo",
    "NegativePrompt",
    "Node",
    "NotFinite",
    "NullText",
    "Pair",
    "PromptConditioning",
    "ProxNPI",
    "Proximal",
    "Question",
    "RFInversion",
    "RFSolver",
    "ReNoise",
    "RectifiedFlow",
    "ReversibleHeun",
    "ReversibleSolver",
    "Rex",
    "SPDInversion",
    "Schedule",
    "Side",
    "SizeIds",
    "SkipLayers",
    "Solver",
    "StaticShift",
    "StepEvent",
    "TablePath",
    "UniInv",
    "UnknownName",
    "Usual",
    "VEPath",
    "bundled_models",
    "bundled_test_images",
    "capabilities",
    "cosine_alpha_bar",
    "ddpm_linear",
    "edit",
    "even_strengths",
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
    "make_editor",
    "make_grid",
    "make_inversion",
    "make_solver",
    "read_schedule",
    "reconstruct",
    "sample",
    "save_image",
    "scaled_linear_alpha_bar",
    "seeded_code",
    "sheet",
    "sigmoid_alpha_bar",
    "slerp",
    "solve",
    "solve_back",
    "to_pair",
    "to_pil",
    "zero_terminal_snr",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name) or _registered(name)
    if module is None:
        raise AttributeError(f"module 'ddim' has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def _registered(name: str) -> str | None:
    """The module of a solver, an inversion or an editor by its class's name, as the registries list them."""
    if name.startswith("_"):
        return None
    from .editing.editors import EDITORS
    from .inversion import INVERSIONS
    from .solvers import SOLVERS

    lines = [line.partition(":") for registry in (SOLVERS, INVERSIONS, EDITORS) for line in registry.lines.values()]
    return next((module for module, _, kind in lines if kind == name), None)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
