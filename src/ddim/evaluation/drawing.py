"""Images for a measurement: drawn from seeds, with any solver on any grid, and what that costs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import PromptConditioning
from ..core.contracts import Noise, Solver
from ..core.grid import SPACINGS, Grid, make_grid
from ..core.guidance import Guidance
from ..core.path import GaussianPath, Node
from ..core.prediction import Pair
from ..core.solve import solve
from ..models.base import Model
from ..pipelines.common import grid_for, half_precision_hint, prior


def walk(model: Model, solver: Solver, grid: Grid, x: Tensor, noise: Noise | None, classes: Sequence[int]) -> Tensor:
    """From x at the noisy end to images in [0, 1], float32 [N, C, H, W] on the CPU.

    Args:
        model: one with text draws the empty prompt at guidance 1.
        solver, grid: as for ``ddim.core.solve.solve``.
        x: [N, ...].
        noise: of a stochastic solver.
        classes: one a sample: a class-conditional model draws these modulo its number of classes.

    Raises:
        DDIMError: the sample stopped being numbers.
    """
    denoise = model.guided(Guidance(1.0), _conditions(model, classes))
    with torch.inference_mode(), half_precision_hint(model):
        state = solve(denoise, solver, solver.init(x, grid), grid, noise=noise)
        return model.decode(solver.read(state)).float().cpu()


def draw(model: Model, solver: Solver, grid: Grid, seeds: Sequence[int]) -> Tensor:
    """The images of ``seeds``, one each, float32 [N, C, H, W] in [0, 1]; a class-conditional model draws class
    seed mod K."""
    x, noise = prior(model, grid, seeds, model.shape)
    return walk(model, solver, grid, x, noise, seeds)


def cost(solver: Solver, grid: Grid) -> int:
    """Network calls a sample over the whole grid, counted: a solver may ask less often in its first or last step."""
    calls = 0

    def denoise(x: Tensor, node: Node) -> Pair:
        nonlocal calls
        calls += 1
        return Pair(torch.zeros_like(x), torch.zeros_like(x))

    x = torch.zeros(1, 1, dtype=torch.float64)
    solve(denoise, solver, solver.init(x, grid), grid, noise=torch.zeros_like)
    return calls


def within(solver: Solver, model: Model, spacing: str, evaluations: int) -> Grid:
    """The grid of the most steps for which a solver needs no more than so many network calls.

    Raises:
        InputError: not even one step does.
    """
    for steps in range(min(evaluations, model.schedule.path.levels), 0, -1):
        grid = grid_for(model, steps, spacing)
        if cost(solver, grid) <= evaluations:
            return grid
    raise InputError(f"{evaluations} are too few for one step of {solver.name!r}; use more.", parameter="evaluations")


def spacing_label(path: GaussianPath, grid: Grid) -> str:
    """The grid's spacing, or ``every level`` where S = T, so that all spacings are one."""
    every = grid.spacing in SPACINGS and path.discrete and grid.steps == path.levels
    return "every level" if every and grid.nodes == make_grid(path, grid.steps, "linspace").nodes else grid.spacing


def _conditions(model: Model, seeds: Sequence[int]) -> PromptConditioning:
    labels = [seed % model.classes for seed in seeds] if model.classes else None
    return model.condition(labels, len(seeds))
