"""The pipelines ``interpolate`` and ``interpolate_grid``, which sample images between latent codes."""

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
from ..inversion.extras import EXTRAS, acting
from ..inversion.latent_code import HOLD, SAMPLED, LatentCode, joined_rows
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.ddim import DDIM
from .batches import invert_batches
from .common import check_made_for, check_run, hold_of, in_model_threads, need_code, need_model
from .events import Event, ImagesEvent, OnEvent, StepEvent, silent
from .reconstruct import reconstruct

Mix = Callable[[list[Tensor]], Tensor]


@in_model_threads
def interpolate(
    model: Model,
    *codes: LatentCode,
    frames: int = 11,
    through: Through = "ddim",
    batch: int = 64,
    on_event: OnEvent = silent,
) -> Tensor:
    """Samples images along the arcs between latent codes (Song et al. 2021, section 5.3).

    Args:
        model: the model that made the codes.
        codes: two or more images, in one or more codes of the same method, grid and model.
        frames: the number of frames from each image to the next, both included; at least 2. The first and the last of
            them are the reconstructions of the codes.
        through: which latents are interpolated. ``"ddim"``: those of plain DDIM inversion. Codes of another method are
            reconstructed and inverted again first, at guidance 1. The latent of an exact method also contains what its
            own solver needs, such as a parasitic mode, so that points between two of them are no typical noise for the
            model. ``"state"``: every tensor of the states is interpolated as it is.
        batch, on_event: see ``reconstruct``.

    Returns:
        a float tensor [(n - 1) * (frames - 1) + 1, C, H, W] in [0, 1] for n images.

    Raises:
        InputError: there are fewer than two images, the codes do not belong together, or ``through`` is unknown.
    """
    _need(model, codes)
    ends = [k * (frames - 1) for k in range(sum(map(len, codes)))]
    return _between(model, codes, lambda points: chain(points, frames), ends, through, batch, on_event)


@in_model_threads
def interpolate_grid(
    model: Model,
    *codes: LatentCode,
    rows: int = 7,
    columns: int = 7,
    through: Through = "ddim",
    batch: int = 64,
    on_event: OnEvent = silent,
) -> Tensor:
    """Samples a grid of images between four latent codes: top left, top right, bottom left and bottom right.

    Args:
        model, codes, through, batch, on_event: see ``interpolate``; the codes have four images in all.
        rows, columns: the size of the grid, at least 2 each.

    Returns:
        a float tensor [rows * columns, C, H, W] in [0, 1], in row-major order.

    Raises:
        InputError: there are not four images, or the codes do not belong together.
    """
    _need(model, codes)
    ends = [0, columns - 1, (rows - 1) * columns, rows * columns - 1]
    corners: Mix = lambda points: four_corners(points, rows, columns)  # noqa: E731
    return _between(model, codes, corners, ends, through, batch, on_event)


def _need(model: Model, codes: Sequence[LatentCode]) -> None:
    """Raises InputError for what is no model or no code, and for a code of a model that differs in its conditions."""
    need_model(model)
    for code in codes:
        need_code(code, "codes")
        check_made_for(model, code)


