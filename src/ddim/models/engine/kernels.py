"""Which kernels of CUDA compute a network call: TF32, and cuDNN's choice of algorithms."""

from collections.abc import Generator
from contextlib import contextmanager

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
