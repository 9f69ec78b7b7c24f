"""The pipeline ``reconstruct``, which samples the images of latent codes."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, warn
from ..core.contracts import Solver, State
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..inversion import calls
from ..inversion.extras import anchor_of, pinned
from ..inversion.latent_code import LatentCode
from ..inversion.replay import prompts_of, replay, state_of
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.lattice import ReversibleSolver
from .common import (
    INVERSION_GUIDANCE,
    Report,
    check_run,
    half_precision_hint,
    hold_of,
    in_model_threads,
    need_code,
    need_model,
    solver_of,
)
from .events import ImagesEvent, OnEvent, engine_events, silent


@in_model_threads
def reconstruct(
    model: Model,
    code: LatentCode,
    *,
    batch: int = 64,
    batched_cfg: bool = True,
    strict: bool = False,
    on_event: OnEvent = silent,
) -> Tensor:
    """Reconstructs images from a latent code, by sampling with its solver, grid and state.

    The code of a reversible solver records the network calls of the inversion, and they are repeated on any machine:
    with the same number of rows, each image in its own row, and the same number of threads. The reconstruction is then
    exact to the bit, also for ``code[3]`` and for codes that were joined. Rows whose images are not in the code are
    filled with copies of others.

    Args:
        model: the model that made the code. Another model of the same shape, or another dtype, causes a warning.
        code: a code from ``invert`` or ``LatentCode.load``.
        batch: the number of images per network call. Ignored for a code that records its calls.
        batched_cfg: whether both branches of guidance are evaluated in one batch; False evaluates them one after the
            other, which needs half the memory. Ignored for a code that records its calls.
        strict: raises an error if the reconstruction will not be exact to the bit. Otherwise a warning states the
            accuracy to expect.
        on_event: called with a ``StepEvent`` after each step, and with an ``ImagesEvent`` after each batch.

    Returns:
        a float tensor [N, C, H, W] in [0, 1].

    Raises:
        InputError: the code has another shape than the model, or it lacks something that its solver needs; with
            ``strict``, the method is not exact, or this device or these libraries cannot reproduce its bits.
        NotFinite: the sample contains NaN or infinity after a step.

    Warns:
        DDIMWarning: the model, dtype, device or libraries differ from those that made the code.
    """
    need_model(model)
    need_code(code)
    check_run(batch, on_event)
    with warnings.catch_warnings():
        if strict:
            warnings.simplefilter("error", DDIMWarning)
        try:
            solver = solver_of(model, code)
            machine = _machine(model, code)
        except DDIMWarning as unlike:
            raise InputError(f"{unlike} With strict, this is an error.", parameter="strict") from None
    if strict:
        _need_exact(code)
    parts: list[tuple[calls.NetworkCall, Tensor]] = []
    for call, end in _replays(model, code, solver, machine, batch, batched_cfg, on_event):
        images = model.decode(solver.read(end))
        parts.append((call, images))
        _report_images(on_event, call, images)
    return calls.images_in_order(parts, len(code))


def end_latents(model: Model, code: LatentCode, batch: int) -> Tensor:
    """Replays a code, and returns the encoded images that it ends at, [N, ...], without decoding them.

    Args:
        model, batch: as for ``reconstruct``.
        code: the code, which ``solver_of`` has checked.

    Raises:
        NotFinite: the sample contains NaN or infinity after a step.
    """
    solver = make_solver(code.solver, code.options)
    ends = _replays(model, code, solver, _machine(model, code), batch, True, silent)
    return calls.images_in_order([(call, solver.read(end)) for call, end in ends], len(code))


def pinned_code(
    model: Model, code: LatentCode, solver: ReversibleSolver, batch: int, batched_cfg: bool, on_event: OnEvent
) -> LatentCode:
    """Replays the code of a reversible solver, and returns a code of DDIM that is pinned to the same trajectory.

    Its pivot ends at the image to the bit, and DDIM samples any target beside it: from the sample alone, without the
    other entries of the exact state, which belong to the source. It keeps the name of the method.

    Args:
        model, batch, batched_cfg: as for ``reconstruct``.
        code: the code, which ``solver_of`` has checked.
        solver: its solver.
        on_event: called with a ``StepEvent`` after each step.

    Raises:
        NotFinite: the sample contains NaN or infinity after a step.

    Warns:
        DDIMWarning: this machine cannot reproduce the bits of the one that made the code, or the code was inverted at
            another guidance weight.
    """
    if weights := _other_weights(code):
        warn(
            f"The code of {code.method!r} was inverted at guidance {weights[0]:g} and is replayed at {weights[1]:g}, "
            "so that its source does not come back."
        )
    machine, first = _machine(model, code), solver.first(code.grid)
    nodes: dict[int, list[Tensor]] = {k: [] for k in range(len(code))}

    def keep(call: calls.NetworkCall, state: State) -> None:
        x = solver.read(state)
        for row, image in call.own:  # the other rows only fill the call
            nodes[image].append(x[row].clone())

    for _ in _replays(model, code, solver, machine, batch, batched_cfg, on_event, keep):
        pass
    return replace(
        code,
        solver="ddim",
        options={},
        state={"x": code.x.to(model.state_dtype)},
        grid=code.grid.rest(first),
        extras={"pivot": torch.stack([torch.stack(nodes[k]) for k in range(len(code))])},
        calls={},
        machine={},
    )


def _replays(
    model: Model,
    code: LatentCode,
    solver: Solver,
    machine: Mapping[str, Any],
    batch: int,
    batched_cfg: bool,
    on_event: OnEvent,
    on_step: Callable[[calls.NetworkCall, State], None] | None = None,
) -> Iterator[tuple[calls.NetworkCall, State]]:
    """Repeats the network calls of a code one after the other, and yields each with its state at the data end.

    Args:
        model, code, batch, batched_cfg, on_event: as for ``reconstruct``.
        solver: the code's solver.
        machine: ``LatentCode.machine``.
        on_step: called after each step with the call and its state.
    """
    layout = calls.layout_of(machine)
    guidance = Guidance.of(code.guidance, bool(machine.get("batched_cfg", batched_cfg and not model.low_memory)))
    network_calls = calls.recorded_calls(code.calls) if code.calls else calls.batched_calls(len(code), batch)
    report = Report(on_event, (code.grid.steps - solver.first(code.grid)) * len(network_calls), 1, 1)
    arguments = Call(layout=layout, on_engine=engine_events(on_event))

    for call in network_calls:

        def after(i: int, state: State, call: calls.NetworkCall = call) -> None:
            if on_step is not None:
                on_step(call, state)
            report(i, state)

        part = code if call.items == tuple(range(len(code))) else code.take(call.items)
        state = state_of(solver, part.state, code.grid, model.device, model.state_dtype)
        extras = {k: v.to(model.device) for k, v in part.extras.items()}
        prompts = prompts_of(part.conditions.to(model.device), code.grid, extras)
        denoise = model.guided(guidance, prompts, hold=hold_of(code), call=arguments, anchor=anchor_of(extras))
        with half_precision_hint(model):
            end = replay(denoise, solver, state, code.grid, extras, on_step=after)
        yield call, end


def _need_exact(code: LatentCode) -> None:
    """Raises InputError if a code cannot be reconstructed to the bit on any machine."""
    if not code.machine and not pinned(code.extras):
        raise InputError(
            f"a code of {code.method!r} without a record of its calls is reconstructed nearly, not to the bit; leave "
            "it out, or invert the image by an exact method, such as 'bdia'.",
            parameter="strict",
        )
    if code.machine and (weights := _other_weights(code)):
        raise InputError(
            f"the code was inverted at the guidance {weights[0]:g} and is sampled at {weights[1]:g}, so that the image "
            "is not reconstructed; invert it without inversion_guidance, or leave strict out.",
            parameter="strict",
        )


def _other_weights(code: LatentCode) -> tuple[float, float] | None:
    """The guidance weights of the inversion and of sampling, if they differ: no exact method then comes back."""
    forward, inversion = code.guidance.get("weight", 1.0), code.settings.get(INVERSION_GUIDANCE)
    return None if inversion in (None, forward) else (inversion, forward)


def _report_images(on_event: OnEvent, call: calls.NetworkCall, images: Tensor) -> None:
    """Reports the images of a call: one event for each run of images with consecutive indices."""
    runs: list[list[tuple[int, int]]] = []
    for row, image in call.own:
        if runs and runs[-1][-1][1] == image - 1:
            runs[-1].append((row, image))
        else:
            runs.append([(row, image)])
    for run in runs:
        on_event(ImagesEvent(run[0][1], images[[row for row, _ in run]]))


def _machine(model: Model, code: LatentCode) -> Mapping[str, Any]:
    """Returns ``code.machine``. Warns if this machine cannot reproduce the bits of the one that made the code."""
    machine = code.machine
    layout = calls.layout_of(machine)
    if layout is None or code.dtype != str(model.dtype).removeprefix("torch."):  # solver_of warns of the dtype
        return machine
    now = calls.machine_now(model.device, model.engine, layout, bool(machine["batched_cfg"]), model.tf32)
    unlike = calls.differences(machine, now)
    if unlike:
        half, tf32 = code.dtype in ("bfloat16", "float16"), machine.get("tf32") or now.get("tf32")
        near = 4 if half else 18 if tf32 else 31  # the lowest PSNR that benchmarks/bit_law.py measured
        warn(
            f"This code was made {', '.join(unlike)}. The network returns other last bits here, so that an image is "
            f"not reconstructed to the bit; the lowest PSNR that was measured is {near} dB."
        )
    return machine
