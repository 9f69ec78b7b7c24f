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


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves ``matrix @ x = right`` for x, for each matrix of a batch: [..., N, N] and [..., N, M] -> [..., N, M]."""
    return torch.linalg.solve(matrix, right)
