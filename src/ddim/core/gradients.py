"""Faster gradients through attention on a CPU."""

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
    """A context in which attention on a CPU uses torch's plain kernel, whose gradient is faster.

    On a CPU, the gradient of the fused attention kernel takes longer than the rest of the backward pass of a small
    U-Net. On other devices the context changes nothing. Several threads may be inside at the same time.

    Args:
        device: the device of the network.
    """
    global _users, _kernels
    if torch.device(device).type != "cpu":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with _lock:  # the kernel choice is global to the process: the first thread sets it, the last one resets it
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
