"""Rows on disk, one for each measured item, from which a killed run continues.

A parquet file cannot grow, so the rows are stored as a folder of parts, each written as a whole. A run that is killed
loses at most what it measured in the last seconds. A row is known by its keys, so no item is stored twice.
"""

import io
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from .._utils.error_text import one_line, reason_of
from .._utils.errors import DDIMError, InputError, NotWritten
from .._utils.files import write_whole
from .._utils.lock import only_process
from .columns import Column, Item, Row

_T = TypeVar("_T")
_A = TypeVar("_A")
_R = TypeVar("_R", bound=Mapping[str, Any])

FLUSH_SECONDS = 5.0
"""How long measured rows may stay in memory before they are written."""

WAIT = timedelta(days=7)
"""How long a process waits for the others. If one of them fails, the launcher ends all."""

MANY = 32
"""If there are more parts than this when a run begins, they are written as one."""

KINDS = ("string", "int64", "float64", "bool", "list<float32>", "binary")


@dataclass(frozen=True)
class RowColumns:
    """The columns of a row, with their types.

    Args:
        identity: column to one of ``KINDS``: what shaped the row. Rows that agree in all of these are the same item.
        measured: column to one of ``KINDS``: what was measured; a value may be None.

    Raises:
        ValueError: there is no identity, a name is used twice, or a kind is unknown.
    """

    identity: Mapping[str, str]
    measured: Mapping[str, str]

    def __post_init__(self) -> None:
        wrong = [kind for kind in {**self.identity, **self.measured}.values() if kind not in KINDS]
        if wrong or set(self.identity) & set(self.measured) or not self.identity:
            raise ValueError(f"columns need an identity, each its own name, and a kind of {KINDS}")

    @classmethod
    def of(cls, columns: Sequence[Column]) -> "RowColumns":
        """The columns of the rows, out of all columns of a benchmark."""
        stored = {column.name: (column.kind, column.key) for column in columns if column.kind is not None}
        identity = {name: kind for name, (kind, key) in stored.items() if key}
        return cls(identity, {name: kind for name, (kind, key) in stored.items() if not key})

    @property
    def all(self) -> dict[str, str]:
        """Every column with its kind, the identity first."""
        return {**self.identity, **self.measured}

    def key(self, row: Row) -> tuple[Any, ...]:
        """The values that identify a row."""
        return tuple(row[name] for name in self.identity)


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share the work."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the table."""
        return self.rank == 0

    def share(self, items: Sequence[_T]) -> list[_T]:
        """This process's share of a list that every process has: every ``count``-th item, from its rank on."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Waits until every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def processes() -> Processes:
    """The processes that ``accelerate launch`` or ``torchrun`` started, or this one alone.

    Call it before a model is loaded, because it gives each process its own GPU.

    Raises:
        InputError: there is more than one process, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise InputError("More than one process needs accelerate: pip install 'ddim[train]'.") from None
    import torch

    # accelerate does not look for a GPU here, and its own limit is minutes: one share may take hours more than others
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    return Processes(state.process_index, state.num_processes)


@dataclass
class Rows:
    """The rows of a folder. ``open_rows`` makes them.

    Args:
        folder: the folder of the parts.
        columns: what a row stores.
        processes: the processes that share the folder.

    Raises:
        InputError: a part has other columns.
        DDIMError: a part is not a parquet file.
    """

    folder: Path
    columns: RowColumns
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._waiting: list[Row] = []
        self._written = time.monotonic()
        self._read()

    def __len__(self) -> int:
        """The number of measured items, of this run and of others in the folder."""
        return len(self._rows)

    def of(self, items: Sequence[Row]) -> list[Row]:
        """The rows of those ``items`` that are measured, in their order."""
        keys = dict.fromkeys(self.columns.key(item) for item in items)
        return [self._rows[key] for key in keys if key in self._rows]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those ``items`` that have no row yet, each once, in their order."""
        keys: dict[tuple[Any, ...], Item] = {}
        for item in items:
            keys.setdefault(self.columns.key(item), item)
        return [item for key, item in keys.items() if key not in self._rows]

    def measure(
        self,
        blocks: Sequence[Sequence[Item]],
        run: Callable[[list[Item]], Sequence[Row]],
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Measures and keeps what is missing of this process's share of the blocks.

        A block belongs to one process, and what is missing of it is run at once. So what is measured together does not
        depend on what an earlier run has done.

        Args:
            blocks: items, in the blocks that are run together.
            run: turns the missing items of a block into their rows.
            report: called with the number of this process's items that are done, and their total.
        """
        own = self.processes.share(blocks)
        missing = [todo for block in own if (todo := self.missing(block))]
        total = sum(map(len, own))
        done = total - sum(map(len, missing))
        for todo in missing:
            if report is not None:
                report(done, total)
            self.add(run(todo))
            done += len(todo)
        if report is not None:
            report(total, total)

    def add(self, rows: Sequence[Row]) -> None:
        """Adds measured rows, and writes them if the last write was ``FLUSH_SECONDS`` ago.

        Raises:
            ValueError: a row has other columns.
            NotWritten: the disk is full.
        """
        for row in rows:
            if set(row) != set(self.columns.all):
                raise ValueError(f"a row has the columns {sorted(row)}, not {sorted(self.columns.all)}")
            key = self.columns.key(row)
            if key not in self._rows:
                self._rows[key] = row
                self._waiting.append(row)
        if time.monotonic() - self._written >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are only in memory."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
        self._written = time.monotonic()

    def gather(self) -> None:
        """Writes the rows, waits for the other processes, and reads what they wrote."""
        self.flush()
        self.processes.wait()
        if self.processes.count > 1:
            self._read()

    def _read(self) -> None:
        parts = sorted(self.folder.glob("part-*.parquet"))
        for part in parts:
            for row in read_part(part, self.columns):
                self._rows.setdefault(self.columns.key(row), row)
        if len(parts) > MANY and self.processes.count == 1:
            self._write(list(self._rows.values()))
            for part in parts:
                part.unlink(missing_ok=True)

    def _write(self, rows: Sequence[Row]) -> None:
        write_part(
            self.folder / f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet", rows, schema_of(self.columns)
        )


