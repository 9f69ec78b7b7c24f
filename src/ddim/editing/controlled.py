"""A solver with attention control and local blend, which samples a source together with its targets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Call, Denoiser, ModelDenoiser
from ..core.grid import Grid
from ..core.path import Node
from ..core.prediction import Pair
from ..inversion.replay import SolverWrapper
from ..solvers.lattice import LatticeState
from .attention import AttentionController
from .blend import blended, from_maps, word_areas
from .plan import AttentionPlan, within
from .strength import WHOLE, Reach


@dataclass(frozen=True, eq=False)
class ControlledState(Mapping[str, Tensor]):
    """The state of a solver with the attention maps that were recorded so far. As a mapping, it is the solver's state.

    Attributes:
        inner: the state of the solver.
        maps: the cross-attention maps of the blend words, [N, K, 2, h, w], summed over the steps so far; or None.
    """

    inner: State
    maps: Tensor | None = None

    @property
    def node(self) -> int:
        """The index of the state's node; 0 for a state that does not record it."""
        return getattr(self.inner, "node", 0)

    def __getitem__(self, key: str) -> Tensor:
        return self.inner[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


class Controlled(SolverWrapper):
    """Wraps a solver, so that the targets in a batch follow their source. Its state is a ``ControlledState``.

    Args:
        inner: the solver; a ``PinnedSolver`` if the sources must stay on a pivot.
        plan: the plan of attention control; None edits without it.
        mask: where the targets may change on the latent, [N, K or 1, H, W]; None is everywhere.
        reach: the steps in which the targets may leave their source.
        images: the number of sources N.
    """

    def __init__(
        self,
        inner: Solver,
        plan: AttentionPlan | None,
        mask: Tensor | None = None,
        reach: Reach = WHOLE,
        images: int = 1,
    ) -> None:
        super().__init__(inner)
        if plan is not None and plan.edit.key_value_area == "background":
            plan = replace(plan, mask=mask)
        self.plan, self.user_mask, self.reach, self.images = plan, mask, reach, images
        self.before = reach.before  # windows of attention control count the steps that a strength leaves out

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Makes a step of the inner solver with attention control, then blends every tensor of its state."""
        controlled_state = _controlled_state(state)
        maps = controlled_state.maps
        plan = self._plan_at(maps)

        def controlled(x: Tensor, node: Node) -> Pair:
            nonlocal maps
            assert plan is not None
            control = AttentionController(plan, i + self.before, grid.steps + self.before)
            pair = cast(ModelDenoiser, denoise)(x, node, Call(controller=control))
            seen = control.finish()
            # A solver may call the network several times per step; the maps of all calls are summed.
            maps = seen if maps is None else maps if seen is None else maps + seen
            return pair

        # Outside its windows, control passes the denoiser on as it is: a solver may reuse its answers in other steps.
        idle = plan is None or AttentionController(plan, i + self.before, grid.steps + self.before).idle
        after = self.inner.step(denoise if idle else controlled, controlled_state.inner, grid, i, noise)
        mask, factor = self.mask(ControlledState(after, maps), i, grid.steps, after["x"]), self.reach.factor(i)
        if factor < 1:
            whole = after["x"].new_ones(self.images, 1, *after["x"].shape[2:])
            mask = factor * (whole if mask is None else mask.to(whole))
        if mask is not None:
            blends = {k: blended(v, mask) for k, v in after.items()}
            after = after.with_integers(blends) if isinstance(after, LatticeState) else blends
        return ControlledState(after, maps)

    def _plan_at(self, maps: Tensor | None) -> AttentionPlan | None:
        """Returns the plan of a step, with the areas of the blend words in the maps so far if they decide anything."""
        plan = self.plan
        if plan is None or maps is None or plan.edit.key_value_area != "words":
            return plan
        return replace(plan, areas=word_areas(maps, plan.size, plan.edit.blend_threshold))

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state holds, [N, ...]."""
        return self.inner.read(_controlled_state(state).inner)

    def mask(self, state: State, step: int, steps: int, like: Tensor) -> Tensor | None:
        """Returns the mask where the targets may differ from their source after a step, [N, K or 1, H, W].

        None means everywhere. The user's mask applies from the first step. The mask of the blend words applies from
        ``blend_start`` on, when enough attention maps have been recorded.

        Args:
            state: the state after the step, with the maps.
            step, steps: the index of the step, from 0, and the number of steps.
            like: the sample, [N (1 + K), C, H, W], of which only the size is used.
        """
        words = None
        maps = _controlled_state(state).maps
        if (
            self.plan is not None
            and maps is not None
            and within((self.plan.edit.blend_start, 1.0), step + self.before, steps + self.before)
        ):
            words = from_maps(maps, (like.shape[2], like.shape[3]), self.plan.edit.blend_threshold)
            if self.plan.blend is not None:  # a target without blend words may change everywhere
                words = words.masked_fill((self.plan.blend.sum((2, 3)) == 0)[..., None, None], 1.0)
        if self.user_mask is None or words is None:
            return words if self.user_mask is None else self.user_mask
        return words * self.user_mask.to(words)


def _controlled_state(state: State) -> ControlledState:
    """Returns the state itself, or at the first step a ``ControlledState`` without maps."""
    return state if isinstance(state, ControlledState) else ControlledState(state)
