"""One worker: it loads the model once, then reads, computes and writes batches, each of them as a whole."""

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._utils.errors import DDIMError, DDIMWarning, InputError
from ..evaluation.rows import isolate_failures
from .items import Columns, Item, Items, open_items
from .output import Output, Row, empty_row
from .plan import Plan, filled

UNDER_WAY = 2
"""How many batches of a worker are under way: one is computed, the next one is read or the last one written."""


@dataclass(frozen=True)
class Work:
    """What is done with every batch.

    Attributes:
        command: ``invert``, ``edit``, ``reconstruct`` or ``sample``.
        columns: where the data are.
        model: a name or a folder, as for ``ddim.load``.
        loading: the keyword arguments of ``ddim.load``.
        arguments: the keyword arguments of the pipeline, as far as they are the same for all items; or a function of
            the loaded model that returns them. ``seed`` is the seed of item 0, and item k has ``seed + k``.
        resize: fit pictures of another size or number of channels to the model.
        count: take the first so many items; for ``sample`` without data, draw so many. None takes all.
        batch: the number of items in a batch; not used by ``reconstruct``.
        threads: the number of torch's threads in a worker, which decides the last bits on a CPU.
        settings: what the plan lists beside these, as plain values of JSON: for options that ``arguments`` hides.
    """

    command: str
    columns: Columns = field(default_factory=Columns)
    model: str = ""
    loading: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arguments: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = field(default_factory=dict[str, Any])
    resize: bool = False
    count: int | None = None
    batch: int = 64
    threads: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Done:
    """A batch that is stored.

    Attributes:
        number: the batch.
        good, bad: the rows with and without a result.
        seconds: how long it took, from the reading on.
        warnings: what the pipelines warned of.
    """

    number: int
    good: int
    bad: int
    seconds: float
    warnings: tuple[str, ...] = ()


