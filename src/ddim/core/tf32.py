"""TF32, with which CUDA computes in float32 faster and with 10 bits: torch's switches, read and set."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def precision() -> tuple[bool, bool]:
    """Returns whether convolutions and matrix products in float32 may use TF32 on CUDA."""
    convolutions, products = (getattr(where, name) in (True, "tf32") for where, name, _ in _switches())
    return convolutions, products


def _switches() -> tuple[tuple[Any, str, Mapping[bool, object]], tuple[Any, str, Mapping[bool, object]]]:
    """Returns the switch of convolutions and that of matrix products: object, attribute, and its value by TF32.

    Torch raises an error if a program reads the old switches after it has set the new ones, which can always be read.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9 and later
        values = {True: "tf32", False: "ieee"}
        return (cudnn.conv, "fp32_precision", values), (products, "fp32_precision", values)
    plain = {True: True, False: False}
    return (cudnn, "allow_tf32", plain), (products, "allow_tf32", plain)


@contextmanager
def with_tf32(tf32: bool | None) -> Generator[None]:
    """A context in which TF32 is on or off; None leaves torch's own settings. Afterwards they are as before."""
    # A switch that is as wanted is not touched: once it is set, torch's general switch no longer reaches it.
    switches = [
        (where, name, values)
        for (where, name, values), now in zip(_switches(), precision(), strict=True)
        if tf32 is not None and now is not tf32
    ]
    before = [getattr(where, name) for where, name, _ in switches]
    try:
        for where, name, values in switches:
            setattr(where, name, values[bool(tf32)])
        yield
    finally:
        for (where, name, _), value in zip(switches, before, strict=True):
            setattr(where, name, value)
