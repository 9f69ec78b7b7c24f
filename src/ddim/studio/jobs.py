"""Runs work in a thread of its own, tells how far it is, and stops it."""

import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .._utils.errors import DDIMError, DDIMWarning, InputError, Interrupted
from ..pipelines.events import EngineEvent, Event, LossEvent, StepEvent
from .errors import sentence_of

EVERY = 0.2
"""The shortest time between two reports, in seconds."""
SHARE = 10
"""Previews take at most one part in this many of the time of a job."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a job is.

    Attributes:
        text: what is done now.
        done, total: completed steps, and all steps; 0 where the number is not known yet.
        seconds: since the job began.
        preview: the newest preview, [3 or 1, H, W] in [0, 1], or None.
    """

    text: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    preview: Tensor | None = None

    @property
    def left(self) -> float | None:
        """The seconds that are left at the pace so far; None before the first step."""
        return None if not self.done else self.seconds / self.done * (self.total - self.done)


@dataclass(eq=False)
class Job:
    """Work that runs in a thread: ``updates`` yields its progress, and then ``result`` or ``problem`` is there.

    Args:
        work: called in the thread with the job, to whose ``on_event`` it hands the library's events.
        stop: set from outside to stop the work at its next event.

    Attributes:
        result: what ``work`` returned; None if it failed or was stopped.
        problem: one sentence; empty if it succeeded.
        stopped: whether it was stopped.
        partial: what a stopped inversion had tuned, a partial code, or None.
        notes: the warnings of the library.
        title: what stands before the text of each report, such as the method of several.
    """

    work: Callable[["Job"], Any]
    stop: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    problem: str = ""
    stopped: bool = False
    partial: Any = None
    notes: list[str] = field(default_factory=list[str])
    title: str = ""
    _now: Progress = Progress("starting")
    _began: float = 0.0
    _peek: Callable[[], Tensor | None] | None = None
    _next_peek: float = 0.0
    _thread: threading.Thread | None = None

    def watch(self, peek: Callable[[], Tensor | None]) -> None:
        """Sets the function that makes a preview. It is called in the job's thread, and only now and then."""
        self._peek = peek

    def say(self, text: str) -> None:
        """Reports what is done from now on, and stops here if that was asked for."""
        self._check()
        self._now = Progress(text, preview=self._now.preview)

    def on_event(self, event: Event) -> None:
        """Takes an event of the library; raises KeyboardInterrupt if the job is to stop."""
        self._check()
        if isinstance(event, EngineEvent):
            return
        now = self._now
        if isinstance(event, StepEvent):
            self._now = Progress(now.text, event.done, event.total, preview=self._preview(now.preview))
        elif isinstance(event, LossEvent):
            self._now = Progress(f"tuning step {event.step + 1}", now.done, now.total, preview=now.preview)

    def updates(self) -> Iterator[Progress]:
        """Starts the work, and yields its progress until it has ended. A consumer that leaves early stops it."""
        self._began = time.monotonic()
        thread = self._thread = threading.Thread(target=self._run, name="ddim-studio-job", daemon=True)
        thread.start()
        seen = None
        try:
            while thread.is_alive():
                if self._now is not seen:
                    seen = self._now
                    yield self._timed(seen)
                thread.join(EVERY)
        finally:
            if thread.is_alive():  # the page was closed: the next job must not begin beside this one
                self.stop.set()
                thread.join()

    def wait(self, seconds: float) -> None:
        """Waits until the work has ended, but not longer than some seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _timed(self, progress: Progress) -> Progress:
        spent = time.monotonic() - self._began
        text = f"{self.title}: {progress.text}" if self.title else progress.text
        return Progress(text, progress.done, progress.total, spent, progress.preview)

    def _check(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _preview(self, last: Tensor | None) -> Tensor | None:
        now = time.monotonic()
        if self._peek is None or now < self._next_peek:
            return last
        found = self._peek()
        took = time.monotonic() - now
        self._next_peek = now + took + max(EVERY, SHARE * took)
        return last if found is None else found

    def _run(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", DDIMWarning)
            try:
                self._check()
                self.result = self.work(self)
            except KeyboardInterrupt as stopped:
                self.stopped, self.problem = True, "Stopped."
                self.partial = stopped.partial if isinstance(stopped, Interrupted) else None
            except BaseException as error:
                self.problem = sentence_of(error)
                if not isinstance(error, InputError | DDIMError):
                    traceback.print_exc()
        self.notes = list(dict.fromkeys(" ".join(str(one.message).split()) for one in caught))
