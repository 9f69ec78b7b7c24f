"""Where training images come from: idx files, parquet, folders and the hub, and which rows of them are taken."""

import csv
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from math import isnan
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from .._utils.errors import DDIMWarning, InputError, UnknownName, is_whole
from .._utils.foreign import readable, told
from .folders import listing, read_folder
from .idx import IdxPart, idx_file, read_images, read_labels
from .images import decode, flatten, open_image

if TYPE_CHECKING:
    from ..training.config import DataConfig, SourceConfig


class Part(Protocol):
    """The rows of one source, undecoded."""

    class_names: Sequence[str]
    """Of the labels 0, 1, ...; empty where the source does not name them."""

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
        """The image, decoded and upright. Raises InputError where that fails."""
        ...


class Table(Protocol):
    """Pictures with columns beside them."""

    names: list[str]
    """Of the columns."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]:
        """One value a row; None where there is none."""
        ...

    def class_names(self, name: str) -> list[str]:
        """What the numbers 0, 1, ... in a column stand for; empty where that is not known."""
        ...

    def cell(self, row: int) -> Any:
        """The picture: bytes, a file, or a dict of ``bytes`` and ``path``."""
        ...

    def select(self, rows: Sequence[int]) -> "Table":
        """These rows alone."""
        ...


class DatasetTable:
    """An HF data set; see ``Table``.

    Args:
        data: with ``picture``.
        picture: the column of the pictures.
        base: where their relative paths begin.
    """

    def __init__(self, data: Any, picture: str, base: Path) -> None:
        self._data, self._picture, self._base = data, picture, base
        self._pictures = data.select_columns([picture])
        self.names = [name for name in data.column_names if name != picture]

    def __len__(self) -> int:
        return len(self._data)

    def column(self, name: str) -> list[Any]:
        """See ``Table``."""
        return list(self._data[name])

    def class_names(self, name: str) -> list[str]:
        """See ``Table``; a ``ClassLabel`` of HF datasets has them."""
        return list(getattr(self._data.features[name], "names", None) or [])

    def cell(self, row: int) -> Any:
        """See ``Table``."""
        cell = self._pictures[row][self._picture]
        if isinstance(cell, dict) and cell.get("bytes") is None:
            cell = cell.get("path")
        return os.fspath(self._base / cell) if isinstance(cell, str) and (self._base / cell).is_file() else cell

    def select(self, rows: Sequence[int]) -> "DatasetTable":
        """See ``Table``."""
        return DatasetTable(self._data.select(rows), self._picture, self._base)


class TablePart:
    """The rows of a table, with a prompt and a label for every row where there are any; see ``Part``.

    Args:
        table: the pictures.
        prompts: one a row, or none.
        labels: one a row, or none.
        class_names: of the labels 0, 1, ..., or none.
    """

    def __init__(
        self,
        table: Table,
        prompts: Sequence[str] = (),
        labels: Sequence[int] = (),
        class_names: Sequence[str] = (),
    ) -> None:
        self.table, self.prompts, self.labels, self.class_names = table, prompts, labels, class_names

    def __len__(self) -> int:
        return len(self.table)

    def name(self, row: int) -> str:
        """See ``Part``."""
        cell = self.table.cell(row)
        path = cell.get("path") if isinstance(cell, dict) else cell
        return readable(path) if isinstance(path, str) and path else f"row {row}"

    def prompt(self, row: int) -> str:
        """See ``Part``."""
        return self.prompts[row] if self.prompts else ""

    def label(self, row: int) -> int | None:
        """See ``Part``."""
        return self.labels[row] if self.labels else None

    def values(self, column: str) -> list[str]:
        """What a column says, one text a row. Raises InputError for one that is not there."""
        if column not in self.table.names:
            raise UnknownName("column", column, self.table.names, parameter="data.column")
        return [str(value) for value in self.table.column(column)]

    def open(self, row: int) -> Image.Image:
        """See ``Part``."""
        cell = self.table.cell(row)
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if isinstance(cell, bytes):
            return decode(io.BytesIO(cell), self.name(row), "data.path")
        if isinstance(cell, str):
            return open_image(Path(cell), "data.path")
        raise InputError(f"{self.name(row)} holds no image, but {cell!r:.40}.", parameter="data.path")


def open_source(source: "SourceConfig", config: "DataConfig") -> Part:
    """The rows that ``source`` takes.

    Raises:
        InputError: nothing there, no image among it; a column, prompt or list that does not fit.
    """
    idx = idx_file(source)
    if idx is not None:
        if list(_fields(source)) or source.where or source.without:
            raise InputError(
                f"{idx} has no columns for data.prompt, data.where or data.without.",
                parameter="data.where" if source.where else "data.without" if source.without else "data.prompt",
            )
        if source.label not in ("", "label"):
            raise UnknownName("data.label", source.label, ["label"])
        images = read_images(idx)
        labels = read_labels(idx, len(images)) if source.label else None
        return IdxPart(images, labels, _rewritten([source.prompt], source)[0])
    table = _open_table(source)
    for name in _fields(source):
        if name not in table.names:
            raise UnknownName("data.prompt column", name, table.names or ["(none)"], parameter="data.prompt")
    if source.label not in ("", *table.names):
        raise UnknownName("data.label column", source.label, table.names, parameter="data.label")
    chosen = _chosen(table, source, config)
    if chosen is not None:
        table = table.select(chosen)
    if not len(table):
        with_these = " with these values" if source.where else ""
        raise InputError(
            f"there are no images in {source.path}{with_these}.",
            parameter="data.where" if source.where else "data.path",
        )
    names = table.class_names(source.label) if source.label else []
    return TablePart(table, _prompts(table, source), _labels(table, source), names)


def _chosen(table: Table, source: "SourceConfig", config: "DataConfig") -> list[int] | None:
    """The rows that ``where`` and ``without`` leave; None for all."""
    if not (source.where or source.without):
        return None
    rows = list(range(len(table)))
    for name, values in source.where.items():
        if name not in table.names:
            raise UnknownName("data.where column", name, table.names, parameter="data.where")
        cells = list(map(str, table.column(name)))
        known = set(cells)
        for value in values:
            if value not in known:
                near = known if len(known) <= 20 else get_close_matches(value, known, 5)
                raise UnknownName(f"value of {name}", value, near, parameter="data.where")
        rows = [row for row in rows if cells[row] in values]
    return _without(table, rows, source, config) if source.without else rows


def _without(table: Table, rows: list[int], source: "SourceConfig", config: "DataConfig") -> list[int]:
    """``rows`` less those the file ``without`` lists, and less their pictures under other names."""
    names, listed = held_out(source.without)
    for name in names:
        if name not in table.names:
            raise UnknownName(f"column in {source.without}", name, table.names, parameter="data.without")
    cells = zip(*map(table.column, names), strict=True)
    out = {row for row, values in enumerate(cells) if tuple(map(str, values)) in listed}
    if not out:
        raise InputError(f"{source.without} names no row of {source.path}.", parameter="data.without")
    part = TablePart(table)

    def pixels(row: int) -> bytes:
        try:
            return square(part.open(row), config).tobytes()
        except InputError:
            return b""

    seen = {pixels(row) for row in out} - {b""}
    return [row for row in rows if row not in out and pixels(row) not in seen]


def held_out(path: str) -> tuple[list[str], set[tuple[str, ...]]]:
    """A CSV file's header, and its lines. Raises InputError if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [tuple(line) for line in csv.reader(row for row in file if row[0] != "#") if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {told(error)}", parameter="data.without") from None
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(
            f"{path} must hold a line of column names, then rows with as many values.", parameter="data.without"
        )
    return list(lines[0]), set(lines[1:])


