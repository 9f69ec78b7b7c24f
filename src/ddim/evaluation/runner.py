"""The runner that every benchmark shares: processes, lock, rows, progress, warnings, the table and its provenance."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import __version__
from .._utils.errors import DDIMWarning, InputError, UnknownName
from .._utils.names import protect, slug
from .benchmark import Benchmark
from .columns import Item, Row, formats
from .options import Options, declared
from .plots import draw
from .rows import Processes, RowColumns, Rows, isolate_failures, only_run, open_rows, processes
from .tables import machine, versions, write_table

if TYPE_CHECKING:
    from ..models.counted import Counted

Progress = Callable[[int, int], None]
"""Called with how much is done, and with the total."""


class Reporter(Protocol):
    """Shows the progress of a run."""

    def status(self, what: str) -> AbstractContextManager[None]:
        """Shows that something is being done."""
        ...

    def bar(self, what: str, images: int) -> AbstractContextManager[Progress | None]:
        """Shows a progress bar; the context gives the function that moves it, or None."""
        ...

    def warn(self, sentence: str) -> None:
        """Shows a warning."""
        ...

    def say(self, line: str) -> None:
        """Shows a line of the progress where there is no bar."""
        ...


class Silent:
    """A reporter without progress; warnings are Python's."""

    def status(self, what: str) -> AbstractContextManager[None]:
        """Shows nothing."""
        return nullcontext()

    def bar(self, what: str, images: int) -> AbstractContextManager[Progress | None]:
        """Shows nothing."""
        return nullcontext()

    def warn(self, sentence: str) -> None:
        """Warns as Python does."""
        warnings.warn(sentence, DDIMWarning, stacklevel=2)

    def say(self, line: str) -> None:
        """Shows nothing."""


@dataclass
class Session:
    """What a benchmark runs with.

    Attributes:
        out: the folder of the run.
        device: where the model computes; None takes a GPU if there is one.
        processes: this process's place among those that share the work.
        reporter: shows the progress.
    """

    out: Path
    device: str | None = None
    processes: Processes = field(default_factory=Processes)
    reporter: Reporter = field(default_factory=Silent)
    _model: "Counted | None" = None

    @property
    def model(self) -> "Counted":
        """The model that ``open_model`` opened."""
        assert self._model is not None, "open_model was not called"
        return self._model

    def open_model(self, options: Options, *, dtype: str | None = None, classes: bool = False) -> "Counted":
        """Opens the model of the options; its network calls are counted from now on.

        A benchmark may call it again, in ``items``, to measure another precision.

        Args:
            options: with ``model``, a name or a loaded model.
            dtype: the precision to load a model by name in; by default ``options.dtype`` if there is one, or float32.
            classes: whether the benchmark can generate the classes of a class-conditional model.

        Raises:
            InputError: there is no such model or device, the model is class-conditional, or it is loaded already in
                another precision.
            DDIMError: the model's files are broken, or the hub cannot be reached.
        """
        from ..models import load
        from ..models.counted import Counted

        model, wanted = options.model, dtype or getattr(options, "dtype", "float32")
        if isinstance(model, str):
            with self.reporter.status(f"loading {model}"):
                model = load(model, device=self.device, dtype=wanted)
        own = str(model.dtype).removeprefix("torch.")
        if wanted not in ("float32", own):
            raise InputError(f"{wanted}, but the model is loaded in {own}; pass its name instead.", parameter="dtype")
        if model.classes and not classes:
            raise InputError(f"{model.name!r} generates classes, and this benchmark gives none.", parameter="model")
        self._model = Counted(model)
        return self._model


@dataclass(frozen=True)
class Evaluation:
    """What a benchmark measured.

    Attributes:
        name: the benchmark.
        about: the provenance: the command, the model, what the benchmark adds, the machine and the versions.
        rows: the lines of the table.
        files: the table, the plots and the sheets.
        headline: the result in one line; may be empty.
        extent: how much was measured, in one line.
    """

    name: str
    about: Mapping[str, Any]
    rows: list[Row]
    files: list[Path]
    headline: str = ""
    extent: str = ""


