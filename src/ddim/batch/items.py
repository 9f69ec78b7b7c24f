"""What a run works on: pictures with their prompts, prompts alone, seeds, or the codes of an earlier run."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._utils.errors import InputError, UnknownName
from ..data.folders import listing
from ..data.sources import HUB, Part, TablePart, open_source, prompts_of
from ..training.config import DataConfig, SourceConfig
from .output import Output, Row


@dataclass(frozen=True)
class Columns:
    """Where the pictures of a run are, and which of their columns say what they show.

    Attributes:
        data: as ``SourceConfig.path``: a folder of pictures, a parquet or tar file (or a folder of them), or the id of
            a data set on the hub; for ``reconstruct`` the output of an inversion. Empty for ``sample`` without data.
        column, split: as for ``SourceConfig``.
        prompt: a template of what each picture shows, such as ``"{text}"``; see ``SourceConfig.prompt``.
        target: a template of what each edit is to show.
        label: the column of the classes, or one class for all.
        target_label: the same for the classes of edits.
    """

    data: str = ""
    column: str = ""
    split: str = "train"
    prompt: str = ""
    target: str = ""
    label: str = ""
    target_label: str = ""


@dataclass(frozen=True)
class Item:
    """One item of a run.

    Attributes:
        key: its file, relative to the data, or the number of its row.
        stamp: differs if the item has changed.
        prompt, target: what it shows, and what it is to show; empty for nothing.
        label, target_label: the same as classes.
    """

    key: str
    stamp: str = ""
    prompt: str = ""
    target: str = ""
    label: int | None = None
    target_label: int | None = None


class Items(ABC):
    """All items of a run, in the order of the data."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int) -> Item:
        """Returns one item, without reading its picture."""

    def open(self, index: int) -> Any:
        """Returns what is worked on: a PIL image, or a row of an earlier run; None for an item that has neither.

        Raises:
            InputError: it cannot be read.
        """
        return None

    @property
    def size(self) -> int | None:
        """The number of items in a batch, if the data fix it."""
        return None


class SeedItems(Items):
    """Samples without data, which differ in their seeds.

    Args:
        count: how many.
        prompt: the prompt of all.
        label: the class of all.
    """

    def __init__(self, count: int, prompt: str = "", label: int | None = None) -> None:
        self._count, self._prompt, self._label = count, prompt, label

    def __len__(self) -> int:
        return self._count

    def item(self, index: int) -> Item:
        """Returns the sample with this number."""
        return Item(f"sample {index}", prompt=self._prompt, label=self._label)


class PictureItems(Items):
    """Pictures, or the prompts beside them.

    Args:
        part: the pictures.
        columns: where they are, and what they show.
        pictures: whether the pictures are needed.
    """

    def __init__(self, part: Part, columns: Columns, *, pictures: bool = True) -> None:
        self._part, self._pictures = part, pictures
        self._targets = _filled(part, columns, columns.target)
        self._labels = _labels(part, columns.label)
        self._target_labels = _labels(part, columns.target_label)
        self._data, self._root = _stamp_of_data(columns.data), Path(columns.data)
        self._in_folder = self._root.is_dir()

    def __len__(self) -> int:
        return len(self._part)

    def item(self, index: int) -> Item:
        """Returns a picture's name, what it shows, and a stamp of its file and of these words."""
        name = self._part.name(index)
        own = self._in_folder and os.path.isabs(name) == self._root.is_absolute()
        file = _stamp_of(Path(name)) if own else ""
        key = os.path.relpath(name, self._root) if file else name
        words = self._part.prompt(index), self._targets[index]
        labels = self._labels[index], self._target_labels[index]
        stamp = _hash([self._data if not file else "", file, *words, *labels])
        return Item(key, stamp, *words, *labels)

    def open(self, index: int) -> Any:
        """Returns the picture, decoded and upright; None if pictures are not needed."""
        return self._part.open(index) if self._pictures else None


