"""What a user calls: sample, invert, reconstruct (and, in ``between``, interpolate)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .code import LatentCode
from .denoiser import Cond, Denoiser, corrected
from .errors import InputError, is_whole
from .grid import Grid, make_grid
from .images import ImageLike, read_images
from .inversion import make_inversion
from .inversion.base import Inversion
from .loop import solve
from .models.base import Model
from .noise import SeededNoise
from .path import Node, TablePath
from .prediction import Pair, clip, dynamic_threshold
from .solvers import Solver, State, make_solver
from .solvers.base import options_of

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all, over every batch."""

Spacing = str | Sequence[float]


def sample(
    model: Model,
    count: int = 16,
    *,
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    solver: str = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """Draws images from noise.

    Args:
        model: from ``ddim.load``.
        count: how many.
        steps: S, 1 to ``model.path.levels``.
        eta: in [0, 1], for ``ddim``: 0 is deterministic, 1 is DDPM (Eq. 16 of Song et al. 2021).
        seed: the k-th image has the seed ``seed + k``, whatever the batch; one seed, one x_T, for every S and solver.
        solver: a key of ``ddim.SOLVERS``; ``"ddpm"`` is the sigma-hat variance.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: the solver's options, such as ``{"gamma": 0.96}``.
        labels: class labels, one an image, or one (a number, or a list of one) for all.
        clip_x0: holds the predicted x0 to [-clip_x0, clip_x0] and derives eps anew; off by default, as in the paper.
        threshold: dynamic thresholding at this percentile instead.
        batch: images a network call.
        progress: called after each step.

    Returns:
        float tensor [count, C, H, W] in [0, 1].

    Raises:
        InputError: a value out of range or unknown, or eta > 0 with a solver that has no noise.
        DDIMError: the network returned NaN; the step is named.
    """
    if not is_whole(count) or count < 1:
        raise InputError(f"count = {count} is not a number of images; use 1 or more.")
    check_batch(batch)
    made = solver_with_eta(solver, eta, options)
    grid = grid_for(model, steps, spacing)
    out, report = [], _Report(progress, grid.steps, count, batch)
    cond = model.condition(labels, count)
    for begin in range(0, count, batch):
        n = min(batch, count - begin)
        noise = SeededNoise([seed + k for k in range(begin, begin + n)])
        x = noise(torch.empty(n, *model.shape, dtype=model.state_dtype, device=model.device))
        # On VP, x has unit variance at every node; elsewhere what little signal is left is no part of the prior.
        scale = grid[0].sigma if not isinstance(model.path, TablePath) else 1.0
        denoise = _bound(_corrected(model, clip_x0, threshold), _part(cond, begin, n))
        state = solve(denoise, made, made.init(x * scale, grid), grid, noise=noise, on_step=report)
        out.append(model.decode(made.read(state)))
    return torch.cat(out)


def invert(
    model: Model,
    images: ImageLike,
    *,
    steps: int = 50,
    method: str | Inversion = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    resize: bool = False,
    batch: int = 64,
    progress: Progress | None = None,
) -> LatentCode:
    """Walks real images back to their latent codes.

    Args:
        model: from ``ddim.load``.
        images: a path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1], or a list of these.
        steps: S, 1 to ``model.path.levels``.
        method: one of ``ddim.inversion_names()``, or an inversion; ``edict``, ``bdia`` and ``belm`` come back exactly.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: the method's options, such as ``{"iterations": 5}``.
        labels: class labels, one an image or one for all.
        resize: fit images of another size or number of channels.
        batch: images a network call.
        progress: called after each step.

    Returns:
        The code: the solver's whole state, the grid and the settings.

    Raises:
        InputError: images that do not fit, a value out of range or unknown.
        DDIMError: the network returned NaN, or the solver diverged; the step is named.
    """
    check_batch(batch)
    if not isinstance(method, str) and options:
        raise InputError("options go with a method's name; an inversion object has its own.")
    inversion = make_inversion(method, options) if isinstance(method, str) else method
    grid = grid_for(model, steps, spacing)
    pixels = read_images(images, model.shape, resize=resize)
    cond = model.condition(labels, len(pixels))
    return walk_back(model, inversion, pixels, grid, cond, batch, progress)


def walk_back(
    model: Model,
    inversion: Inversion,
    pixels: Tensor,
    grid: Grid,
    cond: Mapping[str, Any],
    batch: int,
    progress: Progress | None,
) -> LatentCode:
    """What ``invert`` does once images, grid and condition are known."""
    report = _Report(progress, grid.steps, len(pixels), batch)
    states: list[State] = []
    for begin in range(0, len(pixels), batch):
        part = pixels[begin : begin + batch]
        denoise = _bound(model.denoiser(), _part(cond, begin, len(part)))
        states.append(inversion.invert(denoise, model.encode(part), grid, report))
    solver = inversion.solver()
    return LatentCode(
        state={k: torch.cat([s[k] for s in states]) for k in states[0]},
        grid=grid,
        method=inversion.name,
        solver=solver.name,
        options=options_of(solver),
        settings=dict(inversion.options),
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        cond=cond,
    )


def reconstruct(model: Model, code: LatentCode, *, batch: int = 64, progress: Progress | None = None) -> Tensor:
    """Comes forward from codes to images, with the solver, grid and state they were made with.

    Args:
        model: the one that made the code; another of the same shape warns, and so does another dtype.
        code: from ``invert`` or ``LatentCode.load``.
        batch: images a network call.
        progress: called after each step.

    Returns:
        float tensor [N, C, H, W] in [0, 1].

    Raises:
        InputError: a code of another shape, or without all that its solver needs.
    """
    check_batch(batch)
    code.check(model.name, model.fingerprint, model.shape, str(model.dtype).removeprefix("torch."))
    solver = make_solver(code.solver, code.options)
    if solver.stochastic:
        raise InputError(f"The code's solver {code.solver!r} draws noise; it cannot be replayed.")
    if missing := sorted(set(solver.init(code.x, code.grid)) - set(code.state)):
        raise InputError(f"The code lacks {', '.join(missing)}, without which {code.solver!r} cannot come back.")
    out, report = [], _Report(progress, code.grid.steps, len(code), batch)
    for begin in range(0, len(code), batch):
        part = code[begin : begin + batch]
        state = {k: v.to(model.device, model.state_dtype) for k, v in part.state.items()}
        cond = {k: v.to(model.device) for k, v in part.cond.items()}
        denoise = _bound(model.denoiser(), cond)
        end = solve(denoise, solver, state, code.grid, on_step=report)
        out.append(model.decode(solver.read(end)))
    return torch.cat(out)


def grid_for(model: Model, steps: int, spacing: Spacing | None) -> Grid:
    """The grid that the verbs walk: the model's own spacing unless another is asked for."""
    return make_grid(model.path, steps, model.spacing if spacing is None else spacing, offset=model.offset)


def solver_with_eta(name: str, eta: float, options: Mapping[str, Any] | None) -> Solver:
    """A solver by name, with eta where it has one.

    Raises:
        InputError: eta outside [0, 1], or above 0 with a solver that is deterministic or has its own noise.
    """
    if isinstance(eta, str) or not 0 <= eta <= 1:
        raise InputError(f"eta = {eta} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.")
    if name == "ddim":
        if options and "eta" in options and eta > 0:
            raise InputError(f"eta is given twice, as {eta:g} and as the option {options['eta']}; give one.")
        return make_solver(name, {"eta": float(eta), **(options or {})})
    made = make_solver(name, options)
    if eta > 0:
        why = "always draws sigma-hat noise" if made.stochastic else "is deterministic"
        raise InputError(f"eta = {eta:g} goes with the solver 'ddim' only; {name!r} {why}, use eta = 0.")
    return made


def check_batch(batch: int) -> None:
    """Raises InputError for a batch of less than one image."""
    if not is_whole(batch) or batch < 1:
        raise InputError(f"batch = {batch} is not a number of images; use 1 or more.")


def _corrected(model: Model, limit: float | None, percentile: float | None) -> Denoiser:
    if limit is not None and percentile is not None:
        raise InputError("clip_x0 and threshold exclude each other; give one.")
    if limit is not None:
        if not limit > 0:
            raise InputError(
                f"clip_x0 = {limit:g} leaves no picture; use a bound above 0, 1 for the range of pictures."
            )
        bound = limit
        return corrected(model.denoiser(), lambda pair, x, node: clip(pair, x, node, bound))
    if percentile is not None:
        part = percentile
        return corrected(model.denoiser(), lambda pair, x, node: dynamic_threshold(pair, x, node, part))
    return model.denoiser()


def _part(cond: Mapping[str, Any], begin: int, count: int) -> dict[str, Any]:
    return {k: v[begin : begin + count] for k, v in cond.items()}


def _bound(denoise: Denoiser, cond: Mapping[str, Any]) -> Denoiser:
    """The denoiser with its condition in place."""
    if not cond:
        return denoise
    fixed = cond

    def conditioned(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return denoise(x, node, fixed)

    return conditioned


class _Report:
    """Turns each batch's steps into steps done of all."""

    def __init__(self, progress: Progress | None, steps: int, count: int, batch: int) -> None:
        self.progress, self.done = progress, 0
        self.total = steps * -(-count // batch)

    def __call__(self, i: int, state: State) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
