"""Runs jobs side by side and reports their progress."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import ddim

from .._utils.cores import usable_cores

MOST_WORKERS = 4

OnEvent = Callable[[ddim.Event], None]
Listen = Callable[[float], OnEvent]
"""Makes the ``on_event`` for a pipeline that does the given share, 0 to 1, of a job."""


class Progress(Protocol):
    """How the demo reports its progress. Calls are network calls on one image each.

    The methods are called from several threads.
    """

    def start(self, calls: int) -> None:
        """Called once, with the calls of the whole demo."""

    def section(self, title: str, calls: int) -> contextlib.AbstractContextManager[object]:
        """Called for each section; the section runs inside the context."""
        ...

    def advance(self, calls: float) -> None:
        """Called after each step, with the calls since the last time."""

    def page(self, file: Path) -> None:
        """Called once, when the page has its first section. More sections may follow."""


@dataclass(frozen=True)
class Job:
    """A piece of a section that can run beside others.

    Attributes:
        calls: how many network calls it makes, an image each; only for the progress bar and the order of jobs.
        run: does it, and returns its result.
    """

    calls: int
    run: Callable[[Listen], Any]


class _Stopped(Exception):
    """Ends a job because another job has failed."""


@contextlib.contextmanager
def worker_threads(device: str) -> Iterator[int]:
    """Shares torch's threads out among jobs, and yields how many jobs to run at once.

    A small network uses one core well and two poorly, so jobs side by side are faster than threads inside each job.
    With up to four cores each job has one thread, and its numbers do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    limit = min(threads, usable_cores())
    workers = min(limit, MOST_WORKERS) if device == "cpu" else 1
    torch.set_num_threads(max(limit // workers, 1))
    try:
        yield workers
    finally:
        torch.set_num_threads(threads)


def run_jobs(jobs: Sequence[Job], workers: int, progress: Progress) -> list[Any]:
    """Runs all jobs, ``workers`` at a time and the longest first, and returns their results in the order of ``jobs``.

    The first failure stops the other jobs at their next step and is raised.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        order = sorted(range(len(jobs)), key=lambda k: -jobs[k].calls)
        futures = {k: pool.submit(jobs[k].run, _listen(jobs[k].calls, progress, stop)) for k in order}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [futures[k].result() for k in range(len(jobs))]


def _listen(calls: int, progress: Progress, stop: threading.Event) -> Listen:
    def listen(share: float) -> OnEvent:
        reported = 0.0

        def on_event(event: ddim.Event) -> None:
            nonlocal reported
            if stop.is_set():
                raise _Stopped
            if isinstance(event, ddim.StepEvent):
                reached = calls * share * event.done / event.total
                progress.advance(reached - reported)
                reported = reached

        return on_event

    return listen
