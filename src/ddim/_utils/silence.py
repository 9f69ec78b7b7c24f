"""diffusers and transformers without what they say and draw beside the point."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOCK = threading.Lock()
_INSIDE: list[Any] = []  # one entry a block that is open; the first holds what was before
"""The libraries' levels and bars are the process's: the first block sets them, the last one puts them back."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without advice and bars, be it on import, loading, writing or encoding; from any thread."""
    from diffusers.utils import logging
    from huggingface_hub.utils import logging as of_the_hub  # says each of its retries
    from transformers.utils import logging as theirs

    logs = (logging, theirs, of_the_hub)
    with _LOCK:
        _INSIDE.append([(log, log.get_verbosity(), _draws(log)) for log in logs])
        if len(_INSIDE) == 1:
            for log in logs:
                log.set_verbosity_error()
                if _draws(log):
                    log.disable_progress_bar()
    try:
        yield
    finally:
        with _LOCK:
            if len(_INSIDE) > 1:
                _INSIDE.pop()
            else:
                for log, level, drawn in _INSIDE.pop():
                    log.set_verbosity(level)
                    if drawn:
                        log.enable_progress_bar()


def _draws(log: Any) -> bool:
    """Whether a library draws bars now; the hub's client keeps its own elsewhere."""
    return hasattr(log, "is_progress_bar_enabled") and log.is_progress_bar_enabled()


@contextmanager
def loading() -> Iterator[None]:
    """``quiet``, and without the warnings of what will change; for one thread, as warnings' filters are."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
