"""Opens sets of images (idx files, parquet files, folders, tar files or the hub) and selects their rows."""

import csv
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from math import isnan
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from .._utils.error_text import printable, reason_of
from .._utils.errors import DDIMWarning, InputError, UnknownName, is_whole
from .._utils.silence import quiet
from .folders import listing, read_folder
from .idx import IdxPart, idx_file, read_images, read_labels
from .images import decode, flatten, open_image

if TYPE_CHECKING:
    from ..training.config import DataConfig, SourceConfig

HUB = "hf:"
"""A path that begins so is the id of a data set on the Hugging Face hub, also where a folder has the same name."""


class Part(Protocol):
    """The rows of one source of images; an image is decoded only when it is opened."""

    class_names: Sequence[str]
    """Names of the labels 0, 1, ...; empty if the source does not name them."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The file of an image, or the number of its row if it has no file."""
        ...

    def prompt(self, row: int) -> str:
        """The prompt of an image, or an empty string."""
        ...

    def label(self, row: int) -> int | None:
        """The class of an image, a whole number from 0, or None."""
        ...

    def open(self, row: int) -> Image.Image:
        """The image, decoded and upright. Raises InputError if it cannot be decoded."""
        ...


class Table(Protocol):
    """Pictures, one for each row, with further columns."""

    names: list[str]
    """Names of the columns, without that of the pictures."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]:
        """The values of a column, one for each row; None for an empty cell."""
        ...

    def class_names(self, name: str) -> list[str]:
        """What the numbers 0, 1, ... in a column stand for; empty if that is not known."""
        ...

    def cell(self, row: int) -> Any:
        """The undecoded picture of a row: bytes, a file's path, or a dict of ``bytes`` and ``path``."""
        ...

    def select(self, rows: Sequence[int]) -> "Table":
        """A table of these rows alone."""
        ...


class DatasetTable:
    """A ``Table`` of a data set of Hugging Face's ``datasets``.

    Args:
        data: the data set.
        picture: its column of pictures.
        base: the folder to which paths in that column are relative.
    """

    def __init__(self, data: Any, picture: str, base: Path) -> None:
        self._data, self._picture, self._base = data, picture, base
        self._pictures = data.select_columns([picture])
        self.names = [name for name in data.column_names if name != picture]

    def __len__(self) -> int:
        return len(self._data)

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, one for each row."""
        return list(self._data[name])

    def class_names(self, name: str) -> list[str]:
        """Returns the names that a ``datasets.ClassLabel`` column has; other columns have none."""
        return list(getattr(self._data.features[name], "names", None) or [])

    def cell(self, row: int) -> Any:
        """Returns the picture of a row as bytes, a path or a dict; a path to an existing file is made absolute."""
        cell = self._pictures[row][self._picture]
        if isinstance(cell, dict) and cell.get("bytes") is None:
            cell = cell.get("path")
        return os.fspath(self._base / cell) if isinstance(cell, str) and (self._base / cell).is_file() else cell

    def select(self, rows: Sequence[int]) -> "DatasetTable":
        """Returns a table of these rows alone."""
        return DatasetTable(self._data.select(rows), self._picture, self._base)


class TablePart:
    """A ``Part`` made of a table, and of prompts and labels for its rows.

    Args:
        table: the pictures.
        prompts: one for each row, or empty.
        labels: one for each row, or empty.
        class_names: names of the labels 0, 1, ..., or empty.
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
        """Returns the file of an image, or the number of its row if it has no file."""
        cell = self.table.cell(row)
        path = cell.get("path") if isinstance(cell, dict) else cell
        return printable(path) if isinstance(path, str) and path else f"row {row}"

    def prompt(self, row: int) -> str:
        """Returns the prompt of an image, or an empty string."""
        return self.prompts[row] if self.prompts else ""

    def label(self, row: int) -> int | None:
        """Returns the class of an image, or None."""
        return self.labels[row] if self.labels else None

    def values(self, column: str) -> list[str]:
        """Returns a column's values as strings, one for each row. Raises InputError if there is no such column."""
        if column not in self.table.names:
            raise UnknownName("column", column, self.table.names, parameter="data.column")
        return [str(value) for value in self.table.column(column)]

    def open(self, row: int) -> Image.Image:
        """Decodes an image and turns it upright. Raises InputError if it cannot be decoded."""
        cell = self.table.cell(row)
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if isinstance(cell, bytes):
            return decode(io.BytesIO(cell), self.name(row), "data.path")
        if isinstance(cell, str):
            return open_image(Path(cell), "data.path")
        raise InputError(f"{self.name(row)} holds {cell!r:.40} instead of an image.", parameter="data.path")


