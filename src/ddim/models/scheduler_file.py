"""A pipeline's scheduler from its folder, as diffusers makes it."""

import warnings
from pathlib import Path
from typing import Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .._utils.silence import loading
from .scheduler_config import from_scheduler_config


def read_scheduler(folder: Path, kind: str) -> Any:
    """A pipeline's scheduler, as diffusers makes it from its config; the pipeline's index says of which class."""
    import diffusers

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
            stacklevel=6,
        )
    if own != kind:
        warnings.warn(
            f"{file} is of a {own}, but the pipeline says {kind}; it is read as diffusers reads it, as a {kind}, and "
            "fields that this class does not have say nothing.",
            DDIMWarning,
            stacklevel=6,
        )
    with loading():
        try:
            return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of a config that makes no sense, diffusers raises what comes up
            raise InputError(f"{folder} cannot be loaded as a {kind}: {reason_of(error)}", parameter="model") from None
