"""Stores the progress of an interrupted ``invert`` as a partial ``LatentCode``, and continues from one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, Interrupted
from ..core.conditioning import PromptConditioning
from ..core.contracts import InversionInterrupted, InversionResult
from .latent_code import LatentCode, joined_rows
from .photograph import Photograph

KEY, RESUME = "partial", "resume."
"""The key of the progress in ``LatentCode.settings``, and the prefix of the names in ``LatentCode.extras`` of the
intermediate results from which a method continues."""


def joined(parts: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """Concatenates the named tensors of batches. A batch without a tensor that others have gets zeros.

    Args:
        parts: the tensors of each batch.
        counts: the number of rows of each batch.
    """
    out: dict[str, Tensor] = {}
    for key in dict.fromkeys(k for part in parts for k in part):
        like = next(part[key] for part in parts if key in part)
        rows = [p[key] if key in p else like.new_zeros(n, *like.shape[1:]) for p, n in zip(parts, counts, strict=True)]
        out[key] = torch.cat(rows)
    return out


def _tensors(parts: Sequence[InversionResult | LatentCode], counts: Sequence[int]) -> dict[str, Any]:
    """Concatenates the tensors of batches, as fields of a ``LatentCode``."""
    groups = {group: joined([getattr(p, group) for p in parts], counts) for group in ("state", "extras", "calls")}
    conditions = [p.prompts if isinstance(p, InversionResult) else p.conditions for p in parts]
    return {**groups, "conditions": PromptConditioning.cat(conditions)}


def complete(empty: LatentCode, parts: Sequence[InversionResult]) -> LatentCode:
    """Returns ``empty``, a code with settings only, with the results of all batches."""
    counts = [len(p.state["x"]) for p in parts]
    return replace(empty, grid=parts[0].grid, **_tensors(parts, counts))


def begun(codes: Sequence[LatentCode], images: int, batch: int) -> LatentCode:
    """Makes the partial code of a running ``invert`` from the codes of its finished batches.

    Args:
        codes: the codes of the finished batches, at least one.
        images: the number of images in all.
        batch: the number of images per batch.
    """
    counts, one = [len(code) for code in codes], codes[0]
    about = {"images": images, "done": sum(counts), "steps": 0, "batch": batch}
    settings = {**one.settings, KEY: about}
    return replace(one, settings=settings, **_tensors(codes, counts), **joined_rows(codes))


def interrupted(
    empty: LatentCode,
    parts: Sequence[InversionResult],
    stop: KeyboardInterrupt,
    prompts: PromptConditioning,
    where: tuple[int, int, int],
) -> Interrupted:
    """Makes the exception to raise for Ctrl-C, which carries a partial code.

    Args:
        empty: a code with settings only.
        parts: the results of the finished batches.
        stop: the Ctrl-C. An ``InversionInterrupted`` has intermediate results of the current batch.
        prompts: the conditions of the current batch.
        where: the number of images in all, the number of finished images, and the number of images per batch.
    """
    images, done, batch = where
    results, steps = list(parts), 0
    if isinstance(stop, InversionInterrupted):
        steps = stop.steps
        kept = {RESUME + k: v for k, v in stop.kept.items()}
        results.append(InversionResult({"x": stop.x}, empty.grid, prompts, kept))
    about = {"images": images, "done": done, "steps": steps, "batch": batch}
    code = replace(complete(empty, results), settings={**empty.settings, KEY: about})
    sentence = f"Interrupted in image {done + 1} of {images}, step {steps + 1} of {empty.grid.steps}; the rest is kept."
    return Interrupted(sentence, code)


def compared(empty: LatentCode) -> dict[str, Any]:
    """Returns the fields that a code must have in common with the partial code it continues.

    The name of the model is not among them, because the fingerprint identifies the model.
    """
    keys = ("method", "solver", "options", "settings", "fingerprint", "dtype", "guidance", "grid", "machine")
    return {key: getattr(empty, key) for key in keys}


def machine_of(empty: LatentCode, partial: LatentCode) -> dict[str, Any]:
    """Returns ``LatentCode.machine`` of a run that continues here, with the layout that it started with."""
    laid_out = {key: value for key, value in partial.machine.items() if key in ("workers", "threads", "min_rows")}
    return {**empty.machine, **laid_out} if empty.machine else {}


def check(partial: LatentCode, requested: Mapping[str, Any], images: int) -> None:
    """Checks whether a partial code belongs to a requested inversion.

    Args:
        partial: ``partial`` of an ``Interrupted``.
        requested: the fields that the requested code will have.
        images: the requested number of images.

    Raises:
        InputError: the code is complete, or it differs in a field or in the number of images; the error says in which.
    """
    if KEY not in partial.settings:
        raise InputError(
            "the code is a whole one, with no step left to do; reconstruct or edit it, or leave it out.",
            parameter="resume",
        )
    was = dict(partial.settings)
    begun = was.pop(KEY)
    if begun["images"] != images:
        raise InputError(
            f"the code was begun with {begun['images']} images, but {images} are given.", parameter="resume"
        )
    for key, value in requested.items():
        had: Any = was if key == "settings" else getattr(partial, key)
        if key == "grid":
            had, value = had.nodes, value.nodes
        if had != value:
            shown = "" if key == "grid" else f" ({had} there, {value} here)"
            raise InputError(
                f"the code was begun with another {key}{shown}; continue with the same.", parameter="resume"
            )


def check_sources(partial: LatentCode, sources: Sequence[Photograph]) -> None:
    """Raises InputError if the photographs that a partial code keeps are others than the ones that are given.

    Args:
        partial: ``partial`` of an ``Interrupted``.
        sources: the photographs of all images; the partial code has the first of them. Their crops are not compared.
    """
    for k, (had, given) in enumerate(zip(partial.sources, sources, strict=False)):
        if not torch.equal(had.pixels.cpu(), given.pixels.cpu()):
            raise InputError(
                f"the code was begun with another photograph in place {k + 1}; give the same, in the same order.",
                parameter="resume",
            )


def unpacked(partial: LatentCode, device: torch.device) -> tuple[list[InversionResult], dict[str, Tensor] | None]:
    """Splits a partial code into the results of finished images, and the intermediate results of the next batch.

    Returns:
        a list of one result, or an empty list; and the value for ``InversionProblem.resume``, or None.
    """
    done = int(partial.settings[KEY]["done"])
    state, extras = ({k: v.to(device) for k, v in group.items()} for group in (partial.state, partial.extras))
    kept = {k.removeprefix(RESUME): v[done:] for k, v in extras.items() if k.startswith(RESUME)}
    rest = {k: v[:done] for k, v in extras.items() if not k.startswith(RESUME)}
    calls = {k: v[:done] for k, v in partial.calls.items()}
    finished, prompts = {k: v[:done] for k, v in state.items()}, partial.conditions.to(device)[:done]
    first = InversionResult(finished, partial.grid, prompts, rest, calls)
    return [first] if done else [], kept if len(partial) > done else None


def interruption_of(partial: LatentCode, kept: Mapping[str, Tensor]) -> InversionInterrupted:
    """Rebuilds the interruption that made a partial code, for a second Ctrl-C before any further step.

    Args:
        partial: the partial code.
        kept: the intermediate results that ``unpacked`` returned for it.
    """
    begun = partial.settings[KEY]
    return InversionInterrupted(kept, int(begun["steps"]), partial.state["x"][int(begun["done"]) :])


def check_images(kept: Mapping[str, Tensor], x0: Tensor) -> None:
    """Raises InputError if the images differ from those of the partial code, whose pivot ends with them.

    Args:
        kept: the intermediate results of the current batch, among them ``pivot`` [N, S + 1, ...].
        x0: the images of the current batch, [N, ...]. Differences up to 0.01 are allowed.
    """
    if kept["pivot"].shape[2:] != x0.shape[1:] or not torch.allclose(kept["pivot"][:, -1], x0, rtol=0, atol=1e-2):
        raise InputError("the code was begun with other images; give the same, in the same order.", parameter="resume")
