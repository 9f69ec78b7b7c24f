"""The memory layout in which a network's convolutions are fastest, by a table of measurements."""

import torch

CONTIGUOUS_FROM: dict[str, int] = {"NVIDIA H200": 32 * 1024}
"""CUDA device -> the pixels of a call (rows times height times width of its input) from which a U-Net was measured to
be faster in contiguous layout than in channels-last, in float32 with TF32, bfloat16 and float16.
``benchmarks/gpu.py --only layouts`` measures it."""
UNMEASURED = "NVIDIA H200"
"""The row that other CUDA devices use."""


def memory_format(device: torch.device, shape: tuple[int, int, int]) -> torch.memory_format:
    """Returns the layout of the weights of convolutions, for calls with both branches of guidance of one image.

    It depends on the device and the shape only, and never on a measurement at run time: another layout gives other last
    bits.

    Args:
        device: the device of the network.
        shape: (C, H, W) of the network's input.
    """
    if device.type != "cuda":
        return torch.channels_last
    most = CONTIGUOUS_FROM.get(torch.cuda.get_device_name(device), CONTIGUOUS_FROM[UNMEASURED])
    return torch.channels_last if 2 * shape[1] * shape[2] < most else torch.contiguous_format
