"""What an interrupted ``invert`` had done, as a ``LatentCode``, and how it goes on from there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, Interrupted
from ..core.conditioning import PromptConditioning
from ..core.contracts import InversionInterrupted, InversionResult
from .latent_code import LatentCode

KEY, HELD = "partial", "resume."
"""In ``LatentCode.settings``: how far it came; before the names of the ``extras`` that only go on with it."""


def joined(parts: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """Named tensors of several batches, one after the other; zeros where a batch lacks what another has."""
    out: dict[str, Tensor] = {}
    for key in dict.fromkeys(k for part in parts for k in part):
        like = next(part[key] for part in parts if key in part)
        rows = [p[key] if key in p else like.new_zeros(n, *like.shape[1:]) for p, n in zip(parts, counts, strict=True)]
        out[key] = torch.cat(rows)
    return out


def _tensors(parts: Sequence[InversionResult | LatentCode], counts: Sequence[int]) -> dict[str, Any]:
    """The tensors of a code, joined of those of several batches."""
    groups = {group: joined([getattr(p, group) for p in parts], counts) for group in ("state", "extras", "calls")}
    conditions = [p.prompts if isinstance(p, InversionResult) else p.conditions for p in parts]
    return {**groups, "conditions": PromptConditioning.cat(conditions)}


def whole(empty: LatentCode, parts: Sequence[InversionResult]) -> LatentCode:
    """``empty`` filled with what each batch found."""
    counts = [len(p.state["x"]) for p in parts]
    return replace(empty, grid=parts[0].grid, **_tensors(parts, counts))


def begun(codes: Sequence[LatentCode], images: int, batch: int) -> LatentCode:
    """What is to be saved of an ``invert`` of so many images while it goes on, from the codes of its batches so far."""
    counts, one = [len(code) for code in codes], codes[0]
    about = {"images": images, "done": sum(counts), "steps": 0, "batch": batch}
    prompts = tuple(p for code in codes for p in code.prompts)
    settings = {**one.settings, KEY: about}
    return replace(one, prompts=prompts, settings=settings, **_tensors(codes, counts))


def interrupted(
    empty: LatentCode,
    parts: Sequence[InversionResult],
    stop: KeyboardInterrupt,
    prompts: PromptConditioning,
    where: tuple[int, int, int],
) -> Interrupted:
    """What to raise for a Ctrl-C.

    Args:
        empty: the code's settings.
        parts: batches that are done.
        stop: the Ctrl-C; a ``InversionInterrupted`` brings what the batch at work had.
        prompts: that batch's conditions.
        where: images in all, images done, and the batch's size.
    """
    images, done, batch = where
    begun, steps = list(parts), 0
    if isinstance(stop, InversionInterrupted):
        steps = stop.steps
        begun.append(InversionResult({"x": stop.x}, empty.grid, prompts, {HELD + k: v for k, v in stop.kept.items()}))
    about = {"images": images, "done": done, "steps": steps, "batch": batch}
    code = replace(whole(empty, begun), settings={**empty.settings, KEY: about})
    sentence = f"Interrupted in image {done + 1} of {images}, step {steps + 1} of {empty.grid.steps}; the rest is kept."
    return Interrupted(sentence, code)


def compared(empty: LatentCode) -> dict[str, Any]:
    """The settings that a code must share with the one it goes on from. Not the name: the fingerprint is the model."""
    keys = ("method", "solver", "options", "settings", "fingerprint", "dtype", "guidance", "grid", "machine")
    return {key: getattr(empty, key) for key in keys}


def machine_of(empty: LatentCode, partial: LatentCode) -> dict[str, Any]:
    """``LatentCode.machine`` of a run that goes on here: laid out as it began, however many cores there are now."""
    laid_out = {key: value for key, value in partial.machine.items() if key in ("workers", "threads")}
    return {**empty.machine, **laid_out} if empty.machine else {}


def check(partial: LatentCode, asked: Mapping[str, Any], images: int) -> None:
    """Raises InputError, naming what differs, unless ``partial`` is the beginning of what is asked for.

    Args:
        partial: of an ``Interrupted``.
        asked: the fields of the code that is asked for.
        images: how many.
    """
    if KEY not in partial.settings:
        raise InputError("the code is a whole one; reconstruct or edit it, or leave it out.", parameter="resume")
    was = dict(partial.settings)
    begun = was.pop(KEY)
    if begun["images"] != images:
        raise InputError(
            f"the code was begun with {begun['images']} images, but {images} are given.", parameter="resume"
        )
    for key, value in asked.items():
        had: Any = was if key == "settings" else getattr(partial, key)
        if key == "grid":
            had, value = had.nodes, value.nodes
        if had != value:
            shown = "" if key == "grid" else f" ({had} there, {value} here)"
            raise InputError(
                f"the code was begun with another {key}{shown}; it goes on only as it began.", parameter="resume"
            )


def unpacked(partial: LatentCode, device: torch.device) -> tuple[list[InversionResult], dict[str, Tensor] | None]:
    """What is done (or nothing), and what ``InversionProblem.resume`` wants for the batch after it (or None)."""
    done = int(partial.settings[KEY]["done"])
    state, extras = ({k: v.to(device) for k, v in group.items()} for group in (partial.state, partial.extras))
    held = {k.removeprefix(HELD): v[done:] for k, v in extras.items() if k.startswith(HELD)}
    rest = {k: v[:done] for k, v in extras.items() if not k.startswith(HELD)}
    calls = {k: v[:done] for k, v in partial.calls.items()}
    begun, prompts = {k: v[:done] for k, v in state.items()}, partial.conditions.to(device)[:done]
    first = InversionResult(begun, partial.grid, prompts, rest, calls)
    return [first] if done else [], held if len(partial) > done else None


def as_held(partial: LatentCode, held: Mapping[str, Tensor]) -> InversionInterrupted:
    """The Ctrl-C that left ``held``, which ``unpacked`` took out of ``partial``: nothing has been added since."""
    begun = partial.settings[KEY]
    return InversionInterrupted(held, int(begun["steps"]), partial.state["x"][int(begun["done"]) :])


def check_images(held: Mapping[str, Tensor], x0: Tensor) -> None:
    """Raises InputError where the images are not those that were begun with."""
    if held["pivot"].shape[2:] != x0.shape[1:] or not torch.allclose(held["pivot"][:, -1], x0, rtol=0, atol=1e-2):
        raise InputError("the code was begun with other images; give the same, in the same order.", parameter="resume")
