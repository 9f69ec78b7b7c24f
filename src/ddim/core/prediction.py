"""Converts between the outputs of networks and ``Pair(x0, eps)``, which all solvers and inversions use.

Each kind of prediction is a row (a, b) with output = a x0 + b eps, and the path gives x = alpha x0 + sigma eps. These
are two equations in the unknowns x0 and eps, so that one 2x2 solve serves every kind:

| kind | output | (a, b) |
|---|---|---|
| ``eps`` | the noise | (0, 1) |
| ``x0`` | the image | (1, 0) |
| ``v`` | the velocity on the circle alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, arXiv 2202.00512) | (-sigma, alpha) |
| ``flow`` | the velocity of the straight path (Liu et al. 2022, arXiv 2209.03003) | (-1, 1) |
| ``score`` | grad log p(x), which is -eps / sigma (Song et al. 2021, arXiv 2011.13456) | (0, -1 / sigma) |
| ``edm`` | F of Karras et al. 2022 (arXiv 2206.00364, Eq. 7 and Table 1) | (sigma / (d R), -alpha d / R) |
| ``edm_v`` | -F, as diffusers' EDM schedulers name ``v_prediction`` | (-sigma / (d R), alpha d / R) |

Here d is ``sigma_data``, the standard deviation of the data, and R = sqrt(sigma^2 + d^2 alpha^2) that of x.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from .._utils.errors import InputError, UnknownName, is_mapping, is_number
from .._utils.tensors import quantile_of
from .path import Node

Prediction = Literal["eps", "x0", "v", "flow", "score", "edm", "edm_v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)

_DIFFUSERS_NAMES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


class Pair(NamedTuple):
    """The clean x0 and the noise eps that a network predicts for x, both in the shape of x."""

    x0: Tensor
    eps: Tensor


def prediction_of(diffusers_name: str) -> Prediction:
    """Converts a ``prediction_type`` of diffusers. Raises InputError if it is unknown."""
    if diffusers_name in _DIFFUSERS_NAMES:
        return _DIFFUSERS_NAMES[diffusers_name]  # type: ignore[return-value]
    raise UnknownName("prediction type", diffusers_name, _DIFFUSERS_NAMES, parameter="prediction_type")


SIGMA_DATA = 0.5
"""The standard deviation of the data that Karras et al. 2022 assume for images in [-1, 1]."""


def _row(
    prediction: str, alpha: Tensor | float, sigma: Tensor | float, sigma_data: float = SIGMA_DATA
) -> tuple[Tensor | float, Tensor | float]:
    """Returns (a, b) with output = a x0 + b eps."""
    if prediction == "eps":
        return 0.0, 1.0
    if prediction == "x0":
        return 1.0, 0.0
    if prediction == "v":
        return -sigma, alpha  # Salimans & Ho 2022, appendix D (arXiv 2202.00512)
    if prediction == "flow":
        return -1.0, 1.0  # Liu et al. 2022: dx/dt on the straight path, from data to noise
    if prediction == "score":
        return 0.0, -1 / sigma
    if prediction in ("edm", "edm_v"):
        # x0 = c_skip x + c_out F with c_skip = d^2 / R^2 and c_out = sigma d / R at alpha = 1, solved for F. The row is
        # finite where sigma = 0, unlike that formula's.
        size, sign = (sigma**2 + (sigma_data * alpha) ** 2) ** 0.5, 1 if prediction == "edm" else -1
        return sign * sigma / (sigma_data * size), -sign * sigma_data * alpha / size
    raise UnknownName("prediction", prediction, PREDICTIONS)


def to_pair(prediction: str, output: Tensor, x: Tensor, node: Node, *, sigma_data: float = SIGMA_DATA) -> Pair:
    """Computes x0 and eps from the output of a network at x.

    Where sigma = 0, a score gives eps = 0: the limit of -sigma grad log p(x) for a finite score.

    Args:
        prediction: a kind in the table of this module.
        output: what the network returned, in the shape of ``x``.
        x: the sample, any shape; for ``edm`` and ``edm_v`` without the factor ``Schedule.input_scale``.
        node: the node of x; only its alpha and sigma are used.
        sigma_data: the standard deviation of the data, for ``edm`` and ``edm_v``.

    Raises:
        InputError: the output does not determine the pair (``eps`` and ``score`` where alpha = 0, ``x0`` where
            sigma = 0).
    """
    alpha, sigma = node.alpha, node.sigma
    kind, output = ("eps", -sigma * output) if prediction == "score" else (prediction, output)
    a, b = _row(kind, alpha, sigma, sigma_data)
    det = alpha * b - sigma * a
    if abs(det) < 1e-12:
        end = "no signal is left (alpha = 0)" if alpha < 1e-12 else "there is no noise (sigma = 0)"
        raise InputError(f"{prediction!r} says nothing where {end}, at t = {node.t:g}.", parameter="prediction")
    # A predicted eps or x0 is passed on unchanged, without rounding errors; only the other one is solved for.
    x0 = output if kind == "x0" else (b * x - sigma * output) / det
    eps = output if kind == "eps" else (alpha * output - a * x) / det
    return Pair(x0, eps)


def from_pair(
    prediction: str, pair: Pair, alpha: Tensor | float, sigma: Tensor | float, *, sigma_data: float = SIGMA_DATA
) -> Tensor:
    """Computes the output that a network would return for this pair, the inverse of ``to_pair``.

    For the true x0 and eps this is the training target.

    Args:
        prediction: a kind in the table of this module.
        pair: x0 and eps of the same shape.
        alpha, sigma: numbers, or tensors that broadcast against the pair (shape [N, 1, 1, 1] in training).
        sigma_data: see ``to_pair``.

    Raises:
        InputError: the prediction is ``score`` and sigma is the number 0, where it would be infinite.
    """
    if prediction == "score" and not isinstance(sigma, Tensor) and sigma == 0:
        raise InputError("'score' is infinite where there is no noise (sigma = 0).", parameter="prediction")
    a, b = _row(prediction, alpha, sigma, sigma_data)
    return a * pair.x0 + b * pair.eps


def clip(pair: Pair, x: Tensor, node: Node, limit: float = 1.0) -> Pair:
    """Clips x0 to [-limit, limit] and recomputes eps, so that x = alpha x0 + sigma eps still holds.

    diffusers recomputes eps only if ``use_clipped_model_output`` is set. Where sigma = 0, eps does not change.
    """
    return with_x0(pair, pair.x0.clamp(-limit, limit), x, node)


def dynamic_threshold(
    pair: Pair, x: Tensor, node: Node, percentile: float = 0.995, limit: float = 1.0, largest: float = math.inf
) -> Pair:
    """Limits x0 by dynamic thresholding and recomputes eps (Saharia et al. 2022, section 2.3, arXiv 2205.11487).

    Let s be the percentile of |x0| of a sample, at least ``limit`` and at most ``largest``. Then x0 is clamped to
    [-s, s] and multiplied by ``limit`` / s.

    Args:
        pair, x, node: the pair, and where the network was called.
        percentile: in (0, 1].
        limit: the largest |x0| of the result, above 0.
        largest: the largest s; ``sample_max_value`` of diffusers.

    Raises:
        InputError: ``percentile`` lies outside (0, 1].
    """
    if not 0 < percentile <= 1:
        raise InputError(f"{percentile:g} lies outside (0, 1].", parameter="percentile")
    size = quantile_of(pair.x0.detach().abs(), percentile).clamp(min=limit, max=largest)
    return with_x0(pair, pair.x0.clamp(-size, size) * (limit / size), x, node)


def with_x0(pair: Pair, x0: Tensor, x: Tensor, node: Node) -> Pair:
    """Returns a pair with another x0 and the eps of x = alpha x0 + sigma eps; where sigma = 0, eps does not change."""
    if node.sigma == 0:
        return Pair(x0, pair.eps)
    return Pair(x0, (x - node.alpha * x0) / node.sigma)


Correction = Callable[[Pair, Tensor, Node], Pair]


@dataclass(frozen=True)
class Hold:
    """Limits the predicted x0 to the range of images: by clipping, by dynamic thresholding, or not at all.

    An instance is a ``Correction`` of pairs.

    Args:
        clip_x0: clips x0 to [-clip_x0, clip_x0]; above 0, and infinity does not clip.
        threshold: applies dynamic thresholding at this percentile, in (0, 1].
        largest: the argument of ``dynamic_threshold``; ``sample_max_value`` of diffusers.

    Raises:
        InputError: a number is out of range, or both ``clip_x0`` and ``threshold`` are set.
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
                raise InputError(f"{limit!r} is not a bound above 0; use 1 for the range of images.", parameter=key)
        if self.threshold is not None and not (is_number(self.threshold) and 0 < self.threshold <= 1):
            raise InputError(f"{self.threshold!r} lies outside (0, 1]; 0.995 is usual.", parameter="threshold")

    @property
    def acts(self) -> bool:
        """Whether it can change an x0."""
        return self.clip_x0 not in (None, math.inf) or self.threshold is not None

    @property
    def options(self) -> dict[str, float]:
        """The settings as finite numbers by name, as a ``LatentCode`` stores them; empty if ``acts`` is false."""
        named = {"clip_x0": self.clip_x0, "threshold": self.threshold, "largest": self.largest}
        return {k: float(v) for k, v in named.items() if v is not None and v != math.inf} if self.acts else {}

    @staticmethod
    def of(options: object) -> "Hold":
        """Makes a ``Hold`` from what its property ``options`` returned; empty options do not limit x0.

        Raises:
            InputError: ``options`` is something else.
        """
        if not options:
            return NO_HOLD
        if not is_mapping(options) or set(options) - {"clip_x0", "threshold", "largest"}:
            raise InputError(f"its setting hold = {options!r}, the limit of x0, cannot be read.", parameter="code")
        return Hold(**options)

    def __call__(self, pair: Pair, x: Tensor, node: Node) -> Pair:
        """Returns the pair with x0 limited and eps recomputed."""
        if self.threshold is not None:
            return dynamic_threshold(pair, x, node, self.threshold, largest=self.largest)
        return clip(pair, x, node, self.clip_x0) if self.clip_x0 is not None else pair


NO_HOLD = Hold()
