"""The pipelines ``interpolate`` and ``interpolate_grid``: arcs of latents, with the codes' own images at the ends."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from .._utils.choices import THROUGH, Through
from .._utils.errors import InputError, UnknownName
from ..core.conditioning import LABELS, Conditioning, PromptConditioning
from ..core.guidance import Guidance
from ..core.slerp import chain, four_corners
from ..inversion import calls
from ..inversion.ddim import DDIMInversion
from ..inversion.latent_code import HOLD, LatentCode
from ..inversion.replay import TUNED
from ..models.base import Model
from ..solvers import make_solver
from .common import check_run, hold_of, invert_batches, need_code, need_model
from .events import Event, ImagesEvent, OnEvent, StepEvent, silent
from .reconstruct import reconstruct

Mix = Callable[[list[Tensor]], Tensor]

_KEPT = {TUNED: "a null embedding", "noise": "a noise map", "pivot": "a pivot"}
"""What a code's ``extras`` hold, for a sentence."""


def interpolate(
    model: Model,
    *codes: LatentCode,
    frames: int = 11,
    through: Through = "ddim",
    batch: int = 64,
    on_event: OnEvent = silent,
) -> Tensor:
    """Images along the arcs between latent codes (Song et al. 2021, section 5.3).

    Args:
        model: the one that made the codes.
        codes: two or more, of one method, grid and model; a code of several images counts as that many.
        frames: from each to the next, ends included; at least 2. The ends are the codes' own reconstructions.
        through: ``"ddim"``: the frames between lie on arcs of plain DDIM latents. Codes of another method come back
            to their images first, which are inverted again (with text at guidance 1): an exact code holds what its
            own way forward needs, a parasitic mode and all, and an arc between two such codes leaves what the model
            has seen. ``"state"``: every tensor of the states is mixed as it is.
        batch, on_event: as for ``reconstruct``.

    Returns:
        float tensor [(n - 1) * (frames - 1) + 1, C, H, W] in [0, 1] for n images.

    Raises:
        InputError: fewer than two images, codes that do not belong together, an unknown ``through``.
    """
    _need(model, codes)
    ends = [k * (frames - 1) for k in range(sum(map(len, codes)))]
    return _between(model, codes, lambda points: chain(points, frames), ends, through, batch, on_event)


def interpolate_grid(
    model: Model,
    *codes: LatentCode,
    rows: int = 7,
    columns: int = 7,
    through: Through = "ddim",
    batch: int = 64,
    on_event: OnEvent = silent,
) -> Tensor:
    """Images between four latent codes: top left, top right, bottom left, bottom right.

    Args:
        model, codes, through, batch, on_event: as for ``interpolate``; four images.
        rows, columns: at least 2.

    Returns:
        float tensor [rows * columns, C, H, W] in [0, 1], row by row.

    Raises:
        InputError: not four images, or codes that do not belong together.
    """
    _need(model, codes)
    ends = [0, columns - 1, (rows - 1) * columns, rows * columns - 1]
    corners: Mix = lambda points: four_corners(points, rows, columns)  # noqa: E731
    return _between(model, codes, corners, ends, through, batch, on_event)


def _need(model: object, codes: Sequence[object]) -> None:
    need_model(model)
    for code in codes:
        need_code(code, "codes")


