"""Folders of pictures as people have them: hidden ones left out, one a split, words in a list or beside a picture."""

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

from .._utils.errors import DDIMWarning, InputError, UnknownName
from .._utils.foreign import readable, told

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_HIDDEN = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_NAME, _CAPTION = "file_name", "text"


class FolderTable:
    """Pictures by their files, with columns beside them; see ``sources.Table``.

    Args:
        files: one a row.
        columns: of the lists of metadata, as many values as rows.
        captions: the text file beside each picture, or None; they are the column ``text`` where no list has one.
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
        """See ``sources.Table``. Raises InputError for a caption that is no text."""
        if name in self._columns:
            return self._columns[name]
        return [None if file is None else _caption(file) for file in self._captions]

    def class_names(self, name: str) -> list[str]:
        """See ``sources.Table``; lists of metadata have none."""
        return []

    def cell(self, row: int) -> str:
        """See ``sources.Table``."""
        return self.files[row]

    def select(self, rows: Sequence[int]) -> "FolderTable":
        """See ``sources.Table``."""
        columns = {name: [cells[row] for row in rows] for name, cells in self._columns.items()}
        return FolderTable([self.files[r] for r in rows], columns, [self._captions[r] for r in rows if self._captions])


@dataclass
class Listing:
    """What lies in a folder: pictures in the order of their names, lists of metadata, other parquet files, the names
    of text files, and pictures of kinds that Pillow does not read."""

    pictures: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    unread: list[Path] = field(default_factory=list)


def listing(folder: Path) -> Listing:
    """All of a folder. Hidden files and folders are left out; links are followed, and no folder is taken twice.

    Raises:
        InputError: a folder in it that cannot be read.
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
        elif suffix == ".txt":
            found.texts.add(os.fspath(file))
        elif (mimetypes.guess_type(file.name)[0] or "").startswith("image/"):
            found.unread.append(file)
    found.pictures.sort()
    return found


def _suffixes() -> set[str]:
    """Of the kinds of pictures that Pillow reads."""
    opened = {*Image.OPEN, "MPO"}  # which Pillow opens as JPEG
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in opened}


def _hidden(name: str) -> bool:
    return name[0] == "." or name in _HIDDEN


def _files(folder: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        raise InputError(f"{readable(error.filename)} cannot be read: {told(error)}", parameter="data.path")

    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=failed):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link to where we have been
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (Path(root, name) for name in sorted(files) if not _hidden(name))


# --- splits ---------------------------------------------------------------------------------------------------------


def _inside(folder: Path) -> list[str]:
    """The folders in ``folder`` that hold pictures."""
    known = _suffixes()
    folders = (path for path in sorted(folder.iterdir()) if path.is_dir() and not _hidden(path.name))
    return [path.name for path in folders if any(file.suffix.lower() in known for file in _files(path))]


def _parted(inside: Iterable[str]) -> bool:
    """Whether folders of these names are splits: two are named like one, or all are. One alone is a class."""
    named = [name in SPLITS for name in inside]
    return any(named) and (all(named) or sum(named) > 1)


def has_split(folder: Path, split: str) -> bool:
    """Whether ``folder`` holds folders of pictures that are splits, and one of them is ``split``."""
    inside = _inside(folder)
    return split in inside and _parted(inside)


def split_folder(folder: Path, split: str) -> Path:
    """Where the pictures of ``split`` lie: in the folder of that name, or, of ``train``, in all where none is a split.

    Raises:
        InputError: there is no such split.
    """
    inside = _inside(folder)
    if split in inside and (split not in SPLITS or _parted(inside)):
        return folder / split
    if split == "train" and not _parted(inside):
        for name in (name for name in inside if name in SPLITS):
            warnings.warn(
                f"{readable(folder / name)} is taken for a class among others, not for a split; data.path = "
                f"{readable(folder / name)!r} takes it alone.",
                DDIMWarning,
                stacklevel=2,
            )
        return folder
    if _parted(inside):
        raise UnknownName("data.split", split, map(readable, inside))
    raise InputError(f"{readable(folder)} has no folder {split!r} with pictures.", parameter="data.split")