class _ItemRefused(DDIMError):
    """An InputError about one item, which must not end the run."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _ItemRefused, (self.error,)


class Worker:
    """Computes batches. Reading and writing go on beside the computation, which has a thread of its own.

    Args:
        work: what is done.
        plan: the batches.
        folder: the output.
        items: the items, if they are open already.
    """

    def __init__(self, work: Work, plan: Plan, folder: Path, items: Items | None = None) -> None:
        self.work, self.plan, self.output = work, plan, Output(folder)
        self._items = items
        self._reading = threading.Lock()
        # One thread, so that every call has the same surroundings.
        self._computing = ThreadPoolExecutor(1, "ddim-batch")
        self._model: Any = None
        self._arguments: Mapping[str, Any] = {}
        self.stopped = False

    def load(self) -> None:
        """Loads the model.

        Raises:
            InputError: there is no such model, or an option does not go with it.
        """
        if self._model is None:  # else the caller would wait for the batch that is computed now
            self._computing.submit(self._load).result()

    def run(self, number: int) -> Done:
        """Reads, computes and writes a batch; several may be begun at once, from several threads.

        Raises:
            InputError: an option cannot be used at all.
            NotWritten: the output cannot be written.
        """
        began = time.perf_counter()
        indices = self.plan.indices(number)
        if self.output.part(number).exists():  # by a worker that was lost before it could say so
            rows, said = self.output.rows_of(number), list[str]()
        else:
            self.load()
            contents, failures = self._read(indices)
            if len(failures) == len(indices) and all(error.offer for error in failures.values()):
                key, error = contents[0][0].key, failures[0]  # they are whole, and do not fit the model
                self._end_if_first(
                    InputError(f"{key}: {error.message}", parameter=error.parameter, hint=error.hint, offer=error.offer)
                )
            rows, said = self._computing.submit(self._compute, number, contents, failures).result()
            self.output.write(number, rows)
        bad = sum(row["error"] is not None for row in rows)
        return Done(number, len(rows) - bad, bad, time.perf_counter() - began, tuple(dict.fromkeys(said)))

    def close(self) -> None:
        """Ends the computation at its next step, and waits for it."""
        self.stopped = True
        self._computing.shutdown(wait=True, cancel_futures=True)

    def _load(self) -> None:
        if self._model is not None:
            return
        from ..models import load
        from ..models.counted import Counted
        from ..models.engine.threads import set_threads_here

        set_threads_here(self.work.threads)
        model = Counted(load(self.work.model, **self.work.loading))
        given = self.work.arguments
        self._arguments = given(model) if callable(given) else given
        self._model = model

    def items(self) -> Items:
        """The items, opened when they are first needed."""
        if self._items is None:
            self._items = open_items(self.work.command, self.work.columns, self.work.count)
        return self._items

    def _read(self, indices: range) -> tuple[list[tuple[Item, Any]], dict[int, InputError]]:
        """Reads a batch: each item with its content, and by place the error of each that cannot be read."""
        contents: list[tuple[Item, Any]] = []
        failures: dict[int, InputError] = {}
        with self._reading:
            items = self.items()
            for place, index in enumerate(indices):
                item, content = items.item(index), None
                try:
                    content = self._content(items.open(index))
                except InputError as error:
                    failures[place] = error
                contents.append((item, content))
        return contents, failures

    def _content(self, opened: Any) -> Any:
        """A picture as the model takes it, or the row of a code.

        Raises:
            InputError: the picture does not fit the model, or the row has no code.
        """
        from ..data.images import read_images

        if opened is None:
            return None
        if isinstance(opened, dict):
            if opened["error"] is not None:
                raise InputError(opened["error"])
            return opened
        return read_images(opened, self._model.picture, resize=self.work.resize)[0]

    def _compute(
        self, number: int, contents: Sequence[tuple[Item, Any]], failures: Mapping[int, InputError]
    ) -> tuple[list[Row], list[str]]:
        """Computes a batch, and returns its rows and what was warned of."""
        indices = self.plan.indices(number)
        rows = [empty_row(i, number, item.key) for i, (item, _) in zip(indices, contents, strict=True)]
        for row, (item, _) in zip(rows, contents, strict=True):
            row |= {"prompt": item.prompt or None, "target": item.target or None}
            row |= {"label": item.label, "target_label": item.target_label}
        for place, error in failures.items():
            rows[place]["error"] = error.message
        good = [place for place in range(len(rows)) if place not in failures]
        if not good:
            return rows, []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DDIMWarning)
            results = self._results(indices.start, contents, good)
        for place, result in zip(good, results, strict=True):
            rows[place] |= result
        return rows, [str(one.message) for one in caught if issubclass(one.category, DDIMWarning)]

    def _results(self, first: int, contents: Sequence[tuple[Item, Any]], good: Sequence[int]) -> list[Row]:
        """The result of each good item. If they cannot be computed together, each is computed in its own place.

        Raises:
            InputError: no item has a result, in no batch so far: an option cannot be used.
        """
        from .verbs import VERBS, Call

        refused: list[InputError] = []

        def together(places: Sequence[int]) -> list[Row]:
            rows = [contents[place] for place in filled(self.plan.size, set(places))]
            items, own = [item for item, _ in rows], [content for _, content in rows]
            call = Call(self._model, items, own, places, first, self._arguments, self._on_event)
            try:
                return VERBS[self.work.command](call)
            except InputError as error:
                raise _ItemRefused(error) from None

        def failed(place: int, sentence: str) -> Row:
            return {"error": sentence}

        def alone(places: Sequence[int]) -> list[Row]:
            try:
                return together(places)
            except _ItemRefused as error:
                if len(places) == 1:
                    refused.append(error.error)
                raise

        results = isolate_failures(good, alone, failed)
        if len(refused) == len(good):
            self._end_if_first(refused[0])
        return results

    def _end_if_first(self, refused: InputError) -> None:
        """Raises the error of a batch that was refused as a whole, if none is stored yet: an option is wrong."""
        if not self.output.numbers():
            raise refused

    def _on_event(self, event: object) -> None:
        if self.stopped:
            raise KeyboardInterrupt
