"""The images that a benchmark measures on: bundled with a model, held out by a recipe, or in a folder."""

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
from ..data.sources import TablePart, held_out, open_source, square
from ..models import bundled_models, pictures_folder
from ..models.base import Model
from ..models.features import sides
from ..training.config import DataConfig, SourceConfig, TrainConfig
from .metrics.retrieval import Gallery

_T = TypeVar("_T")

GROUP = "subgroup"
"""The column that groups similar words. Without it, all words are in one group."""


@dataclass(frozen=True, eq=False)
class EvalImage:
    """An image to measure on.

    Attributes:
        style, word: what the image shows; empty for images without a prompt.
        group: words of one group are similar.
        prompt: the model's prompt for the image.
        pixels: [C, H, W] in [0, 1].
        held: whether the model was not trained on it.
    """

    style: str
    word: str
    group: str
    prompt: str
    pixels: Tensor
    held: bool


@dataclass(frozen=True, eq=False)
class EvalImages:
    """The images of a benchmark.

    Attributes:
        images: those to invert; the model was trained on none of them.
        known: all images that may be the answer of an edit, including ``images``; empty for a model without text.
        origin: where they come from, in words.
        galleries: style to its images, by word; the key is empty if there is one gallery for all styles.
    """

    images: list[EvalImage]
    known: list[EvalImage] = field(default_factory=list)
    origin: str = ""
    galleries: dict[str, Gallery] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """[N, C, H, W] in [0, 1]."""
        return torch.stack([image.pixels for image in self.images])

    @property
    def about(self) -> dict[str, Any]:
        """What is printed under a table."""
        return {"images": len(self.images), "pictures": self.origin}


def eval_images(
    model: Model, count: int | None = None, recipe: TrainConfig | None = None, data: Path | None = None
) -> EvalImages:
    """The images to measure a model on.

    Args:
        model: the model. Without ``recipe`` and ``data``, the images that are bundled with it are taken.
        count: how many, spread evenly; by default all that are bundled, or at most 100.
        recipe: the recipe that trained the model; its held-out images (with text) or its test split are taken.
        data: a folder, parquet or idx file of images that it was not trained on, for a model without text.

    Raises:
        InputError: there is both a recipe and a folder, or there are no such images, or fewer than ``count``.
    """
    if recipe is not None and data is not None:
        raise InputError("it does not go with --data; give one of the two.", parameter="recipe")
    if data is not None and model.text:
        raise InputError(
            f"the model {model.name!r} needs prompts beside its images; give its recipe instead of --data.",
            parameter="recipe",
        )
    if recipe is not None and model.text:
        known = recipe_images(recipe)
        _check_shape(known[0].pixels, model)
        held = [image for image in known if image.held]
        taken = spread(held, count or min(100, len(held)))
        return EvalImages(taken, known, "held-out pictures of the recipe", galleries(known))
    if recipe is not None or data is not None:
        source = _test_split(recipe) if recipe is not None else _folder(data, model)
        return EvalImages(_read(source, count, model), origin="test pictures")
    return _bundled(model, count)


def read_recipe(file: Path) -> TrainConfig:
    """The training config in a file. Raises InputError for one that cannot be read."""
    from ..training import load_config

    return load_config(file)


def recipe_images(config: TrainConfig) -> list[EvalImage]:
    """Every image of a recipe's first source, including those that it holds out.

    Args:
        config: of a text-to-image model; ``data.without`` lists what is held out, by style and word.

    Raises:
        InputError: there is no list of held-out images, or it does not have two columns.
    """
    source, data = config.data.sources[0], config.data
    if not source.without:
        raise InputError(
            "the recipe holds nothing out, so there is no image that the model was not trained on.",
            parameter="data.without",
        )
    columns, listed = held_out(source.without)
    if len(columns) != 2:
        raise InputError(
            f"{source.without} must have two columns, a style and a word; it has {', '.join(columns)}.",
            parameter="data.without",
        )
    part = open_source(replace(source, without=""), data)
    assert isinstance(part, TablePart)  # only a table can have a list of styles and words
    out = []
    groups = part.values(GROUP) if GROUP in part.table.names else [""] * len(part)
    for row, (style, word, group) in enumerate(zip(*map(part.values, columns), groups, strict=True)):
        pixels = torch.from_numpy(square(part.open(row), data)).float() / 255
        out.append(EvalImage(style, word, group, part.prompt(row), pixels, (style, word) in listed))
    return out


