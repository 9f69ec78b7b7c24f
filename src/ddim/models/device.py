"""Checks the device and the dtype that a network is to compute with."""

from typing import TYPE_CHECKING

from .._utils.choices import DTYPES
from .._utils.errors import InputError, UnknownName

if TYPE_CHECKING:
    import torch


def device_and_dtype(
    device: "str | torch.device | None", dtype: "str | torch.dtype"
) -> "tuple[torch.device, torch.dtype]":
    """Returns a device and a dtype after trying a small computation with them.

    Args:
        device: ``"cpu"``, ``"cuda"``, ...; None is cuda if available, and otherwise the CPU.
        dtype: one of ``DTYPES``, or the torch dtype of that name.

    Raises:
        InputError: the name is unknown, or this machine cannot compute with that device and dtype.
    """
    import torch

    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if name not in DTYPES:
        raise UnknownName("dtype", name, DTYPES)
    kind = getattr(torch, str(name))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except Exception:  # RuntimeError for a name that torch does not know, TypeError for another kind of value
        raise UnknownName("device", str(device), ["cpu", "cuda", "mps"]) from None
    try:  # torch knows the names of many devices, and only a computation shows which of them work here
        works = float(torch.ones(1, dtype=kind, device=where) + 1) == 2
    except Exception:  # each kind of device raises errors of its own
        works = False
    if not works:
        what = "CUDA device" if str(where) == "cuda" else f"device {str(where)!r}"
        raise InputError(f"this machine has no {what} that computes in {name}; use 'cpu'.", parameter="device")
    return where, kind
