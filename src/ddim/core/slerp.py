"""Spherical linear interpolation (slerp) of latents."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from .._utils.tensors import lengths

_PARALLEL = 1e-4  # below this angle sin(angle) = angle to 1e-9 relative, and the line replaces the arc


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolates from a to b along the arc between them. Each sample of the batch has its own angle.

    Source: Song et al. 2021, section 5.3, after Shoemake 1985; the reference code uses one angle for the whole batch.
    Between parallel or zero vectors the interpolation is linear. Between opposite vectors the arc is not unique; it
    then passes through a direction orthogonal to a, which is made by rolling a.

    Args:
        a, b: two tensors [N, ...] of the same shape.
        weight: the position on the arc; 0 returns a and 1 returns b, bit for bit.

    Raises:
        InputError: the shapes differ.
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
    # atan2 of the half angle is accurate near 0 and pi, where acos of the dot product loses half of its digits.
    angle = 2 * torch.atan2(lengths(eu - ev), lengths(eu + ev))
    straight = (angle < _PARALLEL) | (nu == 0) | (nv == 0)
    opposite = angle > torch.pi - _PARALLEL
    sine = torch.where(straight | opposite, torch.ones_like(angle), angle.sin())
    arc = ((1 - weight) * angle).sin() / sine * u + (weight * angle).sin() / sine * v
    line = (1 - weight) * u + weight * v
    out = torch.where(straight, line, arc)
    if bool((opposite & ~straight).any()):
        side = u.roll(1, 1)
        side[:, side.shape[1] // 2 :].neg_()  # otherwise the roll of a constant vector would equal the vector
        side = side - (side * eu).sum(1, keepdim=True) * eu
        side = side / lengths(side).clamp(min=tiny)
        turn = torch.pi * torch.as_tensor(weight, dtype=torch.float64)
        length = (1 - weight) * nu + weight * nv
        out = torch.where(opposite & ~straight, length * (turn.cos() * eu + turn.sin() * side), out)
    return out.to(a.dtype).view_as(a)


def check_frames(frames: int) -> None:
    """Raises InputError if ``frames`` is not a whole number of at least 2."""
    if not is_whole(frames) or frames < 2:
        raise InputError(
            f"{frames} does not fit; use a whole number: 2, which shows the two ends, or more.", parameter="frames"
        )


def check_corners(rows: int, columns: int) -> None:
    """Raises InputError if ``rows`` and ``columns`` are not whole numbers of at least 2."""
    if not (is_whole(rows) and is_whole(columns)) or rows < 2 or columns < 2:
        raise InputError(f"a grid of {rows}x{columns} does not have four corners; use at least 2x2.", parameter="grid")


def chain(points: Sequence[Tensor], frames: int) -> Tensor:
    """Interpolates along a sequence of points by slerp. A point where two arcs meet appears once.

    Args:
        points: at least two tensors [1, ...].
        frames: the number of frames from each point to the next, both included; at least 2.

    Returns:
        a tensor [(len(points) - 1) * (frames - 1) + 1, ...].

    Raises:
        InputError: fewer than two points or frames.
    """
    if len(points) < 2:
        raise InputError("an interpolation needs at least two.", parameter="codes")
    check_frames(frames)
    out = [points[0]]
    for a, b in pairwise(points):
        out += [slerp(a, b, k / (frames - 1)) for k in range(1, frames)]
    return torch.cat(out)


def four_corners(points: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """Interpolates between four corner points: by slerp along the top and the bottom edge, then between the edges.

    Args:
        points: the corners top left, top right, bottom left and bottom right, each [1, ...].
        rows, columns: the size of the grid, at least 2 each.

    Returns:
        a tensor [rows * columns, ...] in row-major order.

    Raises:
        InputError: not four points, or a grid smaller than 2x2.
    """
    if len(points) != 4:
        raise InputError(f"a grid has four corners; {len(points)} were given.", parameter="corners")
    check_corners(rows, columns)
    top, bottom = chain(points[:2], columns), chain(points[2:], columns)
    return torch.cat([slerp(top, bottom, r / (rows - 1)) for r in range(rows)])
