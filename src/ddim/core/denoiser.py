"""The contract every model is reduced to: ``denoise(x, node) -> Pair(x0, eps)``, and the one door to its network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.errors import InputError
from .conditioning import Conditioning
from .path import GaussianPath, Node, TablePath
from .prediction import Correction, Hold, Pair, to_pair
from .schedule import Schedule


class Denoiser(Protocol):
    """Anything that tells x apart into x0 and eps; its condition and guidance are in place.

    ``x`` has shape [N, ...]; ``node.t`` is what the network is told, ``node.alpha`` and ``node.sigma`` say where x is.
    The pair must explain x: ``node.alpha * x0 + node.sigma * eps == x``.
    """

    def __call__(self, x: Tensor, node: Node, /) -> Pair:
        """The pair at x."""
        ...


@dataclass(frozen=True)
class Layout:
    """How a batch is laid out on a CPU. It decides in which order numbers are summed, and so their last bits.

    Args:
        workers: into how many parts a large batch may be cut, each computed by a thread of its own.
        threads: of each part; None shares the machine's out.
    """

    workers: int
    threads: int | None = None


@dataclass(frozen=True)
class Call:
    """What a call of a network is told beside x and the conditions.

    Args:
        branches: which branch of guidance each condition is of: ``"cond"`` or ``"uncond"``.
        controller: an ``AttentionController``, for models whose attention can be controlled.
        batched: ask for several conditions in one batch, not one after the other.
        layout: see ``Layout``; None leaves it to the engine.
    """

    branches: tuple[str, ...] = ("cond",)
    controller: Any = None
    batched: bool = True
    layout: Layout | None = None


PLAIN = Call()


class ModelDenoiser(Protocol):
    """A ``Denoiser`` of a model, which takes what a call is to be told beside x."""

    def __call__(self, x: Tensor, node: Node, call: Call = PLAIN, /) -> Pair:
        """The pair at x."""
        ...


class Network(Protocol):
    """What guidance and inversions ask of a model."""

    @property
    def schedule(self) -> Schedule:
        """Its path and what it predicts."""
        ...

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """What the network says of x [N, ...] under each condition, [N, ...] each."""
        ...

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Any, node: Node) -> Tensor:
        """The guided output from the outputs of the two branches, [N, ...] each."""
        ...


def asked(
    forward: Callable[[Tensor, Conditioning, Call], Tensor],
    x: Tensor,
    conditionings: Sequence[Conditioning],
    call: Call,
) -> Sequence[Tensor]:
    """``Network.ask`` by means of one call, or of one for each condition where ``call.batched`` is false.

    Args:
        forward: the network, from x [M, ...], a condition of M rows and the call to the output [M, ...].
        x: [N, ...].
        conditionings: one for each of ``call.branches``.
        call: see ``Call``.
    """
    if call.batched and len(conditionings) > 1:
        output = forward(torch.cat([x] * len(conditionings)), Conditioning.cat(conditionings), call)
        return torch.split(output, len(x))
    pairs = zip(conditionings, call.branches, strict=True)
    return [forward(x, cond, replace(call, branches=(branch,))) for cond, branch in pairs]


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

    def denoise(x: Tensor, node: Node) -> Pair:
        label = told(path.label(node.t), x, isinstance(path, TablePath), label_dtype)
        return to_pair(prediction, network(x, label), x, node)

    return denoise


def told(
    label: float, x: Tensor, looked_up: bool, dtype: torch.dtype | None = None, parameter: str = "label_dtype"
) -> Tensor:
    """What a network is told of the time, for each row of x: [N], on x's device.

    Args:
        label: in the network's own numbering.
        x: [N, ...].
        looked_up: whether whole labels may be looked up in a table, and are int64.
        dtype: another dtype than that, or than x's where it is float32 or float64.
        parameter: what the caller calls ``dtype``.

    Raises:
        InputError: a label between two levels with an integer ``dtype``.
    """
    whole = label == int(label)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype = dtype or (torch.int64 if whole and looked_up else real)
    if not whole and not dtype.is_floating_point:
        raise InputError(
            f"{dtype} cannot say the label {label:g}; use float32, or a spacing such as 'trailing'.",
            parameter=parameter,
        )
    return torch.full((len(x),), label, dtype=dtype, device=x.device)


def aligned(x: Tensor) -> Tensor:
    """The same numbers at a multiple of 64 bytes, as torch's own allocations are.

    A matrix product sums in another order where its operands lie otherwise, as tensors of a file and cut rows do. What
    a network is asked on the way forward must not differ in that from what it was asked on the way back.
    """
    return x.clone() if x.device.type == "cpu" and x.data_ptr() % 64 else x


def corrected(denoise: Denoiser, correction: Correction) -> Denoiser:
    """The same denoiser with its pairs passed through a correction such as ``prediction.clip``."""

    def wrapped(x: Tensor, node: Node) -> Pair:
        return correction(denoise(x, node), x, node)

    return wrapped


def held(denoise: Denoiser, hold: Hold) -> Denoiser:
    """The same denoiser with its x0 held to the range of pictures, where ``hold`` acts."""
    return corrected(denoise, hold) if hold.acts else denoise
