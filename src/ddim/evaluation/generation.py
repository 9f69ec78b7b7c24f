"""Images generated for a benchmark, with any solver on any grid, and how many network calls they take."""

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
from ..pipelines.common import grid_for, half_precision_hint, in_model_threads, prior


@in_model_threads
def denoise_to_images(
    model: Model, solver: Solver, grid: Grid, x: Tensor, noise: Noise | None, classes: Sequence[int]
) -> Tensor:
    """Solves from x at the noisy end, and decodes: images in [0, 1], float32 [N, C, H, W] on the CPU.

    Args:
        model: a model with text gets the empty prompt, with guidance 1.
        solver, grid: as for ``ddim.core.solve.solve``.
        x: [N, ...].
        noise: the noise of a stochastic solver.
        classes: one for each sample; a class-conditional model takes them modulo its number of classes.

    Raises:
        NotFinite: a sample is no longer finite.
    """
    denoise = model.guided(Guidance(1.0), _conditions(model, classes))
    with torch.inference_mode(), half_precision_hint(model):
        state = solve(denoise, solver, solver.init(x, grid), grid, noise=noise)
        return model.decode(solver.read(state)).float().cpu()


def generate(model: Model, solver: Solver, grid: Grid, seeds: Sequence[int]) -> Tensor:
    """One image for each seed, float32 [N, C, H, W] in [0, 1].

    A class-conditional model with K classes generates the class seed mod K.
    """
    x, noise = prior(model, grid, seeds, model.shape)
    return denoise_to_images(model, solver, grid, x, noise, seeds)


def network_calls(solver: Solver, grid: Grid) -> int:
    """Network calls per sample over the whole grid. They are counted, because a first or last step may take fewer."""
    calls = 0

    def denoise(x: Tensor, node: Node) -> Pair:
        nonlocal calls
        calls += 1
        return Pair(torch.zeros_like(x), torch.zeros_like(x))

    x = torch.zeros(1, 1, dtype=torch.float64)
    solve(denoise, solver, solver.init(x, grid), grid, noise=torch.zeros_like)
    return calls


def grid_within(solver: Solver, model: Model, spacing: str, evaluations: int) -> Grid:
    """The grid with the most steps for which a solver needs at most ``evaluations`` network calls.

    Raises:
        InputError: one step needs more.
    """
    for steps in range(min(evaluations, model.schedule.path.levels), 0, -1):
        grid = grid_for(model, steps, spacing)
        if network_calls(solver, grid) <= evaluations:
            return grid
    raise InputError(f"{evaluations} are too few for one step of {solver.name!r}; use more.", parameter="evaluations")


def spacing_label(path: GaussianPath, grid: Grid) -> str:
    """The grid's spacing, or ``every level`` if S = T, where several spacings are the same grid."""
    every = grid.spacing in SPACINGS and path.discrete and grid.steps == path.levels
    return "every level" if every and grid.nodes == make_grid(path, grid.steps, "linspace").nodes else grid.spacing


def _conditions(model: Model, seeds: Sequence[int]) -> PromptConditioning:
    labels = [seed % model.classes for seed in seeds] if model.classes else None
    return model.condition(labels, len(seeds))