class CodeItems(Items):
    """The codes that ``ddim batch invert`` wrote; each batch is one of its batches.

    Args:
        folder: its output.

    Raises:
        InputError: it is not finished, or is of something else.
    """

    def __init__(self, folder: Path) -> None:
        self._output = Output(folder)
        plan = self._output.plan()
        if plan.settings.get("command") != "invert":
            raise InputError(
                f"{folder} has no codes: it is the output of {plan.settings.get('command')!r}, not of 'invert'.",
                parameter="data",
            )
        if missing := self._output.missing(plan):
            raise InputError(
                f"{folder} lacks {len(missing)} of its {plan.batches} batches; finish that run first, by its own "
                "command.",
                parameter="data",
            )
        self._plan, self._at, self._rows = plan, -1, list[Row]()
        self._known = self._output.items()

    def __len__(self) -> int:
        return self._plan.count

    @property
    def size(self) -> int:
        """The size of the batches of the inversion, whose network calls are repeated."""
        return self._plan.size

    def item(self, index: int) -> Item:
        """Returns the name of the picture that a code is of."""
        key, stamp = self._known[index]
        return Item(key, _hash([stamp, self._plan.identity]))

    def open(self, index: int) -> Row:
        """Returns the row of a code."""
        number = index // self._plan.size
        if number != self._at:
            self._at, self._rows = number, self._output.rows_of(number)
        return self._rows[index % self._plan.size]


def open_items(command: str, columns: Columns, count: int | None) -> Items:
    """Opens the data of a run.

    Args:
        command: ``invert``, ``edit``, ``reconstruct`` or ``sample``.
        columns: where the data are.
        count: the first so many of them, or of seeds; None for all.

    Raises:
        InputError: there are no such data, or a column or a template does not fit them.
    """
    if command == "sample" and not columns.data:
        if columns.label and not columns.label.isdecimal():
            raise InputError(f"{columns.label!r} is the name of a column, and there are no data.", parameter="label")
        return SeedItems(count or 0, columns.prompt, int(columns.label) if columns.label else None)
    if command == "reconstruct":
        return CodeItems(Path(columns.data))
    source = SourceConfig(columns.data, columns.split, columns.column, columns.prompt)
    part = open_source(source, DataConfig(columns.data, 1))
    if count is not None and count < len(part):
        part = _First(part, count)
    return PictureItems(part, columns, pictures=command != "sample")


class _First(TablePart):
    """The first rows of a part, whatever it is made of."""

    def __init__(self, part: Part, count: int) -> None:
        if isinstance(part, TablePart):
            super().__init__(part.table.select(range(count)), part.prompts[:count], part.labels, part.class_names)
        else:
            raise InputError(
                f"{count} of the pictures of an idx file cannot be taken; leave it out.", parameter="count"
            )


def _filled(part: Part, columns: Columns, template: str) -> Sequence[str]:
    """A template filled for each row; without columns, the same text for all."""
    if isinstance(part, TablePart):
        source = SourceConfig(columns.data, prompt=template)
        try:
            return prompts_of(part.table, source) or [""] * len(part)
        except InputError as error:  # its parameter is that of the other template
            raise InputError(error.message, parameter="target") from None
    if "{" in template:
        raise InputError(f"{template!r} names a column, and an idx file has none.", parameter="target")
    return [template] * len(part)


def _labels(part: Part, label: str) -> Sequence[int | None]:
    """The class of each row: one number for all, or a column of whole numbers."""
    if not label or label.isdecimal():
        return [int(label) if label else None] * len(part)
    if not isinstance(part, TablePart):
        return [part.label(row) for row in range(len(part))]
    if label not in part.table.names:
        raise UnknownName("column", label, part.table.names, parameter="label")
    cells = part.table.column(label)
    for row, cell in enumerate(cells):
        if not isinstance(cell, int) or cell < 0:
            raise InputError(
                f"{label!r} holds {cell!r} in row {row}; classes are whole numbers from 0.", parameter="label"
            )
    return cells


def _stamp_of_data(data: str) -> str:
    """The sizes and times of the parquet and tar files of the data; empty for the hub, whose data sets have names."""
    if data.startswith(HUB) or not Path(data).exists():
        return ""
    if Path(data).is_file():
        return _stamp_of(Path(data))
    found = listing(Path(data))
    return stamp_of_files([*found.parquet, *found.archives])


def stamp_of_files(files: Sequence[Path]) -> str:
    """Returns a hash of the names, sizes and times of files."""
    return _hash([(file.name, _stamp_of(file)) for file in files])


def _stamp_of(file: Path) -> str:
    """The size and the time of a file; empty if there is none."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return "" if file.is_dir() else f"{status.st_size} {status.st_mtime_ns}"


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
