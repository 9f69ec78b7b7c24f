"""Reports the progress of a training run: a progress bar or a log, TensorBoard, and events for the caller."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .._utils.error_text import reason_of
from .config import OutputConfig

EventKind = Literal["start", "step", "checkpoint", "samples", "skipped", "engine", "done"]


@dataclass(frozen=True)
class Event:
    """Something that happened in a training run.

    Attributes:
        kind: what happened. ``engine``: the network does not run the fastest way. On a GPU a ``step`` is reported up to
            two steps late, so that the host need not wait for it; before a checkpoint or sheet all steps are reported.
        step: the number of optimiser steps so far.
        steps: the number of steps of the whole run.
        loss, gradient_norm: values of the last step; the norm is that before clipping.
        images_per_second: the mean speed since this process started, without the time for checkpoints and sheets.
        path: the file or folder that was written, or the run's folder.
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
    """Reports progress: with a Rich bar on a terminal, and otherwise with a line every ``log_every`` steps.

    Args:
        output: the output section of the config.
        steps: the number of steps of the run.
        batch: images per step.
        active: False reports nothing, for all processes but the main one.
        on_event: called with each event; then nothing is printed.
    """

    def __init__(self, output: OutputConfig, steps: int, batch: int, active: bool, on_event: OnEvent | None) -> None:
        self.output, self.steps, self.batch, self.active = output, steps, batch, active
        self.on_event = on_event
        self._bar = self._writer = None
        self._busy, self._images, self._since = 0.0, 0, time.perf_counter()

    def open(self, step: int) -> None:
        """Starts reporting; ``step`` steps have already been made."""
        if not self.active:
            return
        if self.output.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides what a killed run logged after the checkpoint from which this one continues.
            self._writer = SummaryWriter(str(Path(self.output.folder, "tensorboard")), purge_step=step)
        if sys.stderr.isatty() and self.on_event is None:
            self._bar = _rich_bar(self.steps, step)
        self._since = time.perf_counter()

    def pause_clock(self) -> None:
        """Stops the clock behind ``rate``, while checkpoints and sheets are written."""
        self._busy += time.perf_counter() - self._since

    def resume_clock(self) -> None:
        """Starts the clock behind ``rate`` again."""
        self._since = time.perf_counter()

    @property
    def rate(self) -> float:
        """Images per second over all processes, counting only the time of training steps."""
        spent = self._busy + time.perf_counter() - self._since
        return self._images / spent if spent > 0 else 0.0

    def step(self, step: int, loss: float, lr: float, norm: float) -> None:
        """Reports an optimiser step.

        Args:
            step: the number of steps so far.
            loss: the loss of this step.
            lr: its learning rate.
            norm: its gradient norm before clipping.
        """
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
            except OSError as error:  # a full disk should not end the run here; the next checkpoint will report it
                self._writer = None
                self._line(f"TensorBoard is switched off: {reason_of(error)}")
        if self._bar is None:
            self._line(f"step {step}/{self.steps}  loss {loss:.4f}  lr {lr:.2e}  {self.rate:.0f} images/s")

    def event(self, kind: EventKind, step: int, message: str, path: Path | None = None) -> None:
        """Reports anything other than a step; the arguments are those of ``Event``."""
        if self.active:
            self._emit(Event(kind, step, self.steps, images_per_second=self.rate, path=path, message=message))
            self._line(message)

    def close(self) -> None:
        """Closes the progress bar and the TensorBoard writer."""
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def _line(self, text: str) -> None:
        """Prints a line above the bar or on stderr; prints nothing if the caller receives events."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self.on_event is None:
            print(text, file=sys.stderr, flush=True)

    def _emit(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)


def _rich_bar(steps: int, step: int):
    """Starts a Rich progress bar on stderr."""
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
