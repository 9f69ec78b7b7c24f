"""Where training images come from: idx files, parquet, folders and the hub, and which rows of them are taken."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, UnknownName, is_whole
from ..images import flatten
from .config import DataConfig, SourceConfig
from .idx import IdxPart, idx_file, read_images, read_labels

BROKEN = (OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)


class Part(Protocol):
    """The rows of one source, undecoded."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The file of an image, or its row where there is no file."""
        ...

    def prompt(self, row: int) -> str:
        """Its words, or an empty text."""
        ...

    def label(self, row: int) -> int | None:
        """Its class, a whole number from 0, or None."""
        ...

    def open(self, row: int) -> Image.Image:
        """The image, perhaps not yet decoded. Raises one of ``BROKEN``."""
        ...


class DatasetPart:
    """The image column of an HF data set, with a prompt and a label for every row where there are any.

    Args:
        dataset: with ``column``.
        column: of the images.
        prompts: one a row, or none.
        labels: one a row, or none.
        others: the data set's other columns.
    """

    def __init__(
        self,
        dataset: Any,
        column: str,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        others: Any = None,
    ) -> None:
        self.dataset, self.column, self.prompts, self.labels, self.others = dataset, column, prompts, labels, others

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, row: int) -> str:
        """See ``Part``."""
        cell = self.dataset[row][self.column]
        path = cell.get("path") if isinstance(cell, dict) else None
        return path or f"row {row}"

    def prompt(self, row: int) -> str:
        """See ``Part``."""
        return self.prompts[row] if self.prompts else ""

    def label(self, row: int) -> int | None:
        """See ``Part``."""
        return self.labels[row] if self.labels else None

    @property
    def columns(self) -> list[str]:
        """Those beside the images."""
        return [] if self.others is None else list(self.others.column_names)

    def values(self, column: str) -> list[str]:
        """What another column says, one text a row. Raises InputError for one that is not there."""
        if self.others is None or column not in self.columns:
            raise UnknownName("column", column, self.columns, parameter="data.column")
        return [str(value) for value in self.others[column]]

    def open(self, row: int) -> Image.Image:
        """See ``Part``."""
        cell = self.dataset[row][self.column]
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        if not isinstance(cell, (bytes, str)):
            raise ValueError(f"there is no image in the cell, but {cell!r:.40}")
        return Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell)


def open_source(source: SourceConfig, config: DataConfig) -> Part:
    """The rows that ``source`` takes.

    Raises:
        InputError: nothing there, no image among it; a column, prompt or list that does not fit.
    """
    idx = idx_file(source)
    if idx is not None:
        if source.prompt or source.where or source.without:
            raise InputError(f"{idx} has no columns for data.prompt, data.where or data.without.")
        if source.label not in ("", "label"):
            raise UnknownName("data.label", source.label, ["label"])
        images = read_images(idx)
        return IdxPart(images, read_labels(idx, len(images)) if source.label else None)
    data = _open_dataset(source)
    column = _image_column(data, source)
    data = _raw(data, column)
    chosen = _chosen(data, column, source, config)
    if chosen is not None:
        data = data.select(chosen)
    if not len(data):
        raise InputError(
            f"there are no images in {source.path}{' with these values' if source.where else ''}.",
            parameter="data.path",
        )
    others = data.remove_columns([column])
    return DatasetPart(data.select_columns([column]), column, _prompts(others, source), _labels(data, source), others)


def _chosen(data: Any, column: str, source: SourceConfig, config: DataConfig) -> list[int] | None:
    """The rows that ``where`` and ``without`` leave; None for all."""
    if not (source.where or source.without):
        return None
    rows = list(range(len(data)))
    for name, values in source.where.items():
        others = [other for other in data.column_names if other != column]
        if name not in others:
            raise UnknownName("data.where column", name, others, parameter="data.where")
        cells = list(data[name])
        rows = [row for row in rows if str(cells[row]) in values]
    return _without(data, column, rows, source, config) if source.without else rows


def _without(data: Any, column: str, rows: list[int], source: SourceConfig, config: DataConfig) -> list[int]:
    """``rows`` less those the file ``without`` lists, and less their pictures under other names."""
    names, listed = held_out(source.without)
    for name in names:
        if name not in data.column_names:
            raise UnknownName(f"column in {source.without}", name, data.column_names, parameter="data.without")
    cells = zip(*(data[name] for name in names), strict=True)
    out = {row for row, values in enumerate(cells) if tuple(map(str, values)) in listed}
    if not out:
        raise InputError(f"{source.without} names no row of {source.path}.", parameter="data.without")
    part = DatasetPart(data, column)

    def pixels(row: int) -> bytes:
        try:
            with part.open(row) as image:
                return square(image, config).tobytes()
        except BROKEN:
            return b""

    seen = {pixels(row) for row in out} - {b""}
    return [row for row in rows if row not in out and pixels(row) not in seen]


