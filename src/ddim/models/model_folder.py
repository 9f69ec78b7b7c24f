"""Which model a folder holds: its pipeline's class decides, and what is not known is refused by name."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .families import FAMILIES

INDEX, SCHEDULE = "model_index.json", "scheduler_config.json"
_ASKS_MORE = {
    "ControlNet": "its ControlNet wants a picture of its own with every call, which is no part of a code; load the "
    "pipeline without it",
    "Inpaint": "its U-Net or its sampler wants a mask with every call; ddim.edit takes a mask with any text model, so "
    "load the text-to-image pipeline",
    "Adapter": "its adapter wants a picture of its own with every call, which is no part of a code; load the pipeline "
    "without it",
    "Upscale": "its network wants a small picture with every call",
    "Depth2Img": "its network wants a map of depths with every call",
    "Pix2Pix": "its network wants the source picture with every call",
}
"""Of kinds of pipelines that people will try: why they are not taken."""


def pipeline_class(folder: Path) -> str | None:
    """The class of the pipeline that a folder holds; None for a network alone.

    Raises:
        InputError: a pipeline of a class that no family serves.
    """
    if not (folder / INDEX).is_file():
        return None
    kind = read_json(folder / INDEX).get("_class_name")
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{folder / INDEX} does not name its pipeline: _class_name is {kind!r}.", parameter="model")
    if kind not in FAMILIES:
        refuse_pipeline(kind, f"{folder} is a {kind}")
    return kind


def refuse_pipeline(kind: str, what: str) -> NoReturn:
    """Raises InputError for a pipeline of a class that no family serves, and says why where that is known."""
    why = next((f": {said}" for part, said in _ASKS_MORE.items() if part in kind), "")
    raise InputError(
        f"{what}, which this version does not take{why}.", parameter="model", hint=f"Taken are {', '.join(FAMILIES)}."
    )


def parts_of(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """The parts of a folder's pipeline that its adapter reads; none for pixel models."""
    kind = pipeline_class(folder)
    return {} if kind is None else FAMILIES[kind].parts


def part_class(folder: Path, part: str, taken: Mapping[str, tuple[str, ...]]) -> str:
    """The class of a pipeline's part by its index. Raises InputError for one that is not among ``taken``."""
    entry: Any = read_json(folder / INDEX).get(part)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if part not in taken and isinstance(kind, str):
        return kind
    if kind not in taken.get(part, ()):
        what = f"is a {kind}" if isinstance(kind, str) else "is none"
        known = " or ".join(taken.get(part, ("a scheduler of diffusers",)))
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
            if sub == Path() and (above / INDEX).is_file() and parts_of(above):
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
