"""Bounds the time that OpenMP's threads spin, so that torch stays fast on a machine that does other work too."""

import os
import sys
from collections.abc import Container, MutableMapping

WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""The bounds, for GNU's OpenMP in turns of a loop and for Intel's and LLVM's in milliseconds.

A thread that has done its share of a layer spins until the next layer begins, without a bound for several milliseconds
(GNU) or 200 (Intel, LLVM). Beside another busy process that time is missing to the thread that the others wait for.
1,000 turns cover the time between two layers, so that they cost nothing on an idle machine; 300 are too few.
``benchmarks/NOTES.md`` has the measurements.
"""
CHOSEN_BY = ("OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Variables by which a user chooses how threads wait; then nothing is set."""


def bound_spinning(
    environment: MutableMapping[str, str] = os.environ, loaded: Container[str] = sys.modules
) -> dict[str, str]:
    """Sets the variables of ``WAITING`` that are not set, unless the user has chosen otherwise or torch is loaded.

    OpenMP reads them when torch is loaded. Afterwards they would have no effect here, but child processes would inherit
    them.

    Args:
        environment: the environment variables.
        loaded: the names of the modules that are imported.

    Returns:
        The variables that were set.
    """
    if "torch" in loaded or any(name in environment for name in CHOSEN_BY):
        return {}
    made = {name: value for name, value in WAITING.items() if name not in environment}
    environment.update(made)
    return made