def _between(
    model: Model,
    codes: Sequence[LatentCode],
    mix: Mix,
    ends: Sequence[int],
    through: str,
    batch: int,
    on_event: OnEvent,
) -> Tensor:
    check_run(batch, on_event)
    check_through(through)
    own_opposites = _opposites_differ(codes)
    mixed = combine(codes, mix, without_uncond=own_opposites)  # also says what does not fit, before any work
    kept = sorted(codes[0].extras)
    if through == "state" and (kept or own_opposites):
        what = next((f"{said} for every step" for key, said in _KEPT.items() if key in kept), "a null embedding each")
        raise InputError(
            f"codes of {codes[0].method!r} keep {what}, which cannot be mixed; use 'ddim'.", parameter="through"
        )
    if through == "state" or (_plain(codes[0]) and not own_opposites):
        return reconstruct(model, mixed, batch=batch, on_event=on_event)
    # each comes back with what is its own; the inversion after that has weight 1 and asks for no opposite
    wholes, grid = _of_one_kind(codes), codes[0].grid
    own_steps = grid.steps - make_solver(codes[0].solver, codes[0].options).first(grid)
    made = [len(calls.rebuilt(c.calls)) if c.calls else -(-len(c) // batch) for c in wholes]
    there, between = -(-sum(map(len, wholes)) // batch), -(-len(mixed) // batch)
    part = _parts(on_event, [*(n * own_steps for n in made), there * grid.steps, between * grid.steps])
    images = torch.cat([reconstruct(model, c, batch=batch, on_event=part(k)) for k, c in enumerate(wholes)])
    conditions = PromptConditioning(Conditioning.cat(c.conditions.cond for c in wholes).to(model.device))
    plain = invert_batches(
        model,
        DDIMInversion(),
        images,
        grid,
        conditions,
        batch,
        Guidance(),
        hold=hold_of(codes[0]),
        on_event=part(len(wholes)),
    )

    def with_ends(first: int, frames: Tensor) -> Tensor:
        for at, image in zip(ends, images, strict=True):
            if first <= at < first + len(frames):
                frames[at - first] = image
        return frames

    def told(event: Event) -> None:
        if isinstance(event, ImagesEvent):
            on_event(ImagesEvent(event.first, with_ends(event.first, event.images.clone())))
        else:
            part(len(wholes) + 1)(event)

    out = reconstruct(model, combine([plain], mix), batch=batch, on_event=told)
    return with_ends(0, out)


def _of_one_kind(codes: Sequence[LatentCode]) -> list[LatentCode]:
    """The codes in their order, joined where they can come back in the same calls: made on one machine, kept alike."""
    alike = groupby(codes, lambda c: (dict(c.machine), set(c.calls), c.state["x"].dtype))
    return [joined(list(group)) for _, group in alike]


def joined(codes: Sequence[LatentCode]) -> LatentCode:
    """One code of the images of several that belong together, each with all that is its own."""
    one = codes[0]
    groups = {
        group: {key: torch.cat([getattr(c, group)[key] for c in codes]) for key in getattr(one, group)}
        for group in ("state", "extras", "calls")
    }
    conditions = PromptConditioning.cat([c.conditions for c in codes])
    return replace(one, **groups, conditions=conditions, prompts=tuple(p for c in codes for p in c.prompts))


def check_through(through: str) -> None:
    """Raises InputError for a ``through`` that there is not."""
    if through not in THROUGH:
        raise UnknownName("through", through, THROUGH)


def _plain(code: LatentCode) -> bool:
    return code.method == DDIMInversion.name and code.settings.get("iterations", 1) == 1


def _parts(on_event: OnEvent, lengths: Sequence[int]) -> Callable[[int], OnEvent]:
    """One progress for several runs: each reports its steps as its part of the whole, and nothing else."""

    def part(k: int) -> OnEvent:
        before, total = sum(lengths[:k]), sum(lengths)

        def told(event: Event) -> None:
            if isinstance(event, StepEvent):
                on_event(StepEvent(before + event.done, total))

        return told

    return part


def _opposites_differ(codes: Sequence[LatentCode]) -> bool:
    """Whether the pictures have different unconditional branches, of one shape."""
    opposites = [c.conditions.uncond for c in codes if c.conditions.uncond is not None]
    shapes = [{k: v.shape[1:] for k, v in o.tensors.items()} for o in opposites]
    if not opposites or any(s != shapes[0] for s in shapes):
        return False
    rows = Conditioning.cat(opposites).tensors.values()
    return any(bool((v != v[:1]).any()) for v in rows)


def combine(codes: Sequence[LatentCode], mix: Mix, without_uncond: bool = False) -> LatentCode:
    """One code whose states are a mix of others', every tensor of a state mixed alike; without their extras.

    Args:
        codes: at least one.
        mix: from a list of tensors [1, ...], one an image, to one tensor [M, ...].
        without_uncond: leave the unconditional branches out.

    Raises:
        InputError: codes of another method, model, grid, guidance or size, or with different labels or prompts.
    """
    check_together(codes)
    one = codes[0]
    if any(set(other.extras) != set(one.extras) for other in codes):
        told = " and ".join(str(dict(c.settings)) for c in codes if c is one or set(c.extras) != set(one.extras))
        raise InputError(f"they do not belong together: their settings are {told}.", parameter="codes")
    states = [c.floats for c in codes]
    state = {key: mix([s[key][k : k + 1] for s in states for k in range(len(s[key]))]) for key in one.state}
    size = len(state["x"])
    cond = _one_for_all([c.conditions.cond for c in codes], size)
    opposites = [] if without_uncond else [c.conditions.uncond for c in codes if c.conditions.uncond is not None]
    uncond = _one_for_all(opposites, size) if opposites else None
    return replace(
        one,
        state=state,
        conditions=PromptConditioning(cond, uncond),
        extras={},
        calls={},
        machine={},
        prompts=one.prompts[:1] * size,
    )


def _one_for_all(conditions: Sequence[Conditioning], size: int) -> Conditioning:
    """The condition that all rows share, ``size`` times. Raises InputError where they differ."""
    whole = Conditioning.cat(conditions)
    for key, values in whole.tensors.items():
        if bool((values != values[:1]).any()):
            why = "there is nothing between classes" if key == LABELS else "an interpolation needs one for all"
            raise InputError(f"they have different {key}; {why}.", parameter="codes")
    return whole[:1].repeat(size)


def check_together(codes: Sequence[LatentCode]) -> None:
    """Raises InputError for none, or for codes of another method, model, grid, guidance, size or prompt; of the tensors
    only the sizes of ``state["x"]`` are asked."""
    if not codes:
        raise InputError("an interpolation needs at least two.", parameter="codes")
    one = codes[0]
    for other in codes[1:]:
        for what in ("method", "solver", "options", "fingerprint", "guidance"):
            if getattr(other, what) != getattr(one, what):
                raise InputError(
                    f"they do not belong together: their {what.removesuffix('s')}s are {getattr(one, what)!r} "
                    f"and {getattr(other, what)!r}.",
                    parameter="codes",
                )
        if hold_of(other) != hold_of(one):
            raise InputError(
                f"they do not belong together: their x0 were held by {other.settings.get(HOLD) or 'nothing'} and "
                f"{one.settings.get(HOLD) or 'nothing'}.",
                parameter="codes",
            )
        if not _same_grid(one, other):
            raise InputError(
                f"they do not belong together: one has {one.grid.steps} {one.grid.spacing} steps, "
                f"the other {other.grid.steps} {other.grid.spacing} steps.",
                parameter="codes",
            )
        if other.state["x"].shape[1:] != one.state["x"].shape[1:]:
            raise InputError("they do not belong together: their pictures are of different sizes.", parameter="codes")
    texts = list(dict.fromkeys((p, c.negative) for c in codes for p in c.prompts))
    if len(texts) > 1:
        told = [p for p, _ in texts] if texts[0][0] != texts[1][0] else [n for _, n in texts]
        raise InputError(
            f"the codes have {told[0]!r} and {told[1]!r}; an interpolation needs one for all.", parameter="prompts"
        )


def _same_grid(a: LatentCode, b: LatentCode) -> bool:
    """Whether two codes have the same nodes, up to the last bits of another machine's cosine."""
    return len(a.grid) == len(b.grid) and all(
        m.t == n.t and abs(m.alpha - n.alpha) < 1e-12 and abs(m.sigma - n.sigma) < 1e-12
        for m, n in zip(a.grid, b.grid, strict=True)
    )
