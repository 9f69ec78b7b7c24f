"""Inverts images in batches, and makes the code of an inversion."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, as_plain, is_number, is_plain, out_of_memory, warn
from ..core.conditioning import PromptConditioning
from ..core.contracts import Inversion, InversionInterrupted, InversionProblem, InversionResult, Solver
from ..core.denoiser import Call, Layout
from ..core.grid import Grid
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..core.prediction import NO_HOLD, Hold
from ..inversion import calls
from ..inversion import partial as partials
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..solvers import SOLVERS
from ..solvers.lattice import ReversibleSolver
from .capabilities import check_inversion
from .common import INVERSION_GUIDANCE, Report, conditioned, facts_of, half_precision_hint, made_with
from .events import CodeEvent, EngineEvent, LossEvent, OnEvent, engine_events, silent


def invert_batches(
    model: Model,
    inversion: Inversion,
    pixels: Tensor,
    grid: Grid,
    conditions: PromptConditioning,
    batch: int,
    guidance: Guidance,
    *,
    inversion_guidance: float | None = None,
    seed: int = 0,
    resume: LatentCode | None = None,
    hold: Hold = NO_HOLD,
    keep_trajectory: bool = False,
    record: Mapping[str, Any] | None = None,
    on_event: OnEvent = silent,
) -> LatentCode:
    """Inverts images in batches; the work of ``invert`` after its arguments were checked.

    Args:
        model: the model.
        inversion: the method.
        pixels: the images, [N, C, H, W] in [0, 1].
        grid: the grid of S + 1 nodes.
        conditions: the conditions of the images, N rows each, or without tensors.
        batch: the number of images per batch. A resumed run uses its own. Halved if the memory is too small.
        guidance: the guidance of sampling from the code.
        inversion_guidance: see ``invert``.
        seed: the seed of the first image; image k has ``seed + k``.
        resume: a partial code to continue from.
        hold: limits x0.
        record: further entries of ``LatentCode.settings``.
        keep_trajectory, on_event: see ``invert``.
    """
    count, guidance = len(pixels), inversion.sampling_guidance(guidance)
    weight = weight_of(inversion, guidance, inversion_guidance)
    empty = empty_code(model, inversion, grid, guidance, inversion_guidance, hold, record)
    parts, kept = list[InversionResult](), None  # kept: the intermediate results of an interrupted batch
    if resume is not None:
        empty = replace(empty, machine=partials.machine_of(empty, resume))
        partials.check(resume, partials.compared(empty), count)
        batch = int(resume.settings[partials.KEY]["batch"])
        parts, kept = partials.unpacked(resume, model.device)
        if parts:
            on_event(CodeEvent(0, partials.complete(empty, parts), batch))
    layout = calls.layout_of(empty.machine)
    solver = inversion.solver()
    if layout:
        _check_repeatable(model, conditions, grid, min(batch, count), layout)
    report = Report(on_event, grid.steps - solver.first(grid), count, batch)
    begin = sum(len(p.state["x"]) for p in parts)
    finished, smaller = begin // batch, ""  # batches, and what to report when the next one begins
    while begin < count:
        part = pixels[begin : begin + batch]
        problem = InversionProblem(
            model,
            conditions[begin : begin + len(part)] if conditions.cond.tensors else conditions,
            guidance,
            weight,
            SeededNoise([seed + k for k in range(begin, begin + len(part))]),
            lambda step, loss: on_event(LossEvent(step, loss)),
            kept,
            hold,
            Call(layout=layout, on_engine=engine_events(on_event)),
            keep_trajectory=keep_trajectory,
        )
        steps = int(resume.settings[partials.KEY]["steps"]) if resume and kept is not None else 0
        result = None
        try:
            report.begin(finished, steps, -(-(count - begin) // batch))
            if smaller:
                on_event(EngineEvent(smaller))
                smaller = ""
            try:
                with half_precision_hint(model):
                    x0 = model.encode(part)
                    if kept is not None:
                        partials.check_images(kept, x0)
                    result = inversion.invert(problem, x0, grid, report)
            except Exception as error:
                if not out_of_memory(error) or len(part) == 1 or kept is not None:
                    raise
            if result is not None:
                kept = None
                parts.append(result._replace(calls=calls.call_record(len(part))) if layout else result)
                on_event(CodeEvent(begin, partials.complete(empty, parts[-1:]), batch))
        except KeyboardInterrupt as error:
            stop = error
            if resume is not None and kept is not None and not isinstance(error, InversionInterrupted):
                # Ctrl-C before the method took over the intermediate results: they must not be lost.
                stop = partials.interruption_of(resume, kept)
            if not parts and not isinstance(stop, InversionInterrupted):
                raise
            done = sum(len(p.state["x"]) for p in parts)
            raise partials.interrupted(empty, parts, stop, problem.prompts, (count, done, batch)) from None
        if result is not None:
            begin, finished = begin + len(part), finished + 1
        else:  # here and not where the error is caught, which would keep the memory of the failed call
            batch = -(-len(part) // 2)
            smaller = f"{len(part)} images in one call need too much memory; the next calls have {batch}."
    return partials.complete(empty, parts)


def _check_repeatable(model: Model, conditions: PromptConditioning, grid: Grid, rows: int, layout: Layout) -> None:
    """Warns, before any work, if a quantised network returns other bits for the same input.

    Two calls are compared, of as many rows and in the layout that the inversion has, which decide the kernels. The
    kernels of other networks are known to repeat their bits.
    """
    if not (layers := model.quantised):
        return
    empty = torch.empty(rows, *model.shape, device=model.device, dtype=model.state_dtype)
    noise, call = SeededNoise(range(rows))(empty), Call(layout=layout)
    cond = conditions.cond[:rows] if conditions.cond.tensors else conditions.cond
    with torch.no_grad():
        (first,), (second,) = (model.ask(noise, grid[0], cond, call=call) for _ in range(2))
    if not torch.equal(first, second):
        warn(
            f"The quantised network ({', '.join(layers)}) returned other last bits for the same input, so that no "
            "image will be reconstructed to the bit."
        )


def empty_code(
    model: Model,
    inversion: Inversion,
    grid: Grid,
    guidance: Guidance,
    inversion_guidance: float | None = None,
    hold: Hold = NO_HOLD,
    record: Mapping[str, Any] | None = None,
) -> LatentCode:
    """Makes the code of an inversion with its settings only, without tensors and prompts.

    The arguments are those of ``invert_batches``.

    Raises:
        InputError: the method does not take this guidance weight, grid or model, or its code could not be saved.
    """
    guidance = inversion.sampling_guidance(guidance)
    weight, solver = weight_of(inversion, guidance, inversion_guidance), inversion.solver()
    check_inversion(model, inversion)
    inversion.check_guidance(guidance)
    check_saveable(solver, "method", inversion.options)
    guided = conditioned(model)
    records_calls = isinstance(solver, ReversibleSolver)
    return LatentCode(
        state={},
        grid=inversion.part(grid),
        method=inversion.name,
        solver=solver.name,
        options=solver.options,
        settings={
            **inversion.options,
            **({INVERSION_GUIDANCE: weight} if guided else {}),
            **made_with(model, hold),
            **(record or {}),
        },
        **facts_of(model),
        machine=calls.machine_now(model.device, model.engine, model.exact_layout(), guidance.batched_cfg, model.tf32)
        if records_calls
        else {},
        guidance=guidance.options if guided else {},
    )


def check_saveable(solver: Solver, parameter: str, options: Mapping[str, Any] | None = None) -> None:
    """Checks whether a code could be saved and reconstructed.

    The registry must return the solver for its name, and all options must be plain values.

    Args:
        solver: the solver that the code names.
        parameter: the argument that it comes from.
        options: options that the code stores besides the solver's own.

    Raises:
        InputError: it could not.
    """
    found = SOLVERS.get(solver.name)
    if found is not type(solver):
        other = "is not in" if found is None else "is another one in"
        raise InputError(
            f"its code would name the solver {solver.name!r}, which {other} ddim.SOLVERS, so that it could not be "
            f"reconstructed; give the solver its own name and call ddim.SOLVERS.add({type(solver).__name__}) first.",
            parameter=parameter,
        )
    for key, value in {**(options or {}), **solver.options}.items():
        if not is_plain(value):
            raise InputError(
                f"its option {key} = {value!r} cannot be written into a code; use a finite number, a text, true, false "
                "or None.",
                parameter=parameter,
            )


def weight_of(inversion: Inversion, forward: Guidance, requested: float | None) -> float:
    """Returns the guidance weight of the inversion.

    It is the weight that the method fixes, else the requested one, else that of sampling for exact methods and 1 for
    others.

    Args:
        inversion: the method.
        forward: the guidance of sampling.
        requested: the requested weight, or None.

    Raises:
        InputError: the requested weight is not a number, or the method fixes another one.
    """
    own = inversion.inversion_guidance
    if requested is not None and not is_number(requested):
        raise InputError(f"{requested!r} is not a number; 1 is the conditional model.", parameter="inversion_guidance")
    if own is not None:
        if requested not in (None, own):
            how = f"always inverts with the weight {own:g}" if inversion.nfe else "edits without an inversion"
            raise InputError(
                f"{requested:g} does not go with {inversion.name!r}, which {how}; leave it out.",
                parameter="inversion_guidance",
            )
        return own
    return as_plain(requested) if requested is not None else (float(forward.weight) if inversion.exact else 1.0)
