"""Checks whose result is read late, so that neither a GPU nor the host waits for the other in every step."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

LAG = 2
"""How many checks may be open. The host waits for the oldest one, which is one or two steps back."""


class LateChecks:
    """Checks of a run on a GPU, in the order in which they were made."""

    def __init__(self) -> None:
        self._open: deque[tuple[torch.cuda.Event, Tensor, Callable[[], Exception]]] = deque()

    def add(self, passed: Tensor, error: Callable[[], Exception]) -> None:
        """Adds a check, and reads the oldest one if more than ``LAG`` are open."""
        self._open.append((*_sent(passed), error))
        if len(self._open) > LAG:
            self._read()

    def close(self) -> None:
        """Reads all open checks."""
        while self._open:
            self._read()

    def _read(self) -> None:
        event, flag, error = self._open.popleft()
        event.synchronize()
        if not bool(flag):
            self._open.clear()
            raise error()


class LateFlag:
    """Reads a flag that a loop computes on a GPU one round late, so that the GPU always has a round of work queued."""

    def __init__(self) -> None:
        self._before: tuple[torch.cuda.Event, Tensor] | None = None

    def __call__(self, flag: Tensor) -> bool:
        """Returns the flag of the last call on a GPU, true in the first one; on a CPU, the flag itself.

        Args:
            flag: a boolean tensor with one element.
        """
        if not flag.is_cuda:
            return bool(flag)
        before, self._before = self._before, _sent(flag)
        if before is None:
            return True
        before[0].synchronize()
        return bool(before[1])


class LateValues(Generic[_T]):
    """Reads the numbers that a loop computes on a GPU up to ``LAG`` rounds late; on a CPU it reads them at once."""

    def __init__(self) -> None:
        self._open: deque[tuple[_T, torch.cuda.Event | None, Tensor]] = deque()

    def add(self, about: _T, values: Tensor, *, wait: bool = False) -> list[tuple[_T, list[float]]]:
        """Adds the numbers of a round, and returns those that have been read now, the oldest round first.

        Args:
            about: what is returned beside the numbers, such as the number of the round.
            values: the numbers, of shape [n].
            wait: wait for all rounds, this one included.
        """
        event, host = _sent(values) if values.is_cuda else (None, values)
        self._open.append((about, event, host))
        most = 0 if wait or event is None else LAG
        read: list[tuple[_T, list[float]]] = []
        while len(self._open) > most:
            earlier, event, host = self._open.popleft()
            if event is not None:
                event.synchronize()
            read.append((earlier, [float(value) for value in host]))
        return read


def _sent(values: Tensor) -> tuple[torch.cuda.Event, Tensor]:
    """Copies a tensor to the host without waiting for it; the event tells when it has arrived."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))
    return event, host


_current: ContextVar[LateChecks | None] = ContextVar("ddim_late_checks", default=None)


@contextmanager
def late_checks() -> Generator[None]:
    """A context in which ``require`` may raise a few calls late; at its end all checks have been read."""
    checks = LateChecks()
    token = _current.set(checks)
    try:
        yield
        checks.close()
    finally:
        _current.reset(token)


def require(passed: Tensor, error: Callable[[], Exception]) -> None:
    """Raises an error if a check failed.

    On a CPU it raises at once. On a GPU, inside ``late_checks``, it raises up to ``LAG`` calls later or at the end of
    the context, because reading the flag at once would make the host wait for the GPU.

    Args:
        passed: the result of the check, a boolean tensor with one element.
        error: makes the error; called only if the check failed, possibly some calls later.
    """
    checks = _current.get()
    if checks is not None and passed.is_cuda:
        checks.add(passed, error)
    elif not bool(passed):
        raise error()
