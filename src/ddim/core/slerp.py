"""Spherical interpolation, a sample at a time."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from .._utils.tensors import lengths

_PARALLEL = 1e-4  # below this angle sin is its argument to 1e-9, and the straight line is the arc


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point at ``weight`` on the arc from a to b, each sample with its own angle.

    Source: Song et al. 2021, section 5.3, after Shoemake 1985. The reference code takes one angle for the whole batch.
    Parallel vectors (and zero ones) fall back to the straight line; opposite ones, between which the arc is not
    determined, turn through a direction made from a by a roll.

    Args:
        a, b: [N, ...], of one shape.
        weight: 0 gives a, 1 gives b, both to the bit.
    """
    if a.shape != b.shape:
        raise InputError(f"Cannot interpolate between shapes {tuple(a.shape)} and {tuple(b.shape)}.")
    if weight == 0:
        return a.clone()
    if weight == 1:
        return b.clone()
    u, v = a.flatten(1).double(), b.flatten(1).double()
    nu, nv = lengths(u), lengths(v)
    tiny = torch.finfo(torch.float64).tiny
    eu, ev = u / nu.clamp(min=tiny), v / nv.clamp(min=tiny)
    # atan2 of the half-angle vectors keeps its precision at both ends, where acos of the dot product loses it.
    angle = 2 * torch.atan2(lengths(eu - ev), lengths(eu + ev))
    straight = (angle < _PARALLEL) | (nu == 0) | (nv == 0)
    opposite = angle > torch.pi - _PARALLEL
    sine = torch.where(straight | opposite, torch.ones_like(angle), angle.sin())
    arc = ((1 - weight) * angle).sin() / sine * u + (weight * angle).sin() / sine * v
    line = (1 - weight) * u + weight * v
    out = torch.where(straight, line, arc)
    if bool((opposite & ~straight).any()):
        side = u.roll(1, 1)
        side[:, side.shape[1] // 2 :].neg_()  # so that a constant vector's roll is not itself
        side = side - (side * eu).sum(1, keepdim=True) * eu
        side = side / lengths(side).clamp(min=tiny)
        turn = torch.pi * torch.as_tensor(weight, dtype=torch.float64)
        length = (1 - weight) * nu + weight * nv
        out = torch.where(opposite & ~straight, length * (turn.cos() * eu + turn.sin() * side), out)
    return out.to(a.dtype).view_as(a)


def check_frames(frames: int) -> None:
    """Raises InputError for fewer than two."""
    if not is_whole(frames) or frames < 2:
        raise InputError(f"{frames} is too few; 2 shows the two ends only.", parameter="frames")


def check_corners(rows: int, columns: int) -> None:
    """Raises InputError for a grid that has not four corners."""
    if not (is_whole(rows) and is_whole(columns)) or rows < 2 or columns < 2:
        raise InputError(f"a grid of {rows}x{columns} has no four corners; use at least 2x2.", parameter="grid")


def chain(points: Sequence[Tensor], frames: int) -> Tensor:
    """Slerp along several points: ``frames`` from each to the next, shared ends once.

    Args:
        points: at least two tensors [1, ...].
        frames: at least 2, ends included.

    Returns:
        [(len(points) - 1) * (frames - 1) + 1, ...].
    """
    if len(points) < 2:
        raise InputError("an interpolation needs at least two.", parameter="codes")
    check_frames(frames)
    out = [points[0]]
    for a, b in pairwise(points):
        out += [slerp(a, b, k / (frames - 1)) for k in range(1, frames)]
    return torch.cat(out)


def four_corners(points: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """The grid between four points: slerp along the top and bottom edges, then down between them.

    Args:
        points: top left, top right, bottom left, bottom right, each [1, ...].
        rows, columns: at least 2.

    Returns:
        [rows * columns, ...], row by row.
    """
    if len(points) != 4:
        raise InputError(f"a grid has four corners; {len(points)} were given.", parameter="corners")
    check_corners(rows, columns)
    top, bottom = chain(points[:2], columns), chain(points[2:], columns)
    return torch.cat([slerp(top, bottom, r / (rows - 1)) for r in range(rows)])
