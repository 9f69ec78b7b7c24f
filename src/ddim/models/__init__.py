"""Adapters from foreign formats; the only folder that imports diffusers at run time."""

from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError, UnknownName
from .device import DTYPES, device_and_dtype

if TYPE_CHECKING:
    import torch

    from .base import Model
    from .classifier import load_classifier
    from .features import load_features


def bundled_models() -> dict[str, Path]:
    """The models that the package carries: name to folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "model_index.json").is_file()}


def bundled_test_images(name: str) -> list[Path]:
    """Real pictures that a bundled model was never trained on; `fashion-classes` has those of `fashion`."""
    if name not in bundled_models():
        raise UnknownName("bundled model", name, bundled_models(), parameter="name")
    bundled, first = bundled_models(), name.partition("-")[0]
    own = name if (bundled[name] / "test_images").is_dir() else first
    return sorted((bundled[own] / "test_images").glob("*.png"))


def load(
    model: "str | Path | Any",
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    compile: bool = False,
) -> "Model":
    """A model by the name of a bundled one, a folder in the diffusers format, a hub id, or a live pipeline.

    Args:
        model: ``"fashion"`` or ``"emoji"``; a folder (a pipeline's, or a bare UNet2DModel's); ``owner/name`` on the
            hub; or a pipeline object of diffusers as its owner set it up, with LoRAs, quantised, offloaded: it is
            neither loaded anew nor moved nor cast, and stays as it is.
        device: ``"cpu"``, ``"cuda"`` ...; by default cuda where there is one. Not for a live pipeline.
        dtype: what the network computes in: float32 (the default), float64, bfloat16 or float16. Not for a live
            pipeline.
        compile: have torch.compile translate the U-Net at its first call, which takes a minute or so for each size of
            batch; in float32 on a CPU it seldom pays (``benchmarks/NOTES.md``).

    Raises:
        InputError: no such model (the nearest is named), a format this version does not take, a pickle; ``compile``
            where there is no C++ compiler; a device or dtype for a live pipeline.
        DDIMError: the files are broken, or the hub cannot be reached.
    """
    from .engine.optimize import quicken, require_compiler
    from .families import FAMILIES
    from .model_folder import pipeline_class

    if not isinstance(model, (str, PathLike)):
        return _live(model, {"device": device, "dtype": dtype, "compile": compile or None})
    where, what = device_and_dtype(device, "float32" if dtype is None else dtype)
    if compile:
        require_compiler(where)
    folder = _folder_of(model)
    adapter = FAMILIES[pipeline_class(folder) or "DDPMPipeline"]
    try:
        made = adapter.from_folder(str(model), folder, where, what)
    except (ImportError, RuntimeError) as error:  # diffusers raises RuntimeError where transformers is missing
        if find_spec("transformers") is None:
            raise InputError("a model with a text encoder needs transformers: pip install transformers.") from None
        raise DDIMError(f"{folder} cannot be loaded: {reason_of(error)}", parameter="model") from None
    except (DDIMError, Warning):
        raise
    except Exception as error:  # a config may hold anything, and each of its values is used somewhere
        raise DDIMError(f"{folder} cannot be loaded: {reason_of(error)}", parameter="model") from None
    quicken(made, compile=compile)
    return made


def _live(pipeline: object, given: "Mapping[str, object]") -> "Model":
    """The model behind a live pipeline."""
    from .families import FAMILIES
    from .model_folder import refuse_pipeline

    kind = type(pipeline).__name__
    if not hasattr(pipeline, "components") or not hasattr(pipeline, "scheduler"):
        raise InputError(
            f"a {kind} is neither the name of a model, nor its folder, nor a pipeline of diffusers.",
            parameter="model",
            hint="For a network of one's own there is ddim.Model.from_network.",
        )
    if set_too := next((name for name, value in given.items() if value is not None), None):
        raise InputError(f"a live {kind} stays where and as it is; leave that out.", parameter=set_too)
    if kind not in FAMILIES:
        refuse_pipeline(kind, f"the pipeline is a {kind}")
    return FAMILIES[kind].from_pipeline(pipeline)


def _folder_of(model: "str | PathLike[str]") -> Path:
    """Where a model's files lie: bundled, a folder, or the hub's cache."""
    from .hub import from_hub
    from .weights import PICKLES

    bundled = bundled_models()
    source = str(bundled.get(str(model), model))
    folder = Path(source)
    if folder.is_file():
        what = "a pickle, which is never loaded" if folder.suffix.lower() in PICKLES else "a single file"
        raise InputError(
            f"{source} is {what}; give a folder in the diffusers format (with safetensors weights).", parameter="model"
        )
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/")):
        hint = "" if "/" not in source else f"There is no folder {source}. "
        also = "A folder in the diffusers format or a hub id (owner/name) will do too."
        raise UnknownName("model", str(model), bundled, hint=f"{hint}{also}")
    return from_hub(source)


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # needs torch
        from .classifier import load_classifier

        return load_classifier
    if name == "load_features":
        from .features import load_features

        return load_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DTYPES",
    "bundled_models",
    "bundled_test_images",
    "device_and_dtype",
    "load",
    "load_classifier",
    "load_features",
]
