"""The losses: the mean squared error of the network's prediction, weighted by noise level, and flow matching."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.error_text import reason_of
from .._utils.errors import InputError, UnknownName
from ..core.path import (
    RectifiedFlow,
    TablePath,
    cosine_alpha_bar,
    linear_alpha_bar,
    scaled_linear_alpha_bar,
    zero_terminal_snr,
)
from ..core.prediction import Pair, from_pair
from .config import LossConfig, ScheduleConfig


class Levels(NamedTuple):
    """The T noise levels as float32 tables of shape [T]; entry t - 1 belongs to level t.

    Attributes:
        alpha, sigma: x_t = alpha x0 + sigma eps.
        weight: the weight of each level in the loss.
    """

    alpha: Tensor
    sigma: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Levels":
        """Returns the tables on another device."""
        return Levels(*(table.to(device) for table in self))


def path_of(config: ScheduleConfig) -> TablePath:
    """Makes the path (the noise levels) of a schedule section. Raises InputError for betas outside (0, 1)."""
    if config.kind == "cosine":
        table = cosine_alpha_bar(config.steps)
    elif config.kind == "linear":
        table = linear_alpha_bar(config.steps, config.beta_start, config.beta_end)
    else:
        table = scaled_linear_alpha_bar(config.steps, config.beta_start, config.beta_end)
    return TablePath(zero_terminal_snr(table) if config.zero_terminal_snr else table)


def levels_of(schedule: ScheduleConfig, loss: LossConfig) -> Levels:
    """Computes alpha, sigma and the loss weight of the levels t = 1..T, in float64, and rounds them to float32."""
    path = path_of(schedule)
    t = torch.arange(1, path.levels + 1, dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    weight = loss_weights(loss, alpha, sigma)
    return Levels(alpha.float(), sigma.float(), weight.float())


def loss_weights(config: LossConfig, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Computes the weight of each noise level in the mean squared error of the network's prediction.

    ``ones`` is L_gamma with gamma = 1 (Eq. 5 of Song et al. 2021, arXiv 2010.02502; DDPM's L_simple for eps).
    ``min_snr`` weights the squared error of x0 by min(SNR, k) (Hang et al. 2023, arXiv 2303.09556). The squared error
    of eps is SNR times that of x0, and that of v is SNR + 1 times it, so the weight is divided by that factor. At
    SNR = 0 the weight vanishes or is undefined; TrainConfig refuses it with zero terminal SNR.

    Args:
        config: the loss section.
        alpha, sigma: float64 of shape [T], alpha^2 + sigma^2 = 1.

    Returns:
        float64 of shape [T].

    Raises:
        InputError: the user's weights are not T finite numbers >= 0 with a positive sum, or the weight or prediction
            is unknown.
    """
    if config.prediction not in ("eps", "x0", "v"):
        raise UnknownName("loss.prediction", config.prediction, ["eps", "x0", "v"])
    if config.weight == "ones":
        return torch.ones_like(alpha)
    if config.weight == "min_snr":
        signal, noise = alpha**2, sigma**2
        # min(snr, k) / {snr, 1, snr + 1} with snr = signal / noise. Numerator and denominator are multiplied by the
        # noise, so that no infinite SNR occurs.
        capped = torch.minimum(signal, config.min_snr_k * noise)
        return capped / {"eps": signal, "x0": noise, "v": signal + noise}[config.prediction]
    return _user_weights(config.weight, len(alpha))


def checksum(config: LossConfig, levels: Levels) -> int | None:
    """Returns a checksum of the user's own weights, by which a resumed run recognises them; None for built-in ones."""
    if config.weight in ("ones", "min_snr"):
        return None
    return zlib.crc32(levels.weight.cpu().numpy().tobytes())


def _user_weights(weight: str | Sequence[float], count: int) -> Tensor:
    """Reads and checks the user's own weights: a list of numbers, or a file with them."""
    if isinstance(weight, str):
        file = Path(weight)
        if file.suffix not in (".json", ".txt"):
            raise UnknownName("loss.weight", weight, ["ones", "min_snr", "a list of T numbers", "a .json or .txt file"])
        try:
            text = file.read_text(encoding="utf-8")
            values = json.loads(text) if file.suffix == ".json" else text.split()
            table = torch.tensor([float(v) for v in values], dtype=torch.float64)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{file} cannot be read: {reason_of(error)}", parameter="loss.weight") from None
    else:
        table = torch.tensor(weight, dtype=torch.float64)
    if len(table) != count:
        raise InputError(
            f"it consists of {len(table)} numbers, but the schedule has {count} steps.", parameter="loss.weight"
        )
    if not (bool(table.isfinite().all()) and bool((table >= 0).all()) and float(table.sum()) > 0):
        raise InputError("its numbers must be finite, at least 0, and not all 0.", parameter="loss.weight")
    return table


def diffusion_loss(
    network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, eps: Tensor, t: Tensor, levels: Levels, prediction: str
) -> Tensor:
    """Computes the mean over the batch of weight(t) * |network(x_t) - target|^2 per pixel, x_t = alpha x0 + sigma eps.

    Args:
        network: called as ``network(x, timestep)`` with diffusers' timesteps t - 1, which count from 0.
        x0: images in [-1, 1] or scaled latents, float32 [N, C, H, W].
        eps: noise of x0's shape.
        t: noise levels in 1..T, int64 [N].
        levels: tables on the same device.
        prediction: ``eps``, ``x0`` or ``v``; the target is that of x0 and eps.

    Returns:
        A scalar, float32.
    """
    alpha, sigma = (table[t - 1].view(-1, 1, 1, 1) for table in (levels.alpha, levels.sigma))
    target = from_pair(prediction, Pair(x0, eps), alpha, sigma)
    output = network(alpha * x0 + sigma * eps, t - 1)
    error = (output.float() - target).square().flatten(1).mean(1)
    return (levels.weight[t - 1] * error).mean()


def flow_loss(
    network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, eps: Tensor, sigma: Tensor, path: RectifiedFlow
) -> Tensor:
    """Computes the flow-matching loss, the mean of |network(x_sigma) - (eps - x0)|^2 over the batch and the pixels.

    x_sigma = (1 - sigma) x0 + sigma eps lies on the straight line from data to noise, whose velocity is eps - x0
    (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003).

    Args:
        network: called as ``network(x, timestep)`` with the timesteps levels * sigma of the path.
        x0: images in [-1, 1] or scaled latents, float32 [N, C, H, W].
        eps: noise of x0's shape.
        sigma: noise levels in [0, 1], float32 [N].
        path: the path, whose ``levels`` number the timesteps.

    Returns:
        A scalar, float32.
    """
    level = sigma.view(-1, 1, 1, 1)
    output = network((1 - level) * x0 + level * eps, sigma * path.levels)
    return (output.float() - (eps - x0)).square().mean()