def open_source(source: "SourceConfig", config: "DataConfig") -> Part:
    """Opens a source of images and selects the rows that its config asks for.

    Args:
        source: where the images are, and which rows to take.
        config: how images are made square, by which equal images are recognised (see ``without``).

    Raises:
        InputError: there is nothing at the path or no image in it, or a column, prompt template or list of held-out
            rows does not fit the data.
    """
    idx = idx_file(source)
    if idx is not None:
        if list(_fields(source)) or source.where or source.without:
            raise InputError(
                f"{idx} is an idx file, which has no columns for data.prompt, data.where or data.without.",
                parameter="data.where" if source.where else "data.without" if source.without else "data.prompt",
            )
        if source.label not in ("", "label"):
            raise UnknownName("data.label", source.label, ["label"])
        images = read_images(idx)
        labels = read_labels(idx, len(images)) if source.label else None
        return IdxPart(images, labels, _rewritten([source.prompt], source)[0])
    table = _open_table(source)
    if source.label not in ("", *table.names):
        raise UnknownName("data.label column", source.label, table.names, parameter="data.label")
    chosen = _chosen(table, source, config)
    if chosen is not None:
        table = table.select(chosen)
    if not len(table):
        with_values = " with the values of data.where" if source.where else ""
        raise InputError(
            f"there are no images in {source.path}{with_values}.",
            parameter="data.where" if source.where else "data.path",
        )
    names = table.class_names(source.label) if source.label else []
    return TablePart(table, prompts_of(table, source), _labels(table, source), names)


def _chosen(table: Table, source: "SourceConfig", config: "DataConfig") -> list[int] | None:
    """Returns the rows that ``where`` and ``without`` leave; None if they leave all."""
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
    """Removes the rows that the file ``without`` lists, and all rows with the same picture under another name."""
    names, listed = held_out(source.without)
    for name in names:
        if name not in table.names:
            raise UnknownName(f"column in {source.without}", name, table.names, parameter="data.without")
    cells = zip(*map(table.column, names), strict=True)
    out = {row for row, values in enumerate(cells) if tuple(map(str, values)) in listed}
    if not out:
        raise InputError(f"{source.without} does not match any row of {source.path}.", parameter="data.without")
    part = TablePart(table)

    def pixels(row: int) -> bytes:
        try:
            return square(part.open(row), config).tobytes()
        except InputError:  # a picture that cannot be decoded equals no other
            return b""

    seen = {pixels(row) for row in out} - {b""}
    return [row for row in rows if row not in out and pixels(row) not in seen]


