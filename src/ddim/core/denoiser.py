"""The interfaces of a model: ``denoise(x, node) -> Pair(x0, eps)`` for solvers, and ``Network`` for guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from .conditioning import Conditioning
from .path import GaussianPath, Node, TablePath
from .prediction import PREDICTIONS, Correction, Hold, Pair, to_pair
from .schedule import Schedule


class Denoiser(Protocol):
    """Splits x into a clean x0 and noise eps. Its condition and guidance are already built in.

    ``x`` has shape [N, ...] and lies on the node: x = ``node.alpha`` x0 + ``node.sigma`` eps. The returned pair must
    satisfy this equation. ``node.t`` determines the timestep of the network.
    """

    def __call__(self, x: Tensor, node: Node, /) -> Pair:
        """Returns the predicted x0 and eps, each in the shape of x."""
        ...


@dataclass(frozen=True)
class Layout:
    """How a batch is split on a CPU. The split decides the order of summation, and so the last bits of the result.

    Args:
        workers: the largest number of parts that a batch is split into; each part is computed by its own worker.
        threads: the number of threads for each part; None divides the workers among the parts.
        min_rows: the smallest number of rows of a part.
    """

    workers: int
    threads: int | None = None
    min_rows: int = 1


@dataclass(frozen=True)
class Call:
    """The arguments of a network call besides x, the node and the conditions.

    Args:
        branches: the branch of guidance that each condition belongs to: ``"cond"`` or ``"uncond"``.
        controller: an ``AttentionController``, for models whose attention can be edited.
        batched: whether several conditions are evaluated in one batch; otherwise one after the other.
        layout: how the batch is split on a CPU; None leaves the choice to the engine.
        skip: the indices of layers that are left out, for networks that can.
        on_engine: called with a sentence if the call cannot be computed the fastest way, for example as a CUDA graph.
    """

    branches: tuple[str, ...] = ("cond",)
    controller: Any = None
    batched: bool = True
    layout: Layout | None = None
    skip: tuple[int, ...] = ()
    on_engine: Callable[[str], None] | None = None


PLAIN = Call()


class ModelDenoiser(Protocol):
    """A ``Denoiser`` that also takes the arguments of the network call."""

    def __call__(self, x: Tensor, node: Node, call: Call = PLAIN, /) -> Pair:
        """Returns the predicted x0 and eps, each in the shape of x."""
        ...


class Network(Protocol):
    """What guidance and inversions require of a model."""

    @property
    def schedule(self) -> Schedule:
        """The path of the model, what it predicts, and its timesteps."""
        ...

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """Returns the output of the network for x [N, ...] under each condition, [N, ...] each."""
        ...

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Any, node: Node) -> Tensor:
        """Combines the outputs of the two branches, [N, ...] each, to the guided output."""
        ...


def ask_network(
    forward: Callable[[Tensor, Conditioning, Call], Tensor],
    x: Tensor,
    conditionings: Sequence[Conditioning],
    call: Call,
) -> Sequence[Tensor]:
    """Implements ``Network.ask``: one call of the network, or one call per condition if ``call.batched`` is false.

    Args:
        forward: the network: ``(x, conditioning, call) -> output``, with M rows each.
        x: the input, [N, ...].
        conditionings: one condition of N rows for each of ``call.branches``.
        call: the other arguments of the call.

    Returns:
        one output [N, ...] per condition.
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
    timestep_dtype: torch.dtype | None = None,
) -> Denoiser:
    """Makes a denoiser from a network ``(x, timestep) -> output``.

    Args:
        network: called with x, [N, ...], and ``path.timestep(node.t)`` as a tensor [N] on the device of x.
        path: the path that the network was trained on; its ``timestep`` is the numbering that the network takes.
        prediction: ``eps``, ``x0``, ``v``, ``flow`` or ``score``. A network with EDM's preconditioning takes a scaled x
            and another timestep, and is refused; ``Model.from_network`` wraps it with its ``Schedule``.
        timestep_dtype: the dtype of the timestep. By default it is int64 if the timestep is a whole number and the path
            is a table, because some networks look the timestep up in an embedding; otherwise it is float32, or float64
            if x is float64.

    Raises:
        InputError: the prediction is unknown, ``edm`` or ``edm_v``; or, during a call, the timestep is not a whole
            number and ``timestep_dtype`` is an integer type.
    """
    given = cast("object", prediction)
    if not isinstance(given, str) or given not in PREDICTIONS:
        raise UnknownName("prediction", prediction, PREDICTIONS)
    if prediction in ("edm", "edm_v"):
        raise InputError(
            f"{prediction!r} is the prediction of a network that takes a scaled x and the timestep log(sigma) / 4, "
            "which this function does not give it; use Model.from_network, whose Schedule knows both.",
            parameter="prediction",
        )

    def denoise(x: Tensor, node: Node) -> Pair:
        timestep = timestep_tensor(path.timestep(node.t), x, isinstance(path, TablePath), timestep_dtype)
        return to_pair(prediction, network(x, timestep), x, node)

    return denoise


def timestep_tensor(
    timestep: float, x: Tensor, looked_up: bool, dtype: torch.dtype | None = None, parameter: str = "timestep_dtype"
) -> Tensor:
    """Repeats a timestep for every row of x: a tensor [N] on the device of x.

    Args:
        timestep: the timestep in the numbering of the network.
        x: the input of the network, [N, ...].
        looked_up: whether the network may look whole timesteps up in an embedding, so that they must be int64.
        dtype: the dtype to use. None chooses int64 if ``looked_up`` and the timestep is a whole number, otherwise
            float64 if x is float64, else float32.
        parameter: the name that an error uses for ``dtype``.

    Raises:
        InputError: the timestep is not a whole number and ``dtype`` is an integer type.
    """
    whole = timestep == int(timestep)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtype = dtype or (torch.int64 if whole and looked_up else real)
    if not whole and not dtype.is_floating_point:
        raise InputError(
            f"{dtype} cannot hold the timestep {timestep:g}; use float32, or a spacing such as 'trailing'.",
            parameter=parameter,
        )
    return torch.full((len(x),), timestep, dtype=dtype, device=x.device)


def aligned(x: Tensor) -> Tensor:
    """Copies a CPU tensor if its address is not a multiple of 64 bytes, as torch's own allocations are.

    On a CPU, the alignment of the operands can change the order of summation of a matrix product, and with it the last
    bits of the result. Tensors read from a file and slices of tensors may be unaligned. Sampling and inversion must
    call the network with tensors of the same alignment, or else an exact round trip would lose its last bits.
    """
    return x.clone() if x.device.type == "cpu" and x.data_ptr() % 64 else x


def corrected(denoise: Denoiser, correction: Correction) -> Denoiser:
    """Wraps a denoiser, so that a correction such as ``prediction.clip`` is applied to each of its pairs."""

    def wrapped(x: Tensor, node: Node) -> Pair:
        return correction(denoise(x, node), x, node)

    return wrapped


def with_hold(denoise: Denoiser, hold: Hold) -> Denoiser:
    """Wraps a denoiser, so that ``hold`` limits each predicted x0. Returns it unchanged if ``hold`` does nothing."""
    return corrected(denoise, hold) if hold.acts else denoise
