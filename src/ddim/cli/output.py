"""What a command prints: progress on stderr, and the result on stdout, for people or as JSON."""

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._utils.errors import DDIMWarning
from .command import Running, running
from .failure import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..pipelines.events import OnEvent

Report = Callable[[int, int], None]


class Meter:
    """Shows how many steps are done, and the loss while a method optimizes an embedding.

    Args:
        show: draws the bar, from steps done, steps in all, and a text beside them.
    """

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self._show, self._at, self._text = show, (0, 1), ""

    def __call__(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` steps are done."""
        self._at = (done, total)
        self._show(done, total, self._text)

    def show_loss(self, step: int, loss: float) -> None:
        """Shows the loss at a step, counted from 0."""
        self._text = f"step {step + 1}: loss {loss:.2e}"
        self._show(*self._at, self._text)


def listening(meter: Meter | None, keep: "Callable[..., None] | None" = None) -> "OnEvent":
    """An ``on_event`` for a pipeline.

    Args:
        meter: shows steps and losses; None shows nothing.
        keep: called with the index of a batch's first image among all, and the images of the batch; or the code of the
            batch and the number of images per batch.
    """
    from ..pipelines.events import CodeEvent, Event, ImagesEvent, LossEvent, StepEvent

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent) and meter is not None:
            meter(event.done, event.total)
        elif isinstance(event, LossEvent) and meter is not None:
            meter.show_loss(event.step, event.loss)
        elif isinstance(event, ImagesEvent) and keep is not None:
            keep(event.first, event.images)
        elif isinstance(event, CodeEvent) and keep is not None:
            keep(event.first, event.code, event.batch)

    return on_event


def main_process() -> bool:
    """Whether this process is the main one of those that Accelerate or torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class Terminal:
    """What one command prints. Inside its ``with`` block each warning is one line, and only our own are shown.

    Of several processes that Accelerate or torchrun started, only the main one prints; warnings are printed by each.

    Args:
        as_json: print one JSON object on stdout and no progress; by default as the running command was asked to.
        quiet: print neither progress nor a report; by default as the running command was asked to.
    """

    def __init__(self, as_json: bool | None = None, quiet: bool | None = None) -> None:
        asked = running() or Running(None)
        self.as_json = main_process() and (asked.as_json if as_json is None else as_json)
        self.quiet = not main_process() or (asked.quiet if quiet is None else quiet)
        self.live = not (self.as_json or self.quiet) and sys.stderr.isatty()
        self.warned: list[str] = []
        self.began = time.perf_counter()

    def __enter__(self) -> "Terminal":
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        if not os.environ.get("DDIM_DEBUG"):
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", DDIMWarning)
        warnings.showwarning = self._warn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._caught.__exit__(kind, error, trace)

    def warn(self, sentence: str) -> None:
        """Prints a warning on stderr, and adds it to the JSON object."""
        self._warn(sentence)

    def _warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        sentence = " ".join(str(message).split())
        if sentence in self.warned:  # every batch repeats it
            return
        self.warned.append(sentence)
        say("Warning", sentence)

    @property
    def seconds(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self.began

    @contextlib.contextmanager
    def status(self, what: str) -> Iterator[None]:
        """Shows a spinner while something loads."""
        if not self.live:
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(f"[dim]{what}[/dim]"):
            yield

    @contextlib.contextmanager
    def bar(self, what: str, images: int) -> Iterator[Meter | None]:
        """Shows a progress bar for a run over ``images``; yields its ``Meter``, or None without a terminal."""
        if not self.live:
            yield None
            return
        with progress() as bar:
            task, began = bar.add_task(what, total=None, rate=""), time.perf_counter()

            def show(done: int, total: int, text: str) -> None:
                spent = max(time.perf_counter() - began, 1e-9)
                rate = f"{done / spent:.1f} steps/s · {images * done / total / spent:.3g} images/s"
                bar.update(task, completed=done, total=total if done else None, rate=text or rate)

            yield Meter(show)

    def result(self, data: Mapping[str, Any], *lines: str) -> None:
        """Prints a command's result: ``data`` as a JSON object, or ``lines`` (Rich markup) for people."""
        if self.as_json:
            whole = {**data, "seconds": round(self.seconds, 3), "warnings": self.warned}
            print(json.dumps(whole, allow_nan=False, default=str), flush=True)
        elif not self.quiet:
            console = stdout()
            for line in lines:
                console.print(line, soft_wrap=True, highlight=False)


def stdout() -> "Console":
    """A console on stdout. It is 160 columns wide where stdout is no terminal, so that a pipe gets whole tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def progress(transient: bool = True) -> "Progress":
    """A Rich progress display on stderr with a ``rate`` field and the time left; a transient one then vanishes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=transient,
    )


def escaped(text: object) -> str:
    """The text with Rich's markup escaped."""
    from rich.markup import escape

    return escape(str(text))
