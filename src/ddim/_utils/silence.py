"""Keeps diffusers, transformers, the hub's client and libtiff from printing while they work for us."""

import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

_LOCK = threading.Lock()
_OPEN_BLOCKS: list[Any] = []
"""One entry for each ``quiet`` block that is open; each holds the libraries' settings at its start.

Log levels and progress bars belong to the whole process, and blocks of several threads may overlap. So the first block
switches them off, and the last one to end restores what the first one found.
"""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, diffusers, transformers and the hub's client log errors only and draw no progress bars.

    Blocks may be nested, and may be open in several threads at once.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging  # it would log each retry of a download
    from transformers.utils import logging as transformers_logging

    logs = (diffusers_logging, transformers_logging, hub_logging)
    with _LOCK:
        _OPEN_BLOCKS.append([(log, log.get_verbosity(), _draws_bars(log)) for log in logs])
        if len(_OPEN_BLOCKS) == 1:
            for log in logs:
                log.set_verbosity_error()
                if _draws_bars(log):
                    log.disable_progress_bar()
    try:
        yield
    finally:
        with _LOCK:
            if len(_OPEN_BLOCKS) > 1:
                _OPEN_BLOCKS.pop()  # never the first entry, which holds the settings to restore
            else:
                for log, level, drew_bars in _OPEN_BLOCKS.pop():
                    log.set_verbosity(level)
                    if drew_bars:
                        log.enable_progress_bar()


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
    """Inside the block nothing is logged or warned of. For calls whose failures become errors of ours."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@cache
def silence_libtiff() -> None:
    """Stops libtiff, which Pillow contains, from printing errors on stderr; Pillow raises them as exceptions anyway."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # this build of Pillow has no libtiff
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
