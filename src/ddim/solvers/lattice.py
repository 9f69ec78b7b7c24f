"""Reversible solvers: a step is a list of lifts, and what it moves are integers, so that it can be undone to the bit.

A lift changes one entry of the state by what the others say, ``entry = scale * entry + add(others)``. In floats its
inverse returns only to rounding. Here an entry is ``weight * m * 2**-k`` with an integer m. The scale goes into the
weight, which depends on solver and grid alone, and the lift is ``m += round(add * 2**k / weight)``. Its inverse
subtracts the very same integer, and integer addition loses nothing. What is left to ask of a network is that it answers
the same bits to the same question.

Integers against rounding in time-reversible dynamics: Levesque & Verlet 1993, J. Stat. Phys. 72, 519; JANUS, Rein &
Tamayo 2018, MNRAS 473, 3351.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, NotFinite
from ..core.contracts import Inversion, InversionProblem, InversionResult, Noise, OnStep, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.solve import solve_back
from .base import move

BITS = 40
"""k: an entry of weight 1 lies on multiples of 2**-40."""
LARGEST = 2.0**61
"""No integer of a state may be as large; the sum of two such still fits 64 bits."""
COARSEST, FINEST = 2.0**20, 2.0**18
"""The largest weight, with which an entry lies on multiples of 2**-20; and one over the least, with which an entry of 8
still has a place."""

Add = Callable[[Denoiser, Mapping[str, Tensor]], Tensor]
"""What a lift adds to its entry, from the denoiser and the other entries."""


class Lift(NamedTuple):
    """One entry becomes ``scale * itself + add(denoise, the other entries)``.

    Attributes:
        key: the entry.
        scale: finite and not 0.
        add: from the denoiser and the other entries, as floats [N, ...]; it never sees the entry itself.
    """

    key: str
    scale: float
    add: Add


@dataclass(frozen=True, eq=False)
class LatticeState(Mapping[str, Tensor]):
    """A reversible solver's state at one node of a grid.

    Attributes:
        node: i of ``grid[i]``, where the state is.
        integers: int64 tensors [N, ...], one an entry; what the mapping holds, and what a code keeps.
        spacing: of each entry's lattice: the entry is ``integers[key] * spacing[key]``.
        dtype: what the entries are read as.
    """

    node: int
    integers: Mapping[str, Tensor]
    spacing: Mapping[str, float]
    dtype: torch.dtype

    def __getitem__(self, key: str) -> Tensor:
        return self.integers[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.integers)

    def __len__(self) -> int:
        return len(self.integers)

    def entry(self, key: str) -> Tensor:
        """One entry as floats, always in one memory layout: a network may answer other bits in another."""
        entry = (self.integers[key].to(torch.float64) * self.spacing[key]).to(self.dtype)
        return entry.clone(memory_format=torch.contiguous_format)

    def with_integers(self, integers: Mapping[str, Tensor]) -> "LatticeState":
        """Other numbers of the same entries at the same node."""
        return LatticeState(self.node, integers, self.spacing, self.dtype)


class ReversibleSolver(Solver, Inversion):
    """A solver whose step can be undone to the bit, and so an inversion too: it takes the image to a whole state at the
    data end and undoes every step. Subclasses are frozen dataclasses and state a few things only.

    Attributes:
        keys: the entries of the state; ``x``, the sample, among them.
        rotate: entries that change places after the lifts of a step: each takes the next one's, the last the first's.
        remedy: what to change where a state leaves the lattice, or ``spread``.
        spread: the range that the root mean square of a code's x has in units of the noise's; outside it the code comes
            back, but is no latent of the prior.
    """

    keys: ClassVar[tuple[str, ...]]
    rotate: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "use fewer steps"
    spread: ClassVar[tuple[float, float]] = (0.02, 10.0)
    exact: ClassVar[bool] = True
    floor_db: ClassVar[float] = math.inf

    @abstractmethod
    def amplification(self, grid: Grid) -> float:
        """How far the way back may enlarge a disturbance, over the whole grid: 1 is neutral."""

    @abstractmethod
    def first(self, grid: Grid) -> int:
        """The first step that is a list of lifts, less than S. A code holds the state at ``grid[first]``."""

    @abstractmethod
    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """The step from ``grid[i]`` to ``grid[i + 1]``, i >= ``first(grid)``, in the order in which it is made."""

    @abstractmethod
    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """All entries at the data end, floats, from a lone image [N, ...]."""

    def enter(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> Mapping[str, Tensor]:
        """All entries at ``grid[i + 1]``, floats, from a lone x at ``grid[i]``, i < ``first(grid)``."""
        ahead = move(denoise(x, grid[i]), grid[i + 1])
        return dict.fromkeys(self.keys, ahead)

    def init(self, x: Tensor, grid: Grid) -> State:
        """The state at ``grid[0]`` from a lone x [N, ...]."""
        return {"x": x} if self.first(grid) else self.on_lattice(dict.fromkeys(self.keys, x), grid, 0)

    def solver(self) -> "ReversibleSolver":
        """Itself."""
        return self

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """The whole state at ``grid[first]``; a DDIMWarning where it comes back but is no latent of the prior."""
        denoise = problem.denoiser(problem.inversion_guidance)
        with torch.no_grad():
            state = self.from_image(denoise, x0, grid)
        state = solve_back(denoise, self, state, grid, on_step=on_step)
        self._check_spread(state, grid)
        return InversionResult(state, grid, problem.prompts, {})

    def from_image(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
        """The state at the data end from a lone image [N, ...], which goes to the nearest point of the lattice.

        Raises:
            InputError: a grid of no more steps than ``first``.
        """
        if grid.steps <= self.first(grid):
            raise InputError(
                f"{grid.steps} leave {self.name!r} nothing to undo on this grid; use {self.first(grid) + 1} or more.",
                parameter="steps",
            )
        return self.on_lattice(self.start(denoise, x0, grid), grid, grid.steps)

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None = None) -> State:
        """From ``grid[i]`` to ``grid[i + 1]``."""
        if i < self.first(grid):
            entries = self.enter(denoise, state["x"], grid, i)
            return self.on_lattice(entries, grid, i + 1) if i + 1 == self.first(grid) else entries
        return self._lifted(denoise, _at(state, i), grid, i, 1)

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From ``grid[i + 1]`` back to ``grid[i]``, i >= ``first(grid)``: the same integers are taken away again."""
        return self._lifted(denoise, _at(state, i + 1), grid, i, -1)

    def read(self, state: State) -> Tensor:
        """The sample, floats [N, ...]."""
        return state.entry("x") if isinstance(state, LatticeState) else state["x"]

    def on_lattice(
        self, entries: Mapping[str, Tensor], grid: Grid, i: int, dtype: torch.dtype | None = None
    ) -> LatticeState:
        """Entries at ``grid[i]``, i >= ``first(grid)``: floats go to the nearest point, integers of a code stay.

        Args:
            entries: one for each of ``keys``, [N, ...].
            grid: S + 1 nodes.
            i: the node.
            dtype: what they are read as; by default float64 for float64 entries, else float32.
        """
        spacing = _spacings(self, grid)[i - self.first(grid)][0]
        dtype = dtype or (torch.float64 if entries["x"].dtype == torch.float64 else torch.float32)
        whole: dict[str, Tensor] = {}
        fine: list[Tensor] = []
        for key in self.keys:
            points = entries[key]
            if points.is_floating_point():
                points = points.to(torch.float64) / spacing[key]
                fine.append((points.abs() < LARGEST).all())
                points = points.round().to(torch.int64)
            whole[key] = points
        self._check(fine, grid, i, list(entries.values()))
        return LatticeState(i, whole, spacing, dtype)

    def _lifted(self, denoise: Denoiser, state: LatticeState, grid: Grid, i: int, way: int) -> LatticeState:
        """The lifts of step i, made (way 1) or taken back (way -1)."""
        table, k = _spacings(self, grid), i - self.first(grid)
        stages, steps = table[k], self.lifts(grid, i)
        turned = _turned(self.rotate)
        whole = {turned.get(key, key) if way < 0 else key: state[key] for key in state}
        fine: list[Tensor] = []
        numbers: list[Tensor] = []
        for j in range(len(steps))[::way]:
            lift = steps[j]
            reader = LatticeState(state.node, whole, stages[j], state.dtype)
            others = {key: reader.entry(key) for key in self.keys if key != lift.key}
            added = lift.add(denoise, others).to(torch.float64) / stages[j + 1][lift.key]
            whole = {**whole, lift.key: whole[lift.key] + way * added.round().to(torch.int64)}
            fine += [(added.abs() < LARGEST).all(), (whole[lift.key].abs() < LARGEST).all()]
            numbers.append(added)
        self._check(fine, grid, i + 1 if way > 0 else grid.steps - i, numbers)
        spacing = table[k + (way > 0)][0]
        names = turned if way > 0 else {}
        turned_whole = {key: whole[names.get(key, key)] for key in self.keys}
        return LatticeState(state.node + way, turned_whole, spacing, state.dtype)

    def _check_spread(self, state: State, grid: Grid) -> None:
        node = grid[self.first(grid)]
        spread = float(self.read(state).double().square().mean().sqrt()) / math.hypot(node.alpha, node.sigma)
        low, high = self.spread
        if not low <= spread <= high:
            warnings.warn(
                f"The code of {self.name} in {grid.steps} steps comes back to the bit, but it is no latent to edit or "
                f"to mix: its spread is {spread:.2g} times that of noise; {self.remedy}.",
                DDIMWarning,
                stacklevel=3,
            )

    def _check(self, fine: Sequence[Tensor], grid: Grid, step: int, numbers: Sequence[Tensor]) -> None:
        """Raises where numbers have no place on the lattice, NaN among them: as an integer it would come back equal."""
        if not fine or bool(torch.stack(list(fine)).all()):
            return
        if not all(bool(torch.isfinite(n).all()) for n in numbers):
            raise NotFinite(
                f"The sample is no longer finite in step {step} of {grid.steps}: the network returned NaN or infinity.",
                step=step,
            )
        raise NotFinite(
            f"The numbers of {self.name!r} grow beyond its lattice in step {step} of {grid.steps}; {self.remedy}.",
            step=step,
        )