def run_benchmark(
    kind: type[Benchmark[Any, Any]],
    values: Mapping[str, Any],
    out: Path,
    *,
    device: str | None = None,
    reporter: Reporter | None = None,
    command: str,
) -> Evaluation | None:
    """Runs a benchmark, or continues it from the rows that are in the folder.

    Args:
        kind: the benchmark.
        values: its options.
        out: the folder for rows, table, plots and sheets.
        device: where the model computes.
        reporter: shows the progress; by default nothing is shown, and warnings are Python's.
        command: the line that repeats the run, for the table.

    Returns:
        The result. None in a process that is not the main one.

    Raises:
        InputError: an option is unknown or wrong, or another run is writing into the folder.
        DDIMError: the model, the network or the disk fails.
    """
    among = processes()  # before the model is loaded: here each process gets its GPU
    options = make_options(kind, values)
    stem = slug(options.model if isinstance(options.model, str) else options.model.name)
    _check_folder(kind, out, stem)
    session = Session(out, device, among, reporter or Silent())
    benchmark = kind(options, session)
    settings = list(benchmark.settings())
    columns = RowColumns.of(benchmark.columns)
    pace = _Pace(benchmark, settings, session)
    table: list[Row] = []
    extent = ""

    def write() -> tuple[list[Row], dict[str, Any], list[Path]]:
        lines, about = benchmark.arrange(list(table)), _provenance(benchmark, command)
        return lines, about, _write(benchmark, lines, about, stem)

    with only_run(out, among):
        if among.main:
            benchmark.begin()
        for folder, some in groupby(settings, benchmark.rows_folder):
            with open_rows(out / folder, columns, among) as rows:
                for setting in some:
                    items = benchmark.items(setting)
                    extent = (
                        extent or f"{len(items)} {benchmark.unit} · {len(settings)} setting{'s' * (len(settings) != 1)}"
                    )
                    with pace.bar(setting, len(items)) as report:
                        measure(benchmark, rows, setting, items, report)
                    if not among.main:
                        continue
                    found = rows.of(items)
                    _warn_of_failures(benchmark, setting, found)
                    lines = benchmark.summary(setting, found)
                    table += lines
                    benchmark.end(setting)
                    pace.end(setting, lines)
                    if benchmark.writes_each_setting:
                        write()
        if not among.main:
            return None
        lines, about, files = write()
        files += benchmark.sheets(out / f"{benchmark.table_name()}-{stem}")
    return Evaluation(benchmark.name, about, lines, files, benchmark.headline(lines), extent)


def make_options(kind: type[Benchmark[Any, Any]], values: Mapping[str, Any]) -> Any:
    """A benchmark's options from values.

    Raises:
        InputError: an option is unknown, missing, or out of its range.
    """
    known = {one.name: one for one in declared(kind.options_type)}
    if unknown := next((name for name in values if name not in known), None):
        raise UnknownName(f"option of {kind.name!r}", unknown, known, parameter=unknown)
    if missing := next((name for name, one in known.items() if one.required and name not in values), None):
        raise InputError(f"{kind.name!r} needs this option.", parameter=missing)
    return kind.options_type(**values)


def _check_folder(kind: type[Benchmark[Any, Any]], out: Path, stem: str) -> None:
    """Raises InputError, before any work, if the results cannot be written."""
    kept = [out / part / "x" for part in kind.folders]
    protect([*kept, *(out / f"{kind.name}-{stem}{end}" for end in (".md", ".csv", ".json", ".png"))])


def measure(
    benchmark: Benchmark[Any, Any], rows: Rows, setting: Any, items: Sequence[Item], report: Progress | None = None
) -> None:
    """Measures this process's share of the items that have no row yet, and gathers the rows of all processes.

    Args:
        benchmark: the benchmark.
        rows: the rows of the setting's folder.
        setting: one of the benchmark's settings.
        items: its items.
        report: called with the number of items that are done, and their total.

    Raises:
        InputError, DDIMError: from ``benchmark.run``.
    """
    rows.measure(benchmark.blocks(setting, items), _measuring(benchmark, setting, rows.columns), report)
    rows.gather()


def _measuring(
    benchmark: Benchmark[Any, Any], setting: Any, columns: RowColumns
) -> Callable[[list[Item]], Sequence[Row]]:
    """The function that turns a block of items into whole rows.

    It adds the columns that the runner fills in, and warns of each failure.
    """
    empty: dict[str, Any] = dict.fromkeys(columns.measured)
    standard = [name for name in ("seconds", "nfe") if name in empty]

    def run(items: Sequence[Item]) -> list[Row]:
        model = benchmark.session.model
        model.calls(1)  # starts counting anew
        began = time.perf_counter()
        found = benchmark.run(setting, items)
        values = {"seconds": (time.perf_counter() - began) / len(items), "nfe": model.calls(len(items))}
        rest: dict[str, Any] = {name: values[name] for name in standard}
        rest |= {"failed": ""} if "failed" in empty else {}
        return [{**item, **empty, **rest, **row} for item, row in zip(items, found, strict=True)]

    def failed(item: Item, why: str) -> Row:
        return {**item, **empty, "failed": why}

    def whole(items: list[Item]) -> Sequence[Row]:
        if "failed" not in empty:
            return run(items)
        rows = isolate_failures(items, run, failed)
        if key := benchmark.failed_key:
            for sentence in dict.fromkeys(f"{row[key]}: {row['failed']}" for row in rows if row["failed"]):
                benchmark.session.reporter.warn(f"{setting}: {sentence}")
        return rows

    return whole