def held_out(path: str) -> tuple[list[str], set[tuple[str, ...]]]:
    """Reads a CSV file of held-out rows; lines that start with ``#`` are comments.

    Returns:
        The names of its columns, and the set of its lines.

    Raises:
        InputError: the file cannot be read, has no line after its header, or has lines of different lengths.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = [tuple(line) for line in csv.reader(row for row in file if row[0] != "#") if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}", parameter="data.without") from None
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise InputError(
            f"{path} must hold a line of column names, followed by rows with as many values.", parameter="data.without"
        )
    return list(lines[0]), set(lines[1:])


def _fields(source: "SourceConfig") -> Iterator[str]:
    """Yields the columns that the prompt template names. Raises InputError if it is not a valid template."""
    try:
        for _, path, _, _ in Formatter().parse(source.prompt):
            if path is not None:
                yield re.split(r"[.\[]", path, maxsplit=1)[0]
    except ValueError as error:
        raise InputError(
            f"{source.prompt!r} is not a valid template: {reason_of(error)}", parameter="data.prompt"
        ) from None


def prompts_of(table: Table, source: "SourceConfig") -> list[str]:
    """Fills the prompt template of a source for each row of its table; empty without a template.

    An empty cell adds nothing.

    Raises:
        InputError: the template names a column that does not exist or is empty in all rows, or it does not fit.

    Warns:
        DDIMWarning: some rows have nothing to fill in.
    """
    if not source.prompt:
        return []
    for name in (fields := list(_fields(source))):
        if name not in table.names:
            raise UnknownName("data.prompt column", name, table.names or ["(none)"], parameter="data.prompt")
    columns = {name: table.column(name) for name in fields}
    for name, cells in columns.items():
        if all(map(_is_empty, cells)):
            raise InputError(
                f"the column {name!r} of {source.path} is empty in all of its {len(cells)} rows.",
                parameter="data.prompt",
            )
    template = _PromptFormatter()
    try:
        prompts = [
            template.vformat(source.prompt, (), {name: cells[row] for name, cells in columns.items()})
            for row in range(len(table))
        ]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{source.prompt!r} does not fit the columns {', '.join(table.names)}: {reason_of(error)}",
            parameter="data.prompt",
        ) from None
    prompts = _rewritten(prompts, source)
    wordless = [row for row, prompt in enumerate(prompts) if not prompt.strip()]
    if len(wordless) == len(prompts):
        raise InputError(
            f"{source.prompt!r} and data.rewrite leave an empty prompt for all {len(prompts)} pictures.",
            parameter="data.prompt",
        )
    lacking = [row for row in range(len(table)) if columns and all(_is_empty(cells[row]) for cells in columns.values())]
    if wordless or lacking:
        some = wordless or lacking
        warnings.warn(
            f"{len(some)} of {len(prompts)} pictures in {source.path} have nothing to fill into {source.prompt!r} "
            f"(the first: {TablePart(table).name(some[0])}).",
            DDIMWarning,
            stacklevel=2,
        )
    return prompts


class _PromptFormatter(Formatter):
    """A string formatter for prompts: an empty cell adds nothing, and only strings and numbers are accepted."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Formats the value of one field of the template."""
        if _is_empty(value):
            return ""
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r:.60} is neither a text nor a number")
        text = format(value, format_spec)
        text.encode()  # raises for a lone UTF-16 surrogate, which JSON may contain but no tokenizer reads
        return text


def _is_empty(cell: Any) -> bool:
    """Whether a cell is empty: None, NaN (as pandas writes it) or white space."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and isnan(cell))


def _rewritten(prompts: list[str], source: "SourceConfig") -> list[str]:
    """Applies the regular expressions of ``rewrite`` to every prompt, in their order."""
    for pattern, replacement in source.rewrite:
        try:
            prompts = [re.sub(pattern, replacement, prompt) for prompt in prompts]
        except (re.error, IndexError) as error:
            raise InputError(
                f"{pattern!r} cannot be replaced by {replacement!r}: {reason_of(error)}", parameter="data.rewrite"
            ) from None
    return prompts


def _labels(table: Table, source: "SourceConfig") -> list[int]:
    """Returns the class of each row, or an empty list if the source has no label column."""
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
    """Makes an upright image opaque and square, as the config says: uint8 [channels, size, size].

    Raises:
        InputError: the image's values or colours cannot be converted; see ``images.flatten``.
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


# --- opening ---------------------------------------------------------------------------------------------------


def _open_table(source: "SourceConfig") -> Table:
    """Opens the pictures at ``source.path``: a parquet or tar file, a folder, or a data set on the hub."""
    path = Path(source.path)
    if source.path.startswith(HUB):
        return _dataset_table(source, path)
    if not path.exists() and (
        path.is_absolute() or path.suffix in (".parquet", ".gz", ".tar") or len(path.parts) > 2 or source.path[0] == "."
    ):
        raise InputError(f"there is no file or folder {path}.", parameter="data.path")
    if path.is_dir():
        found = listing(path)
        if not found.parquet and (found.pictures or not found.archives):
            _no_column(source)
            return read_folder(path, source.split)
        if found.pictures:
            raise InputError(
                f"{path} holds {len(found.pictures)} pictures and parquet files ({found.parquet[0]}); move one of "
                "the two elsewhere, or give the path of the parquet file.",
                parameter="data.path",
            )
    elif path.exists() and path.suffix not in (".parquet", ".tar"):
        raise InputError(
            f"{path} is neither a folder, a parquet file, a tar file nor an idx file of images.", parameter="data.path"
        )
    return _dataset_table(source, path)


