"""Typed wrappers for torch calls whose return types torch itself leaves open, for strict type checking."""

import torch
from torch import Tensor


def numbers(tensor: Tensor) -> list[float]:
    """Converts a float tensor [N] to a list of Python floats."""
    return tensor.tolist()


def whole_numbers(tensor: Tensor) -> list[int]:
    """Converts an integer tensor [N] to a list of Python ints."""
    return tensor.tolist()


def rows_of(tensor: Tensor) -> list[list[float]]:
    """Converts a float tensor [N, M] to a list of N lists of Python floats."""
    return tensor.tolist()


def lengths(vectors: Tensor) -> Tensor:
    """Returns the Euclidean norm of each vector: [N, M] -> [N, 1]."""
    return vectors.norm(dim=1, keepdim=True)


def in_groups(tensor: Tensor, groups: int, each: int) -> Tensor:
    """Splits the first dimension: [groups * each, ...] -> [groups, each, ...]."""
    return tensor.unflatten(0, (groups, each))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shapes one value for each sample so that it broadcasts: [N] -> [N, 1, ...], in the form of ``like`` [N, ...]."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


def quantile_of(x: Tensor, quantile: float) -> Tensor:
    """Returns the quantile of the elements of each sample: [N, ...] -> [N, 1, ...], interpolated linearly.

    Unlike ``torch.quantile`` it takes more than 16 million elements.
    """
    ordered = x.flatten(1).sort(1).values
    place = quantile * (ordered.shape[1] - 1)
    low = int(place)
    return per_sample(torch.lerp(ordered[:, low], ordered[:, min(low + 1, ordered.shape[1] - 1)], place - low), x)


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves ``matrix @ x = right`` for x, for each matrix of a batch: [..., N, N] and [..., N, M] -> [..., N, M]."""
    return torch.linalg.solve(matrix, right)