def _warn_of_failures(benchmark: Benchmark[Any, Any], setting: Any, rows: Sequence[Row]) -> None:
    """Warns of the failures of a setting, also of an earlier run's, if each has not had its own warning."""
    reasons = [row["failed"] for row in rows if row.get("failed")]
    if reasons and not benchmark.failed_key:
        benchmark.session.reporter.warn(f"{setting}: {len(reasons)} {benchmark.unit} failed: {reasons[0]}")


def _provenance(benchmark: Benchmark[Any, Any], command: str) -> dict[str, Any]:
    model = benchmark.session.model
    own = {"command": command, "ddim": __version__, "model": model.name, "fingerprint": model.fingerprint}
    return {**own, **benchmark.about(), "machine": machine(), "versions": versions()}


def _write(benchmark: Benchmark[Any, Any], table: list[Row], about: Mapping[str, Any], stem: str) -> list[Path]:
    """Writes the table and the plots."""
    out, name = benchmark.session.out, f"{benchmark.table_name()}-{stem}"
    files = write_table(out, name, table, formats(benchmark.columns), about, benchmark.page(table))
    drawn = (draw(plot, out / f"{name}{suffix}.png") for suffix, plot in benchmark.plots(table).items())
    return [*files, *(file for file in drawn if file is not None)]


class _Pace:
    """The progress of each setting, and an estimate of the time that all of them still take.

    The estimate is for benchmarks with a ``cost``: one line for each setting, and one a minute within long ones.
    """

    def __init__(self, benchmark: Benchmark[Any, Any], settings: Sequence[Any], session: Session) -> None:
        self.benchmark, self.reporter, self.total = benchmark, session.reporter, len(settings)
        self.costs = [benchmark.cost(setting) for setting in settings]
        self.shared = session.processes.count
        self.left: dict[int, float] = {}
        self.at, self.calls, self.spent, self.now = -1, 0.0, 0.0, (0.0, 0.0)

    @contextmanager
    def bar(self, setting: Any, count: int) -> Iterator[Progress | None]:
        """The bar of the next setting, which has so many items."""
        self.at += 1
        cost, began, said = self.costs[self.at], time.monotonic(), time.monotonic()
        if not cost:
            with self.reporter.bar(str(setting), count) as report:
                yield report
            return
        if not self.left:  # all settings have as many items as the first
            self.left = {k: one * count / self.shared for k, one in enumerate(self.costs)}
        first: int | None = None
        with self.reporter.bar(f"{setting} ({self.at + 1} of {self.total})", count) as report:

            def moved(done: int, total: int) -> None:
                nonlocal first, said
                first = done if first is None else first
                time_now = time.monotonic()
                self.left[self.at] = cost * (total - done)
                self.now = (self.calls + cost * (done - first), self.spent + time_now - began)
                if report is not None:
                    report(int(done * cost), int(total * cost))
                if time_now - said > 60:
                    said = time_now
                    self.reporter.say(f"{setting}: {done} of {total} {self.benchmark.unit} · {self.estimate}")

            yield moved

    def end(self, setting: Any, lines: Sequence[Row]) -> None:
        """Says that a setting is done."""
        if self.costs[self.at]:
            self.left[self.at] = 0
            self.calls, self.spent = self.now
            done = sum(value <= 0 for value in self.left.values())
            headline = self.benchmark.headline(lines)
            self.reporter.say(f"{setting}: {headline} · {done} of {self.total} settings · {self.estimate}")

    @property
    def estimate(self) -> str:
        """How much longer the run takes at the pace so far."""
        calls, spent = self.now
        if calls <= 0:
            return "no pace yet"
        seconds = sum(self.left.values()) * spent / calls
        rest = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
        return f"{calls / spent:.0f} evaluations/s, about {rest} left"