def galleries(images: Sequence[EvalImage]) -> dict[str, Gallery]:
    """A gallery for each style, in which images are found by their words."""
    by_style: dict[str, list[EvalImage]] = {}
    for image in images:
        by_style.setdefault(image.style, []).append(image)
    return {
        style: Gallery(torch.stack([image.pixels for image in own]), [image.word for image in own])
        for style, own in sorted(by_style.items())
    }


def spread(images: Sequence[_T], count: int) -> list[_T]:
    """``count`` of the images, evenly spread.

    Raises:
        InputError: there are fewer.
    """
    if count > len(images):
        raise InputError(f"{count} is more than the {len(images)} images that there are.", parameter="images")
    return [images[k * len(images) // count] for k in range(count)]


def _bundled(model: Model, count: int | None) -> EvalImages:
    if model.name not in bundled_models():
        kind = "--recipe" if model.text else "--recipe or --data"
        raise InputError(f"no images are bundled with the model {model.name!r}; give {kind}.", parameter="data")
    root, origin = pictures_folder(model.name), "pictures that the package carries"
    if not model.text:
        files = sorted((root / "test_images").glob("*.png"))
        images = [_image("", "", file, model) for file in files]
        return EvalImages(spread(images, count or len(images)), origin=origin)
    with (root / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"]]
    named = [row["prompt"].partition(" ") for row in rows]  # a style of one word, then the name
    known = [_image(style, word, root / row["file"], model) for row, (style, _, word) in zip(rows, named, strict=True)]
    tests = [image for image, row in zip(known, rows, strict=True) if row["file"].startswith("test_images/")]
    # a style has only a handful of images, so all styles share one gallery
    gallery = Gallery(torch.stack([image.pixels for image in known]), [f"{i.style} {i.word}" for i in known])
    return EvalImages(spread(tests, count or len(tests)), known, origin, {"": gallery})


def _image(style: str, word: str, file: Path, model: Model) -> EvalImage:
    pixels = read_images(file, model.picture)[0]
    return EvalImage(style, word or file.stem, "", f"{style} {word}".strip(), pixels, held=True)


def _test_split(recipe: TrainConfig) -> DataConfig:
    """The first source's test split. Raises InputError if it cannot have one."""
    data, path = recipe.data, Path(recipe.data.path)
    single = path.is_file() and "-idx3-ubyte" not in path.name
    if single or (path.is_dir() and not _has_split(path)):
        raise InputError(f"{path} has no images that the recipe does not train on; give some.", parameter="data")
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


def _read(config: DataConfig, count: int | None, model: Model) -> list[EvalImage]:
    source = config.sources[0]
    part = open_source(source, config)
    out = []
    for row in spread(range(len(part)), count or min(100, len(part))):
        try:
            pixels = torch.from_numpy(square(part.open(row), config)).float() / 255
        except InputError as error:
            raise InputError(f"{source.path}, {part.name(row)}: {error.message}", parameter="data") from None
        out.append(EvalImage("", part.name(row), "", "", pixels, held=True))
    _check_shape(out[0].pixels, model)
    return out


def _check_shape(pixels: Tensor, model: Model) -> None:
    if tuple(pixels.shape) != tuple(model.picture):
        generated = f"the model {model.name!r} generates {sides(model.picture)}"
        raise InputError(f"the images are {sides(tuple(pixels.shape))}, and {generated}.", parameter="data")
