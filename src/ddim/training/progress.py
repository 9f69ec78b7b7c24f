"""What a run tells while it goes: a progress bar or a plain log, TensorBoard, and events for the caller."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .._utils.error_text import reason_of
from .config import OutputConfig

EventKind = Literal["start", "step", "checkpoint", "samples", "skipped", "done"]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: what.
        step: optimiser steps done so far.
        steps: how many the run has.
        loss, gradient_norm: of the last step; the norm before clipping.
        images_per_second: since this process started, checkpoints and sheets left out.
        path: what was written, or the run's folder.
        message: one line for people; empty for ``step``.
    """

    kind: EventKind
    step: int
    steps: int
    loss: float = float("nan")
    gradient_norm: float = float("nan")
    images_per_second: float = 0.0
    path: Path | None = None
    message: str = ""


OnEvent = Callable[[Event], None]


class Reporter:
    """A Rich bar on a terminal, a line each ``log_every`` steps elsewhere; silent where somebody listens, or where
    ``active`` is False."""

    def __init__(self, output: OutputConfig, steps: int, batch: int, active: bool, on_event: OnEvent | None) -> None:
        self.output, self.steps, self.batch, self.active = output, steps, batch, active
        self.on_event = on_event
        self._bar = self._writer = None
        self._busy, self._images, self._since = 0.0, 0, time.perf_counter()

    def open(self, step: int) -> None:
        """Begins at ``step`` steps done."""
        if not self.active:
            return
        if self.output.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step: what a killed run logged beyond its checkpoint is hidden.
            self._writer = SummaryWriter(str(Path(self.output.folder, "tensorboard")), purge_step=step)
        if sys.stderr.isatty() and self.on_event is None:
            self._bar = _rich_bar(self.steps, step)
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock of images/s, for checkpoints and sheets."""
        self._busy += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Starts it again."""
        self._since = time.perf_counter()

    @property
    def rate(self) -> float:
        """Images per second in training steps, over all processes."""
        spent = self._busy + time.perf_counter() - self._since
        return self._images / spent if spent > 0 else 0.0

    def step(self, step: int, loss: float, lr: float, norm: float) -> None:
        """After each optimiser step; ``step`` counts those done."""
        if not self.active:
            return
        self._images += self.batch
        self._emit(Event("step", step, self.steps, loss, norm, self.rate))
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=f"{loss:.4f}", rate=f"{self.rate:.0f}")
        if step % self.output.log_every and step != self.steps:
            return
        if self._writer is not None:
            values = {"loss": loss, "lr": lr, "gradient_norm": norm, "images_per_second": self.rate}
            try:
                for name, value in values.items():
                    self._writer.add_scalar(f"train/{name}", value, step)
            except OSError as error:  # a full disk: not worth the run, the next checkpoint will say more
                self._writer = None
                self._line(f"TensorBoard is off from here on: {reason_of(error)}")
        if self._bar is None:
            self._line(f"step {step}/{self.steps}  loss {loss:.4f}  lr {lr:.2e}  {self.rate:.0f} images/s")

    def tell(self, kind: EventKind, step: int, message: str, path: Path | None = None) -> None:
        """Anything other than a step."""
        if self.active:
            self._emit(Event(kind, step, self.steps, images_per_second=self.rate, path=path, message=message))
            self._line(message)

    def close(self) -> None:
        """Ends bar and TensorBoard."""
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self.on_event is None:  # a caller who listens prints what they like
            print(text, file=sys.stderr, flush=True)

    def _emit(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)


def _rich_bar(steps: int, step: int):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]} images/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task("training", total=steps, completed=step, loss="-", rate="-")
    bar.start()
    return bar
