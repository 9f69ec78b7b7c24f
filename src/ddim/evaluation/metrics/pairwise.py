"""Distances between two images of the same size, [N, C, H, W] in [0, 1]: one number for each pair."""

import hashlib
from math import isfinite, log10

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._utils.errors import InputError
from ...data.images import to_uint8


def mse(images: Tensor, others: Tensor) -> Tensor:
    """Mean squared error, float64 [N]."""
    return (images.double() - others.double()).square().flatten(1).mean(1)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE) in dB, float64 [N]; infinite for equal images."""
    return -10 * mse(images, others).log10()


def decibels(error: float | None) -> float | None:
    """The PSNR in dB of a mean squared error; None if there is no error or no number."""
    return -10 * log10(error) if error else None


def errors(images: Tensor, others: Tensor) -> list[dict[str, float | None]]:
    """``mse``, ``psnr`` in dB and ``max``, the largest difference, of each pair.

    ``psnr`` is None for images that are equal to the bit, so that the result can be written as JSON.
    """
    images, others = images.double().cpu(), others.double().cpu()
    worst = (images - others).abs().flatten(1).amax(1).tolist()
    pairs = zip(mse(images, others).tolist(), psnr(images, others).tolist(), worst, strict=True)
    return [{"mse": m, "psnr": p if isfinite(p) else None, "max": w} for m, p, w in pairs]


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), the mean of ``ssim_map``, [N].

    Raises:
        InputError: torchmetrics is not installed.
    """
    return ssim_map(images, others).flatten(1).mean(1)


def ssim_map(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity around each pixel of each channel (Wang et al. 2004), [N, C, H, W].

    Computed by torchmetrics with its default window.

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
    """A mask of the pixels that two images have in common, bool [N, 1, H, W].

    A pixel is in the mask if no channel differs by more than ``tolerance``, there or within ``margin`` pixels.
    """
    differ = ((source - answer).abs().amax(1, keepdim=True) > tolerance).float()
    return F.max_pool2d(differ, 2 * margin + 1, 1, margin) == 0


def mse_where(images: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the pixels of ``mask`` [N, 1, H, W], float64 [N]; NaN where the mask is empty."""
    return mean_where((images.double() - others.double()).square(), mask)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` [N, C, H, W] over the channels and the pixels of ``mask`` [N, 1, H, W], float64 [N].

    The mean is NaN where the mask is empty.
    """
    by_pixel = values.double().mean(1, keepdim=True)
    return torch.where(mask, by_pixel, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def digest(images: Tensor) -> str:
    """Twelve hexadecimal digits of a hash of images [..., C, H, W] in [0, 1], as 8 bits hold them."""
    small = to_uint8(images).cpu().contiguous()
    return hashlib.sha256(f"{tuple(small.shape)}".encode() + small.numpy().tobytes()).hexdigest()[:12]
