"""The one contract every model is reduced to: ``denoise(x, node, cond) -> Pair(x0, eps)``."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.errors import InputError
from .path import GaussianPath, Node, TablePath
from .prediction import Correction, Hold, Pair, to_pair

Cond = Mapping[str, Any]


class Denoiser(Protocol):
    """Anything that tells x apart into x0 and eps.

    ``x`` has shape [N, ...]; ``node.t`` is what the network is told, ``node.alpha`` and ``node.sigma`` say where x is.
    The pair must explain x: ``node.alpha * x0 + node.sigma * eps == x``.
    """

    def __call__(self, x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        """The pair at x."""
        ...


def from_network(
    network: Callable[[Tensor, Tensor], Tensor],
    path: GaussianPath,
    prediction: str,
    *,
    label_dtype: torch.dtype | None = None,
) -> Denoiser:
    """A denoiser from a bare network ``(x, label) -> output``.

    Args:
        network: called with x, [N, ...], and ``path.label(node.t)`` as a tensor [N] on x's device.
        path: whose numbering of time the network was trained with.
        prediction: ``eps``, ``x0``, ``v`` or ``flow``.
        label_dtype: of the label; by default int64 where it is whole and the path a table, since some networks look
            it up, and otherwise float32, or float64 as x.

    Raises:
        InputError: in a call: a label between two levels with an integer ``label_dtype``.
    """

    def told(x: Tensor, t: float) -> Tensor:
        label = path.label(t)
        whole = label == int(label)
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        dtype = label_dtype or (torch.int64 if whole and isinstance(path, TablePath) else real)
        if not whole and not dtype.is_floating_point:
            raise InputError(
                f"{dtype} cannot say the label {label:g}; use float32, or a spacing such as 'trailing'.",
                parameter="label_dtype",
            )
        return torch.full((len(x),), label, dtype=dtype, device=x.device)

    def denoise(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return to_pair(prediction, network(x, told(x, node.t)), x, node)

    return denoise


def aligned(x: Tensor) -> Tensor:
    """The same numbers at a multiple of 64 bytes, as torch's own allocations are.

    A matrix product sums in another order where its operands lie otherwise, as tensors of a file and cut rows do. What
    a network is asked on the way forward must not differ in that from what it was asked on the way back.
    """
    return x.clone() if x.device.type == "cpu" and x.data_ptr() % 64 else x


def bound(denoise: Denoiser, cond: Cond) -> Denoiser:
    """The denoiser with its condition in place; what a caller adds goes on top of it."""
    if not cond:
        return denoise
    fixed = cond

    def conditioned(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return denoise(x, node, {**fixed, **cond} if cond else fixed)

    return conditioned


def corrected(denoise: Denoiser, correction: Correction) -> Denoiser:
    """The same denoiser with its pairs passed through a correction such as ``prediction.clip``."""

    def wrapped(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return correction(denoise(x, node, cond), x, node)

    return wrapped


def held(denoise: Denoiser, hold: Hold) -> Denoiser:
    """The same denoiser with its x0 held to the range of pictures, where ``hold`` acts."""
    return corrected(denoise, hold) if hold.acts else denoise
