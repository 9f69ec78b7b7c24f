"""Samples sources beside their targets: the edits by prompt-to-prompt, and by classes."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._utils.tensors import in_groups
from ..core.conditioning import Conditioning, PromptConditioning, equal_rows
from ..core.contracts import OnStep, Solver
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.solve import solve
from ..editing.controlled import Controlled
from ..editing.plan import AttentionPlan
from ..editing.strength import Reach
from ..inversion.extras import PATHS, anchor_of, path_of, pinned, shared
from ..inversion.latent_code import LatentCode
from ..inversion.replay import PinnedSolver, prompts_of, state_of, stored_noise
from ..models.base import Model
from ..solvers import REVERSIBLE
from .common import half_precision_hint, hold_of
from .events import engine_events
from .target_batches import Made, TargetBatches, with_facts


@dataclass(frozen=True, eq=False)
class Beside:
    """Samples each of N sources together with its K targets, whose attention may follow it.

    Attributes:
        model: the model.
        solver: samples the sources and the targets.
        code: of all sources.
        targets: the targets' conditions, N * K rows, those of one image next to each other.
        guidance: of sampling.
        plan: of attention control, or None.
        mask: where the targets may change on the latent, [N, K or 1, H, W], on the model's device, or None.
        batches: how many sources and targets are sampled at once, and what is reported.
    """

    model: Model
    solver: Solver
    code: LatentCode
    targets: Conditioning
    guidance: Guidance
    plan: AttentionPlan | None
    mask: Tensor | None
    batches: TargetBatches

    def __call__(self, reach: Reach) -> Made:
        """Samples all sources and targets.

        Args:
            reach: the steps in which the targets may leave their source. A pinned source begins at the first of them.
        """
        if reach.begin and path_of(self.code.extras) is not None:
            return replace(self, code=_from_node(self.code, reach.begin))(reach.on_rest())
        grid, call = self.code.grid, Call(on_engine=engine_events(self.batches.on_event))

        def make(sources: slice, report: OnStep) -> Made:
            return self._of(sources)._sampled(reach, report, call)

        with nullcontext() if self.plan is None else self.model.controlled():
            return self.batches.run(grid.steps - self.solver.first(grid), make)

    def _of(self, sources: slice) -> "Beside":
        """Returns the same for some of the sources."""
        return replace(
            self,
            code=self.code[sources],
            targets=self.targets[self.batches.targets_of(sources)],
            plan=None if self.plan is None else self.plan[sources],
            mask=None if self.mask is None else self.mask[sources],
        )

    def _sampled(self, reach: Reach, report: OnStep, call: Call) -> Made:
        """Samples all sources and targets in one batch.

        Args:
            reach: the steps in which the targets may leave their source.
            report: called after each step.
            call: the arguments of the network calls.
        """
        model, solver, code, device = self.model, self.solver, self.code, self.model.device
        n, k = len(code), self.batches.many

        def rows(x: Tensor) -> Tensor:
            return x.to(device).repeat_interleave(1 + k, dim=0)

        repeated = {key: rows(v) for key, v in code.state.items()}
        state = state_of(solver, repeated, code.grid, device, model.state_dtype)
        own = code.conditions.to(device)
        targets = with_facts(self.targets, own.cond, k)
        order = [row for i in range(n) for row in (i, *range(n + i * k, n + (i + 1) * k))]
        cond = Conditioning.cat([own.cond, targets])[order]
        kept = {key: v.to(device) for key, v in code.extras.items()}
        repeated_extras = {key: rows(v) for key, v in shared(kept).items()}
        conditions = PromptConditioning(cond, None if own.uncond is None else own.uncond.repeat(1 + k))
        prompts = prompts_of(conditions, code.grid, repeated_extras)
        anchor = anchor_of(repeated_extras)
        denoise = model.guided(self.guidance, prompts, hold=hold_of(code), call=call, anchor=anchor)
        pinning = PinnedSolver(solver, kept, rows=slice(0, None, 1 + k))
        controlled = Controlled(pinning, self.plan, self.mask, reach, n)
        with half_precision_hint(model):
            end = solve(denoise, controlled, state, code.grid, noise=stored_noise(repeated_extras), on_step=report)
        x = self._sources_where_equal(controlled.read(end), own.cond, targets)
        last = controlled.mask(end, code.grid.steps - 1, code.grid.steps, x)
        return in_groups(model.decode(x), n, 1 + k), None if last is None else last.expand(n, k, -1, -1)

    def _sources_where_equal(self, x: Tensor, sources: Conditioning, targets: Conditioning) -> Tensor:
        """Replaces each target whose condition equals its source's by the source's sample.

        Equal rows of one batch can differ in their last bits, and guidance amplifies the difference. A source that is
        pinned to its inversion is no sample of its own condition, so its targets stay; so do targets with weighted
        words, and targets beside an exact code that was made for another guidance.

        Args:
            x: the samples [N (1 + K), ...].
            sources, targets: conditions, N and N * K rows.
        """
        code, plan, n, k = self.code, self.plan, len(self.code), self.batches.many
        own = replace(Guidance.of(code.guidance), embedded=None)
        replayed = code.method in REVERSIBLE and own.options == self.guidance.options
        if pinned(code.extras) and not replayed:
            return x
        rows = in_groups(x, n, 1 + k).clone()
        same = in_groups(equal_rows(sources.repeat(k), targets), n, k)
        if plan is not None and plan.scales is not None:
            same = same & (plan.scales == 1).flatten(2).all(2).to(same.device)
        rows[:, 1:] = torch.where(same.view(n, k, *[1] * (x.ndim - 1)), rows[:, :1], rows[:, 1:])
        return torch.flatten(rows, 0, 1)


def _from_node(code: LatentCode, node: int) -> LatentCode:
    """Returns a code that is pinned to a trajectory as one that begins at a later node."""
    path = path_of(code.extras)
    assert path is not None
    rest = {name: v[:, node:] if name in PATHS else v for name, v in code.extras.items()}
    return replace(code, state={"x": path[:, node - 1].to(code.x)}, extras=rest, grid=code.grid.rest(node))
