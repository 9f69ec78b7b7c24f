"""Checks whose result is read late, so that neither a GPU nor the host waits for the other in every step."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

LAG = 2
"""How many checks may be open. The host waits for the oldest one, which is one or two steps back."""


class _Queue(Generic[_T]):
    """Tensors on their way from a GPU to the host, in their order, each with a value beside it."""

    def __init__(self) -> None:
        self._open: deque[tuple[_T, torch.cuda.Event, Tensor]] = deque()

    def push(self, about: _T, values: Tensor) -> None:
        """Sends a tensor."""
        self._open.append((about, *_sent(values)))

    def read(self, most: int) -> Iterator[tuple[_T, Tensor]]:
        """Yields the oldest tensors when they have arrived, until ``most`` are left."""
        while len(self._open) > most:
            about, event, host = self._open.popleft()
            event.synchronize()
            yield about, host


class LateChecks:
    """Checks of a run on a GPU, in the order in which they were made."""

    def __init__(self) -> None:
        self._queue = _Queue[Callable[[], Exception]]()

    def add(self, passed: Tensor, error: Callable[[], Exception]) -> None:
        """Adds a check, and reads the oldest one if more than ``LAG`` are open."""
        self._queue.push(error, passed)
        self._read(LAG)

    def close(self) -> None:
        """Reads all open checks."""
        self._read(0)

    def _read(self, most: int) -> None:
        for error, passed in self._queue.read(most):
            if not bool(passed):
                self._queue = _Queue[Callable[[], Exception]]()
                raise error()


class LateFlag:
    """Reads a flag that a loop computes on a GPU one round late, so that the GPU always has a round of work queued."""

    def __init__(self) -> None:
        self._queue = _Queue[None]()

    def __call__(self, flag: Tensor) -> bool:
        """Returns the flag of the last call on a GPU, true in the first one; on a CPU, the flag itself.

        Args:
            flag: a boolean tensor with one element.
        """
        if not flag.is_cuda:
            return bool(flag)
        self._queue.push(None, flag)
        return all(bool(before) for _, before in self._queue.read(1))


class LateValues(Generic[_T]):
    """Reads the numbers that a loop computes on a GPU up to ``LAG`` rounds late; on a CPU it reads them at once."""

    def __init__(self) -> None:
        self._queue = _Queue[_T]()

    def add(self, about: _T, values: Tensor, *, wait: bool = False) -> list[tuple[_T, list[float]]]:
        """Adds the numbers of a round, and returns those that have been read now, the oldest round first.

        Args:
            about: what is returned beside the numbers, such as the number of the round.
            values: the numbers, of shape [n].
            wait: wait for all rounds, this one included.
        """
        if values.is_cuda:
            self._queue.push(about, values)
            read = self._queue.read(0 if wait else LAG)
        else:
            read = iter([(about, values)])
        return [(earlier, [float(value) for value in host]) for earlier, host in read]


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
