"""Bounds the arenas of glibc's malloc, so that a server with many threads keeps less freed memory."""

import ctypes
import os
from collections.abc import Mapping

_M_ARENA_MAX = -8  # of glibc's malloc.h
CHOSEN_BY = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
"""Variables by which a user chooses the number of arenas; then it is left as it is."""


def bound_arenas(most: int = 2, environment: Mapping[str, str] = os.environ) -> bool:
    """Makes malloc serve all threads from a few arenas, from now on.

    glibc gives threads up to eight arenas a core, each of which keeps what was freed in it. ``benchmarks/NOTES.md`` has
    what this costs a page of ``ddim studio``.

    Args:
        most: the number of arenas.
        environment: the environment variables.

    Returns:
        Whether it did: not without glibc, and not if the user has chosen otherwise.
    """
    if os.name != "posix" or any(name in environment for name in CHOSEN_BY):
        return False
    libc = ctypes.CDLL(None)
    return hasattr(libc, "gnu_get_libc_version") and bool(libc.mallopt(_M_ARENA_MAX, most))
