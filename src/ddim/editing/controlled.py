"""The way forward of a source with its targets: a solver under attention control and local blend."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from .blend import blended, from_maps
from .plan import AttentionPlan, within


@dataclass(frozen=True, eq=False)
class Followed(Mapping[str, Tensor]):
    """A solver's state, as which it answers, and what attention control has gathered beside it.

    Attributes:
        inner: the solver's state.
        maps: the words' cross maps, [N, K, 2, h, w], summed over the steps so far.
    """

    inner: State
    maps: Tensor | None = None

    @property
    def node(self) -> int:
        """As of a lattice's state; 0 of one that does not say where it is."""
        return getattr(self.inner, "node", 0)

    def __getitem__(self, key: str) -> Tensor:
        return self.inner[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


class Controlled(SolverWrapper):
    """A solver whose targets follow their source; its state is ``Followed``.

    Args:
        inner: the solver, or one that holds the sources on their pivots.
        plan: of attention control; None is plain editing.
        mask: of the user, [N, 1, H, W] on the latent; None lets everything change.
    """

    def __init__(self, inner: Solver, plan: AttentionPlan | None, mask: Tensor | None = None) -> None:
        super().__init__(inner)
        self.plan, self.given = plan, mask

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The inner step under control, then the blend of every tensor that it returned."""
        plan, followed = self.plan, _followed(state)
        maps = followed.maps

        def controlled(x: Tensor, node: Node) -> Pair:
            nonlocal maps
            control = AttentionController(plan, i, grid.steps) if plan is not None else None
            if control is None or control.idle:
                return denoise(x, node)
            pair = cast(ModelDenoiser, denoise)(x, node, Call(controller=control))
            seen = control.finish()
            maps = seen if maps is None else maps if seen is None else maps + seen
            return pair

        after = self.inner.step(controlled, followed.inner, grid, i, noise)
        mask = self.mask(Followed(after, maps), i, grid.steps, after["x"])
        if mask is not None:
            both = {k: blended(v, mask) for k, v in after.items()}
            after = after.with_integers(both) if isinstance(after, LatticeState) else both
        return Followed(after, maps)

    def read(self, state: State) -> Tensor:
        """As the inner one."""
        return self.inner.read(_followed(state).inner)

    def mask(self, state: State, step: int, steps: int, like: Tensor) -> Tensor | None:
        """Where the targets may differ from their source after a step, [N, K or 1, H, W]; None is everywhere.

        Words blend from a part of the steps on, when their maps have gathered; the user's mask from the first step.
        """
        words = None
        maps = _followed(state).maps
        if self.plan is not None and maps is not None and within((self.plan.edit.blend_start, 1.0), step, steps):
            words = from_maps(maps, (like.shape[2], like.shape[3]), self.plan.edit.blend_threshold)
            if self.plan.blend is not None:  # a target without words to blend by changes everywhere
                words = words.masked_fill((self.plan.blend.sum((2, 3)) == 0)[..., None, None], 1.0)
        if self.given is None or words is None:
            return words if self.given is None else self.given
        return words * self.given.to(words)


def _followed(state: State) -> Followed:
    return state if isinstance(state, Followed) else Followed(state)
