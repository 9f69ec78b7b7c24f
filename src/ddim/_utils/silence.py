"""Keeps diffusers, transformers, the hub's client and libtiff from printing while they work for us."""

import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

_LIBRARIES = ("accelerate", "diffusers", "huggingface_hub", "peft", "transformers")
"""The libraries whose loggers ``without_logs`` switches off."""


class _Change:
    """A change of settings of the whole process, while at least one block is open.

    Blocks may be nested, and those of several threads may overlap. So the first one makes the change, and the last one
    to end restores what the first one found.

    Args:
        make: makes the change, and returns a function that restores the settings.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self._make, self._open, self._lock = make, 0, threading.Lock()

    @contextmanager
    def block(self) -> Iterator[None]:
        """The settings are changed inside the block."""
        with self._lock:
            if not self._open:
                self._restore = self._make()
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._restore()


def _errors_only() -> Callable[[], None]:
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging  # it would log each retry of a download
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging, hub_logging)
    found: list[tuple[Any, int, bool]] = [(log, log.get_verbosity(), _draws_bars(log)) for log in logs]
    for log, _, drew_bars in found:
        log.set_verbosity_error()
        if drew_bars:
            log.disable_progress_bar()

    def restore() -> None:
        for log, level, drew_bars in found:
            log.set_verbosity(level)
            if drew_bars:
                log.enable_progress_bar()

    return restore


def _nothing() -> Callable[[], None]:
    found = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LIBRARIES]
    for logger, _ in found:
        logger.setLevel(logging.CRITICAL + 1)

    def restore() -> None:
        for logger, level in found:
            logger.setLevel(level)

    return restore


_QUIET, _WITHOUT_LOGS = _Change(_errors_only), _Change(_nothing)


def quiet() -> AbstractContextManager[None]:
    """Inside the block, diffusers, transformers and the hub's client log errors only and draw no progress bars.

    Blocks may be nested, and may be open in several threads at once.
    """
    return _QUIET.block()


def _draws_bars(log: Any) -> bool:
    """Whether a library draws progress bars now; the hub's client has no such switch in its logging module."""
    return hasattr(log, "is_progress_bar_enabled") and log.is_progress_bar_enabled()


@contextmanager
def loading() -> Iterator[None]:
    """``quiet``, and without FutureWarnings. Not thread-safe, because ``warnings.catch_warnings`` is not."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def without_logs() -> Iterator[None]:
    """``loading``, and without any logs of the libraries and any warnings. Other loggers are as they were.

    For calls whose failures become errors of ours. Not thread-safe, because ``warnings.catch_warnings`` is not.
    """
    with loading(), _WITHOUT_LOGS.block():
        warnings.simplefilter("ignore")
        yield


@cache
def silence_libtiff() -> None:
    """Stops libtiff, which Pillow contains, from printing errors on stderr; Pillow raises them as exceptions anyway."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # this build of Pillow has no libtiff
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _to_nowhere() -> Callable[[], None]:
    def flush() -> None:
        if sys.stderr is not None:  # which a program without a console has not
            sys.stderr.flush()

    flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        return lambda: None
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)

    def restore() -> None:
        flush()
        os.dup2(kept, 2)
        os.close(kept)

    return restore


_WITHOUT_STDERR = _Change(_to_nowhere)


def without_stderr() -> AbstractContextManager[None]:
    """Nothing that this process or a library in C writes to stderr is seen inside the block."""
    return _WITHOUT_STDERR.block()
