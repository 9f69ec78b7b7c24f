"""The memory layout in which a network's convolutions are fastest, by a table of measurements."""

import torch

CONTIGUOUS: frozenset[tuple[str, torch.dtype]] = frozenset()
"""Name of a CUDA device and dtype for which channels-last layout was measured to be slower."""


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Returns the memory layout of the weights and inputs of convolutions.

    It depends on the device and the dtype only, and never on a measurement at run time: another layout gives other
    last bits.

    Args:
        device: the device of the network.
        dtype: the dtype that it computes in.
    """
    if device.type == "cuda" and (torch.cuda.get_device_name(device), dtype) in CONTIGUOUS:
        return torch.contiguous_format
    return torch.channels_last
