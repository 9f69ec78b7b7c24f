"""Distances between two pictures of one size, [N, C, H, W] in [0, 1]; one number a pair."""

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from .._utils.errors import InputError
from ..data.images import to_uint8


def mse(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error, float64 [N]."""
    return (images.double() - others.double()).square().flatten(1).mean(1)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """10 log10(1 / MSE) in dB, float64 [N]; inf for the same picture."""
    return -10 * mse(images, others).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), [N]: the mean of its map.

    Raises:
        InputError: torchmetrics is not installed.
    """
    return ssim_map(images, others).flatten(1).mean(1)


def ssim_map(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity around each pixel and channel (Wang et al. 2004), by torchmetrics with its defaults,
    [N, C, H, W].

    Raises:
        InputError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise InputError("SSIM needs torchmetrics: pip install 'ddim[eval]'.") from None
    found = structural_similarity_index_measure(
        images.float(), others.float(), reduction="none", data_range=1.0, return_full_image=True
    )
    assert isinstance(found, tuple)
    return found[1]


def agreement(source: Tensor, answer: Tensor, tolerance: float = 0.1, margin: int = 1) -> Tensor:
    """Where two pictures show the same, bool [N, 1, H, W]: no channel differs by more than ``tolerance`` in a pixel or
    within ``margin`` pixels of it."""
    differ = ((source - answer).abs().amax(1, keepdim=True) > tolerance).float()
    return F.max_pool2d(differ, 2 * margin + 1, 1, margin) == 0


def mse_where(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of ``mask`` [N, 1, H, W], float64 [N]; NaN where it is empty."""
    return mean_where((images.double() - others.double()).square(), mask)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` [N, C, H, W] over channels and the pixels of ``mask`` [N, 1, H, W], float64 [N]; NaN where it
    is empty."""
    several = values.double().mean(1, keepdim=True)
    return torch.where(mask, several, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def digest(images: Tensor) -> str:
    """What tells pictures [..., C, H, W] in [0, 1] from others: twelve letters of a hash of their values in 8 bits."""
    small = to_uint8(images).cpu().contiguous()
    return hashlib.sha256(f"{tuple(small.shape)}".encode() + small.numpy().tobytes()).hexdigest()[:12]