@contextmanager
def only_run(folder: Path, among: Processes) -> Iterator[None]:
    """Keeps other runs from writing into a folder; the processes of one run enter together.

    Raises:
        InputError: another run is writing there, or the folder cannot be written.
    """
    with only_process(folder, "writing results to", "--out") if among.main else nullcontext():
        among.wait()  # the others must not write before the first process has the lock
        yield


@contextmanager
def open_rows(folder: Path, columns: RowColumns, among: Processes | None = None) -> Iterator[Rows]:
    """The rows in a folder. What has been measured is written when the context ends, also after an error.

    Args:
        folder: the rows lie in ``<folder>/rows``.
        columns: what a row stores.
        among: the processes that share the work; by default ``processes()``.

    Raises:
        InputError: the folder has rows with other columns, or pyarrow is not installed.
        DDIMError: a file is broken, or the folder cannot be written.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError("Results are stored as parquet, which needs pyarrow: pip install 'ddim[eval]'.") from None
    among = processes() if among is None else among
    rows = Rows(folder / "rows", columns, among)
    among.wait()  # all must have read the same rows before one adds to them, or they would share the work differently
    try:
        yield rows
    finally:
        rows.flush()


def isolate_failures(
    items: Sequence[_A], run: Callable[[Sequence[_A]], list[_R]], failed: Callable[[_A, str], _R]
) -> list[_R]:
    """Runs items together. If that fails, runs each alone, so that one failure costs no other item its result.

    Args:
        items: one or more.
        run: turns items into results, one each. A DDIMError is a result too, for example a sample that diverged.
        failed: turns an item that fails alone, and the reason in one line, into its result.

    Returns:
        One result for each item, in order.

    Raises:
        InputError: from ``run``: the setting cannot be used at all.
        NotWritten: from ``run``: a file could not be written.
    """
    try:
        return run(items)
    except (InputError, NotWritten):
        raise
    except DDIMError as error:
        if len(items) > 1:
            return [row for item in items for row in isolate_failures([item], run, failed)]
        return [failed(items[0], one_line(error))]


def batches(items: Sequence[_T], size: int, processes: int = 1) -> list[list[_T]]:
    """Items in blocks of ``size``, or of fewer if some processes would otherwise have nothing to do."""
    size = max(1, min(size, ceil(len(items) / processes)))
    return [list(items[k : k + size]) for k in range(0, len(items), size)]


def write_part(file: Path, rows: Sequence[Mapping[str, Any]], schema: Any, **how: Any) -> None:
    """Writes rows as one parquet file, as a whole.

    Args:
        file: the file.
        rows: column to value, the same columns in each.
        schema: pyarrow's; see ``schema_of``.
        how: arguments of ``pyarrow.parquet.write_table``, such as ``compression``.

    Raises:
        NotWritten: the folder cannot be written, or the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), sink, **how)
    write_whole(file, sink.getvalue())


def schema_of(columns: RowColumns) -> Any:
    """The columns as pyarrow's schema."""
    import pyarrow as pa

    types = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.float32()), pa.binary())
    kinds: dict[str, Any] = dict(zip(KINDS, types, strict=True))
    return pa.schema([(name, kinds[kind]) for name, kind in columns.all.items()])


def read_part(part: Path, columns: RowColumns) -> list[dict[str, Any]]:
    """The rows of a part, each column to value.

    Raises:
        InputError: it has other columns.
        DDIMError: it is not a parquet file.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(part).read()
    except Exception as error:  # pyarrow raises several kinds
        raise DDIMError(f"{part} is not a parquet file of results: {reason_of(error)}") from None
    found, wanted = ({field.name: field.type for field in schema} for schema in (table.schema, schema_of(columns)))
    if found != wanted:
        raise InputError(f"{part.parent} has other columns than this run measures; choose another.", parameter="out")
    return table.to_pylist()
