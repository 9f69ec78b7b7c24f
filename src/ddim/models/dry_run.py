"""Finds the shape of a network's output without computing it, on torch's meta device, which tracks shapes only."""

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
    """Returns the shape of ``call(network, *tensors)`` for tensors of the given shapes.

    The network is not changed and nothing is computed.

    Args:
        network: the network.
        call: calls the network with the tensors and returns its output.
        shapes: one shape for each tensor.
        takes: what the network should accept, for the error message.

    Raises:
        InputError: the call fails, because the network does not take tensors of these shapes.
    """
    module = _CallAsModule(network, call)
    tensors = chain(module.named_parameters(), module.named_buffers())
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
    inputs = tuple(torch.empty(shape, device="meta", dtype=_dtype(network)) for shape in shapes)
    try:
        with torch.no_grad():
            return tuple(torch.func.functional_call(module, meta, inputs).shape)
    except Exception as error:  # diffusers and torch raise errors of any type
        raise InputError(
            f"the {type(network).__name__} does not take {takes}: {reason_of(error)}", parameter="model"
        ) from None


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters()), torch.float32)


class _CallAsModule(nn.Module):
    """A module whose forward is ``call(network, ...)``, because ``functional_call`` needs a module."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(self.network, *tensors)
