"""The loss: a mean squared error of what the network predicts, weighted by noise level."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.error_text import reason_of
from .._utils.errors import InputError, UnknownName
from ..core.path import TablePath, cosine_alpha_bar, linear_alpha_bar, scaled_linear_alpha_bar, zero_terminal_snr
from ..core.prediction import Pair, from_pair
from .config import LossConfig, ScheduleConfig


class Levels(NamedTuple):
    """The T noise levels as float32 tables of shape [T]; entry t - 1 belongs to t."""

    alpha: Tensor
    sigma: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Levels":
        """The same on another device."""
        return Levels(*(table.to(device) for table in self))


def path_of(config: ScheduleConfig) -> TablePath:
    """The path that a schedule section describes. Raises InputError for betas outside (0, 1)."""
    if config.kind == "cosine":
        table = cosine_alpha_bar(config.steps)
    elif config.kind == "linear":
        table = linear_alpha_bar(config.steps, config.beta_start, config.beta_end)
    else:
        table = scaled_linear_alpha_bar(config.steps, config.beta_start, config.beta_end)
    return TablePath(zero_terminal_snr(table) if config.zero_terminal_snr else table)


def levels_of(schedule: ScheduleConfig, loss: LossConfig) -> Levels:
    """Tables of alpha, sigma and the loss weight for t = 1..T (computed in float64, kept in float32)."""
    path = path_of(schedule)
    t = torch.arange(1, path.levels + 1, dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    weight = loss_weights(loss, alpha, sigma)
    return Levels(alpha.float(), sigma.float(), weight.float())


def loss_weights(config: LossConfig, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight of each noise level in the loss on the network's own prediction.

    ``ones`` is L_gamma with gamma = 1 (Eq. 5 of Song et al. 2021, arXiv 2010.02502; DDPM's L_simple for eps).
    ``min_snr`` weighs the x0 loss with min(SNR, k) (Hang et al. 2023, arXiv 2303.09556). On other predictions it
    is divided by what turns an x0 error into theirs: SNR for eps, SNR + 1 for v. Where SNR = 0 it weighs nothing:
    TrainConfig refuses it with zero terminal SNR.

    Args:
        config: the loss section.
        alpha, sigma: float64 of shape [T], alpha^2 + sigma^2 = 1.

    Returns:
        float64 of shape [T].

    Raises:
        InputError: user weights that are not T finite numbers >= 0, or an unknown weight or prediction.
    """
    if config.prediction not in ("eps", "x0", "v"):
        raise UnknownName("loss.prediction", config.prediction, ["eps", "x0", "v"])
    if config.weight == "ones":
        return torch.ones_like(alpha)
    if config.weight == "min_snr":
        signal, noise = alpha**2, sigma**2
        # min(snr, k) / {snr, 1, snr + 1} with snr = signal / noise, written so that snr = inf stays finite.
        capped = torch.minimum(signal, config.min_snr_k * noise)
        return capped / {"eps": signal, "x0": noise, "v": signal + noise}[config.prediction]
    return _user_weights(config.weight, len(alpha))


def checksum(config: LossConfig, levels: Levels) -> int | None:
    """A checksum of weights that the user gave, by which a resumed run knows them again; None for our own."""
    if config.weight in ("ones", "min_snr"):
        return None
    return zlib.crc32(levels.weight.cpu().numpy().tobytes())


def _user_weights(weight: str | Sequence[float], count: int) -> Tensor:
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
        raise InputError(f"it holds {len(table)} numbers; the schedule has {count} steps.", parameter="loss.weight")
    if not (bool(table.isfinite().all()) and bool((table >= 0).all()) and float(table.sum()) > 0):
        raise InputError("it must be finite, at least 0, and not 0 everywhere.", parameter="loss.weight")
    return table


def diffusion_loss(
    network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, eps: Tensor, t: Tensor, levels: Levels, prediction: str
) -> Tensor:
    """mean over the batch of weight(t) * |network(x_t) - target|^2 per pixel, x_t = alpha x0 + sigma eps.

    Args:
        network: called as ``network(x, timestep)`` with diffusers timesteps t - 1.
        x0: images in [-1, 1] or scaled codes, float32 [N, C, H, W].
        eps: noise, as x0.
        t: noise levels in 1..T, int64 [N].
        levels: tables on the same device.
        prediction: ``eps``, ``x0`` or ``v``.

    Returns:
        A scalar, float32.
    """
    alpha, sigma = (table[t - 1].view(-1, 1, 1, 1) for table in (levels.alpha, levels.sigma))
    target = from_pair(prediction, Pair(x0, eps), alpha, sigma)
    output = network(alpha * x0 + sigma * eps, t - 1)
    error = (output.float() - target).square().flatten(1).mean(1)
    return (levels.weight[t - 1] * error).mean()
