"""What a network predicts, as one Pair(x0, eps), and back.

Each prediction is a row (a, b) with output = a x0 + b eps; the path gives x = alpha x0 + sigma eps. Two equations,
two unknowns: every conversion is the same 2x2 solve.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .errors import InputError, UnknownName
from .path import Node

Prediction = Literal["eps", "x0", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)

_FOREIGN = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


class Pair(NamedTuple):
    """What a network says of x, whatever it was trained to predict: the clean x0 and the noise eps, shapes of x."""

    x0: Tensor
    eps: Tensor


def prediction_of(diffusers_name: str) -> Prediction:
    """Our name for a diffusers ``prediction_type``. Raises InputError for one that is not known."""
    if diffusers_name in _FOREIGN:
        return _FOREIGN[diffusers_name]  # type: ignore[return-value]
    raise UnknownName("prediction type", diffusers_name, _FOREIGN, parameter="prediction_type")


def _row(prediction: str, alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """(a, b) with output = a x0 + b eps."""
    if prediction == "eps":
        return 0.0, 1.0
    if prediction == "x0":
        return 1.0, 0.0
    if prediction == "v":
        return -sigma, alpha  # Salimans & Ho 2022, appendix D (arXiv 2202.00512)
    if prediction == "flow":
        return -1.0, 1.0  # Liu et al. 2022: dx/dt on the straight path, from data to noise
    raise UnknownName("prediction", prediction, PREDICTIONS)


def to_pair(prediction: str, output: Tensor, x: Tensor, node: Node) -> Pair:
    """The pair behind a network's output at x on (node.alpha, node.sigma).

    Args:
        prediction: ``eps``, ``x0``, ``v`` or ``flow``.
        output: what the network returned, shape of ``x``.
        x: where it was asked, any shape.
        node: where x lies; only alpha and sigma are used.

    Raises:
        InputError: the system is singular (``eps`` where alpha = 0, ``x0`` where sigma = 0).
    """
    alpha, sigma = node.alpha, node.sigma
    a, b = _row(prediction, alpha, sigma)
    det = alpha * b - sigma * a
    if abs(det) < 1e-12:
        end = "no signal is left (alpha = 0)" if alpha < 1e-12 else "there is no noise (sigma = 0)"
        raise InputError(f"{prediction!r} says nothing where {end}, at t = {node.t:g}.", parameter="prediction")
    # eps and x0 are what the network said, untouched; only the other one is solved for.
    x0 = output if prediction == "x0" else (b * x - sigma * output) / det
    eps = output if prediction == "eps" else (alpha * output - a * x) / det
    return Pair(x0, eps)


def from_pair(prediction: str, pair: Pair, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The output a network of this kind would have given: also the training target when the pair is the truth.

    Args:
        prediction: ``eps``, ``x0``, ``v`` or ``flow``.
        pair: x0 and eps of one shape.
        alpha, sigma: numbers, or tensors that broadcast against the pair (shape [N, 1, 1, 1] in training).
    """
    a, b = _row(prediction, alpha, sigma)
    return a * pair.x0 + b * pair.eps


def clip(pair: Pair, x: Tensor, node: Node, limit: float = 1.0) -> Pair:
    """x0 held to [-limit, limit], and eps derived anew so that the pair still explains x.

    diffusers leaves eps as it was unless ``use_clipped_model_output`` is set. Where sigma = 0, eps stays.
    """
    return _with_x0(pair, pair.x0.clamp(-limit, limit), x, node)


def dynamic_threshold(pair: Pair, x: Tensor, node: Node, percentile: float = 0.995, limit: float = 1.0) -> Pair:
    """Dynamic thresholding of x0, with eps derived anew.

    A sample whose |x0| exceeds ``limit`` at the percentile is clamped there and scaled back to ``limit``.
    Source: Saharia et al. 2022, section 2.3 (arXiv 2205.11487).
    """
    if not 0 < percentile <= 1:
        raise InputError(f"{percentile:g} lies outside (0, 1].", parameter="percentile")
    size = torch.quantile(pair.x0.detach().abs().flatten(1).double(), percentile, dim=1).clamp(min=limit)
    size = size.to(pair.x0.dtype).view(-1, *[1] * (x.ndim - 1))
    return _with_x0(pair, pair.x0.clamp(-size, size) * (limit / size), x, node)


def _with_x0(pair: Pair, x0: Tensor, x: Tensor, node: Node) -> Pair:
    if node.sigma == 0:
        return Pair(x0, pair.eps)
    return Pair(x0, (x - node.alpha * x0) / node.sigma)


Correction = Callable[[Pair, Tensor, Node], Pair]
