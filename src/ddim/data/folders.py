"""Reads folders of pictures for training.

Hidden files are ignored, subfolders may be splits, and captions come from metadata files or text files.
"""

import csv
import json
import mimetypes
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .._utils.error_text import printable, reason_of
from .._utils.errors import DDIMWarning, InputError, UnknownName

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_HIDDEN = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_NAME, _CAPTION = "file_name", "text"


class FolderTable:
    """A ``sources.Table`` of picture files, with columns from metadata files.

    Args:
        files: one picture file for each row.
        columns: the columns of the metadata files: name -> one value for each row.
        captions: for each row the text file beside the picture, or None. If no metadata file has a column ``text``,
            they become that column.
    """

    def __init__(
        self, files: Sequence[str], columns: dict[str, list[Any]], captions: Sequence[str | None] = ()
    ) -> None:
        self.files, self._columns = files, columns
        self._captions = captions if any(captions) and _CAPTION not in columns else ()
        self.names = [*columns, *([_CAPTION] if self._captions else [])]

    def __len__(self) -> int:
        return len(self.files)

    def column(self, name: str) -> list[Any]:
        """Returns one value for each row. Raises InputError if a caption file cannot be read as text."""
        if name in self._columns:
            return self._columns[name]
        return [None if file is None else _caption(file) for file in self._captions]

    def class_names(self, name: str) -> list[str]:
        """Returns no names: metadata files do not name the numbers of a column."""
        return []

    def cell(self, row: int) -> str:
        """Returns the path of the row's picture."""
        return self.files[row]

    def select(self, rows: Sequence[int]) -> "FolderTable":
        """Returns a table of these rows alone."""
        columns = {name: [cells[row] for row in rows] for name, cells in self._columns.items()}
        return FolderTable([self.files[r] for r in rows], columns, [self._captions[r] for r in rows if self._captions])


@dataclass
class Listing:
    """What a folder and its subfolders contain.

    Attributes:
        pictures: files that Pillow reads, sorted by path.
        metadata: files with a name in ``METADATA``.
        parquet: other parquet files.
        archives: tar files, as WebDataset has them.
        texts: paths of text files.
        unread: pictures in formats that Pillow does not read.
    """

    pictures: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    unread: list[Path] = field(default_factory=list)


def listing(folder: Path) -> Listing:
    """Lists a folder and its subfolders, without hidden ones. Links are followed; no folder is listed twice.

    Raises:
        InputError: a subfolder cannot be read.
    """
    found, known = Listing(), _suffixes()
    for file in _files(folder):
        suffix = file.suffix.lower()
        if suffix in known:
            found.pictures.append(file)
        elif file.name in METADATA:
            found.metadata.append(file)
        elif suffix == ".parquet":
            found.parquet.append(file)
        elif suffix == ".tar":
            found.archives.append(file)
        elif suffix == ".txt":
            found.texts.add(os.fspath(file))
        elif (mimetypes.guess_type(file.name)[0] or "").startswith("image/"):
            found.unread.append(file)
    found.pictures.sort()
    return found


def _suffixes() -> set[str]:
    """File name endings of the picture formats that Pillow reads."""
    opened = {*Image.OPEN, "MPO"}  # Pillow has no opener of its own for MPO, but opens it as JPEG
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in opened}


def _hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or made by an operating system or a NAS rather than by a person."""
    return name[0] == "." or name in _HIDDEN


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files beneath a folder that are not hidden, in sorted order within each folder."""

    def failed(error: OSError) -> None:
        raise InputError(f"{printable(error.filename)} cannot be read: {reason_of(error)}", parameter="data.path")

    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=failed):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link leads back here; without this check it could never end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (Path(root, name) for name in sorted(files) if not _hidden(name))


# --- splits ---------------------------------------------------------------------------------------------------------


def _picture_folders(folder: Path) -> list[str]:
    """Names of the subfolders of ``folder`` that contain pictures."""
    known = _suffixes()
    folders = (path for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path.name))
    return [path.name for path in folders if any(file.suffix.lower() in known for file in _files(path))]


def _are_splits(names: Iterable[str]) -> bool:
    """Whether subfolders of these names are splits: all of them, or at least two, are named like splits.

    One folder named ``test`` among others is taken for a class.
    """
    named = [name in SPLITS for name in names]
    return any(named) and (all(named) or sum(named) > 1)


def has_split(folder: Path, split: str) -> bool:
    """Whether the subfolders of ``folder`` are splits, and one of them is ``split``."""
    names = _picture_folders(folder)
    return split in names and _are_splits(names)


