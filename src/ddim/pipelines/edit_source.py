"""The source of an edit: images that are to be inverted, or the code of images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .._utils.errors import InputError, is_number, warn
from ..core.contracts import Solver
from ..core.grid import Grid
from ..core.guidance import Guidance
from ..data.images import ImageLike
from ..editing.blend import read_masks
from ..editing.strength import WHOLE, Reach, needed
from ..inversion import make_inversion
from ..inversion.base import has_trajectory
from ..inversion.latent_code import LEFT_OUT, STRENGTH, LatentCode
from ..inversion.photograph import Photograph
from ..models.base import Model
from ..solvers.lattice import ReversibleSolver
from .capabilities import check_inversion, check_pull, check_weight
from .common import conditioned, grid_for, latent_size, picture_shape, say_assumed, solver_of
from .edit_asked import Asked
from .events import OnEvent
from .invert import invert
from .pasting import needs_photographs
from .pictures import Pictures, model_mask, read_pictures


@dataclass(frozen=True, eq=False)
class Source:
    """What is edited: N images that are to be inverted, or their code.

    Attributes:
        code: the code; None for images.
        pictures: the images; None for a code.
        size: (height, width) of the images.
        photographs: those that the edits are pasted into; empty where they are not known.
        user_masks: the user's mask of each image, at its own size; empty without masks.
        solver: the solver that reconstructs the sources.
        steps: the number of steps of the inversion of images, of which a strength leaves out some.
        grid: the steps in which targets are sampled.
        farthest: the strength that the inversion reaches; None if it makes all steps.
        left_out: the number of steps that it leaves out.
        guidance: of the targets, unless an editor has its own; None is a code's own, or none.
        strengths: the strengths of the edit; None is that of a whole code.
        reaches: the steps in which the targets may leave their sources at each strength.
        mask: the user's masks at the size of the images, [N, 1, H, W]; None without masks.
    """

    code: LatentCode | None
    pictures: Pictures | None
    size: tuple[int, int]
    photographs: tuple[Photograph, ...]
    user_masks: tuple[Tensor, ...]
    solver: Solver
    steps: int | None
    grid: Grid
    farthest: float | None
    left_out: int
    guidance: float | Guidance | None
    strengths: tuple[float | None, ...]
    reaches: tuple[Reach, ...] = ()
    mask: Tensor | None = None

    def __len__(self) -> int:
        if self.code is not None:
            return len(self.code)
        assert self.pictures is not None
        return len(self.pictures)

    @property
    def exact(self) -> bool:
        """Whether a reversible solver reconstructs the sources, so that they are replayed before sampling."""
        return isinstance(self.solver, ReversibleSolver)

    @property
    def pixels(self) -> Tensor | None:
        """The images, [N, C, H, W] in [0, 1]; None for a code."""
        return None if self.pictures is None else self.pictures.pixels


def source_of(model: Model, images: ImageLike | Pictures | LatentCode, asked: Asked) -> Source:
    """Reads the source of an edit, and checks what was asked against it.

    Raises:
        InputError: what ``edit`` raises about images, masks, the inversion, and strengths that a code does not reach.

    Warns:
        DDIMWarning: the masks of some images are empty.
    """
    source = _code(model, images, asked) if isinstance(images, LatentCode) else _images(model, images, asked)
    if asked.region.feather is not None and not source.photographs:
        raise InputError(
            "it is the edge of what is pasted into a photograph, and there is none; give a mask, a blend, a crop, or a "
            "code that keeps its source.",
            parameter="feather",
        )
    weight = asked.inverting.inversion_guidance
    if weight is not None and is_number(weight) and model.text:
        check_weight(model, weight, "inversion_guidance")
    grid, solver = source.grid, source.solver
    if isinstance(solver, ReversibleSolver):  # DDIM samples its targets, from the node whose state the code stores
        solver.check_steps(grid)
        grid = grid.rest(solver.first(grid))
    reaches = _reaches(source, grid)
    masks = source.user_masks
    mask = model_mask(masks, source.photographs, source.size) if masks else None
    _refuse_empty(mask)
    return replace(source, grid=grid, reaches=reaches, mask=mask)


def _code(model: Model, code: LatentCode, asked: Asked) -> Source:
    """Takes a code as the source. Raises InputError for settings of the inversion, a wrong code or unreadable masks."""
    asked.refuse_for_code()
    check_pull(asked.guidance, code.extras)
    own, strengths = code.settings.get(STRENGTH), asked.strengths
    if asked.chosen is not None and STRENGTH not in code.settings:
        strengths = asked.chosen.strengths(strengths)
    size, mask = picture_shape(model, code)[1:], asked.region.mask
    return Source(
        code=code,
        pictures=None,
        size=size,
        photographs=code.sources,
        user_masks=() if mask is None else tuple(read_masks(mask, len(code))),
        solver=solver_of(model, code),
        steps=None,
        grid=code.grid,
        farthest=own,
        left_out=int(code.settings.get(LEFT_OUT, 0)),
        guidance=asked.guidance,
        strengths=tuple(own if one is None else one for one in strengths),
    )


def _images(model: Model, images: ImageLike | Pictures, asked: Asked) -> Source:
    """Reads images as the source. Raises InputError for an inversion that does not work, or what cannot be read."""
    region, steps, guidance, strengths = asked.region, asked.inverting.steps, asked.guidance, asked.strengths
    inversion = make_inversion(asked.method, asked.options)
    check_inversion(model, inversion)
    check_pull(guidance, inversion.stores)
    if isinstance(guidance, Guidance):
        guidance = inversion.sampling_guidance(guidance)
    solver = inversion.solver()
    keep = needs_photographs(asked.words.blend, region.crop, asked.auto)
    pictures = read_pictures(model, images, crop=region.crop, resize=region.resize, keep=keep, mask=region.mask)
    say_assumed(model, steps, guidance)
    usual = model.info.steps if asked.editor is None else asked.editor.usual_steps(model.info, steps)
    steps = usual if steps is None else steps
    grid = grid_for(model, steps, asked.inverting.spacing, latent_size(model, pictures.size))
    if asked.chosen is not None:
        strengths = asked.chosen.strengths(strengths)
    farthest = max((one for one in strengths if one is not None), default=None)
    if isinstance(solver, ReversibleSolver):  # an exact code needs more than one step, and is replayed whole
        farthest = None
    grid, left_out = needed(farthest, grid)
    if guidance is None and conditioned(model):
        guidance = 1.0 if asked.classes else model.info.guidance
    return Source(
        code=None,
        pictures=pictures,
        size=pictures.size,
        photographs=pictures.photographs,
        user_masks=pictures.masks,
        solver=solver,
        steps=steps,
        grid=(inversion if farthest is None else inversion.whole()).part(grid),
        farthest=farthest,
        left_out=left_out,
        guidance=guidance,
        strengths=strengths,
    )


def _reaches(source: Source, grid: Grid) -> tuple[Reach, ...]:
    """Returns the steps of a grid in which the targets may leave their sources at each strength.

    Raises:
        InputError: a code leaves out steps that a strength needs.
    """
    reaches: list[Reach] = []
    for strength in source.strengths:
        if strength is None:
            reaches.append(WHOLE)
            continue
        if source.farthest is not None and strength > source.farthest:
            raise InputError(
                f"{strength:g} goes farther than this code, whose images were inverted at {source.farthest:g}; use "
                "that or less, or give the images.",
                parameter="strength",
            )
        reaches.append(Reach.of(strength, grid.steps + source.left_out, source.left_out))
    return tuple(reaches)


def _refuse_empty(mask: Tensor | None) -> None:
    """Refuses masks that are 0 on every image, and warns if some are.

    Args:
        mask: on the images, [N, 1, H, W]; None without a mask.

    Raises:
        InputError: no image may change anywhere.

    Warns:
        DDIMWarning: some of the images may not change anywhere.
    """
    empty = [] if mask is None else [k for k in range(len(mask)) if not bool(mask[k].any())]
    if mask is not None and len(empty) == len(mask):
        raise InputError(
            "it is 0 everywhere on the image, so that nothing could change; paint what may change white.",
            parameter="mask",
        )
    if empty:
        warn(f"The mask of image {empty[0] + 1} is 0 everywhere, so that its edits change nothing.")


def inverted(
    model: Model, source: Source, asked: Asked, own: Sequence[str] | Sequence[int], batch: int, on_event: OnEvent
) -> LatentCode:
    """Inverts the images of a source.

    Args:
        model: the model.
        source: images.
        asked: what the edit is asked for.
        own: the prompt or the class of each image.
        batch: see ``edit``.
        on_event: called with the events of ``invert``.

    Raises:
        What ``invert`` raises.
    """
    assert source.pictures is not None
    settings, chosen = asked.inverting, asked.chosen
    return invert(
        model,
        source.pictures,
        steps=source.steps,
        method=asked.method,
        spacing=settings.spacing,
        options=asked.options,
        labels=[int(label) for label in own] if asked.classes else None,
        prompt=None if asked.classes else asked.words.source_prompt,
        negative=asked.words.negative,
        guidance=_guidance_of_inversion(source, settings.inversion_guidance) if chosen is None else chosen.source,
        clip_x0=settings.clip_x0,
        threshold=settings.threshold,
        inversion_guidance=settings.inversion_guidance,
        strength=source.farthest,
        keep_trajectory=chosen is not None and has_trajectory(chosen.inversion),
        seed=asked.seed,
        keep_source=bool(source.photographs),
        batch=batch,
        on_event=on_event,
    )


def _guidance_of_inversion(source: Source, inversion_guidance: float | None) -> float | Guidance | None:
    """The guidance of the inversion of images: without the embedded scale, which is that of the targets.

    The source of an exact code is replayed with the guidance of the inversion.
    """
    guidance, exact = source.guidance, source.exact
    if guidance is None or not (exact or isinstance(guidance, Guidance)):
        return guidance
    whole = guidance if isinstance(guidance, Guidance) else Guidance()
    if not exact:
        return replace(whole, embedded=None)
    if inversion_guidance is None or not is_number(inversion_guidance) or inversion_guidance == 1:
        return Guidance(batched_cfg=whole.batched_cfg)
    return replace(whole, weight=inversion_guidance, embedded=None)
