"""Writes tensors as PNG files that contain their settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def page_of(images: "Tensor", columns: int | None, scale: int) -> "Image":
    """A sheet of images; a single image stays as it is, without a border."""
    from ..data.images import sheet

    return sheet(images, columns, scale=scale, gap=_gap(len(images)))


def check_page(
    count: int,
    picture: Sequence[int],
    columns: int | None = None,
    scale: int = 1,
    of: str = "count",
    given: int | None = None,
) -> None:
    """Raises InputError for a sheet that would be too large; see ``data.images.sheet_size``. Called before any work."""
    from ..data.images import sheet_size

    sheet_size(count, picture, columns, scale=scale, gap=_gap(count), of=of, given=given)


def _gap(count: int) -> int:
    return 0 if count == 1 else 2


def write_page(
    images: "Tensor", path: Path, about: Mapping[str, Any], *, columns: int | None = None, scale: int = 1
) -> Path:
    """Writes images on one sheet, with ``about`` as JSON in the PNG's ``Description``; returns the path."""
    from ..data.images import save_image

    return save_image(page_of(images, columns, scale), path, about=json.dumps(about, default=str))


def write_each(images: "Tensor", paths: Sequence[Path], abouts: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Writes one file for each image, with its own ``about``; returns the paths."""
    pairs = zip(paths, abouts, strict=True)
    return [write_page(images[k : k + 1], path, about) for k, (path, about) in enumerate(pairs)]


def write_photograph(photograph: "Tensor", path: Path, about: Mapping[str, Any], icc: bytes = b"") -> Path:
    """Writes a photograph, uint8 [C, H, W], with its colour profile and ``about``; returns the path."""
    from ..data.images import save_image

    return save_image(photograph, path, about=json.dumps(about, default=str), icc=icc)


def write_film(frames: "Sequence[Image]", path: Path, about: Mapping[str, Any], milliseconds: Sequence[int]) -> Path:
    """Writes an animated PNG with ``about``; ``milliseconds`` says how long each frame is shown. Returns the path."""
    from ..data.images import save_animation

    return save_animation(frames, path, milliseconds, about=json.dumps(about, default=str))
