"""The pictures that an evaluation takes: those carried with a model, a recipe's held-out ones, or a folder's."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..data.folders import has_split
from ..data.idx import idx_file
from ..data.images import read_images
from ..data.sources import open_source, square
from ..models import bundled_models
from ..models.base import Model
from ..models.features import sides
from ..training.config import DataConfig, SourceConfig, TrainConfig
from .edits import Picture, galleries, read_pictures
from .nearest import Gallery

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Material:
    """Pictures to measure on.

    Attributes:
        pictures: those to invert, none of which the model was trained on.
        known: all pictures that may be an edit's answer, ``pictures`` among them; none for a model without text.
        origin: where they are from, in words.
        galleries: a style -> its pictures, by word.
    """

    pictures: list[Picture]
    known: list[Picture] = field(default_factory=list)
    origin: str = ""
    galleries: dict[str, Gallery] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """[N, C, H, W] in [0, 1]."""
        return torch.stack([picture.pixels for picture in self.pictures])


def material(
    model: Model, count: int | None = None, recipe: TrainConfig | None = None, data: Path | None = None
) -> Material:
    """The pictures of a model.

    Args:
        model: by whose name, without ``recipe`` and ``data``, those that the package carries are found.
        count: how many, spread evenly; by default all that are carried, or 100.
        recipe: the one that trained the model, whose held-out pictures (with text) or test split are taken.
        data: a folder, parquet or idx file of pictures it was not trained on, for a model without text.

    Raises:
        InputError: both are given, there are no such pictures, or fewer than ``count``.
    """
    if recipe is not None and data is not None:
        raise InputError("it does not go with --data; give one of the two.", parameter="recipe")
    if data is not None and model.text:
        raise InputError(
            f"the model {model.name!r} needs prompts beside its pictures; give its recipe, not --data.",
            parameter="recipe",
        )
    if recipe is not None and model.text:
        known = read_pictures(recipe)
        _fits(known[0].pixels, model)
        held = [picture for picture in known if picture.held]
        return Material(spread(held, count or 100), known, "held-out pictures of the recipe", galleries(known))
    if recipe is not None or data is not None:
        config = _test_split(recipe) if recipe is not None else _folder(data, model)
        return Material(_read(config, count or 100, model), origin="test pictures")
    return _carried(model, count)


def spread(several: Sequence[_T], count: int) -> list[_T]:
    """``count`` of several, evenly spread.

    Raises:
        InputError: there are fewer.
    """
    if count > len(several):
        raise InputError(f"{count} is more than the {len(several)} pictures there are.", parameter="images")
    return [several[k * len(several) // count] for k in range(count)]


def _carried(model: Model, count: int | None) -> Material:
    root = bundled_models().get(model.name)
    if root is None:
        kind = "--recipe" if model.text else "--recipe or --data"
        raise InputError(
            f"the package carries no pictures for the model {model.name!r}; give {kind}.", parameter="data"
        )
    if not model.text:
        files = sorted((root / "test_images").glob("*.png"))
        pictures = [_picture("", "", file, model) for file in files]
        return Material(spread(pictures, count or len(pictures)), origin="pictures that the package carries")
    with (root / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"]]
    named = [row["prompt"].partition(" ") for row in rows]  # the style's one word, then the name
    known = [
        _picture(style, word, root / row["file"], model) for row, (style, _, word) in zip(rows, named, strict=True)
    ]
    tests = [p for p, row in zip(known, rows, strict=True) if row["file"].startswith("test_images/")]
    # of a style there are a handful: one gallery of all
    gallery = Gallery(torch.stack([p.pixels for p in known]), [f"{p.style} {p.word}" for p in known])
    origin = "pictures that the package carries"
    return Material(spread(tests, count or len(tests)), known, origin, {"": gallery})


def _picture(style: str, word: str, file: Path, model: Model) -> Picture:
    pixels = read_images(file, model.picture)[0]
    return Picture(style, word or file.stem, "", f"{style} {word}".strip(), pixels, held=True)


def _test_split(recipe: TrainConfig) -> DataConfig:
    """The first source's test split. Raises InputError where it cannot have one."""
    data, path = recipe.data, Path(recipe.data.path)
    whole = path.is_file() and "-idx3-ubyte" not in path.name
    if whole or (path.is_dir() and not _has_split(path)):
        raise InputError(f"{path} has no pictures apart from those that it trains on; give some.", parameter="data")
    return replace(data, split="test", more=(), without="", where={})


def _has_split(folder: Path) -> bool:
    return has_split(folder, "test") or any(folder.rglob("*.parquet")) or any(folder.glob("*-idx3-ubyte*"))


def _folder(data: Path | None, model: Model) -> DataConfig:
    channels, height, _ = model.picture
    split = "test" if data is not None and data.is_dir() and _has_split(data) else "train"
    idx = idx_file(SourceConfig(str(data), split)) is not None
    return DataConfig(
        str(data), height, split, channels=1 if channels == 1 else 3, fit="pad" if idx else "crop", background=0
    )


def _read(config: DataConfig, count: int, model: Model) -> list[Picture]:
    source = config.sources[0]
    part = open_source(source, config)
    out = []
    for row in spread(range(len(part)), count):
        try:
            pixels = torch.from_numpy(square(part.open(row), config)).float() / 255
        except InputError as error:
            raise InputError(f"{source.path}, {part.name(row)}: {error.message}", parameter="data") from None
        out.append(Picture("", part.name(row), "", "", pixels, held=True))
    _fits(out[0].pixels, model)
    return out


def _fits(pixels: Tensor, model: Model) -> None:
    if tuple(pixels.shape) != tuple(model.picture):
        made = f"the model {model.name!r} makes {sides(model.picture)}"
        raise InputError(f"the pictures are {sides(tuple(pixels.shape))}, and {made}.", parameter="data")


def about(found: Material) -> dict[str, Any]:
    """What stands under a table."""
    return {"images": len(found.pictures), "pictures": found.origin}