# --- words ----------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, split: str) -> FolderTable:
    """The pictures of a folder's split, and their columns.

    Raises:
        InputError: no pictures, no such split, a list that names others or is broken.
    """
    chosen = split_folder(folder, split)
    found = listing(chosen)
    if not found.pictures:
        others = sorted({file.suffix.lower() for file in found.unread})
        kinds = f", only files of kinds that Pillow does not read ({', '.join(others)})" if others else ""
        raise InputError(f"there are no images in {readable(folder)}{kinds}.", parameter="data.path")
    if found.unread:
        warnings.warn(
            f"{len(found.unread)} pictures in {readable(chosen)} are of kinds that Pillow does not read, and left out "
            f"(the first: {readable(found.unread[0].name)}).",
            DDIMWarning,
            stacklevel=2,
        )
    above = [] if chosen == folder else [folder / name for name in METADATA if (folder / name).is_file()]
    records = _records([*above, *found.metadata], set(map(os.path.normpath, found.pictures)), chosen)
    files, rows = [], []
    for file in map(os.fspath, found.pictures):
        for record in records.get(os.path.normpath(file), [{}]):  # a picture may have several
            files.append(file)
            rows.append(record)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    beside = (os.path.splitext(file)[0] + ".txt" for file in files)
    return FolderTable(files, columns, [text if text in found.texts else None for text in beside])


def _records(lists: Sequence[Path], pictures: set[str], chosen: Path) -> dict[str, list[dict[str, Any]]]:
    """What the lists of metadata say of each picture."""
    out: dict[str, list[dict[str, Any]]] = {}
    for file in lists:
        if other := next((o for o in lists if o != file and o.parent == file.parent), None):
            raise InputError(
                f"{readable(file)} and {readable(other.name)} say the same thing twice; remove one.",
                parameter="data.path",
            )
        within = chosen == file.parent or chosen in file.parents
        for record in _read_list(file):
            name = record.get(_NAME)
            if not isinstance(name, str) or not name:
                raise InputError(
                    f"{readable(file)} must say the picture of each line as {_NAME}; one has {name!r}.",
                    parameter="data.path",
                )
            picture = os.path.normpath(file.parent / name)
            if picture in pictures:
                out.setdefault(picture, []).append(record)
            elif within:  # a list above the splits names the other splits' too
                raise InputError(f"{readable(file)} names {name!r}, which is no picture there.", parameter="data.path")
    return out


def _read_list(file: Path) -> list[dict[str, Any]]:
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.ParquetFile(file).read().to_pylist()
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                return _with_whole_numbers(_csv_rows(lines))
            rows = [json.loads(line) for line in lines if line.strip()]
    except Exception as error:  # csv, json, pyarrow and the file system have errors of their own
        raise InputError(f"{readable(file)} cannot be read: {told(error)}", parameter="data.path") from None
    for row in rows:
        if not isinstance(row, dict):
            raise InputError(
                f"{readable(file)} must hold a JSON object a line, not {row!r:.40}.", parameter="data.path"
            )
    return rows


def _csv_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    every = [row for row in csv.reader(lines, strict=True) if row]
    if not every:
        raise ValueError("it is empty")
    head, *rows = every
    if twice := next((name for name in head if head.count(name) > 1), None):
        raise ValueError(f"two of its columns are named {twice!r}")
    if wrong := next((row for row in rows if len(row) != len(head)), None):
        raise ValueError(f"{wrong} has {len(wrong)} values under {len(head)} names")
    return [{name: cell or None for name, cell in zip(head, row, strict=True)} for row in rows]


def _with_whole_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A column of digits alone holds numbers, such as classes; "007" is none."""
    whole = [n for n in (rows[0] if rows else ()) if n != _NAME and all(_is_digits(row[n]) for row in rows)]
    return [{**row, **{name: int(row[name]) for name in whole}} for row in rows]


def _is_digits(cell: str | None) -> bool:
    return cell is not None and cell.isascii() and cell.isdigit() and str(int(cell)) == cell


def _caption(file: str) -> str:
    """A text file's words on one line."""
    try:
        return " ".join(Path(file).read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{readable(file)} cannot be read: {told(error)}", parameter="data.path") from None
