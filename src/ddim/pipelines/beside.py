"""Samples sources beside their targets: the edits by prompt-to-prompt, and by classes."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from .._utils.tensors import in_groups
from ..core.conditioning import CONTENT, Conditioning, PromptConditioning
from ..core.contracts import OnStep, Solver
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.solve import solve
from ..editing.controlled import Controlled
from ..editing.plan import AttentionPlan
from ..editing.strength import Reach
from ..inversion.extras import PATHS, path_of, pinned, shared
from ..inversion.latent_code import LatentCode
from ..inversion.replay import PinnedSolver, prompts_of, state_of, stored_noise
from ..models.base import Model
from ..solvers import REVERSIBLE
from .common import half_precision_hint, hold_of
from .events import ImagesEvent, OnEvent, engine_events
from .phases import Phases


def sampled(
    model: Model,
    solver: Solver,
    code: LatentCode,
    targets: Conditioning,
    guidance: Guidance,
    plan: AttentionPlan | None,
    reach: Reach,
    mask: Tensor | None,
    batch: int,
    phases: Phases,
    on_event: OnEvent,
) -> tuple[Tensor, Tensor | None]:
    """Samples all sources with their targets, in batches.

    Args:
        model, solver, code, guidance, plan: of all N sources.
        targets: the targets' conditions, N * K rows, those of one image next to each other.
        reach: the steps in which the targets may leave their source. A pinned source begins at the first of them.
        mask: where the targets may change on the latent, [N, K or 1, H, W], or None.
        batch, on_event: see ``edit``.
        phases: counts the steps.

    Returns:
        Images [N, 1 + K, C, H, W] in [0, 1], and the mask of the last step, [N, K, H, W], or None.
    """
    if reach.begin and path_of(code.extras) is not None:
        code, reach = _from_node(code, reach.begin), reach.on_rest()
    many = (targets.rows or len(code)) // len(code)
    per = max(1, batch // (1 + many))
    chunks = [slice(k, k + per) for k in range(0, len(code), per)]
    report = phases.sampling((code.grid.steps - solver.first(code.grid)) * len(chunks))
    mask = None if mask is None else mask.to(model.device)
    parts: list[tuple[Tensor, Tensor | None]] = []
    call = Call(on_engine=engine_events(on_event))
    with nullcontext() if plan is None else model.controlled():
        for which in chunks:
            part = _forward_with_targets(
                model,
                solver,
                code[which],
                targets[which.start * many : which.stop * many],
                guidance,
                None if plan is None else plan[which],
                None if mask is None else mask[which],
                report,
                call,
                reach,
            )
            parts.append(part)
            on_event(ImagesEvent(which.start, part[0]))
    images = torch.cat([pictures for pictures, _ in parts])
    masks = [last for _, last in parts if last is not None]
    shown = torch.nn.functional.interpolate(torch.cat(masks), images.shape[-2:]) if masks else None
    return images, shown


def _forward_with_targets(
    model: Model,
    solver: Solver,
    code: LatentCode,
    targets: Conditioning,
    guidance: Guidance,
    plan: AttentionPlan | None,
    mask: Tensor | None,
    report: OnStep,
    call: Call,
    reach: Reach,
) -> tuple[Tensor, Tensor | None]:
    """Samples some sources together with their targets.

    Args:
        model, solver, code, guidance, plan, report, reach: of these sources.
        call: the arguments of the network calls.
        targets: the targets' conditions, n * K rows, those of one image next to each other.
        mask: where the targets may change on the latent, [n, K or 1, H, W], or None.

    Returns:
        Images [n, 1 + K, C, H, W] in [0, 1], and the mask of the last step [n, K, h, w], or None.
    """
    n = len(code)
    k = (targets.rows or n) // n

    def rows(x: Tensor) -> Tensor:
        return x.to(model.device).repeat_interleave(1 + k, dim=0)

    repeated = {key: rows(v) for key, v in code.state.items()}
    state = state_of(solver, repeated, code.grid, model.device, model.state_dtype)
    own = code.conditions.to(model.device)
    targets = with_facts(targets, own.cond, k)
    order = [row for i in range(n) for row in (i, *range(n + i * k, n + (i + 1) * k))]
    cond = Conditioning.cat([own.cond, targets])[order]
    kept = {key: v.to(model.device) for key, v in code.extras.items()}
    repeated_extras = {key: rows(v) for key, v in shared(kept).items()}
    conditions = PromptConditioning(cond, None if own.uncond is None else own.uncond.repeat(1 + k))
    prompts = prompts_of(conditions, code.grid, repeated_extras)
    denoise = model.guided(guidance, prompts, hold=hold_of(code), call=call)
    controlled = Controlled(PinnedSolver(solver, kept, rows=slice(0, None, 1 + k)), plan, mask, reach, n)
    with half_precision_hint(model):
        end = solve(denoise, controlled, state, code.grid, noise=stored_noise(repeated_extras), on_step=report)
    x = _sources_where_equal(controlled.read(end), own.cond, targets, code, guidance, plan)
    last = controlled.mask(end, code.grid.steps - 1, code.grid.steps, x)
    pictures = in_groups(model.decode(x), n, 1 + k)
    return pictures, None if last is None else last.expand(n, k, -1, -1)


def _sources_where_equal(
    x: Tensor,
    sources: Conditioning,
    targets: Conditioning,
    code: LatentCode,
    guidance: Guidance,
    plan: AttentionPlan | None,
) -> Tensor:
    """Replaces each target whose condition equals its source's by the source's sample.

    Equal rows of one batch can differ in their last bits, and guidance amplifies the difference. A source that is
    pinned to its inversion is no sample of its own condition, so its targets stay; so do targets with weighted words,
    and targets beside an exact code that was made for another guidance.

    Args:
        x: the samples [N (1 + K), ...].
        sources, targets: conditions, N and N * K rows.
        code: the sources' code.
        guidance: of sampling, without an embedded scale.
        plan: of attention control, or None.
    """
    n = len(code)
    k = (targets.rows or n) // n
    own = replace(Guidance.of(code.guidance), embedded=None)
    replayed = code.method in REVERSIBLE and own.options == guidance.options
    if pinned(code.extras) and not replayed:
        return x
    rows = in_groups(x, n, 1 + k).clone()
    both = Conditioning.cat([sources, targets]).tensors.values()  # padded alike
    for i in range(n):
        for j in range(k):
            same = all(bool(torch.equal(tensor[n + i * k + j], tensor[i])) for tensor in both)
            if same and (plan is None or plan.scales is None or bool((plan.scales[i, j] == 1).all())):
                rows[i, 1 + j] = rows[i, 0]
    return torch.flatten(rows, 0, 1)


def with_facts(targets: Conditioning, sources: Conditioning, times: int) -> Conditioning:
    """Returns the targets' conditions with what they take from their source, such as its size.

    Args:
        targets: N K rows, of which ``CONTENT`` is kept.
        sources: N rows.
        times: the number of targets K of each source.
    """
    facts = {name: t.repeat_interleave(times, 0) for name, t in sources.tensors.items() if name not in CONTENT}
    chosen = {name: t for name, t in targets.tensors.items() if name in CONTENT}
    return Conditioning({**chosen, **facts}, targets.numbers)


def _from_node(code: LatentCode, node: int) -> LatentCode:
    """Returns a code that is pinned to a trajectory as one that begins at a later node."""
    path = path_of(code.extras)
    assert path is not None
    rest = {name: v[:, node:] if name in PATHS else v for name, v in code.extras.items()}
    return replace(code, state={"x": path[:, node - 1].to(code.x)}, extras=rest, grid=code.grid.rest(node))