def _fields(source: "SourceConfig") -> Iterator[str]:
    """The columns that a prompt's template names. Raises InputError for no template."""
    try:
        for _, path, _, _ in Formatter().parse(source.prompt):
            if path is not None:
                yield re.split(r"[.\[]", path, maxsplit=1)[0]
    except ValueError as error:
        raise InputError(f"{source.prompt!r} is no template: {told(error)}", parameter="data.prompt") from None


def _prompts(table: Table, source: "SourceConfig") -> list[str]:
    """One a row. What a row lacks is left empty; what all rows lack is refused."""
    if not source.prompt:
        return []
    columns = {name: table.column(name) for name in _fields(source)}
    for name, cells in columns.items():
        if all(map(_is_empty, cells)):
            raise InputError(
                f"the column {name!r} of {source.path} is empty in all of its {len(cells)} rows.",
                parameter="data.prompt",
            )
    template = _Words()
    try:
        prompts = [
            template.vformat(source.prompt, (), {name: cells[row] for name, cells in columns.items()})
            for row in range(len(table))
        ]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{source.prompt!r} does not fit the columns {', '.join(table.names)}: {told(error)}",
            parameter="data.prompt",
        ) from None
    prompts = _rewritten(prompts, source)
    wordless = [row for row, prompt in enumerate(prompts) if not prompt.strip()]
    if len(wordless) == len(prompts):
        raise InputError(
            f"{source.prompt!r}, rewritten, leaves no words for any of {len(prompts)} pictures.",
            parameter="data.prompt",
        )
    lacking = [row for row in range(len(table)) if columns and all(_is_empty(cells[row]) for cells in columns.values())]
    if wordless or lacking:
        some = wordless or lacking
        warnings.warn(
            f"{len(some)} of {len(prompts)} pictures in {source.path} have no words for {source.prompt!r} "
            f"(the first: {TablePart(table).name(some[0])}).",
            DDIMWarning,
            stacklevel=2,
        )
    return prompts


