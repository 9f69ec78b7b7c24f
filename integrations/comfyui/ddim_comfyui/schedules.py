"""A ComfyUI model's noise levels as the library's ``Schedule``, and its denoised samples as a network's outputs.

ComfyUI asks every model for the denoised sample D at (x, sigma). On rectified flow (``CONST``) its x is
(1 - sigma) x0 + sigma eps. For all other models it is x0 + sigma eps, which is x / alpha of a variance-preserving path
with sigma / alpha in place of sigma.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddim import GaussianPath, InputError, Node, RectifiedFlow, Schedule, StaticShift, TablePath, VEPath


@dataclass(frozen=True)
class Levels:
    """The noise levels of a model, and the conversion between ComfyUI's convention and the library's.

    Attributes:
        schedule: the path, and what ``output`` returns.
        least: the lowest sigma that the network was trained on, which it is asked at where there is no noise.
    """

    schedule: Schedule
    least: float

    @property
    def flow(self) -> bool:
        """Whether the model is on rectified flow."""
        return isinstance(self.schedule.path, RectifiedFlow)

    def asked(self, node: Node) -> Node:
        """Returns the node whose noise level the network is told: ``node``, or the least level for the data."""
        if node.sigma > 0:
            return node
        if self.flow:
            return Node(node.t, 1 - self.least, self.least)
        if isinstance(self.schedule.path, VEPath):
            return Node(node.t, 1.0, self.least)
        size = math.hypot(1.0, self.least)
        return Node(node.t, 1 / size, self.least / size)

    def sigma(self, node: Node) -> float:
        """Returns the sigma that ComfyUI has at a node with noise."""
        return node.sigma if self.flow else node.ratio

    def sample(self, x: Tensor, node: Node) -> Tensor:
        """Converts x = alpha x0 + sigma eps at a node to ComfyUI's sample at the same noise level."""
        return x if self.flow or node.alpha == 1 else x / node.alpha

    def output(self, denoised: Tensor, x: Tensor, node: Node) -> Tensor:
        """Computes the output of the network, ``schedule.prediction``, from the denoised sample.

        The prediction is the one in which the inverse of the library's formula loses the fewest digits.

        Args:
            denoised: D, [N, ...].
            x: alpha x0 + sigma eps, [N, ...].
            node: the node that the network was asked at, with noise.
        """
        if self.schedule.prediction == "eps":
            return (x / node.alpha - denoised) / node.ratio
        if self.schedule.prediction == "v":
            return (node.alpha * x - denoised) / node.sigma
        if self.schedule.prediction == "flow":
            return (x - denoised) / node.sigma
        data, size = self.schedule.sigma_data, math.hypot(node.sigma, self.schedule.sigma_data)
        return (denoised - (data / size) ** 2 * x) * (size / (node.sigma * data))


def levels_of(sampling: Any) -> Levels:
    """Reads the noise levels of a ``model_sampling`` object of ComfyUI.

    Raises:
        InputError: its samples are not noised on a path that the library knows.
    """
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    sigmas = getattr(sampling, "sigmas", None)
    if "IMG_TO_IMG" in kinds or not isinstance(sigmas, Tensor):
        raise InputError(
            f"its noise levels ({type(sampling).__mro__[1].__name__}) are those of no Gaussian path, so that no "
            "step of it can be inverted; use a model for images such as SD, SDXL or FLUX.",
            parameter="model",
        )
    least = float(sampling.sigma_min)
    if "CONST" in kinds:
        return Levels(Schedule(RectifiedFlow(), "flow", shift=StaticShift(value=_shift(sampling, kinds))), least)
    if "ModelSamplingDiscrete" in kinds and "StableCascadeSampling" not in kinds:
        table = TablePath(1 / (1 + sigmas.detach().cpu().double().square()))
        return Levels(Schedule(table, "v" if kinds & {"V_PREDICTION", "X0"} else "eps"), least)
    path = VEPath(float(sampling.sigma_max), least)
    data = float(getattr(sampling, "sigma_data", 1.0))
    return Levels(Schedule(path, "edm", "karras", clock="edm", prior="edm", sigma_data=data), least)


def _shift(sampling: Any, kinds: set[str]) -> float:
    """Returns the factor of a flow model's shift; FLUX has its logarithm."""
    shift = float(getattr(sampling, "shift", 1.0))
    return math.exp(shift) if "ModelSamplingFlux" in kinds else shift


def times_of(path: GaussianPath, sigmas: Tensor) -> list[float]:
    """Converts SIGMAS of ComfyUI to the t of a grid, without its last node, the data.

    Args:
        path: the path of the model.
        sigmas: [S + 1], strictly descending to 0.

    Raises:
        InputError: they rise, as after FlipSigmas, repeat a level, do not end at 0, or exceed the path's noise.
    """
    levels: Sequence[float] = sigmas.detach().cpu().double().tolist()
    if len(levels) < 2:
        raise InputError(f"{len(levels)} level is no step; use at least 2.", parameter="sigmas")
    if levels[0] < levels[-1]:
        raise InputError(
            f"they rise from {levels[0]:g} to {levels[-1]:g}; the node inverts by itself, so connect them as a sampler "
            "takes them, without FlipSigmas.",
            parameter="sigmas",
        )
    if any(a <= b for a, b in pairwise(levels)):
        raise InputError("a level is repeated, or they do not fall throughout; use fewer steps.", parameter="sigmas")
    if levels[-1] != 0:
        raise InputError(
            f"they end at {levels[-1]:g} and not at 0, where the image is; connect all of them.", parameter="sigmas"
        )
    noisy = torch.tensor(levels[:-1], dtype=torch.float64)
    ratios = noisy / (1 - noisy) if isinstance(path, RectifiedFlow) else noisy
    times = [float(t) for t in path.t_of_log_snr(-2 * ratios.log())]
    # A float32 sigma of the table lies a little beside its entry; the network is told the entry.
    return [float(round(t)) if path.discrete and abs(t - round(t)) < 1e-3 else t for t in times]


def sigmas_of(levels: Levels, nodes: Sequence[Node]) -> Tensor:
    """Returns the SIGMAS of nodes, float32 [S + 1]; 0 at the data."""
    return torch.tensor([levels.sigma(node) if node.sigma else 0.0 for node in nodes], dtype=torch.float32)
