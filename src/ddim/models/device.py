"""Where a network computes, and in what numbers."""

from typing import TYPE_CHECKING

from .._utils.choices import DTYPES
from .._utils.errors import InputError, UnknownName

if TYPE_CHECKING:
    import torch


def device_and_dtype(
    device: "str | torch.device | None", dtype: "str | torch.dtype"
) -> "tuple[torch.device, torch.dtype]":
    """A device, cuda by default where there is one, and a dtype. Raises InputError for one that is not to be had."""
    import torch

    given = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if given not in DTYPES:
        raise UnknownName("dtype", given, DTYPES)
    kind = getattr(torch, str(given))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except Exception:  # a name that torch has not heard of, and a value that is no name
        raise UnknownName("device", str(device), ["cpu", "cuda", "mps"]) from None
    try:  # torch knows the names of many devices that no machine has all of
        works = float(torch.ones(1, dtype=kind, device=where) + 1) == 2
    except Exception:  # each device fails in its own way
        works = False
    if not works:
        what = "CUDA device" if str(where) == "cuda" else f"device {str(where)!r}"
        raise InputError(f"there is no {what} here that computes in {given}; use 'cpu'.", parameter="device")
    return where, kind
