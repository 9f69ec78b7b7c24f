"""The memory layout in which a network's convolutions are fastest on CUDA, by a table of measurements."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CONTIGUOUS_FROM: dict[tuple[str, torch.dtype], int] = {
    ("NVIDIA H200", torch.bfloat16): 128 * 1024,
}
"""CUDA device and dtype -> the pixels of a call (rows times height times width of its input) from which contiguous
layout was measured to be faster than channels-last, although the weights are converted in each call."""
LEAST_WEIGHTS = 10**8
"""The measurements hold for networks with at least this many weights."""


def contiguous_from(device: torch.device | None, dtype: torch.dtype, parameters: int) -> int | None:
    """Returns the pixels of a call from which a network uses contiguous layout; None where nothing was measured.

    Args:
        device: the device of the network.
        dtype: the dtype that it computes in.
        parameters: the number of its weights.
    """
    if device is None or device.type != "cuda" or parameters < LEAST_WEIGHTS:
        return None
    return CONTIGUOUS_FROM.get((torch.cuda.get_device_name(device), dtype))


def layout_for(x: Tensor, parameters: int) -> torch.memory_format | None:
    """Returns the layout for a call: that of the weights, and so of the intermediate results.

    It depends on the device, the dtype and the shape only, and never on a measurement at run time: another layout gives
    other last bits.

    Args:
        x: the input of the network, [N, C, H, W], in the dtype that the network computes in.
        parameters: the number of its weights.

    Returns:
        a layout; None where nothing was measured, which leaves the weights as they are.
    """
    most = contiguous_from(x.device, x.dtype, parameters)
    if most is None:
        return None
    return torch.channels_last if x.shape[0] * x.shape[-2] * x.shape[-1] < most else torch.contiguous_format


def in_layout(network: nn.Module, function: Callable[..., Any], layout: torch.memory_format) -> Callable[..., Any]:
    """Returns a function that computes the same, with the weights of convolutions in a layout.

    Weights in another layout are converted in every call. Copies that are kept would need memory, and would not change
    with the weights when a LoRA is fused.

    Args:
        network: the network that ``function`` calls.
        function: the function.
        layout: the layout.
    """

    def converted(*inputs: Tensor | None) -> Any:
        weights = {
            f"network.{name}": weight.contiguous(memory_format=layout)
            for name, weight in network.named_parameters()
            if weight.ndim == 4
        }
        return torch.func.functional_call(_Calling(network, function), weights, inputs)

    return converted


class _Calling(nn.Module):
    """Calls a function that calls the network; ``functional_call`` needs a module around both."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor | None) -> Any:
        """Calls the function."""
        return self.function(*inputs)