def split_folder(folder: Path, split: str) -> Path:
    """Returns the folder that holds the pictures of ``split``: the subfolder of that name.

    If the subfolders are not splits, the whole folder is the split ``train``.

    Raises:
        InputError: there is no such split.
    """
    names = _picture_folders(folder)
    if split in names and (split not in SPLITS or _are_splits(names)):
        return folder / split
    if split == "train" and not _are_splits(names):
        for name in (name for name in names if name in SPLITS):
            warnings.warn(
                f"{printable(folder / name)} is taken for a class like the folders beside it, not for a split; to use "
                f"it alone, set data.path = {printable(folder / name)!r}.",
                DDIMWarning,
                stacklevel=2,
            )
        return folder
    if _are_splits(names):
        raise UnknownName("data.split", split, map(printable, names))
    raise InputError(f"{printable(folder)} has no folder {split!r} with pictures.", parameter="data.split")


# --- metadata -------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, split: str) -> FolderTable:
    """Reads the pictures of a folder's split and their metadata.

    Raises:
        InputError: there are no pictures or no such split, or a metadata file is damaged or names other pictures.
    """
    chosen = split_folder(folder, split)
    found = listing(chosen)
    if not found.pictures:
        others = sorted({file.suffix.lower() for file in found.unread})
        kinds = f", only files in formats that Pillow does not read ({', '.join(others)})" if others else ""
        raise InputError(f"there are no images in {printable(folder)}{kinds}.", parameter="data.path")
    if found.unread:
        warnings.warn(
            f"{len(found.unread)} pictures in {printable(chosen)} are left out, because Pillow does not read their "
            f"format (the first: {printable(found.unread[0].name)}).",
            DDIMWarning,
            stacklevel=2,
        )
    above = [] if chosen == folder else [folder / name for name in METADATA if (folder / name).is_file()]
    records = _records([*above, *found.metadata], set(map(os.path.normpath, found.pictures)), chosen)
    files, rows = [], []
    for file in map(os.fspath, found.pictures):
        # A picture with several lines of metadata, such as several captions, becomes several rows.
        for record in records.get(os.path.normpath(file), [{}]):
            files.append(file)
            rows.append(record)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    beside = (os.path.splitext(file)[0] + ".txt" for file in files)
    return FolderTable(files, columns, [text if text in found.texts else None for text in beside])


def _records(lists: Sequence[Path], pictures: set[str], chosen: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads metadata files: path of a picture -> its lines, each a dict from column to value."""
    out: dict[str, list[dict[str, Any]]] = {}
    for file in lists:
        if other := next((o for o in lists if o != file and o.parent == file.parent), None):
            raise InputError(
                f"{printable(file)} and {printable(other.name)} both describe the same folder; remove one.",
                parameter="data.path",
            )
        within = chosen == file.parent or chosen in file.parents
        for record in _read_list(file):
            name = record.get(_NAME)
            if not isinstance(name, str) or not name:
                raise InputError(
                    f"{printable(file)} must name the picture of each line in the column {_NAME}; one line has "
                    f"{name!r}.",
                    parameter="data.path",
                )
            picture = os.path.normpath(file.parent / name)
            if picture in pictures:
                out.setdefault(picture, []).append(record)
            elif within:  # metadata above the split's folder may name the pictures of other splits too
                raise InputError(
                    f"{printable(file)} names {name!r}, but there is no such picture.", parameter="data.path"
                )
    return out


def _read_list(file: Path) -> list[dict[str, Any]]:
    """Reads a metadata file: one dict, from column to value, for each line."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.ParquetFile(file).read().to_pylist()
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                return _with_whole_numbers(_csv_rows(lines))
            rows = [json.loads(line) for line in lines if line.strip()]
    except Exception as error:  # csv, json, pyarrow and the file system each raise their own types
        raise InputError(f"{printable(file)} cannot be read: {reason_of(error)}", parameter="data.path") from None
    for row in rows:
        if not isinstance(row, dict):
            raise InputError(
                f"{printable(file)} must hold one JSON object on each line, not {row!r:.40}.", parameter="data.path"
            )
    return rows


def _csv_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Parses CSV with a header line; an empty cell becomes None."""
    every = [row for row in csv.reader(lines, strict=True) if row]
    if not every:
        raise ValueError("it is empty")
    head, *rows = every
    if twice := next((name for name in head if head.count(name) > 1), None):
        raise ValueError(f"two columns are named {twice!r}")
    if wrong := next((row for row in rows if len(row) != len(head)), None):
        raise ValueError(f"{wrong} has {len(wrong)} values for {len(head)} columns")
    return [{name: cell or None for name, cell in zip(head, row, strict=True)} for row in rows]


def _with_whole_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Converts columns in which every cell is a whole number, such as class labels, to int; "007" does not count."""
    whole = [n for n in (rows[0] if rows else ()) if n != _NAME and all(_is_digits(row[n]) for row in rows)]
    return [{**row, **{name: int(row[name]) for name in whole}} for row in rows]


def _is_digits(cell: str | None) -> bool:
    """Whether a cell is a whole number, written as Python writes it."""
    return cell is not None and cell.isascii() and cell.isdigit() and str(int(cell)) == cell


def _caption(file: str) -> str:
    """Reads a caption file; line breaks and runs of white space become single spaces."""
    try:
        return " ".join(Path(file).read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{printable(file)} cannot be read: {reason_of(error)}", parameter="data.path") from None
