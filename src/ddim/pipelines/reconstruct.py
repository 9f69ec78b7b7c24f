"""The pipeline ``reconstruct``: from codes to images."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from .._utils.errors import DDIMWarning, InputError
from ..core.denoiser import PLAIN, Call
from ..core.guidance import Guidance
from ..inversion import calls
from ..inversion.latent_code import LatentCode
from ..inversion.replay import prompts_of, replay, resumed
from ..models.base import Model
from .common import SETTING, Report, check_run, half_precision_hint, hold_of, need_code, need_model, solver_of
from .events import ImagesEvent, OnEvent, silent


def reconstruct(
    model: Model,
    code: LatentCode,
    *,
    batch: int = 64,
    batched_cfg: bool = True,
    strict: bool = False,
    on_event: OnEvent = silent,
) -> Tensor:
    """Comes forward from codes to images, with the solver, grid and state they were made with.

    A code of a reversible solver keeps how the network was asked, and is asked so again: in a call of as many rows,
    each image in its own place, on as many threads, whatever machine this is. Then the same integers come back, also
    for ``code[3]`` or codes that were put together. What is missing of a call is filled with copies.

    Args:
        model: the one that made the code; another of the same shape warns, and so does another dtype.
        code: from ``invert`` or ``LatentCode.load``.
        batch: images a network call. Ignored for a code that keeps its calls.
        batched_cfg: ask for both branches of guidance in one batch; False asks one after the other, with half the
            memory. Ignored for a code that keeps its calls.
        strict: refuse a code that cannot come back to the bit here, where otherwise a warning says how near it comes.
        on_event: called with a ``StepEvent`` after each step, and with an ``ImagesEvent`` when a batch is done.

    Returns:
        float tensor [N, C, H, W] in [0, 1].

    Raises:
        InputError: a code of another shape, or without all that its solver needs; with ``strict``, one of a method that
            is not exact, or one that this device or these libraries cannot bring back to the bit.
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
            raise InputError(f"{unlike} That is what strict forbids.", parameter="strict") from None
    if strict:
        _need_exact(code)
    layout = calls.layout_of(machine)
    guidance = Guidance.of(code.guidance, bool(machine.get("batched_cfg", batched_cfg)))
    asked = calls.rebuilt(code.calls) if code.calls else calls.plain_calls(len(code), batch)
    report = Report(on_event, (code.grid.steps - solver.first(code.grid)) * len(asked), 1, 1)
    parts: list[tuple[calls.Rebuilt, Tensor]] = []
    for call in asked:
        part = code if call.items == tuple(range(len(code))) else code.take(call.items)
        state = resumed(solver, part.state, code.grid, model.device, model.state_dtype)
        extras = {k: v.to(model.device) for k, v in part.extras.items()}
        prompts = prompts_of(part.conditions.to(model.device), code.grid, extras)
        told = Call(layout=layout) if layout else PLAIN
        denoise = model.guided(guidance, prompts, hold=hold_of(code), call=told)
        with half_precision_hint(model), calls.untimed() if layout else nullcontext():
            end = replay(denoise, solver, state, code.grid, extras, on_step=report)
        images = model.decode(solver.read(end))
        parts.append((call, images))
        _tell(on_event, call, images)
    return calls.images_in_order(parts, len(code))


def _need_exact(code: LatentCode) -> None:
    """Raises InputError for a code that does not come back to the bit anywhere."""
    if not code.machine and not {"pivot", "end"} & set(code.extras):
        raise InputError(
            f"a code of {code.method!r} without a record of its calls comes back nearly, not to the bit; leave it out, "
            "or invert the picture by an exact method, such as 'bdia'.",
            parameter="strict",
        )
    forward, back = code.guidance.get("weight", 1.0), code.settings.get(SETTING)
    if code.machine and back not in (None, forward):
        raise InputError(
            f"the code was made at the guidance {back:g} and comes forward at {forward:g}, so that it does not come "
            "back; invert the picture without inversion_guidance, or leave strict out.",
            parameter="strict",
        )


def _tell(on_event: OnEvent, call: calls.Rebuilt, images: Tensor) -> None:
    """One event for each run of images that follow each other."""
    runs: list[list[tuple[int, int]]] = []
    for row, image in call.own:
        if runs and runs[-1][-1][1] == image - 1:
            runs[-1].append((row, image))
        else:
            runs.append([(row, image)])
    for run in runs:
        on_event(ImagesEvent(run[0][1], images[[row for row, _ in run]]))


def _machine(model: Model, code: LatentCode) -> Mapping[str, Any]:
    """How a code's calls are laid out; warns where this machine answers other bits than the one that made it."""
    machine = code.machine
    layout = calls.layout_of(machine)
    if layout is None:
        return machine
    now = calls.machine_now(model.device, model.engine, layout, bool(machine["batched_cfg"]))
    unlike = calls.differences(machine, now)
    if unlike:
        half, tf32 = code.dtype in ("bfloat16", "float16"), machine.get("tf32") or now.get("tf32")
        near = 9 if half else 18 if tf32 else 61  # the least that benchmarks/bit_law.py saw
        warnings.warn(
            f"This code was made {', '.join(unlike)}; here the network answers with other last bits, and a picture "
            f"comes back to {near} dB at the least that was measured, not to the bit.",
            DDIMWarning,
            stacklevel=3,
        )
    return machine