def _between(
    model: Model,
    codes: Sequence[LatentCode],
    mix: Mix,
    ends: Sequence[int],
    through: str,
    batch: int,
    on_event: OnEvent,
) -> Tensor:
    """Samples the images of mixed latents. ``ends`` are the frames that are the reconstructions of the codes."""
    check_run(batch, on_event)
    check_through(through)
    own_uncond = _unconds_differ(codes)
    mixed = combine(codes, mix, without_uncond=own_uncond)  # also raises if the codes do not fit, before any sampling
    extras = acting(codes[0].extras)
    if through == "state" and (extras or own_uncond):
        what = next(
            (f"{extra.phrase} for every step" for key, extra in EXTRAS.items() if key in extras and extra.per_step),
            "a null embedding each",
        )
        raise InputError(
            f"codes of {codes[0].method!r} keep {what}, which cannot be mixed; use 'ddim'.", parameter="through"
        )
    if through == "state" or (_is_plain_ddim(codes[0]) and not own_uncond):
        return reconstruct(model, mixed, batch=batch, on_event=on_event)
    # Each code is reconstructed with its own extras and unconditional branch. The images are then inverted by plain
    # DDIM at guidance 1, which needs neither.
    joined, grid = _joined_codes(codes), codes[0].grid
    own_steps = grid.steps - make_solver(codes[0].solver, codes[0].options).first(grid)
    reconstructions = [len(calls.recorded_calls(c.calls)) if c.calls else -(-len(c) // batch) for c in joined]
    inversions, samplings = -(-sum(map(len, joined)) // batch), -(-len(mixed) // batch)
    runs = [*(n * own_steps for n in reconstructions), inversions * grid.steps, samplings * grid.steps]
    part = _parts(on_event, runs)
    images = torch.cat([reconstruct(model, c, batch=batch, on_event=part(k)) for k, c in enumerate(joined)])
    conditions = PromptConditioning(Conditioning.cat(c.conditions.cond for c in joined).to(model.device))
    plain = invert_batches(
        model,
        DDIMInversion(),
        images,
        grid,
        conditions,
        batch,
        Guidance(),
        hold=hold_of(codes[0]),
        on_event=part(len(joined)),
    )

    def with_ends(first: int, frames: Tensor) -> Tensor:
        """Puts the reconstructions of the codes into a batch of frames that starts at frame ``first``."""
        for at, image in zip(ends, images, strict=True):
            if first <= at < first + len(frames):
                frames[at - first] = image
        return frames

    def report(event: Event) -> None:
        if isinstance(event, ImagesEvent):
            on_event(ImagesEvent(event.first, with_ends(event.first, event.images.clone())))
        else:
            part(len(joined) + 1)(event)

    out = reconstruct(model, combine([plain], mix), batch=batch, on_event=report)
    return with_ends(0, out)


def _joined_codes(codes: Sequence[LatentCode]) -> list[LatentCode]:
    """Joins neighbouring codes that can be reconstructed together: of one machine, record of calls and dtype."""
    groups = groupby(codes, lambda c: (dict(c.machine), set(c.calls), c.state["x"].dtype))
    return [join(list(group)) for _, group in groups]


def join(codes: Sequence[LatentCode]) -> LatentCode:
    """Joins codes that belong together into one code of all their images, with all tensors of each.

    Their sources are kept only if every code keeps its own; a file has none, or one for each image.
    """
    one = codes[0]
    groups = {
        group: {key: torch.cat([getattr(c, group)[key] for c in codes]) for key in getattr(one, group)}
        for group in ("state", "extras", "calls")
    }
    conditions = PromptConditioning.cat([c.conditions for c in codes])
    return replace(one, **groups, conditions=conditions, **joined_rows(codes))


def check_through(through: str) -> None:
    """Raises InputError if ``through`` is unknown."""
    if through not in THROUGH:
        raise UnknownName("through", through, THROUGH)


def _is_plain_ddim(code: LatentCode) -> bool:
    if code.method == SAMPLED:
        return code.solver == DDIM.name and not acting(code.extras)
    return code.method == DDIMInversion.name and code.settings.get("iterations", 1) == 1


def _parts(on_event: OnEvent, lengths: Sequence[int]) -> Callable[[int], OnEvent]:
    """Makes the callbacks of consecutive runs, which count their steps together and pass nothing else on.

    Args:
        on_event: the callback for all runs.
        lengths: the number of steps of each run.

    Returns:
        a function from the index of a run to its callback.
    """

    def part(k: int) -> OnEvent:
        before, total = sum(lengths[:k]), sum(lengths)

        def report(event: Event) -> None:
            if isinstance(event, StepEvent):
                on_event(StepEvent(before + event.done, total))

        return report

    return part


def _unconds_differ(codes: Sequence[LatentCode]) -> bool:
    """Whether the images have different unconditional branches of the same shape."""
    unconds = [c.conditions.uncond for c in codes if c.conditions.uncond is not None]
    shapes = [{k: v.shape[1:] for k, v in u.tensors.items()} for u in unconds]
    if not unconds or any(s != shapes[0] for s in shapes):
        return False
    rows = Conditioning.cat(unconds).tensors.values()
    return any(bool((v != v[:1]).any()) for v in rows)


def combine(codes: Sequence[LatentCode], mix: Mix, without_uncond: bool = False) -> LatentCode:
    """Makes a code of M images whose states are mixed from those of other codes. It has no extras and no sources.

    Args:
        codes: at least one code.
        mix: makes a tensor [M, ...] from a list with one tensor [1, ...] per image. It is applied to every tensor of
            the states.
        without_uncond: whether to leave out the unconditional branch.

    Raises:
        InputError: the codes differ in method, model, grid, guidance, size, labels or prompts.
    """
    check_together(codes)
    one = codes[0]
    if any(set(other.extras) != set(one.extras) for other in codes):
        differing = " and ".join(str(dict(c.settings)) for c in codes if c is one or set(c.extras) != set(one.extras))
        raise InputError(f"they do not belong together: their settings are {differing}.", parameter="codes")
    states = [c.floats for c in codes]
    state = {key: mix([s[key][k : k + 1] for s in states for k in range(len(s[key]))]) for key in one.state}
    size = len(state["x"])
    cond = _one_for_all([c.conditions.cond for c in codes], size)
    unconds = [] if without_uncond else [c.conditions.uncond for c in codes if c.conditions.uncond is not None]
    uncond = _one_for_all(unconds, size) if unconds else None
    return replace(
        one,
        state=state,
        conditions=PromptConditioning(cond, uncond),
        extras={},
        calls={},
        machine={},
        prompts=one.prompts[:1] * size,
        sources=(),
    )


def _one_for_all(conditions: Sequence[Conditioning], size: int) -> Conditioning:
    """Returns the condition that all rows share, repeated ``size`` times. Raises InputError if rows differ."""
    whole = Conditioning.cat(conditions)
    for key, values in whole.tensors.items():
        if bool((values != values[:1]).any()):
            why = "there is nothing between classes" if key == LABELS else "an interpolation needs one for all"
            raise InputError(f"they have different {key}; {why}.", parameter="codes")
    return whole[:1].repeat(size)


def check_together(codes: Sequence[LatentCode]) -> None:
    """Raises InputError if there is no code, or if codes differ in method, model, grid, guidance, size or prompt.

    Of the tensors it reads only the shape of ``state["x"]``.
    """
    if not codes:
        raise InputError("an interpolation needs at least two.", parameter="codes")
    one = codes[0]
    for other in codes[1:]:
        if other.fingerprint != one.fingerprint:
            raise InputError(
                f"they do not belong together: they were made by the models {one.model!r} "
                f"({one.fingerprint[:12] or 'unknown'}) and {other.model!r} ({other.fingerprint[:12] or 'unknown'}).",
                parameter="codes",
            )
        for what in ("method", "solver", "options", "guidance"):
            if getattr(other, what) != getattr(one, what):
                raise InputError(
                    f"they do not belong together: their {what.removesuffix('s')}s are {getattr(one, what)!r} "
                    f"and {getattr(other, what)!r}.",
                    parameter="codes",
                )
        if hold_of(other) != hold_of(one):
            raise InputError(
                f"they do not belong together: their x0 were limited by {other.settings.get(HOLD) or 'nothing'} and "
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
        differing = [p for p, _ in texts] if texts[0][0] != texts[1][0] else [n for _, n in texts]
        raise InputError(
            f"the codes have {differing[0]!r} and {differing[1]!r}; an interpolation needs one for all.",
            parameter="prompts",
        )


def _same_grid(a: LatentCode, b: LatentCode) -> bool:
    """Whether two codes have the same nodes. The last bits may differ, as a cosine does between machines."""
    return len(a.grid) == len(b.grid) and all(
        m.t == n.t and abs(m.alpha - n.alpha) < 1e-12 and abs(m.sigma - n.sigma) < 1e-12
        for m, n in zip(a.grid, b.grid, strict=True)
    )