class _Words(Formatter):
    """A template that puts nothing in place of an empty cell, and takes words and numbers only."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """See ``Formatter``."""
        if _is_empty(value):
            return ""
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r:.60} is neither words nor a number")
        text = format(value, format_spec)
        text.encode()  # half of a UTF-16 pair, which JSON may hold, is no text
        return text


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and isnan(cell))


def _rewritten(prompts: list[str], source: "SourceConfig") -> list[str]:
    for pattern, replacement in source.rewrite:
        try:
            prompts = [re.sub(pattern, replacement, prompt) for prompt in prompts]
        except (re.error, IndexError) as error:
            raise InputError(
                f"{pattern!r} to {replacement!r} is no rewriting: {told(error)}", parameter="data.rewrite"
            ) from None
    return prompts


def _labels(table: Table, source: "SourceConfig") -> list[int]:
    if not source.label:
        return []
    labels = table.column(source.label)
    for row, label in enumerate(labels):
        if not (is_whole(label) and label >= 0):
            raise InputError(
                f"{source.label!r} holds {label!r} in row {row}; labels are whole numbers from 0.",
                parameter="data.label",
            )
    return labels


def square(image: Image.Image, config: "DataConfig") -> np.ndarray:
    """An upright image as uint8 [channels, size, size]: without transparency, fitted as the config says.

    Raises:
        InputError: an image whose numbers or colours cannot be read; see ``images.flatten``.
    """
    size, grey = config.size, config.background
    mode, back = ("L", grey) if config.channels == 1 else ("RGB", (grey, grey, grey))
    image = flatten(image, mode, grey, "data.path")
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


def _open_table(source: "SourceConfig") -> Table:
    """The pictures behind ``path``: a parquet file, a folder, or a hub id."""
    path = Path(source.path)
    if not path.exists() and (
        path.is_absolute() or path.suffix in (".parquet", ".gz") or len(path.parts) > 2 or source.path[0] == "."
    ):
        raise InputError(f"there is no file or folder {path}.", parameter="data.path")
    if path.is_dir():
        found = listing(path)
        if not found.parquet:
            _no_column(source)
            return read_folder(path, source.split)
        if found.pictures:
            raise InputError(
                f"{path} holds {len(found.pictures)} pictures and parquet files ({found.parquet[0]}); move one kind "
                "away, or give the file.",
                parameter="data.path",
            )
    elif path.exists() and path.suffix != ".parquet":
        raise InputError(
            f"{path} is neither a folder, a parquet file nor an idx file of images.", parameter="data.path"
        )
    data = _open_dataset(source, path)
    picture = _image_column(data, source)
    return DatasetTable(_raw(data, picture), picture, path if path.is_dir() else path.parent)


def _no_column(source: "SourceConfig") -> None:
    """Raises InputError for a column of pictures in a folder of picture files, which has none other."""
    if source.column not in ("", "image"):
        raise UnknownName("data.column", source.column, ["image"])


def _open_dataset(source: "SourceConfig", path: Path) -> Any:
    """The HF data set behind a parquet file, a folder of them, or a hub id."""
    try:
        import datasets
    except ImportError:
        raise InputError("Training needs more packages: pip install 'ddim[train]'.") from None
    if path.is_file() and source.split != "train" and source.split not in re.split(r"[\W_]+", path.stem):
        raise InputError(
            f"{path} is one file, which is not known to be {source.split!r}; leave the split out.",
            parameter="data.split",
        )
    try:
        with _no_bars():
            if path.is_file():
                return datasets.load_dataset("parquet", data_files=os.fspath(path), split="train")
            if path.is_dir():
                builder = datasets.load_dataset_builder("parquet", data_dir=os.fspath(path))
                _check_split(source, builder.config.data_files or {})
                return datasets.load_dataset("parquet", data_dir=os.fspath(path), split=source.split)
            return datasets.load_dataset(source.path, split=source.split)
    except InputError:
        raise
    except Exception as error:  # datasets raises a dozen types of its own
        where = "is neither a path here nor a data set that the hub gives us"
        reason = "cannot be read" if path.exists() else where
        raise InputError(f"{readable(source.path)!r} {reason}: {told(error)}", parameter="data.path") from error


def _check_split(source: "SourceConfig", known: Iterable[str]) -> None:
    """Raises InputError for a split, or part of one such as ``train[:100]``, that is not there."""
    names = list(map(str, known))
    for part in source.split.split("+"):
        if part.partition("[")[0].strip() not in (*names, "all"):
            raise UnknownName("data.split", part, names)


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


def _image_column(data: Any, source: "SourceConfig") -> str:
    if source.column:
        if source.column not in data.column_names:
            raise UnknownName("data.column", source.column, data.column_names)
        return source.column
    for name, kind in data.features.items():
        if _is_image(kind) or (isinstance(kind, dict) and "bytes" in kind):
            return name
    if "image" in data.column_names:
        return "image"
    raise InputError(
        f"no column of {source.path} holds images; it has {', '.join(data.column_names)}.", parameter="data.column"
    )
