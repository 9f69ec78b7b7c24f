"""Splits a batch among threads: on a CPU, one thread per part of the batch is faster than all threads in each layer."""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...core.denoiser import Layout

MAX_PARTS = 4
"""Largest number of parts. Python code runs in one thread at a time, and takes milliseconds of each network call."""
MIN_WORK = 48e6
"""Smallest part: its rows times the network's parameters. In smaller ones the threads wait for each other's Python."""

_T = TypeVar("_T", Tensor, "Tensor | None")
_local = threading.local()  # each calling thread has a pool of its own, so that none waits for another's work
if hasattr(os, "register_at_fork"):
    # A forked child inherits the pool object but none of its threads, so it would wait for ever.
    os.register_at_fork(after_in_child=lambda: _local.__dict__.clear())


def min_rows(network: nn.Module) -> int:
    """Returns how many rows a part of a batch must have at least, so that splitting pays for this network."""
    return math.ceil(MIN_WORK / max(1, sum(p.numel() for p in network.parameters())))


def split_plan(x: Tensor, least: int | None, layout: Layout | None = None) -> tuple[int, int]:
    """Decides how a batch is split.

    Args:
        x: [N, ...].
        least: the smallest number of rows of a part, from ``min_rows``; None never splits.
        layout: determines the split, instead of the number of threads that torch may use here.

    Returns:
        The number of parts, and the number of threads for each; (1, 0) means: in the calling thread, unchanged.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return 1, 0
    if layout is not None:
        parts = 1 if least is None else min(layout.workers, MAX_PARTS, len(x))
        return parts, layout.threads or max(1, layout.workers // parts)
    parts = 1 if least is None else max(1, min(torch.get_num_threads(), MAX_PARTS, len(x) // least))
    return parts, 0 if parts == 1 else torch.get_num_threads() // parts


def run_in_threads(
    function: Callable[..., Tensor],
    x: Tensor,
    *others: "Tensor | None",
    least: int | None,
    layout: Layout | None = None,
) -> Tensor:
    """Computes ``function(x, *others)``, with the batch split into nearly equal parts and one thread for each part.

    The threads that torch may use (``torch.set_num_threads``) are divided among the parts, unless ``layout`` fixes
    their number. The part of a row depends only on the number of parts and on the batch's size. So the same call gives
    the same bits every time, and with a layout also on machines with another number of cores.

    Args:
        function: treats each row independently of the others; it is called from several threads at once.
        x: [N, ...].
        others: further arguments: [N, ...], [1, ...] (the same for all rows), or None.
        least: the smallest number of rows of a part, from ``min_rows``; None never splits.
        layout: the split of an earlier call whose bits must be reproduced.

    Returns:
        The output of ``function``, [N, ...].
    """
    parts, threads = split_plan(x, least, layout)
    if threads == 0:
        return function(x, *others)
    inference = torch.is_inference_mode_enabled()  # this mode and no_grad belong to a thread: the workers need them too

    def part(*rows: "Tensor | None") -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return function(*rows)

    cut = [[t] * parts if t is None or len(t) < len(x) else t.tensor_split(parts) for t in (x, *others)]
    return torch.cat(list(_pool(parts, threads).map(part, *cut)))


def _pool(parts: int, threads: int) -> ThreadPoolExecutor:
    """Returns the calling thread's pool of ``parts`` workers, in each of which torch uses ``threads`` threads."""
    key, pool = getattr(_local, "pool", ((0, 0), None))
    if pool is not None and key == (parts, threads):
        return pool
    if pool is not None:
        pool.shutdown(wait=False)
    before, ready = torch.get_num_threads(), threading.Barrier(parts + 1)

    def begin() -> None:
        torch.get_num_threads()  # a new thread's first call resets its number, so it must precede set_num_threads
        torch.set_num_threads(threads)
        ready.wait()  # no worker gets past here until all have started, so that each submit below starts another one

    pool = ThreadPoolExecutor(parts, "ddim", begin)
    for _ in range(parts):
        pool.submit(int)  # makes the pool start another worker
    ready.wait()
    torch.set_num_threads(before)  # the workers' calls have also changed the default for threads started later
    _local.pool = ((parts, threads), pool)
    return pool
