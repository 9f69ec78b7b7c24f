"""Jobs side by side, and the bars that show how far they are."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from ..cli.output import Report, Terminal, progress
from .studio import Job

MOST = 4


class _Stopped(Exception):
    """Ends a job because another one has failed."""


@contextlib.contextmanager
def workers(device: str) -> Iterator[int]:
    """How many jobs run at once. On a CPU the threads are shared out, one job each where there are few.

    A small network keeps one core busy and hardly two: jobs side by side are faster than threads inside each, and on
    up to four cores every number is then the same as on one.
    """
    threads = torch.get_num_threads()
    count = min(threads, MOST) if device == "cpu" else 1
    torch.set_num_threads(max(threads // count, 1))
    try:
        yield count
    finally:
        torch.set_num_threads(threads)


def work_off(jobs: Sequence[Job], count: int, bars: "Bars") -> None:
    """All jobs, ``count`` at a time, the longest first; the first failure ends the others at their next step."""
    stop = threading.Event()

    def do(job: Job) -> None:
        report = bars.job(job.weight)

        def tell(done: int, total: int) -> None:
            if stop.is_set():
                raise _Stopped
            if report is not None:
                report(done, total)

        job.work(tell)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(do, job) for job in sorted(jobs, key=lambda job: -job.weight)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Bars:
    """One bar a section and one for the whole; on a stderr that is no terminal, a line a section."""

    def __init__(self, terminal: Terminal, weights: Sequence[int]) -> None:
        self.lines = not (terminal.live or terminal.as_json or terminal.quiet)
        self.bar = progress(transient=False) if terminal.live else None
        self.total, self.whole, self.part = sum(weights), None, None
        self.began = self.entered = time.perf_counter()

    def __enter__(self) -> "Bars":
        if self.bar is not None:
            self.bar.start()
            self.whole = self.bar.add_task("[bold]the whole demo", total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @contextlib.contextmanager
    def section(self, title: str, weight: int) -> Iterator[None]:
        """A section of so many network calls."""
        self.entered = time.perf_counter()
        if self.bar is not None:
            self.part = self.bar.add_task(title, total=weight, rate="")
        yield
        if self.lines:
            spent = time.perf_counter() - self.entered
            print(f"{title}: {spent:.1f} s, {weight} network calls", file=sys.stderr, flush=True)

    def job(self, weight: int) -> Report | None:
        """Whom a job tells; its share of the bars is ``weight``."""
        bar, part, whole, sofar = self.bar, self.part, self.whole, 0.0
        if bar is None or part is None or whole is None:
            return None

        def report(done: int, total: int) -> None:
            nonlocal sofar
            step = weight * done / total - sofar
            sofar += step
            for task, since in ((part, self.entered), (whole, self.began)):
                bar.advance(task, step)
                completed = bar.tasks[task].completed
                bar.update(task, rate=f"{completed / max(time.perf_counter() - since, 1e-9):.0f} images/s")

        return report
