"""A benchmark: options, columns, and how items are measured. Everything else is the runner's."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .columns import Column, Item, Row, summarise
from .options import Options
from .plots import Plot
from .rows import batches

if TYPE_CHECKING:
    from .runner import Session

O = TypeVar("O", bound=Options)  # noqa: E741
S = TypeVar("S")


class Benchmark(ABC, Generic[O, S]):
    """A table that is measured. A subclass states its options and columns, and defines ``items`` and ``run``.

    A benchmark has settings, such as methods or numbers of steps; a setting has items, such as images. Each measured
    item is a row on disk, and the rows of a setting become a line of the table. The class docstring is the command's
    help. A module of a benchmark imports torch only inside functions, so that ``--help`` does not need it.

    Args:
        options: an ``options_type``.
        session: the run: the folder, the device, the model, the progress.

    Attributes:
        name: its key in ``BENCHMARKS``, and the name of its command.
        options_type: the dataclass of its options.
        columns: its columns; keys, measured values, and columns of the table.
        unit: what items are called in messages.
        failed_key: the column that names an item in the warning about its failure. If it is empty, one warning for
            each setting counts the failures.
        folders: what it writes into the folder of the run, beside the table.
        writes_each_setting: whether the table is written after every setting, and not only at the end.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[Options]]
    columns: Sequence[Column]
    unit: ClassVar[str] = "images"
    failed_key: ClassVar[str] = ""
    folders: ClassVar[tuple[str, ...]] = ("rows",)
    writes_each_setting: ClassVar[bool] = False

    def __init__(self, options: O, session: "Session") -> None:
        self.options, self.session = options, session

    @abstractmethod
    def settings(self) -> Sequence[S]:
        """The settings in the order in which they are measured. ``str(setting)`` is shown as the progress."""

    @abstractmethod
    def items(self, setting: S) -> list[Item]:
        """The items of a setting: for each the values of the key columns."""

    @abstractmethod
    def run(self, setting: S, items: Sequence[Item]) -> Sequence[Row]:
        """The measured values of some items of a setting, one mapping for each item.

        The runner adds ``seconds`` and ``nfe`` (network calls), each per item, if they are columns and are left out.

        Raises:
            InputError: the setting cannot be used; the run ends.
            DDIMError: an item failed. The runner tries each item alone and stores the reason as ``failed``.
        """

    def blocks(self, setting: S, items: Sequence[Item]) -> list[list[Item]]:
        """The items in the blocks that are run together; by default ``options.batch`` items each."""
        return batches(items, getattr(self.options, "batch", 1), self.session.processes.count)

    def rows_folder(self, setting: S) -> str:
        """The folder, relative to that of the run, in whose ``rows/`` the rows of a setting lie."""
        return ""

    def cost(self, setting: S) -> float:
        """Network calls per item. If it is not 0, the runner estimates how long the run will take."""
        return 0.0

    def begin(self) -> None:
        """Called once before the first setting, in the main process only, while no other run may write."""

    def summary(self, setting: S, rows: Sequence[Row]) -> list[Row]:
        """The lines of the table for a setting; by default one, as the columns say."""
        return [summarise(self.columns, rows)]

    def end(self, setting: S) -> None:
        """Called in the main process when all items of a setting are measured."""

    def arrange(self, table: list[Row]) -> list[Row]:
        """The lines in the table's order."""
        return table

    def about(self) -> Mapping[str, Any]:
        """What is printed under the table, beside the command, the model, the machine and the versions."""
        return {}

    def table_name(self) -> str:
        """The name of the table's files, without the model's."""
        return self.name

    def page(self, table: Sequence[Row]) -> str | None:
        """The table in Markdown; None for one line a row."""
        return None

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """The plots, each by what is appended to the name of the table's files."""
        return {}

    def sheets(self, stem: Path) -> list[Path]:
        """Writes further images beside the table, whose names begin with ``stem``, and returns their files."""
        return []

    def headline(self, table: Sequence[Row]) -> str:
        """The result in one line, for people; may be empty."""
        return ""
