"""Which model a folder holds: its pipeline's class decides, and what is not known is refused by name."""

import os
import warnings
from pathlib import Path
from typing import Any

from .._utils.errors import DDIMWarning, InputError
from .._utils.foreign import read_json

PIXEL_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
TEXT_PIPELINES = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    # the same networks, which diffusers samples otherwise
    *("StableDiffusionPanoramaPipeline", "StableDiffusionSAGPipeline", "StableDiffusionAttendAndExcitePipeline"),
    *("StableDiffusionDiffEditPipeline", "StableDiffusionParadigmsPipeline", "StableDiffusionPipelineSafe"),
    *("SemanticStableDiffusionPipeline", "CycleDiffusionPipeline"),
)
TEXT_PARTS = ("unet", "vae", "text_encoder")
_TAKEN = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
INDEX, SCHEDULE = "model_index.json", "scheduler_config.json"


def is_text(folder: Path) -> bool:
    """Whether a folder holds a pipeline with a text encoder; False for pixel models and for a network alone.

    Raises:
        InputError: a pipeline of another class.
    """
    if not (folder / INDEX).is_file():
        return False
    kind = read_json(folder / INDEX).get("_class_name")
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{folder / INDEX} does not name its pipeline: _class_name is {kind!r}.", parameter="model")
    if kind not in (*PIXEL_PIPELINES, *TEXT_PIPELINES):
        known = f"{', '.join(PIXEL_PIPELINES)} (pixels), {', '.join(TEXT_PIPELINES)} (text)"
        raise InputError(
            f"{folder} is a {kind}, which this version does not take.", parameter="model", hint=f"Taken are {known}."
        )
    return kind in TEXT_PIPELINES


def part_class(folder: Path, part: str) -> str:
    """The class of a text pipeline's part. Raises InputError for one that is not taken."""
    entry: Any = read_json(folder / INDEX).get(part)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if part not in _TAKEN and isinstance(kind, str):
        return kind
    if kind not in _TAKEN.get(part, ()):
        what = f"is a {kind}" if isinstance(kind, str) else "is none"
        known = " or ".join(_TAKEN.get(part, ("a scheduler of diffusers",)))
        raise InputError(f"the {part} of {folder} {what} by {INDEX}; {known} is taken.", parameter="model")
    return str(kind)


def unet_folder(folder: Path) -> Path:
    """Where the UNet2DModel lies in a folder: ``unet``, or ``.`` where the folder itself is one.

    Raises:
        InputError: there is none, or it belongs to a pipeline of another class.
    """
    for sub in (Path("unet"), Path()):
        file = folder / sub / "config.json"
        if file.is_file():
            kind = read_json(file).get("_class_name")
            if kind == "UNet2DConditionModel":
                raise InputError(
                    f"{file.parent} is a UNet2DConditionModel alone; the whole folder of its pipeline, with "
                    f"{INDEX}, text encoder and autoencoder, is needed.",
                    parameter="model",
                )
            if kind != "UNet2DModel":
                what = f"is a {kind}" if isinstance(kind, str) and kind else f"does not name its class ({kind!r})"
                raise InputError(
                    f"{file.parent} {what}; this version works on pixel models, whose network is a UNet2DModel.",
                    parameter="model",
                )
            above = Path(os.path.abspath(folder)).parent
            if sub == Path() and (above / INDEX).is_file() and is_text(above):
                raise InputError(
                    f"{folder} is a part of the text model in {above}; give that folder.", parameter="model"
                )
            return sub
    raise InputError(
        f"{folder} is not in the diffusers format: it has neither unet/config.json nor config.json.", parameter="model"
    )


def scheduler_of(network: Path) -> dict[str, Any]:
    """The scheduler config of a network's folder: its own, its pipeline's, or that of the run whose checkpoint it is.

    Where there is none, it is taken for DDPM's with a DDIMWarning.
    """
    at = Path(os.path.abspath(network))
    run = [at.parent.parent] if at.parent.name.startswith("checkpoint") else []
    for place in (at, at.parent, *run):
        for file in (place / "scheduler" / SCHEDULE, place / SCHEDULE):
            if file.is_file():
                return read_json(file)
        if (place / INDEX).is_file():  # what lies above a whole pipeline is another's
            break
    warnings.warn(
        f"{network} has no scheduler config, and there is none beside or above it: it is taken for a network that "
        "answers with eps, trained on DDPM's 1000 levels (linear betas from 0.0001 to 0.02). If it was trained "
        f"otherwise, its pictures will be wrong; put its {SCHEDULE} beside it.",
        DDIMWarning,
        stacklevel=4,
    )
    return {}
