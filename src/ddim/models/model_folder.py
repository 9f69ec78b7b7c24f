"""Finds out which model a folder contains, from the configs of diffusers in it, and refuses unsupported ones."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .families import FAMILIES

INDEX, SCHEDULE = "model_index.json", "scheduler_config.json"
_EXTRA_INPUTS = {
    "ControlNet": "its ControlNet needs another image in every call, which a latent code does not store; load the "
    "pipeline without it",
    "Inpaint": "its network or its sampler needs a mask in every call; ddim.edit accepts a mask with any text model, "
    "so load the text-to-image pipeline",
    "Adapter": "its adapter needs another image in every call, which a latent code does not store; load the pipeline "
    "without it",
    "Upscale": "its network needs a low-resolution image in every call",
    "Depth2Img": "its network needs a depth map in every call",
    "Pix2Pix": "its network needs the source image in every call",
    "Fill": "its network needs a masked image in every call; ddim.edit accepts a mask with any text model, so load the "
    "text-to-image pipeline",
    "Control": "its network needs a control image in every call, which a latent code does not store; load the "
    "text-to-image pipeline",
    "Redux": "it makes only the embeddings of another pipeline, from an image",
    "QwenImage21": "Qwen-Image 2.1 has another network, text encoder and autoencoder than Qwen-Image",
    "ImageEdit": "its network needs the source image in every call, which a latent code does not store; ddim.edit "
    "edits with the text-to-image pipeline",
    "Layered": "its network makes several layers in every call, from an image",
    "Omni": "its network looks at reference images in every call; load the text-to-image pipeline",
    "SanaSprint": "its network takes the guidance scale and another noise level than Sana's, on a path of its own",
    "Video": "it makes videos; load the text-to-image pipeline",
    "Modular": "its parts are loaded one by one; load the pipeline of the same name without Modular",
}
"""Part of a pipeline class's name -> why such pipelines are not supported."""


def pipeline_class(folder: Path) -> str | None:
    """Returns the class name of the pipeline in a folder; None if the folder holds a network alone.

    Raises:
        InputError: no model family supports this pipeline class, or the index does not name one.
    """
    if not (folder / INDEX).is_file():
        return None
    kind = read_json(folder / INDEX).get("_class_name")
    if not isinstance(kind, str) or not kind:
        raise InputError(
            f"{folder / INDEX} does not name a pipeline class: its _class_name is {kind!r}.", parameter="model"
        )
    if kind not in FAMILIES:
        refuse_pipeline(kind, f"{folder} is a {kind}")
    return kind


def refuse_pipeline(kind: str, what: str) -> NoReturn:
    """Raises InputError for an unsupported pipeline class, with the reason if it is known.

    Args:
        kind: the class name.
        what: the beginning of the message, such as ``"{folder} is a {kind}"``.
    """
    why = next((f": {reason}" for part, reason in _EXTRA_INPUTS.items() if part in kind), "")
    raise InputError(
        f"{what}, which this version does not support{why}.",
        parameter="model",
        hint="It supports text-to-image pipelines of Stable Diffusion 1 and 2, SDXL, Stable Diffusion 3, FLUX.1, "
        "Qwen-Image, Z-Image, Lumina 2 and Sana, and pixel models (UNet2DModel).",
    )


def parts_of(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Returns the parts that the adapter of a folder's pipeline reads, with their classes; empty for pixel models."""
    kind = pipeline_class(folder)
    return {} if kind is None else FAMILIES[kind].parts


def part_of_family(kind: object) -> str | None:
    """Returns the name that a class of a network has as a part of a supported pipeline; None if it is no such part."""
    parts = (adapter.parts for adapter in FAMILIES.values())
    return next((part for known in parts for part, kinds in known.items() if kind in kinds), None)


def part_class(folder: Path, part: str, supported: Mapping[str, tuple[str, ...]]) -> str:
    """Returns the class name of a pipeline's part, from the pipeline's index.

    Args:
        folder: the pipeline's folder.
        part: the name of the part.
        supported: name of a part -> the supported classes; a part that is missing here may have any class.

    Raises:
        InputError: the index names no class for the part, or one that is not supported.
    """
    entry: Any = read_json(folder / INDEX).get(part)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if part not in supported and isinstance(kind, str):
        return kind
    if kind not in supported.get(part, ()):
        what = f"a {kind}" if isinstance(kind, str) else "no class"
        known = " or ".join(supported.get(part, ("a scheduler of diffusers",)))
        raise InputError(
            f"{INDEX} in {folder} names {what} for the {part}; it must be {known}.",
            parameter="model",
        )
    return str(kind)


def unet_folder(folder: Path) -> Path:
    """Finds the UNet2DModel in a folder.

    Returns:
        ``unet``, or ``.`` if the folder itself holds the network.

    Raises:
        InputError: there is no network, or one of another class.
    """
    for sub in (Path("unet"), Path()):
        file = folder / sub / "config.json"
        if file.is_file():
            kind = read_json(file).get("_class_name")
            above = Path(os.path.abspath(folder)).parent
            if sub == Path() and (above / INDEX).is_file() and parts_of(above):
                raise InputError(
                    f"{folder} is only a part of the text model in {above}; give that folder.", parameter="model"
                )
            if part := part_of_family(kind):
                raise InputError(
                    f"{file.parent} holds only a {kind}, the {part} of a pipeline; give the folder of the whole "
                    f"pipeline, with {INDEX}, text encoder and autoencoder.",
                    parameter="model",
                )
            if kind != "UNet2DModel":
                what = f"is a {kind}" if isinstance(kind, str) and kind else f"does not name its class ({kind!r})"
                raise InputError(
                    f"{file.parent} {what}; a network alone must be a UNet2DModel.",
                    parameter="model",
                )
            return sub
    if (file := folder / "transformer" / "config.json").is_file():
        raise InputError(
            f"{folder} holds only a transformer, {_a_kind(read_json(file).get('_class_name'))}; give the folder of the "
            f"whole pipeline, with {INDEX}, text encoder and autoencoder.",
            parameter="model",
        )
    raise InputError(
        f"{folder} is not in the diffusers format: it contains neither {INDEX} nor unet/config.json nor config.json.",
        parameter="model",
    )


def _a_kind(kind: object) -> str:
    return f"a {kind}" if isinstance(kind, str) and kind else "whose class it does not name"


def scheduler_of(network: Path) -> dict[str, Any]:
    """Finds and reads the scheduler config for a network's folder.

    It looks in the folder itself, in the pipeline's folder above it, and, for a checkpoint of a training run, in the
    run's folder. If there is none, it warns (DDIMWarning) and returns an empty config, which means DDPM's schedule.
    """
    at = Path(os.path.abspath(network))
    run = [at.parent.parent] if at.parent.name.startswith("checkpoint") else []
    for folder in (at, at.parent, *run):
        for file in (folder / "scheduler" / SCHEDULE, folder / SCHEDULE):
            if file.is_file():
                return read_json(file)
        if (folder / INDEX).is_file():  # this folder is a whole pipeline; a config further up belongs to another model
            break
    warnings.warn(
        f"There is no scheduler config in {network}, beside it or above it. It is assumed to predict eps and to be "
        "trained on DDPM's 1000 levels (linear betas from 0.0001 to 0.02). If that is wrong, its images will be wrong "
        f"too; put its {SCHEDULE} beside it.",
        DDIMWarning,
        stacklevel=4,
    )
    return {}
