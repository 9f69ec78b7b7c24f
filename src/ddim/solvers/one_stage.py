"""One-stage methods: a step along the slope at a single point, which several solvers and inversions have in common.

In the coordinate of a path (see ``PathODE``), with v the slope du / dr that the network predicts, the step from r over
the length D, towards the data or towards the noise, is

    u' = u + D v(u + c D w, r + c D).

Methods differ in the fraction c, in the slope w that leads to the point where the network is called, and in how often
that point is replaced by the result:

| method | c | w | calls |
|---|---|---|---|
| Euler, which is DDIM and its inversion with the timestep of the source | 0 | not needed | 1 |
| plain DDIM inversion | 1 | none: the sample as it is | 1 |
| fixed-point DDIM inversion, with or without Anderson acceleration | 1 | none; the point is replaced K - 1 times | K |
| ``midpoint``, ``rf-solver`` (RF-Solver) | 1/2 | v at the sample | 2 |
| ``fireflow`` (FireFlow) | 1/2 | v of the step before | 1 |
| ``uni-inv`` (Uni-Inv, and the inversions of SteerFlow and DNAEdit) | 1 | v of the step before | 1 |

The network is never called at a node without noise, where its output is unreliable. There v is taken at the point of
the next call, with the sample as it is.
"""

from collections.abc import Callable

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node
from ..core.prediction import Pair
from .base import path_ode

Mix = Callable[[Tensor, Tensor], Tensor]
"""Makes the next guess of a fixed-point iteration from the guess and its image."""


def plain_iteration(guess: Tensor, image: Tensor) -> Tensor:
    """Returns the image, the next guess of a fixed-point iteration without acceleration."""
    return image


def one_stage(
    denoise: Denoiser,
    x: Tensor,
    guess: Tensor,
    grid: Grid,
    i: int,
    part: float,
    iterations: int = 1,
    mix: Mix = plain_iteration,
) -> tuple[Tensor, Pair]:
    """Makes a step along the slope at a fraction of the step, and finds the sample there by iteration.

    Args:
        denoise: the model. It is called at ``grid.between(i, part)`` only.
        x: the sample at ``grid[i]``, [N, ...].
        guess: the sample at that node, or a guess of it.
        grid: the grid, which may run towards the data or towards the noise.
        i: the step.
        part: the fraction c.
        iterations: the number of network calls. Each but the first is at the point that the last one leads to; as the
            number grows, the step becomes the implicit one.
        mix: makes the next guess; by default the plain iteration.

    Returns:
        the sample at ``grid[i + 1]``, and the last prediction.
    """
    ode, t, s, inner = path_ode(grid), grid[i], grid[i + 1], grid.between(i, part)
    pair = denoise(guess, inner)
    for _ in range(iterations - 1):
        guess = mix(guess, ode.along(x, pair, t, inner))
        pair = denoise(guess, inner)
    end = ode.along(x, pair, t, s)
    return (mix(guess, end) if part == 1 else end), pair


def first_guess(denoise: Denoiser, x: Tensor, grid: Grid, i: int, part: float) -> Tensor:
    """Returns the sample at a fraction of a step, by a step along the slope at x: one network call.

    Args:
        denoise: the model. It is called at ``grid[i]``, or if there is no noise, at the fraction of the step.
        x: the sample at ``grid[i]``, [N, ...].
        grid: the grid, which may run towards the data or towards the noise.
        i: the step.
        part: the fraction.
    """
    inner = grid.between(i, part)
    return path_ode(grid).along(x, denoise(x, first_node(grid[i], inner)), grid[i], inner)


def first_node(t: Node, inner: Node) -> Node:
    """Returns the node of a network call with a sample of t: t itself, or ``inner`` if there is no noise at t."""
    return t if t.sigma > 0 else inner


def implicit_step(
    denoise: Denoiser, x: Tensor, grid: Grid, i: int, iterations: int, mix: Mix = plain_iteration
) -> Tensor:
    """Finds the sample at ``grid[i]`` whose DDIM step ends at x, by a fixed-point iteration that starts from x.

    This is ``one_stage`` on the reversed grid with the fraction 1.

    Args:
        denoise: the model. It is called at ``grid[i]`` only; the first iterate is plain DDIM inversion with the
            timestep of that node.
        x: the sample at ``grid[i + 1]``, [N, ...].
        grid: the grid of S + 1 nodes.
        i: the step.
        iterations: the number of iterations and network calls, at least 1.
        mix: makes the next iterate; by default the plain iteration.
    """
    return one_stage(denoise, x, x, grid.reversed(), grid.steps - 1 - i, 1, iterations, mix)[0]
