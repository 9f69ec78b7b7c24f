"""Finds out which model a folder contains, from the configs of diffusers in it, and refuses unsupported ones."""

import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .families import FAMILIES

INDEX, SCHEDULE = "model_index.json", "scheduler_config.json"
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The usual names of LoRAs."""
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
    "Flux2KleinKV": "its network keeps the reference pictures of a call in a cache; load the FLUX.2 klein pipeline",
    "Flux2Pipeline": "FLUX.2 dev has another text encoder, Mistral 3, and takes the guidance scale as an input; FLUX.2 "
    "klein is supported",
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
    index = read_index(folder)
    if index is None:
        return None
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not kind:
        raise InputError(
            f"{folder / INDEX} does not name a pipeline class: its _class_name is {kind!r}.", parameter="model"
        )
    if kind not in FAMILIES:
        refuse_pipeline(kind, f"{folder} is a {kind}")
    return kind


def read_index(folder: Path) -> dict[str, Any] | None:
    """Reads the index of the pipeline in a folder.

    A checkpoint of a training run that holds only a network has the index of the run's folder above it, and a folder
    with all parts of a pipeline but without an index has the one that follows from the configs of its parts.

    Returns:
        The content of ``model_index.json``; None if the folder holds a network alone.

    Raises:
        InputError: there is no index, and the parts are those of no supported pipeline.
    """
    index = whole_folder(folder) / INDEX
    return read_json(index) if index.is_file() else _inferred_index(folder)


def part_folder(folder: Path, part: str) -> Path:
    """Returns the folder of a pipeline's part, which a checkpoint may lack and its training run have."""
    return (folder if (folder / part).is_dir() else whole_folder(folder)) / part


def whole_folder(folder: Path) -> Path:
    """Returns the folder of a whole pipeline: that of the training run for a checkpoint that holds only a network."""
    return folder if (folder / INDEX).is_file() else _run_of(folder) or folder


def _run_of(folder: Path) -> Path | None:
    """Returns the folder of the training run with the rest of a checkpoint's pipeline; None if there is none."""
    at = Path(os.path.abspath(folder))
    above = at.parent
    networks = [part for part in ("unet", "transformer") if (at / part / "config.json").is_file()]
    if not re.fullmatch(r"checkpoint[-_]\d+", at.name) or not networks or not (above / INDEX).is_file():
        return None
    return above if networks[0] in read_json(above / INDEX) and not (at / "vae").is_dir() else None


def _inferred_index(folder: Path) -> dict[str, Any] | None:
    """Makes the index of a folder with the parts of a pipeline; None if it has not more than one part.

    Raises:
        InputError: the parts are those of no supported pipeline, and the message says which are missing; or the index
            alone says something of the model that its pictures depend on, and that cannot be assumed.
    """
    adapters: list[Any] = [adapter for adapter in dict.fromkeys(FAMILIES.values()) if adapter.parts]
    known = {part for adapter in adapters for part in adapter.parts}
    here = {part for part in known if (folder / part).is_dir()}
    if len(here) < 2:
        return None
    kind = next((named(folder / part) for part in ("unet", "transformer") if part in here), None)
    able = [adapter for adapter in adapters if kind in adapter.parts[adapter.network_part]]
    lacking = {adapter: _lacking(adapter, here) for adapter in able}
    fitting = [adapter for adapter in able if not lacking[adapter] and here <= set(adapter.parts)]
    fitting = [one for one in fitting if all(issubclass(other, one) for other in fitting)]
    if len(fitting) == 1 and (folder / "scheduler" / SCHEDULE).is_file():
        adapter = fitting[0]
        if adapter.untold:
            raise InputError(
                f"{folder} has no {INDEX}, which alone says {adapter.untold}; copy it from the pipeline's repository.",
                parameter="model",
            )
        index: dict[str, Any] = {"_class_name": adapter.pipeline_class}
        index["scheduler"] = ["diffusers", named(folder / "scheduler", SCHEDULE)]
        for part, kinds in adapter.parts.items():
            own = named(folder / part, "tokenizer_config.json" if part.startswith("tokenizer") else "config.json")
            library = "transformers" if part.startswith(("tokenizer", "text_encoder")) else "diffusers"
            own = kinds[0] if own not in kinds and library == "transformers" else own
            index[part] = [library, own] if part in here else [None, None]
        return index
    what = f"{folder} has no {INDEX}, and its parts ({', '.join(sorted(here))}) are those of no supported pipeline"
    if lacking:
        least = min(lacking, key=lambda adapter: (len(lacking[adapter]), adapter.pipeline_class))
        missing = [*lacking[least], *([] if (folder / "scheduler" / SCHEDULE).is_file() else ["scheduler"])]
        if missing:
            what = f"{folder} has no {INDEX}, and lacks {', '.join(missing)} for a {least.pipeline_class}"
    raise InputError(f"{what}; copy the whole pipeline, with its {INDEX}.", parameter="model")


def _lacking(adapter: "type[Any]", here: set[str]) -> list[str]:
    """Returns the parts that a pipeline needs and that are not here."""
    optional = adapter.optional | {part.replace("text_encoder", "tokenizer") for part in adapter.optional}
    return [part for part in adapter.parts if part not in here and part not in optional]


def named(folder: Path, file: str = "config.json") -> str | None:
    """Returns the class that a part's config names; None if it names none."""
    if not (folder / file).is_file():
        return None
    config = read_json(folder / file)
    several = config.get("architectures")
    found = config.get("_class_name") or config.get("tokenizer_class")
    found = found or (several[0] if isinstance(several, list) and several else None)
    return found if isinstance(found, str) else None


def check_variant_name(variant: Any) -> None:
    """Raises InputError for what no variant can be called; None is no variant."""
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise InputError(f"{variant!r} is not the name of a variant; write for example 'fp16'.", parameter="variant")


def check_variant(folder: Path, variant: str, files: Collection[str] | None = None) -> None:
    """Raises InputError if no part of a model has a variant of its weights.

    Args:
        folder: the folder, with its configs at least.
        variant: the variant.
        files: names of all files that belong into the folder; None for those that are there.
    """
    from .weights import DIFFUSERS, TRANSFORMERS, variants_of

    found: set[str] = set()
    for part in parts_of(folder) or [unet_folder(folder).as_posix()]:
        there = part_folder(folder, part).glob("*") if files is None else [Path(file) for file in files]
        names = [path.name for path in there if files is None or path.parent == Path(part)]
        found |= {*variants_of(names, DIFFUSERS), *variants_of(names, TRANSFORMERS)}
    if variant not in found:
        known = [repr(one) for one in sorted(found) if one]
        has = f"its variants are {', '.join(known)}" if known else "it has no variants; leave it out"
        raise InputError(f"{folder} has no weights of the variant {variant!r}; {has}.", parameter="variant")


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
        "FLUX.2 klein, Chroma, Qwen-Image, Z-Image, Lumina 2 and Sana, and pixel models (UNet2DModel).",
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
    entry: Any = (read_index(folder) or {}).get(part)
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
    if lora := next((name for name in LORA_FILES if (folder / name).is_file()), None):
        raise InputError(
            f"{folder} holds only a LoRA, {lora}; give the model that it was trained on, and this folder as lora (on "
            "the command line --lora).",
            parameter="model",
        )
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
