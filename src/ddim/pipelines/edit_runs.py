"""The runs of an edit: what makes the images of the sources and their targets from the code, at each strength."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from .._utils.errors import warn
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.guidance import Guidance, with_embedded
from ..editing.blend import to_latent
from ..editing.strength import Reach
from ..inversion.extras import pinned
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.lattice import ReversibleSolver
from .auto_masks import automatic_masks, refuse_empty
from .beside import Beside
from .edit_asked import Asked
from .edit_by import ByEditor
from .edit_source import Source
from .edit_targets import Targets
from .reconstruct import pinned_code
from .target_batches import Made, TargetBatches


def run_of(
    model: Model,
    asked: Asked,
    source: Source,
    targets: Targets,
    code: LatentCode,
    batches: TargetBatches,
    *,
    batched_cfg: bool,
) -> Callable[[Reach], Made]:
    """Returns what edits the sources at a strength, given as the steps in which targets may leave their source.

    The source of an exact code is replayed first, and automatic masks are found.

    Args:
        model, batched_cfg: as for ``edit``.
        asked, source, targets: what is edited, and to what.
        code: of the sources.
        batches: how many sources and targets are sampled at once, and what is reported.

    Raises:
        NotFinite: the sample of an exact code contains NaN or infinity after a step.

    Warns:
        DDIMWarning: an automatic mask is empty, or the reconstruction can differ from the source.
    """
    conditions, chosen, solver = targets.beside(code), asked.chosen, source.solver
    one_branch_a_call = not batched_cfg or model.low_memory
    if chosen is not None:
        mask = _mask(model, asked, source, targets, code, conditions, chosen.target, batches)
        chosen = chosen.one_branch_a_call() if one_branch_a_call else chosen
        return ByEditor(model, chosen, code, conditions, targets.factors, asked.seed, mask, batches)
    if isinstance(solver, ReversibleSolver):
        code = pinned_code(model, code, solver, batches.batch, batched_cfg, batches.phases.before_sampling())
        solver = make_solver(code.solver)
    guidance = _guidance(code, source.guidance).on(code.grid)
    mask = _mask(model, asked, source, targets, code, conditions, guidance, batches)
    words = with_embedded(PromptConditioning(conditions[0]), guidance.embedded).cond
    guidance = replace(guidance, embedded=None)  # each row has its own
    if one_branch_a_call:
        guidance = replace(guidance, batched_cfg=False)
    return Beside(model, solver, code, words, guidance, targets.plan, mask, batches)


def _mask(
    model: Model,
    asked: Asked,
    source: Source,
    targets: Targets,
    code: LatentCode,
    conditions: Sequence[Conditioning],
    guidance: Guidance,
    batches: TargetBatches,
) -> Tensor | None:
    """Returns where targets may change on the latent: the user's masks times the automatic ones.

    Args:
        model, asked, source, targets, code, batches: as for ``run_of``.
        conditions: of each part of the targets, N * K rows.
        guidance: of the targets.

    Returns:
        [N, K or 1, H, W], on the model's device; None if they may change everywhere.
    """
    mask = None if source.mask is None else to_latent(source.mask, code.state["x"].shape[-2:])
    if (auto := asked.auto) is not None:
        embedded = model.info.embedded if guidance.embedded is None else guidance.embedded
        found = automatic_masks(model, auto, code, source.pixels, conditions, embedded, asked.seed, batches)
        mask = found if mask is None else found * mask.to(found)
        refuse_empty(mask, targets.names)
    return None if mask is None else mask.to(model.device)


def _guidance(code: LatentCode, asked: float | Guidance | None) -> Guidance:
    """The guidance of sampling; warns where the code was made for another and the source is not pinned."""
    own = Guidance.of(code.guidance)
    guidance = own if asked is None else asked if isinstance(asked, Guidance) else own.at(asked)
    alike = replace(guidance, embedded=own.embedded).options == own.options  # sources keep their embedded scale
    if not alike and not pinned(code.extras):
        warn(
            f"The code of {code.method!r} was made for guidance {_difference(own, guidance)}, not for "
            f"{_difference(guidance, own)}: the reconstruction can differ from the source."
        )
    return guidance


def _difference(guidance: Guidance, other: Guidance) -> str:
    """The weight of ``guidance``, and what else of it is not the other's."""
    low, high = guidance.interval
    rescale = f", rescale {guidance.rescale:g}" if guidance.rescale != other.rescale else ""
    interval = f", interval ({low:g}, {high:g})" if tuple(guidance.interval) != tuple(other.interval) else ""
    skip = f", skip {guidance.skip.options}" if guidance.skip and guidance.skip != other.skip else ""
    proximal = f", proximal {guidance.proximal}" if guidance.proximal != other.proximal else ""
    return f"{guidance.weight:g}{rescale}{interval}{skip}{proximal}"
