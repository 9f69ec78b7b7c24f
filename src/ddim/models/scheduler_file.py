"""Loads a pipeline's scheduler from its folder, as diffusers does."""

import warnings
from pathlib import Path
from typing import Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .._utils.silence import loading
from .scheduler_config import from_scheduler_config


def read_scheduler(folder: Path, kind: str) -> Any:
    """Loads a pipeline's scheduler, and warns of config fields that diffusers' pipeline ignores.

    Args:
        folder: the scheduler's folder.
        kind: the scheduler's class, from the pipeline's index.

    Raises:
        InputError: there is no config, the class is not supported, or diffusers cannot load it.
    """
    import diffusers

    file = folder / "scheduler_config.json"
    if not file.is_file():
        raise InputError(f"{folder} contains no scheduler_config.json.", parameter="model")
    from_scheduler_config({"_class_name": kind})  # raises for a class that is not supported
    config = read_json(file)
    own = config.get("_class_name", kind)
    if config.get("clip_sample"):
        warnings.warn(
            f"{file} sets clip_sample, but latents are not clipped; it is ignored, as in diffusers' pipeline.",
            DDIMWarning,
            stacklevel=6,
        )
    if own != kind:
        warnings.warn(
            f"{file} was written by a {own}, but the pipeline's index names a {kind}; like diffusers, it is read as a "
            f"{kind}, and fields that this class does not have are ignored.",
            DDIMWarning,
            stacklevel=6,
        )
    with loading():
        try:
            return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
        except Exception as error:  # for an invalid config, diffusers raises errors of any type
            raise InputError(f"{folder} cannot be loaded as a {kind}: {reason_of(error)}", parameter="model") from None