def _dataset_table(source: "SourceConfig", path: Path) -> DatasetTable:
    """Opens what ``datasets`` reads, as a table."""
    data = _open_dataset(source, path)
    picture = _image_column(data, source)
    return DatasetTable(_raw(data, picture), picture, path if path.is_dir() else path.parent)


def _no_column(source: "SourceConfig") -> None:
    """Raises InputError if a folder of picture files is asked for a picture column other than ``image``."""
    if source.column not in ("", "image"):
        raise UnknownName("data.column", source.column, ["image"])


def _open_dataset(source: "SourceConfig", path: Path) -> Any:
    """Opens a parquet or tar file, a folder of them, or a data set on the hub, as a data set of ``datasets``."""
    try:
        import datasets
    except ImportError:
        raise InputError("Reading data sets needs more packages: pip install 'ddim[train]'.") from None
    if path.is_file() and source.split != "train" and source.split not in re.split(r"[\W_]+", path.stem):
        raise InputError(
            f"{path} is one file, and nothing says that it is the split {source.split!r}; leave out data.split.",
            parameter="data.split",
        )
    if source.path.startswith(HUB) and Path(source.path.removeprefix(HUB)).exists():  # ``datasets`` would open it
        raise InputError(
            f"{source.path!r} is to be on the hub, but here is a folder of this name; leave out {HUB!r}, or run it "
            "from another folder.",
            parameter="data.path",
        )
    try:
        with _no_bars(), nullcontext() if path.exists() else quiet():  # the hub's client logs each of its retries
            if source.path.startswith(HUB):
                return datasets.load_dataset(source.path.removeprefix(HUB), split=source.split)
            archives = [path] if path.suffix == ".tar" else []
            if path.is_dir() and not (found := listing(path)).parquet:
                archives = found.archives
            if archives:
                files = list(map(os.fspath, archives))
                return datasets.load_dataset("webdataset", data_files=files, split="train")
            if path.is_file():
                return datasets.load_dataset("parquet", data_files=os.fspath(path), split="train")
            if path.is_dir():
                builder = datasets.load_dataset_builder("parquet", data_dir=os.fspath(path))
                _check_split(source, builder.config.data_files or {})
                return datasets.load_dataset("parquet", data_dir=os.fspath(path), split=source.split)
            return datasets.load_dataset(source.path, split=source.split)
    except InputError:
        raise
    except Exception as error:  # datasets raises errors of a dozen types
        missing = "is neither an existing path nor a data set that the hub could provide"
        reason = "cannot be read" if path.exists() else missing
        raise InputError(f"{printable(source.path)!r} {reason}: {reason_of(error)}", parameter="data.path") from error


def _check_split(source: "SourceConfig", known: Iterable[str]) -> None:
    """Raises InputError if a split, or the split of a part such as ``train[:100]``, does not exist."""
    names = list(map(str, known))
    for part in source.split.split("+"):
        if part.partition("[")[0].strip() not in (*names, "all"):
            raise UnknownName("data.split", part, names)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switches off the progress bars of ``datasets``, which it draws even where stderr is not a terminal."""
    import datasets

    drawn = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()


def _raw(data: Any, column: str) -> Any:
    """Keeps the image column of a data set undecoded, so that one damaged image cannot stop the whole set."""
    import datasets

    return data.cast_column(column, datasets.Image(decode=False)) if _is_image(data.features[column]) else data


def _is_image(feature: Any) -> bool:
    """Whether a column of a data set has the type ``datasets.Image``."""
    import datasets

    return isinstance(feature, datasets.Image)


def _image_column(data: Any, source: "SourceConfig") -> str:
    """Returns the name of the image column: ``source.column``, or else the first column that holds images."""
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