def held_out(path: str) -> tuple[list[str], set[tuple[str, ...]]]:
    """A CSV file's header, and its lines. Raises InputError if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [tuple(line) for line in csv.reader(row for row in file if row[0] != "#") if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}.", parameter="data.without") from None
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(
            f"{path} must hold a line of column names, then rows with as many values.", parameter="data.without"
        )
    return list(lines[0]), set(lines[1:])


def _prompts(table: Any, source: SourceConfig) -> list[str]:
    if not source.prompt:
        return []
    try:
        rows = ({name: "" if value is None else value for name, value in row.items()} for row in table)
        prompts = [source.prompt.format(**row) for row in rows]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{source.prompt!r} does not fit the columns {', '.join(table.column_names)}: {error!r}.",
            parameter="data.prompt",
        ) from None
    for pattern, replacement in source.rewrite:
        try:
            prompts = [re.sub(pattern, replacement, prompt) for prompt in prompts]
        except (re.error, IndexError) as error:
            raise InputError(
                f"{pattern!r} to {replacement!r} is no rewriting: {error}.", parameter="data.rewrite"
            ) from None
    return prompts


def _labels(data: Any, source: SourceConfig) -> list[int]:
    if not source.label:
        return []
    if source.label not in data.column_names:
        raise UnknownName("data.label column", source.label, data.column_names, parameter="data.label")
    labels = list(data[source.label])
    wrong = next((label for label in labels if not (is_whole(label) and label >= 0)), 0)
    if wrong != 0:
        raise InputError(f"{source.label!r} holds {wrong!r}; labels are whole numbers from 0.", parameter="data.label")
    return labels


def square(image: Image.Image, config: DataConfig) -> np.ndarray:
    """An image as uint8 [channels, size, size]: upright, without transparency, fitted as the config says."""
    image = ImageOps.exif_transpose(image)
    size, grey = config.size, config.background
    mode, back = ("L", grey) if config.channels == 1 else ("RGB", (grey, grey, grey))
    image = flatten(image, mode, grey)
    if config.fit == "resize":
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    elif config.fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    else:
        if max(image.size) > size:
            image = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
        canvas = Image.new(mode, (size, size), back)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    pixels = np.array(image, dtype=np.uint8).reshape(size, size, config.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


# --- finding them ---------------------------------------------------------------------------------------------------


def _open_dataset(source: SourceConfig) -> Any:
    """The HF data set behind ``path``: a parquet file, a folder, or a hub id."""
    try:
        import datasets
    except ImportError:
        raise InputError("Training needs more packages: pip install 'ddim[train]'.") from None
    path = Path(source.path)
    if not path.exists() and (
        path.is_absolute() or path.suffix in (".parquet", ".gz") or len(path.parts) > 2 or source.path[0] == "."
    ):
        raise InputError(f"there is no file or folder {path}.", parameter="data.path")
    try:
        with _no_bars():
            if path.suffix == ".parquet":
                data = datasets.load_dataset("parquet", data_files=os.fspath(path), split="train")
            elif path.is_dir() and any(path.rglob("*.parquet")):
                data = datasets.load_dataset("parquet", data_dir=os.fspath(path), split=source.split)
            elif path.is_dir():
                files = {"image": _image_files(path / source.split if (path / source.split).is_dir() else path)}
                image = datasets.Features({"image": datasets.Image(decode=False)})
                data = datasets.Dataset.from_dict(files, features=image)
            elif path.exists():
                raise InputError(
                    f"{path} is neither a folder, a parquet file nor an idx file of images.", parameter="data.path"
                )
            else:
                data = datasets.load_dataset(source.path, split=source.split)
    except InputError:
        raise
    except Exception as error:  # datasets raises a dozen types of its own
        where = "is neither a path here nor a data set that the hub gives us"
        reason = "cannot be read" if path.exists() else where
        raise InputError(
            f"{source.path} {reason}: {str(error).splitlines()[0] if str(error) else error!r}", parameter="data.path"
        ) from error
    return data


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that datasets draws on every stderr, be it a terminal or not."""
    import datasets

    drawn = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()


def _raw(data: Any, column: str) -> Any:
    """``data`` with its image column undecoded."""
    import datasets

    return data.cast_column(column, datasets.Image(decode=False)) if _is_image(data.features[column]) else data


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image)


def _image_files(folder: Path) -> list[str]:
    """Everything beneath ``folder`` that is named like an image, in the order of the names."""
    known = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.name[0] != ".")
    if not files:
        raise InputError(f"there are no images in {folder}.", parameter="data.path")
    return [os.fspath(file) for file in files]


def _image_column(data: Any, source: SourceConfig) -> str:
    if source.column:
        if source.column not in data.column_names:
            raise UnknownName("data.column", source.column, data.column_names)
        return source.column
    for name, kind in data.features.items():
        if _is_image(kind):
            return name
    if "image" in data.column_names:
        return "image"
    raise InputError(
        f"no column of {source.path} holds images; it has {', '.join(data.column_names)}.", parameter="data.column"
    )
