"""Gradients through attention on a CPU."""

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import cast

import torch

_lock = threading.Lock()
_users = 0
_kernels = ExitStack()


@contextmanager
def quick_gradients(device: torch.device | str) -> Generator[None]:
    """Inside, attention on a CPU is computed plainly: the gradient of torch's fused kernel there takes longer than all
    the rest of a small U-Net's. Elsewhere nothing changes. May be entered by several threads at once.

    Args:
        device: where the network computes.
    """
    global _users, _kernels
    if torch.device(device).type != "cpu":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with _lock:  # the choice of kernels is the process's: the first one in makes it, the last one out takes it back
        if _users == 0:
            _kernels = ExitStack()
            _kernels.enter_context(cast("AbstractContextManager[object]", sdpa_kernel(SDPBackend.MATH)))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _kernels.close()
