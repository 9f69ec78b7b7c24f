"""What a network makes of a shape, asked once and without numbers: on torch's meta device, which knows shapes alone."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.error_text import reason_of
from .._utils.errors import InputError


def output_shape(
    network: nn.Module, call: Callable[..., Tensor], *shapes: tuple[int, ...], takes: str
) -> tuple[int, ...]:
    """The shape that ``call(network, *tensors)`` returns for tensors of these shapes.

    The network itself stays as it is, and nothing is computed.

    Args:
        call: its first argument is the network; what it answers is returned.
        takes: for the sentence: what the network was asked to take.

    Raises:
        InputError: the network cannot be asked so.
    """
    trial = _Trial(network, call)
    tensors = chain(trial.named_parameters(), trial.named_buffers())
    shapeless = {name: tensor.detach().to("meta") for name, tensor in tensors}
    given = tuple(torch.empty(shape, device="meta", dtype=_dtype(network)) for shape in shapes)
    try:
        with torch.no_grad():
            return tuple(torch.func.functional_call(trial, shapeless, given).shape)
    except Exception as error:  # diffusers and torch raise what comes up
        raise InputError(
            f"the {type(network).__name__} does not take {takes}: {reason_of(error)}", parameter="model"
        ) from None


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters()), torch.float32)


class _Trial(nn.Module):
    """A call of a network's as a module's forward."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *given: Tensor) -> Any:
        return self.call(self.network, *given)
