"""The rows of a batch shared out among threads: on a CPU, a network a thread beats all threads in each layer."""

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...core.denoiser import Layout

MOST = 4
"""Parts of a batch: Python itself runs one thread at a time, and a call's Python takes milliseconds."""
MIN_WORK = 48e6
"""Rows of a part times the network's parameters: with less, the parts wait for each other's Python."""

_T = TypeVar("_T", Tensor, "Tensor | None")
_local = threading.local()  # a pool for each thread that asks: none waits for another's work
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _local.__dict__.clear())  # a fork has no threads


def min_rows(network: nn.Module) -> int:
    """How many rows of a network's batch make a part of their own worth while."""
    return math.ceil(MIN_WORK / max(1, sum(p.numel() for p in network.parameters())))


def parts_of(x: Tensor, least: int | None, layout: Layout | None = None) -> tuple[int, int]:
    """Into how many parts a batch goes, and with how many threads each; (1, 0) is the calling thread as it is.

    Args:
        x: [N, ...].
        least: rows that make a part worth while; None does not cut.
        layout: decides where it is given; elsewhere the machine's threads do.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return 1, 0
    if layout is not None:
        parts = 1 if least is None else min(layout.workers, MOST, len(x))
        return parts, layout.threads or max(1, layout.workers // parts)
    parts = 1 if least is None else max(1, min(torch.get_num_threads(), MOST, len(x) // least))
    return parts, 0 if parts == 1 else torch.get_num_threads() // parts


def run_in_threads(
    work: Callable[..., Tensor],
    x: Tensor,
    *others: "Tensor | None",
    least: int | None,
    layout: Layout | None = None,
) -> Tensor:
    """``work(x, *others)`` with the rows of the batch in parts of nearly equal size, a thread each.

    The threads that torch may use (``torch.set_num_threads``) are shared out among the parts, unless a layout says how
    many each has. Which part a row is in depends only on their number and the batch's size, so the same call gives the
    same bits; with a layout it does so on a machine of any number of cores.

    Args:
        work: of rows alone: a row of what it returns depends on no other row. Called from several threads at once.
        x: [N, ...].
        others: [N, ...] each, [1, ...] for all rows, or None.
        least: rows of a part, from ``min_rows``; None keeps the batch in one piece.
        layout: of a call whose bits must come again.

    Returns:
        What ``work`` returns, [N, ...].
    """
    parts, threads = parts_of(x, least, layout)
    if threads == 0:
        return work(x, *others)
    inference = torch.is_inference_mode_enabled()

    def part(*rows: "Tensor | None") -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return work(*rows)

    cut = [[t] * parts if t is None or len(t) < len(x) else t.tensor_split(parts) for t in (x, *others)]
    return torch.cat(list(_pool(parts, threads).map(part, *cut)))


def _pool(parts: int, threads: int) -> ThreadPoolExecutor:
    """This thread's pool of ``parts`` workers, each of which gives torch so many threads."""
    key, pool = getattr(_local, "pool", ((0, 0), None))
    if pool is not None and key == (parts, threads):
        return pool
    if pool is not None:
        pool.shutdown(wait=False)
    before, ready = torch.get_num_threads(), threading.Barrier(parts + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question sets its number, so it comes before ours
        torch.set_num_threads(threads)
        ready.wait()

    pool = ThreadPoolExecutor(parts, "ddim", begin)
    for _ in range(parts):
        pool.submit(int)  # starts a worker
    ready.wait()
    torch.set_num_threads(before)  # the number is also what later threads begin with
    _local.pool = ((parts, threads), pool)
    return pool
