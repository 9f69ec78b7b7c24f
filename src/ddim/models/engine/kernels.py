"""Which kernels of CUDA compute a network call: TF32, and cuDNN's choice of algorithms."""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ...core.tf32 import with_tf32

_LOCK = threading.RLock()
"""Torch's settings belong to the process, so that one thread at a time computes a call with them."""


@contextmanager
def kernels(device: torch.device, tf32: bool | None = None) -> Generator[None]:
    """A context in which CUDA computes the calls of a network; afterwards torch's settings are restored.

    cuDNN chooses its algorithms by shape alone, and not by timing them: otherwise it might choose another algorithm for
    a reconstruction than for the inversion, with other last bits. Other threads wait until the context ends.

    Args:
        device: the device of the network; on other devices than CUDA the context changes nothing.
        tf32: whether convolutions and matrix products in float32 use TF32; None leaves torch's own settings.
    """
    if device.type != "cuda":
        yield
        return
    with _LOCK, _by_shape(), with_tf32(tf32):
        yield


@contextmanager
def _by_shape() -> Generator[None]:
    """Inside the block, cuDNN chooses its algorithms by shape alone."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def deterministic(device: torch.device) -> Generator[None]:
    """A context in which CUDA computes the same gradients with the same bits; afterwards torch's settings are restored.

    The environment variable CUBLAS_WORKSPACE_CONFIG stays set, because cuBLAS reads it only once. Where CUDA has no
    deterministic kernel for an operation, torch warns.

    Args:
        device: the device of the network; on other devices than CUDA the context changes nothing.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this setting
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    restored = cudnn.deterministic, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new tensors would launch a kernel for many of them. It serves only programs that read them before writing.
    cudnn.deterministic, memory.fill_uninitialized_memory = True, False
    try:
        with _by_shape():  # not ``kernels``, whose lock would keep other threads waiting during the whole training
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, memory.fill_uninitialized_memory = restored
