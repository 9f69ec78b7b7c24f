"""Which kernels of CUDA compute a network call: TF32, and cuDNN's choice of algorithms."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


def precision() -> tuple[bool, bool]:
    """Returns whether convolutions and matrix products in float32 may use TF32 on CUDA."""
    return bool(torch.backends.cudnn.allow_tf32), bool(torch.backends.cuda.matmul.allow_tf32)


@contextmanager
def kernels(device: torch.device, tf32: bool | None = None) -> Generator[None]:
    """A context in which CUDA computes the calls of a network; afterwards torch's settings are restored.

    cuDNN chooses its algorithms by shape alone, and not by timing them: otherwise it might choose another algorithm for
    a reconstruction than for the inversion, with other last bits.

    Args:
        device: the device of the network; on other devices than CUDA the context changes nothing.
        tf32: whether convolutions and matrix products in float32 use TF32; None leaves torch's own settings.
    """
    if device.type != "cuda":
        yield
        return
    backends = torch.backends
    before = backends.cudnn.benchmark, *precision()
    backends.cudnn.benchmark = False
    if tf32 is not None:
        backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        backends.cudnn.benchmark, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = before


@contextmanager
def deterministic(device: torch.device) -> Generator[None]:
    """A context in which CUDA computes the same gradients with the same bits; afterwards torch's settings are restored.

    Where CUDA has no deterministic kernel for an operation, torch warns.

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
        with kernels(device):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, memory.fill_uninitialized_memory = restored
