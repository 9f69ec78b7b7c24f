"""What torch's own types leave open, said once: of what type the answer is."""

import torch
from torch import Tensor


def numbers(tensor: Tensor) -> list[float]:
    """A tensor [N] of floats as Python's numbers."""
    return tensor.tolist()


def whole_numbers(tensor: Tensor) -> list[int]:
    """A tensor [N] of integers as Python's numbers."""
    return tensor.tolist()


def rows_of(tensor: Tensor) -> list[list[float]]:
    """A tensor [N, M] of floats as Python's numbers, row by row."""
    return tensor.tolist()


def lengths(vectors: Tensor) -> Tensor:
    """The Euclidean norms of vectors [N, M], [N, 1]."""
    return vectors.norm(dim=1, keepdim=True)


def in_groups(tensor: Tensor, groups: int, each: int) -> Tensor:
    """[groups * each, ...] as [groups, each, ...]."""
    return tensor.unflatten(0, (groups, each))


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x with ``matrix @ x = right``, for every matrix of a batch."""
    return torch.linalg.solve(matrix, right)
