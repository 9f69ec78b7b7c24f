"""The verbs that go between images: along arcs of latents, with the codes' own images at the ends."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from ..core.guidance import NULL
from ..core.slerp import chain, four_corners
from ..inversion.ddim import DDIMInversion
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.lattice import steps_of_code
from .common import HOLD, OnImages, Progress, check_batch, hold_of, need_code, need_model, walk_back
from .verbs import reconstruct

Through = Literal["ddim", "state"]
Mix = Callable[[list[Tensor]], Tensor]

_KEPT = {"null": "a null embedding", "noise": "a noise map", "pivot": "a pivot"}
"""What a code's ``extras`` hold, for a sentence."""


def interpolate(
    model: Model,
    *codes: LatentCode,
    frames: int = 11,
    through: Through = "ddim",
    batch: int = 64,
    progress: Progress | None = None,
    on_batch: OnImages | None = None,
) -> Tensor:
    """Images along the arcs between latent codes (Song et al. 2021, section 5.3).

    Args:
        model: the one that made the codes.
        codes: two or more, of one method, grid and model; a code of several images counts as that many.
        frames: from each to the next, ends included; at least 2. The ends are the codes' own reconstructions.
        through: ``"ddim"``: the frames between lie on arcs of plain DDIM latents. Codes of another method come back
            to their images first, which are walked back again (with text at guidance 1): an exact code holds what its
            own way forward needs, a parasitic mode and all, and an arc between two such codes leaves what the model
            has seen. ``"state"``: every tensor of the states is mixed as it is.
        batch, progress, on_batch: as for ``reconstruct``.

    Returns:
        float tensor [(n - 1) * (frames - 1) + 1, C, H, W] in [0, 1] for n images.

    Raises:
        InputError: fewer than two images, codes that do not belong together, an unknown ``through``.
    """
    _need(model, codes)
    ends = [k * (frames - 1) for k in range(sum(map(len, codes)))]
    return _between(model, codes, lambda points: chain(points, frames), ends, through, batch, progress, on_batch)


def interpolate_grid(
    model: Model,
    *codes: LatentCode,
    rows: int = 7,
    columns: int = 7,
    through: Through = "ddim",
    batch: int = 64,
    progress: Progress | None = None,
    on_batch: OnImages | None = None,
) -> Tensor:
    """Images between four latent codes: top left, top right, bottom left, bottom right.

    Args:
        model, codes, through, batch, progress, on_batch: as for ``interpolate``; four images.
        rows, columns: at least 2.

    Returns:
        float tensor [rows * columns, C, H, W] in [0, 1], row by row.

    Raises:
        InputError: not four images, or codes that do not belong together.
    """
    _need(model, codes)
    ends = [0, columns - 1, (rows - 1) * columns, rows * columns - 1]
    corners: Mix = lambda points: four_corners(points, rows, columns)  # noqa: E731
    return _between(model, codes, corners, ends, through, batch, progress, on_batch)


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
    progress: Progress | None,
    on_batch: OnImages | None,
) -> Tensor:
    check_batch(batch)
    check_through(through)
    own_null = _differ(codes, NULL)
    mixed = combine(codes, mix, without=(NULL,) if own_null else ())  # also says what does not fit, before any work
    kept = sorted(codes[0].extras)
    if through == "state" and (kept or own_null):
        what = next((f"{said} for every step" for key, said in _KEPT.items() if key in kept), "a null embedding each")
        raise InputError(
            f"codes of {codes[0].method!r} keep {what}, which cannot be mixed; use 'ddim'.", parameter="through"
        )
    if through == "state" or (_plain(codes[0]) and not own_null):
        return reconstruct(model, mixed, batch=batch, progress=progress, on_batch=on_batch)
    # each comes back with what is its own; the walk after that has weight 1 and reads no null embedding
    whole = combine(codes, torch.cat, without=(NULL,))
    own = {key: torch.cat([c.cond[key] for c in codes]) for key in codes[0].cond}
    whole = replace(whole, cond=own, extras={k: torch.cat([c.extras[k] for c in codes]) for k in kept})
    own_steps = steps_of_code(make_solver(whole.solver, whole.options), whole.grid)
    walks = ((len(whole), own_steps), (len(whole), whole.grid.steps), (len(mixed), whole.grid.steps))
    part = _parts(progress, [-(-count // batch) * steps for count, steps in walks])
    images = reconstruct(model, whole, batch=batch, progress=part(0))
    cond = {k: v.to(model.device) for k, v in whole.cond.items() if k != NULL}
    plain = walk_back(model, DDIMInversion(), images, whole.grid, cond, batch, part(1), hold=hold_of(whole))

    def with_ends(first: int, frames: Tensor) -> Tensor:
        for at, image in zip(ends, images, strict=True):
            if first <= at < first + len(frames):
                frames[at - first] = image
        return frames

    def told(first: int, frames: Tensor) -> None:
        if on_batch is not None:
            on_batch(first, with_ends(first, frames.clone()))

    out = reconstruct(model, combine([plain], mix), batch=batch, progress=part(2), on_batch=told)
    return with_ends(0, out)


def check_through(through: str) -> None:
    """Raises InputError for a ``through`` that there is not."""
    if through not in get_args(Through):
        raise UnknownName("through", through, get_args(Through))


def _plain(code: LatentCode) -> bool:
    return code.method == DDIMInversion.name and code.settings.get("iterations", 1) == 1


def _parts(progress: Progress | None, lengths: Sequence[int]) -> Callable[[int], Progress | None]:
    """One progress for several walks: each reports as its part of the whole."""

    def part(k: int) -> Progress | None:
        tell = progress
        if tell is None:
            return None
        before, total = sum(lengths[:k]), sum(lengths)
        return lambda done, _: tell(before + done, total)

    return part


def _differ(codes: Sequence[LatentCode], key: str) -> bool:
    """Whether the pictures have different ``cond[key]``, of one shape."""
    values = [c.cond[key] for c in codes if key in c.cond]
    if len({v.shape[1:] for v in values}) != 1:
        return False
    rows = torch.cat(values)
    return bool((rows != rows[:1]).any())


def combine(codes: Sequence[LatentCode], mix: Mix, without: Sequence[str] = ()) -> LatentCode:
    """One code whose states are a mix of others', every tensor of a state mixed alike; without their extras.

    Args:
        codes: at least one.
        mix: from a list of tensors [1, ...], one an image, to one tensor [M, ...].
        without: of ``cond``, what is left out.

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
    cond = {}
    for key in (k for k in one.cond if k not in without):
        values = torch.cat([c.cond[key] for c in codes])
        if bool((values != values[:1]).any()):
            raise InputError(f"they have different {key}; there is nothing between classes.", parameter="codes")
        cond[key] = values[:1].expand(size, *values.shape[1:]).contiguous()
    return replace(one, state=state, cond=cond, extras={}, prompts=one.prompts[:1] * size)


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
                f"they do not belong together: one walked {one.grid.steps} {one.grid.spacing} steps, "
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
    """Whether two codes walked the same nodes, up to the last bits of another machine's cosine."""
    return len(a.grid) == len(b.grid) and all(
        m.t == n.t and abs(m.alpha - n.alpha) < 1e-12 and abs(m.sigma - n.sigma) < 1e-12
        for m, n in zip(a.grid, b.grid, strict=True)
    )
