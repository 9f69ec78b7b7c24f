"""Metrics: pure functions of images, features and networks. They read no run folder and know no benchmark."""

from .pairwise import errors, mse, psnr, ssim

__all__ = ["errors", "mse", "psnr", "ssim"]
