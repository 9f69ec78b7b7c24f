"""Quantiles of the beta distribution, from which the spacing ``beta`` of grids is made."""

import math

import torch
from torch import Tensor

_TERMS, _HALVINGS = 64, 64  # both leave an error of about 2**-64, below the precision of float64, for a + b up to 4


def beta_quantiles(parts: Tensor, a: float, b: float) -> Tensor:
    """Returns the x in [0, 1] at which the distribution function I_x(a, b) of Beta(a, b) has the given values.

    Args:
        parts: values in [0, 1], float64, any shape.
        a, b: the parameters of the distribution, above 0, with a sum of at most 4.
    """
    middle = distribution(torch.tensor(0.5, dtype=torch.float64), a, b)
    below = _lower(torch.where(parts <= middle, parts, 0.0), a, b)
    # I_x(a, b) = 1 - I_{1-x}(b, a)
    above = 1 - _lower(torch.where(parts > middle, 1 - parts, 0.0), b, a)
    return torch.where(parts <= middle, below, above)


def distribution(x: Tensor, a: float, b: float) -> Tensor:
    """Returns I_x(a, b) for x in [0, 1/2], float64, by its power series (DLMF 8.17.8), in which all terms are positive.

    Args:
        x: float64, any shape.
        a, b: see ``beta_quantiles``.
    """
    one = torch.ones_like(x)
    total = one
    for n in reversed(range(_TERMS)):
        total = torch.addcmul(one, x, total, value=(a + b + n) / (a + 1 + n))
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    return scale * x**a * (1 - x) ** b * total


def _lower(parts: Tensor, a: float, b: float) -> Tensor:
    """Returns the quantiles up to 1/2, by bisection."""
    low, high = torch.zeros_like(parts), torch.full_like(parts, 0.5)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        less = distribution(middle, a, b) < parts
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return torch.where(parts > 0, (low + high) / 2, 0.0)
