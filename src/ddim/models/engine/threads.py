"""Chooses the threads of a network call on a CPU by its work, and splits large batches among them.

A small call gets one thread. A second one would save little, and each of the hundreds of layers would wait for it: on a
machine that does other work too, that takes many times as long. In a large batch, each thread computes the whole
network on a part of the rows, and waits only at the end. Threads share the layers of a call only where a layer takes
much longer than the wait.

The choice is a function of the device, the dtype, the shape of the call, the network's weights, and the number of
threads that may be used (``thread_limit``). It never depends on a measurement, so the same call gives the same bits on
a busy machine as on an idle one.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._utils.cores import usable_cores
from ...core.denoiser import Layout
from .thread_table import CPU, Least

MAX_PARTS = 4
"""Largest number of parts. Python code runs in one thread at a time, and takes milliseconds of each network call."""
_MOST_ROWS = 2**30

_T = TypeVar("_T")
_local = threading.local()  # each calling thread has a pool of its own, so that none waits for another's work
_setting = threading.Lock()  # held while the number of threads that later threads start with is not the user's


def _after_fork() -> None:
    """Forgets what a forked child cannot use: a pool without its threads would wait for ever, and a lock too."""
    global _setting
    _local.__dict__.clear()
    _setting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Plan(NamedTuple):
    """How a call is computed.

    Attributes:
        parts: the number of parts that the rows are split into.
        threads: the number of threads for each part.
    """

    parts: int
    threads: int


def thread_limit() -> int:
    """Returns the number of threads that a call may use here.

    It is torch's number (``torch.set_num_threads``, ``OMP_NUM_THREADS``), but at most the number of cores that this
    process may use (``usable_cores``). Inside ``engine_threads``, torch's number is the one outside.
    """
    own: int | None = getattr(_local, "limit", None)
    if own is None:
        with _setting:
            own = torch.get_num_threads()
    return min(own, usable_cores())


def least_rows(row_work: float | None, dtype: torch.dtype) -> int:
    """Returns how many rows a part of a batch must have at least, so that a thread of its own pays.

    Args:
        row_work: the multiply-adds for one row; None if they are unknown, and then no batch is large enough.
        dtype: the dtype of the network.
    """
    if row_work is None:
        return _MOST_ROWS
    return max(1, min(math.ceil(_least(dtype).part / max(row_work, 1.0)), _MOST_ROWS))


def plan_call(rows: int, row_work: float | None, dtype: torch.dtype, limit: int, *, split: bool = True) -> Plan:
    """Decides how a call without gradients is computed on a CPU.

    Args:
        rows: the number of rows.
        row_work: the multiply-adds for one row. None if they are unknown; then all threads share the layers.
        dtype: the dtype of the network.
        limit: the largest number of threads.
        split: whether the rows may be computed apart.
    """
    if row_work is None:
        return Plan(1, limit)
    parts = max(1, min(limit, MAX_PARTS, rows // least_rows(row_work, dtype))) if split else 1
    each = int(rows * row_work / parts / _least(dtype).layer)
    return Plan(parts, max(1, min(limit // parts, each)))


def _least(dtype: torch.dtype) -> Least:
    return CPU.get(str(dtype).removeprefix("torch."), CPU["float32"])


def _plan(x: Tensor, row_work: float | None, split: bool, layout: Layout | None) -> Plan | None:
    """Decides how a call is computed; None means: in the calling thread, with the threads that it has."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    if layout is not None:
        parts = max(1, min(layout.workers, MAX_PARTS, len(x) // layout.min_rows)) if split else 1
        return Plan(parts, layout.threads or max(1, layout.workers // parts))
    plan = plan_call(len(x), row_work, x.dtype, thread_limit(), split=split)
    return None if plan == (1, torch.get_num_threads()) else plan


def run_in_threads(
    function: Callable[..., Tensor],
    x: Tensor,
    *others: "Tensor | None",
    row_work: float | None,
    split: bool = True,
    layout: Layout | None = None,
) -> Tensor:
    """Computes ``function(x, *others)`` with as many threads as its work is worth.

    A large batch is split into nearly equal parts, with one thread, or an equal share of the threads, for each part.
    The part of a row depends only on the number of parts and on the batch's size. So the same call gives the same bits
    every time, and with a layout also on machines with another number of cores.

    With gradients, under autocast and on other devices than a CPU, the function is called in the calling thread.

    Args:
        function: treats each row independently of the others; it is called from several threads at once.
        x: [N, ...].
        others: further arguments: [N, ...], [1, ...] (the same for all rows), or None.
        row_work: the multiply-adds for one row; None if they are unknown.
        split: whether the batch may be split.
        layout: the split of an earlier call whose bits must be reproduced.

    Returns:
        The output of ``function``, [N, ...].
    """
    plan = _plan(x, row_work, split, layout)
    if plan is None:
        return function(x, *others)
    inference = torch.is_inference_mode_enabled()  # this mode and no_grad belong to a thread: the workers need them too

    def part(*rows: "Tensor | None") -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return function(*rows)

    n = plan.parts
    cut = [[t] * n if t is None or len(t) < len(x) else t.tensor_split(n) for t in (x, *others)]
    return torch.cat(list(_pool(plan).map(part, *cut)))


@contextmanager
def engine_threads(row_work: float | None, dtype: torch.dtype) -> Iterator[None]:
    """A context in which torch uses, in the calling thread, as many threads as one row of a network's call is worth.

    This is the number for the arithmetic of a sampler, for text encoders, and for gradients, where a batch is never
    split. Calls through ``run_in_threads`` still use all threads that they are worth.

    Args:
        row_work: the multiply-adds for one row; None if they are unknown, and then the number stays.
        dtype: the dtype of the network.
    """
    before, limit, outer = torch.get_num_threads(), thread_limit(), getattr(_local, "limit", None)
    inside = plan_call(1, row_work, dtype, limit, split=False).threads
    _local.limit = limit
    try:
        set_threads_here(inside)
        yield
    finally:
        _local.limit = outer
        set_threads_here(before)


def set_threads_here(count: int) -> None:
    """Sets the number of torch's threads for the calling thread, and not for threads that start later."""
    if count != torch.get_num_threads():
        with _number_of_later_threads_kept():
            torch.set_num_threads(count)


@contextmanager
def _number_of_later_threads_kept() -> Iterator[None]:
    """Afterwards, threads that start later begin with the same number of torch's threads as before."""
    with _setting:
        number = _in_new_thread(torch.get_num_threads)
        try:
            yield
        finally:
            _in_new_thread(lambda: torch.set_num_threads(number))


def _in_new_thread(function: Callable[[], _T]) -> _T:
    """Calls a function in a thread that starts and ends here."""
    out: list[_T] = []
    thread = threading.Thread(target=lambda: out.append(function()))
    thread.start()
    thread.join()
    return out[0]


def _pool(plan: Plan) -> ThreadPoolExecutor:
    """Returns the calling thread's pool with a worker for each part, in which torch uses the plan's threads."""
    key, pool = getattr(_local, "pool", (None, None))
    if pool is not None and key == plan:
        return pool
    if pool is not None:
        pool.shutdown(wait=False)
    ready = threading.Barrier(plan.parts + 1)

    def begin() -> None:
        torch.get_num_threads()  # a new thread's first call resets its number, so it must precede set_num_threads
        torch.set_num_threads(plan.threads)
        ready.wait()  # no worker gets past here until all have started, so that each submit below starts another one

    pool = ThreadPoolExecutor(plan.parts, "ddim", begin)
    with _number_of_later_threads_kept():
        for _ in range(plan.parts):
            pool.submit(int)  # makes the pool start another worker
        ready.wait()
    _local.pool = (plan, pool)
    return pool
