"""A run killed again and again: children of this process, which need import nothing anew."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

from ddim._utils.temporary import temporary_beside


def killed(run: Callable[[], object], progress: Callable[[], int], times: int = 5, every: int = 4) -> None:
    """Starts ``run`` so many times, and kills it (SIGKILL) once ``progress()`` is ``every`` further each time.

    Rows of an evaluation reach the disk every ``rows.FLUSH_SECONDS``: a test sets it to 0, or the run ends first.
    """
    context = multiprocessing.get_context("fork")

    def silent() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        run()

    hit = 0
    for k in range(times):
        process = context.Process(target=silent)
        process.start()
        while process.is_alive() and progress() < every * (k + 1):
            time.sleep(0.002)
        hit += process.is_alive()
        process.kill()
        process.join()
    assert hit, "every run ended before it could be killed"


def dead_file(folder: Path) -> Path:
    """A temporary file of a process that was killed in the middle of writing."""

    def die() -> None:
        temporary_beside(folder / "a.png").write_bytes(b"half")
        os._exit(9)

    before = set(folder.iterdir())
    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    (file,) = set(folder.iterdir()) - before
    return file
