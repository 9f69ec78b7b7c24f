"""Adapters from foreign formats; the only folder that imports diffusers at run time."""

import warnings
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import DDIMError, DDIMWarning, InputError, UnknownName
from .._utils.foreign import read_json, told
from .._utils.silence import loading
from .kind import is_text, part_class, scheduler_of, unet_folder

if TYPE_CHECKING:
    import torch

    from .base import Model
    from .classifier import load_classifier
    from .features import load_features
    from .pixel import PixelModel
    from .sd import LatentTextModel

DTYPES = ("float32", "float64", "bfloat16", "float16")


def bundled_models() -> dict[str, Path]:
    """The models that the package carries: name to folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "model_index.json").is_file()}


def bundled_test_images(name: str) -> list[Path]:
    """Real pictures, never trained on, that the package carries beside a bundled model."""
    if name not in bundled_models():
        raise UnknownName("bundled model", name, bundled_models(), parameter="name")
    return sorted((bundled_models()[name] / "test_images").glob("*.png"))


def load(
    name: str | Path,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "float32",
    compile: bool = False,
) -> "Model":
    """A model by the name of a bundled one, a folder in the diffusers format, or a hub id.

    Args:
        name: ``"fashion"`` or ``"emoji"``; a folder (a DDPM's or Stable Diffusion's pipeline, or a bare UNet2DModel);
            or ``owner/name`` on the hub.
        device: ``"cpu"``, ``"cuda"`` ...; by default cuda where there is one.
        dtype: what the network computes in: float32, float64, bfloat16 or float16.
        compile: have torch.compile translate the U-Net at its first call, which takes a minute or so for each size of
            batch; in float32 on a CPU it seldom pays (``benchmarks/NOTES.md``).

    Raises:
        InputError: no such model (the nearest is named), a format this version does not take, a pickle; ``compile``
            where there is no C++ compiler.
        DDIMError: the files are broken, or the hub cannot be reached.
    """
    from .engine.quicken import need_compiler, quicken
    from .hub import from_hub
    from .weights import PICKLES

    if not isinstance(name, (str, PathLike)):
        raise InputError(
            f"a {type(name).__name__} is neither the name of a model nor its folder, and that is what load takes.",
            parameter="model",
            hint="A pipeline's save_pretrained(folder) makes a folder; for a network of one's own there is "
            "ddim.from_network.",
        )
    where, dtype = where_and_what(device, dtype)
    if compile:
        need_compiler(where)
    bundled = bundled_models()
    source = str(bundled.get(str(name), name))
    folder = Path(source)
    if folder.is_file():
        what = "a pickle, which is never loaded" if folder.suffix.lower() in PICKLES else "a single file"
        raise InputError(
            f"{source} is {what}; give a folder in the diffusers format (with safetensors weights).", parameter="model"
        )
    if not folder.is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
        hint = "" if "/" not in source else f"There is no folder {source}. "
        also = "A folder in the diffusers format or a hub id (owner/name) will do too."
        raise UnknownName("model", str(name), bundled, hint=f"{hint}{also}")
    folder = folder if folder.is_dir() else from_hub(source)
    kind = _load_text if is_text(folder) else _load_pixel
    try:
        model = kind(str(name), folder, where, dtype)
    except (DDIMError, Warning):
        raise
    except Exception as error:  # a config may hold anything, and each of its values is used somewhere
        raise DDIMError(f"{folder} cannot be loaded: {told(error)}", parameter="model") from None
    quicken(model, compile=compile)
    return model


def where_and_what(
    device: "str | torch.device | None", dtype: "str | torch.dtype"
) -> "tuple[torch.device, torch.dtype]":
    """A device, cuda by default where there is one, and a dtype. Raises InputError for one that is not to be had."""
    import torch

    given = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if given not in DTYPES:
        raise UnknownName("dtype", given, DTYPES)
    kind = getattr(torch, str(given))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except Exception:  # a name that torch has not heard of, and a value that is no name
        raise UnknownName("device", str(device), ["cpu", "cuda", "mps"]) from None
    try:  # torch knows the names of many devices that no machine has all of
        works = float(torch.ones(1, dtype=kind, device=where) + 1) == 2
    except Exception:  # each device fails in its own way
        works = False
    if not works:
        what = "CUDA device" if str(where) == "cuda" else f"device {str(where)!r}"
        raise InputError(f"there is no {what} here that computes in {given}; use 'cpu'.", parameter="device")
    return where, kind


def _load_text(name: str, folder: Path, device: "torch.device", dtype: "torch.dtype") -> "LatentTextModel":
    try:
        with loading():
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
            from transformers import CLIPTextModel
    except (ImportError, RuntimeError):  # diffusers raises RuntimeError where transformers is missing
        raise InputError("A model with a text encoder needs transformers: pip install transformers.") from None
    from .sd import LatentTextModel, read_autoencoder, read_text_unet
    from .tokens import read_tokenizer
    from .weights import transformers_part

    classes = {part: part_class(folder, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    tokenizer, scheduler = read_tokenizer(folder / "tokenizer"), _scheduler(folder / "scheduler", classes["scheduler"])
    parts = {
        "text_encoder": transformers_part(CLIPTextModel, folder / "text_encoder"),
        "vae": read_autoencoder(folder / "vae"),
        "unet": read_text_unet(folder / "unet"),
    }
    off: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with loading():
        pipeline = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **off)
        pipeline.set_progress_bar_config(disable=True)
    model = LatentTextModel(name, pipeline, device=device, dtype=dtype)
    model.try_out()
    return model


def _scheduler(folder: Path, kind: str) -> Any:
    """A pipeline's scheduler, as diffusers makes it from its config; the pipeline's index says of which class."""
    import diffusers

    from .scheduler_config import from_scheduler_config

    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no scheduler_config.json.", parameter="model")
    from_scheduler_config({"_class_name": kind})
    said = read_json(file)
    own = said.get("_class_name", kind)
    if said.get("clip_sample"):
        warnings.warn(
            f"{file} says clip_sample, which latents are not held to; it is left aside, as diffusers' pipeline does.",
            DDIMWarning,
            stacklevel=4,
        )
    if own != kind:
        warnings.warn(
            f"{file} is of a {own}, but the pipeline says {kind}; it is read as diffusers reads it, as a {kind}, and "
            "fields that this class does not have say nothing.",
            DDIMWarning,
            stacklevel=4,
        )
    with loading():
        try:
            return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of a config that makes no sense, diffusers raises what comes up
            raise InputError(f"{folder} cannot be loaded as a {kind}: {told(error)}", parameter="model") from None


def _load_pixel(name: str, folder: Path, device: "torch.device", dtype: "torch.dtype") -> "PixelModel":
    from diffusers.models.unets.unet_2d import UNet2DModel

    from .pixel import PixelModel
    from .weights import diffusers_part

    network = folder / unet_folder(folder)
    model = PixelModel(name, diffusers_part(UNet2DModel, network), scheduler_of(network), device=device, dtype=dtype)
    model.try_out()
    return model


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # needs torch
        from .classifier import load_classifier

        return load_classifier
    if name == "load_features":
        from .features import load_features

        return load_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["bundled_models", "bundled_test_images", "load", "load_classifier", "load_features"]
