"""What a network predicts, as one Pair(x0, eps), and back.

Each prediction is a row (a, b) with output = a x0 + b eps; the path gives x = alpha x0 + sigma eps. Two equations,
two unknowns: every conversion is the same 2x2 solve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName, is_mapping, is_number
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


def dynamic_threshold(
    pair: Pair, x: Tensor, node: Node, percentile: float = 0.995, limit: float = 1.0, largest: float = math.inf
) -> Pair:
    """Dynamic thresholding of x0, with eps derived anew.

    A sample whose |x0| exceeds ``limit`` at the percentile is clamped there, but at ``largest`` at the most, and scaled
    back to ``limit``.
    Source: Saharia et al. 2022, section 2.3 (arXiv 2205.11487).
    """
    if not 0 < percentile <= 1:
        raise InputError(f"{percentile:g} lies outside (0, 1].", parameter="percentile")
    size = torch.quantile(pair.x0.detach().abs().flatten(1).double(), percentile, dim=1).clamp(min=limit, max=largest)
    size = size.to(pair.x0.dtype).view(-1, *[1] * (x.ndim - 1))
    return _with_x0(pair, pair.x0.clamp(-size, size) * (limit / size), x, node)


def _with_x0(pair: Pair, x0: Tensor, x: Tensor, node: Node) -> Pair:
    if node.sigma == 0:
        return Pair(x0, pair.eps)
    return Pair(x0, (x - node.alpha * x0) / node.sigma)


Correction = Callable[[Pair, Tensor, Node], Pair]


@dataclass(frozen=True)
class Hold:
    """How x0 is held to the range of pictures, as a ``Correction``: clipped, by dynamic thresholding, or not at all.

    Args:
        clip_x0: above 0: x0 is held to [-clip_x0, clip_x0]; infinity holds nothing.
        threshold: in (0, 1]: dynamic thresholding at this percentile.
        largest: of dynamic thresholding: see ``dynamic_threshold``; diffusers' ``sample_max_value``.

    Raises:
        InputError: a number out of its range, or both.
    """

    clip_x0: float | None = None
    threshold: float | None = None
    largest: float = math.inf

    def __post_init__(self) -> None:
        if self.clip_x0 is not None and self.threshold is not None:
            raise InputError("it does not go with threshold; give one of the two.", parameter="clip_x0")
        for key in ("clip_x0", "largest"):
            limit = getattr(self, key)
            if limit is not None and not (limit == math.inf or (is_number(limit) and limit > 0)):
                raise InputError(
                    f"{limit!r} leaves no picture; use a bound above 0, 1 for the range of pictures.", parameter=key
                )
        if self.threshold is not None and not (is_number(self.threshold) and 0 < self.threshold <= 1):
            raise InputError(f"{self.threshold!r} lies outside (0, 1]; 0.995 is usual.", parameter="threshold")

    @property
    def acts(self) -> bool:
        """Whether it changes any x0."""
        return self.clip_x0 not in (None, math.inf) or self.threshold is not None

    @property
    def options(self) -> dict[str, float]:
        """Plain finite values, as a ``LatentCode`` keeps them; none where it does not act."""
        named = {"clip_x0": self.clip_x0, "threshold": self.threshold, "largest": self.largest}
        return {k: float(v) for k, v in named.items() if v is not None and v != math.inf} if self.acts else {}

    @staticmethod
    def of(options: object) -> "Hold":
        """What ``options`` describes; nothing is held where there is nothing.

        Raises:
            InputError: something else than ``options`` gives.
        """
        if not options:
            return NO_HOLD
        if not is_mapping(options) or set(options) - {"clip_x0", "threshold", "largest"}:
            raise InputError(f"its hold {options!r} cannot be read.", parameter="code")
        return Hold(**options)

    def __call__(self, pair: Pair, x: Tensor, node: Node) -> Pair:
        """The pair with x0 held and eps derived anew."""
        if self.threshold is not None:
            return dynamic_threshold(pair, x, node, self.threshold, largest=self.largest)
        return clip(pair, x, node, self.clip_x0) if self.clip_x0 is not None else pair


NO_HOLD = Hold()
