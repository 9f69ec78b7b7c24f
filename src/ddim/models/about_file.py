"""``ddim.json``, the file in a model's folder for what the formats of diffusers do not say: classes, and guidance."""

import json
from pathlib import Path
from typing import Any

from .._utils.errors import InputError, is_number
from .._utils.files import read_json
from .model_folder import whole_folder

ABOUT = "ddim.json"
"""It holds ``{"classes": [...], "null_class": 10}`` for a class-conditional model, and for a text-to-image model
``{"guidance": 3}``, the usual guidance of its samples."""


def read_about(folder: Path) -> dict[str, Any] | None:
    """Reads a folder's ``ddim.json``, or that of the training run for a checkpoint without one.

    Returns:
        Its content; None if there is no such file.
    """
    file = about_file(folder)
    return read_json(file) if file.is_file() else None


def about_file(folder: Path) -> Path:
    """Returns the path of the ``ddim.json`` that is read for a folder; the file need not exist."""
    return (folder if (folder / ABOUT).is_file() else whole_folder(folder)) / ABOUT


def usual_guidance(folder: Path) -> float | None:
    """Reads the usual guidance from a folder's ``ddim.json``; None if it says nothing.

    Raises:
        InputError: the value is not a number.
    """
    weight = (read_about(folder) or {}).get("guidance")
    if weight is not None and not is_number(weight):
        raise InputError(
            f"{about_file(folder)} says that the usual guidance is {weight!r}, which is not a number; write for "
            'example {"guidance": 3}.',
            parameter="model",
        )
    return None if weight is None else float(weight)


def write_about(folder: Path, **facts: Any) -> None:
    """Writes ``ddim.json`` into a folder."""
    (folder / ABOUT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
