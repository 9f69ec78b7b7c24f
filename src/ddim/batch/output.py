"""The output of a run: a folder with its plan, the list of its items, and a parquet file for each batch."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError
from .._utils.files import read_json, write_whole
from ..evaluation.rows import RowColumns, read_part, schema_of, write_part
from ..inversion.code_file import code_from_bytes
from .plan import Plan, first_difference

if TYPE_CHECKING:
    from ..inversion.latent_code import LatentCode

PLAN, ITEMS, PARTS = "plan.json", "items.parquet", "parts"
COLUMNS = RowColumns(
    {"index": "int64"},
    {
        "key": "string",
        "batch": "int64",
        "prompt": "string",
        "target": "string",
        "label": "int64",
        "target_label": "int64",
        "picture": "binary",
        "code": "binary",
        "mse": "float64",
        "psnr": "float64",
        "max": "float64",
        "error": "string",
    },
)
"""The columns of a part. ``picture`` is a PNG file and ``code`` a code's file; ``mse``, ``psnr`` (in dB; empty for
equal images) and ``max`` compare the reconstruction with the picture that was read. ``error`` says why a row has no
result."""
LISTED = RowColumns({"index": "int64"}, {"key": "string", "stamp": "string"})

Row = dict[str, Any]


class Output:
    """The folder of a run.

    Args:
        folder: the folder, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self) -> Plan:
        """Reads the plan.

        Raises:
            InputError: there is none.
        """
        file = self.folder / PLAN
        if not file.is_file():
            raise InputError(f"{self.folder} is not the output of a run of ddim batch.", parameter="data")
        return Plan.read(read_json(file), str(file))

    def begun(self) -> bool:
        """Whether a batch of a run is stored here."""
        return (self.folder / PLAN).is_file() and bool(self.numbers())

    def write_plan(self, plan: Plan, items: Sequence[tuple[str, str]]) -> None:
        """Writes the items and then the plan, so that a plan is never without its items.

        Raises:
            InputError: the folder holds parts without a plan, which are of something else.
            NotWritten: the folder cannot be written, or the disk is full.
        """
        if self.numbers():
            raise InputError(f"{self.folder} holds parts of another run; choose another.", parameter="out")
        rows = [{"index": k, "key": key, "stamp": stamp} for k, (key, stamp) in enumerate(items)]
        write_part(self.folder / ITEMS, rows, schema_of(LISTED), compression="zstd")
        write_whole(self.folder / PLAN, plan.text().encode())

    def items(self) -> list[tuple[str, str]]:
        """Returns the key and the stamp of each item of the plan."""
        return [(row["key"], row["stamp"]) for row in read_part(self.folder / ITEMS, LISTED)]

    def check_items(self, now: Iterator[tuple[str, str]]) -> None:
        """Raises InputError if the data have changed since the plan was written; the sentence names the first item."""
        if (other := first_difference(iter(self.items()), now)) is None:
            return
        had, has = other
        what = (
            f"{had} is missing now" if has is None else
            f"{has} is new" if had is None else
            f"{had} has changed" if had == has else
            f"{has} is where {had} was"
        )  # fmt: skip
        raise InputError(
            f"{what}, and {self.folder} was begun with the data as they were; choose another output.", parameter="data"
        )

    def part(self, number: int) -> Path:
        """Returns the file of a batch."""
        return self.folder / PARTS / f"part-{number:08d}.parquet"

    def numbers(self) -> set[int]:
        """Returns the numbers of the batches that are stored."""
        try:
            names = os.listdir(self.folder / PARTS)
        except OSError:
            return set()
        return {int(found[1]) for name in names if (found := re.fullmatch(r"part-(\d{8,})\.parquet", name))}

    def missing(self, plan: Plan) -> list[int]:
        """Returns the numbers of the batches that are not stored yet, in order."""
        done = self.numbers()
        return [number for number in range(plan.batches) if number not in done]

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Writes the rows of a batch, as a whole."""
        write_part(self.part(number), rows, schema_of(COLUMNS), compression="zstd", use_dictionary=False)

    def rows_of(self, number: int) -> list[Row]:
        """Returns the rows of a batch."""
        return read_part(self.part(number), COLUMNS)

    def rows(self) -> Iterator[Row]:
        """Yields all rows that are stored, in the order of the data."""
        for number in sorted(self.numbers()):
            yield from self.rows_of(number)

    def errors(self) -> list[tuple[str, str]]:
        """Returns the key and the sentence of every row that has no result. Pictures and codes are not read."""
        import pyarrow.parquet as pq

        found: list[tuple[str, str]] = []
        for number in sorted(self.numbers()):
            try:
                table = pq.ParquetFile(self.part(number)).read(["key", "error"])
            except Exception as error:  # pyarrow raises several kinds
                raise DDIMError(f"{self.part(number)} cannot be read: {reason_of(error)}") from None
            found += [(row["key"], row["error"]) for row in table.to_pylist() if row["error"] is not None]
        return found


def code_of(row: Row) -> "LatentCode":
    """Returns the code in a row of ``ddim batch invert``, for ``reconstruct``, ``edit`` and ``LatentCode.save``.

    Raises:
        InputError: the row has none, because its picture could not be inverted, or it is damaged.
    """
    if row["code"] is None:
        raise InputError(row["error"] or f"{row['key']} has no code.", parameter="row")
    return code_from_bytes(row["code"], f"the code of {row['key']}")


def empty_row(index: int, number: int, key: str) -> Row:
    """Returns a row without a result."""
    return {**dict.fromkeys(COLUMNS.all), "index": index, "batch": number, "key": key}