def _turned(rotate: Sequence[str]) -> dict[str, str]:
    """Of each entry that changes places, whose value it takes."""
    return dict(zip(rotate, (*rotate[1:], *rotate[:1]), strict=True))


def _at(state: State, node: int) -> LatticeState:
    if not isinstance(state, LatticeState) or state.node != node:
        where = f"at node {state.node}" if isinstance(state, LatticeState) else "not on a lattice"
        raise InputError(f"it is {where}; a reversible step wants it at node {node}.", parameter="state")
    return state


@lru_cache(maxsize=16)
def _spacings(solver: ReversibleSolver, grid: Grid) -> list[list[dict[str, float]]]:
    """Of every entry, for each node from ``first`` on, before the step's lifts and after each of them.

    The scales' running product, in float64 and the same both ways. It is centred, for what is lost at the coarse end is
    lost to the sample, and what is gained at the fine end is lost to the integers' room.

    Raises:
        InputError: the scales' product spans more than a lattice has room for.
    """
    weight = dict.fromkeys(solver.keys, 1.0)
    table: list[list[dict[str, float]]] = []
    turn = _turned(solver.rotate)
    for i in range(solver.first(grid), grid.steps):
        stages = [weight]
        for lift in solver.lifts(grid, i):
            stages.append({**stages[-1], lift.key: stages[-1][lift.key] * lift.scale})
        table.append(stages)
        weight = {key: stages[-1][turn.get(key, key)] for key in solver.keys}
    table.append([weight])
    every = [abs(w) for stages in table for stage in stages for w in stage.values()]
    if not (min(every) > 0 and max(every) / min(every) < COARSEST * FINEST):
        raise InputError(
            f"{grid.steps} are too many for {solver.name!r}: its scales multiply to more than a lattice has room for; "
            f"{solver.remedy}.",
            parameter="steps",
        )
    middle = 2.0 ** -round((math.log2(max(every)) + math.log2(min(every))) / 2 - 1)  # one more at the coarse end
    return [[{key: w * middle * 2.0**-BITS for key, w in stage.items()} for stage in stages] for stages in table]
