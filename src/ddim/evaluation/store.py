"""Results of items on disk: parquet, one row an item, so that a killed run goes on where it was.

A parquet file cannot grow, so rows are kept as a folder of parts, each written whole. What a run lost by a kill is at
most what it measured in the last seconds; nothing is there twice, since a row is known by its identity.
"""

import io
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from .._utils.error_text import one_line, reason_of
from .._utils.errors import DDIMError, InputError
from .._utils.files import write_whole
from .._utils.lock import only_process

Row = Mapping[str, Any]
_T = TypeVar("_T")
_I = TypeVar("_I", bound=Mapping[str, Any])
_A = TypeVar("_A")
_R = TypeVar("_R", bound=Mapping[str, Any])

FLUSH_SECONDS = 5.0
"""How long measured rows may wait to be written."""

WAIT = timedelta(days=7)
"""How long a process waits for the others; the launcher ends it where one of them fails."""

MANY = 32
"""Parts that are written as one when a run begins."""

KINDS = ("string", "int64", "float64", "bool", "list<float32>", "binary")


@dataclass(frozen=True)
class Columns:
    """What a row holds.

    Args:
        identity: column -> one of ``KINDS``: what shaped the row; rows that agree in all of these are one item.
        measured: column -> one of ``KINDS``: what was found; None where there is nothing.
    """

    identity: Mapping[str, str]
    measured: Mapping[str, str]

    def __post_init__(self) -> None:
        wrong = [kind for kind in {**self.identity, **self.measured}.values() if kind not in KINDS]
        if wrong or set(self.identity) & set(self.measured) or not self.identity:
            raise ValueError(f"columns need an identity, each a name of its own and a kind of {KINDS}")

    @property
    def all(self) -> dict[str, str]:
        """Every column with its kind, in order."""
        return {**self.identity, **self.measured}

    def key(self, row: Row) -> tuple[Any, ...]:
        """What tells a row from others."""
        return tuple(row[name] for name in self.identity)


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this one writes the tables."""
        return self.rank == 0

    def mine(self, items: Sequence[_T]) -> list[_T]:
        """This process's part of a list that all of them have: every ``count``-th, from its own rank on."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def processes() -> Processes:
    """The processes that ``accelerate launch`` or ``torchrun`` started; one alone without them.

    To be asked before a model is loaded: it is here that each is given its own GPU.

    Raises:
        InputError: several were started, and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise InputError("Several processes need accelerate: pip install 'ddim[train]'.") from None
    import torch

    # which does not ask for itself, and whose own limit is minutes: one part may take hours longer than the others
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    return Processes(state.process_index, state.num_processes)


@dataclass
class Rows:
    """The rows of a folder; made by ``open_rows``.

    Args:
        folder: of the parts.
        columns: what a row holds.
        processes: who shares the folder.

    Raises:
        InputError: parts with other columns.
        DDIMError: a part that is no parquet file.
    """

    folder: Path
    columns: Columns
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        self._rows: dict[tuple[Any, ...], Row] = {}
        self._waiting: list[Row] = []
        self._written = time.monotonic()
        self._read()

    def __len__(self) -> int:
        """Items measured, whatever run they belong to."""
        return len(self._rows)

    def of(self, items: Sequence[Row]) -> list[Row]:
        """The rows of those of ``items`` that are measured, in their order; an item is its identity columns."""
        keys = dict.fromkeys(self.columns.key(item) for item in items)
        return [self._rows[key] for key in keys if key in self._rows]

    def missing(self, items: Sequence[_I]) -> list[_I]:
        """Those of ``items`` that have no row yet, without repetitions, in their order."""
        keys: dict[tuple[Any, ...], _I] = {}
        for item in items:
            keys.setdefault(self.columns.key(item), item)
        return [item for key, item in keys.items() if key not in self._rows]

    def measure(
        self,
        items: Sequence[_I],
        batch: int,
        run: Callable[[list[_I]], Sequence[Row]],
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Measures this process's part of what is missing, and keeps it.

        Args:
            items: identities.
            batch: how many ``run`` is given at most.
            run: some items to their whole rows.
            report: called with how many of this process's items are done, and how many there are.
        """
        own = self.processes.mine(items)
        todo = self.missing(own)
        done = len(own) - len(todo)
        for begin in range(0, len(todo), batch):
            if report is not None:
                report(done + begin, len(own))
            self.add(run(todo[begin : begin + batch]))
        if report is not None:
            report(len(own), len(own))

    def measure_blocks(
        self,
        blocks: Sequence[Sequence[_I]],
        run: Callable[[list[_I]], Sequence[Row]],
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """The same for items that belong together: a block is one process's, and what it lacks is run as one.

        Args:
            blocks: identities, in blocks.
            run: what is missing of a block to its whole rows.
            report: called with how many of this process's items are done, and how many there are.
        """
        own = self.processes.mine(blocks)
        done, total = 0, sum(map(len, own))
        for block in own:
            if report is not None:
                report(done, total)
            if todo := self.missing(block):
                self.add(run(todo))
            done += len(block)
        if report is not None:
            report(total, total)

    def add(self, rows: Sequence[Row]) -> None:
        """Takes measured rows, and writes what has waited for ``FLUSH_SECONDS``.

        Raises:
            ValueError: a row with other columns.
            DDIMError: the disk is full.
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
        """Writes what waits."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
        self._written = time.monotonic()

    def gather(self) -> None:
        """Writes what waits, waits for the other processes, and reads what they wrote."""
        self.flush()
        self.processes.wait()
        if self.processes.count > 1:
            self._read()

    def _read(self) -> None:
        parts = sorted(self.folder.glob("part-*.parquet"))
        for part in parts:
            for row in _rows_in(part, self.columns):
                self._rows.setdefault(self.columns.key(row), row)
        if len(parts) > MANY and self.processes.count == 1:
            self._write(list(self._rows.values()))
            for part in parts:
                part.unlink(missing_ok=True)

    def _write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=_schema(self.columns)), sink)
        write_whole(self.folder / f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet", sink.getvalue())


@contextmanager
def open_rows(folder: Path, columns: Columns, among: Processes | None = None) -> Iterator[Rows]:
    """The rows of a folder, which no other run may write to meanwhile; what is measured is written also on an error.

    Args:
        folder: where to; the parts lie in ``<folder>/rows``.
        columns: what a row holds.
        among: who shares the work; by default ``processes()``.

    Raises:
        InputError: another run is writing there, rows with other columns, or pyarrow is not installed.
        DDIMError: a broken part, or a folder that cannot be written.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError("Results are kept as parquet, which needs pyarrow: pip install 'ddim[eval]'.") from None
    among = processes() if among is None else among
    with only_process(folder, "writing results to", "--out") if among.main else nullcontext():
        among.wait()  # for the lock
        rows = Rows(folder / "rows", columns, among)
        among.wait()  # all have read the same, so all part the work alike
        try:
            yield rows
        finally:
            rows.flush()


def surviving(
    items: Sequence[_A],
    make: Callable[[Sequence[_A]], _T],
    rows: Callable[[Sequence[_A], _T, float], list[_R]],
    failed: Callable[[_A, str, float], _R],
) -> list[_R]:
    """Rows of items that are made together; where that fails each is made alone, since the others are not to blame.

    Args:
        items: one or more.
        make: items -> what is made of them. A DDIMError is a result: a walk that diverged.
        rows: items, what was made of them and when that began (``time.perf_counter``) -> their rows. An error here,
            such as a full disk, is none.
        failed: an item that fails alone, the reason in one line, and when that began -> its row.

    Returns:
        A row an item, in their order.

    Raises:
        InputError: what cannot be used at all.
        DDIMError: what ``rows`` raises.
    """
    began = time.perf_counter()
    try:
        made = make(items)
    except InputError:
        raise
    except DDIMError as error:
        if len(items) > 1:
            return [row for item in items for row in surviving([item], make, rows, failed)]
        return [failed(items[0], one_line(error), began)]
    return rows(items, made, began)


def _schema(columns: Columns) -> Any:
    import pyarrow as pa

    types = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.float32()), pa.binary())
    kinds: dict[str, Any] = dict(zip(KINDS, types, strict=True))
    return pa.schema([(name, kinds[kind]) for name, kind in columns.all.items()])


def _rows_in(part: Path, columns: Columns) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(part).read()
    except Exception as error:  # pyarrow raises several kinds
        raise DDIMError(f"{part} is no parquet file of results: {reason_of(error)}") from None
    if not table.schema.equals(_schema(columns)):
        raise InputError(f"{part.parent} holds other columns than this run measures; choose another.", parameter="out")
    return table.to_pylist()
