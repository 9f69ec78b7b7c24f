"""Reversible solvers: a step is a list of lifts on integers, so that it can be undone to the bit.

A lift changes one entry of the state by a function of the other entries, ``entry = scale * entry + add(others)``. With
floats, its inverse is exact only up to rounding. Here an entry is ``weight * m * 2**-k`` with an integer m. The scale
is multiplied into the weight, which depends on the solver and the grid only, and the lift itself is
``m += round(add * 2**k / weight)``. Its inverse subtracts the same integer, and integer addition does not round. The
round trip is therefore exact if the network returns the same bits for the same input.

Integer arithmetic for time-reversible dynamics is known from Levesque & Verlet 1993, J. Stat. Phys. 72, 519, and JANUS,
Rein & Tamayo 2018, MNRAS 473, 3351.
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
from ..core.late import require
from ..core.path import GaussianPath, Node
from ..core.prediction import Pair
from ..core.solve import solve_back
from .base import move

BITS = 40
"""k: an entry of weight 1 is a multiple of 2**-40."""
LARGEST = 2.0**61
"""The bound of the integers of a state. They stay below it, so that the sum of two of them still fits int64."""
COARSEST, FINEST = 2.0**20, 2.0**18
"""The largest weight, with which an entry is a multiple of 2**-20; and the inverse of the least weight, with which
entries below 8 still fit under the bound of the integers."""

Add = Callable[[Denoiser, Mapping[str, Tensor]], Tensor]
"""Computes what a lift adds to its entry, from the denoiser and the other entries as floats."""


class Lift(NamedTuple):
    """Changes one entry of the state to ``scale * entry + add(denoise, other entries)``.

    Attributes:
        key: the name of the entry.
        scale: a finite number other than 0.
        add: called with the denoiser and the other entries as floats [N, ...]. It does not get the entry itself, so
            that the inverse lift can compute the same value.
    """

    key: str
    scale: float
    add: Add


class Answer(NamedTuple):
    """The last network call of a step, from which the next step may begin; see ``ReversibleSolver.repeats``.

    Attributes:
        denoise: the denoiser that was called.
        node: the node that it was called at.
        pair: what it returned.
    """

    denoise: Denoiser
    node: Node
    pair: Pair


@dataclass(frozen=True, eq=False)
class LatticeState(Mapping[str, Tensor]):
    """The state of a reversible solver at one node of a grid. As a mapping, it contains the integers of its entries.

    Attributes:
        node: the index i of the node ``grid[i]``.
        integers: an int64 tensor [N, ...] for each entry. A ``LatentCode`` stores these.
        spacing: the spacing of each entry's lattice: the entry is ``integers[key] * spacing[key]``.
        dtype: the dtype of the entries when they are read as floats.
        answer: the last network call of the step that made this state, if the next step begins with the same call. It
            is no part of the exact state, and only saves that call.
    """

    node: int
    integers: Mapping[str, Tensor]
    spacing: Mapping[str, float]
    dtype: torch.dtype
    answer: Answer | None = None

    def __getitem__(self, key: str) -> Tensor:
        return self.integers[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.integers)

    def __len__(self) -> int:
        return len(self.integers)

    def entry(self, key: str) -> Tensor:
        """Returns one entry as floats, [N, ...]."""
        entry = (self.integers[key].to(torch.float64) * self.spacing[key]).to(self.dtype)
        # Always in the same memory layout: a network may return different last bits for another layout.
        return entry.clone(memory_format=torch.contiguous_format)

    def with_integers(self, integers: Mapping[str, Tensor]) -> "LatticeState":
        """Returns a state with other integers, at the same node and on the same lattice, without ``answer``."""
        return LatticeState(self.node, integers, self.spacing, self.dtype)


class ReversibleSolver(Solver, Inversion):
    """A solver whose steps can be undone to the bit, which makes it an inversion too.

    As an inversion, it makes a state from the image at the data end and undoes every step. Subclasses are frozen
    dataclasses. They define ``keys``, ``first``, ``lifts``, ``start`` and ``amplification``; the rest is derived.

    Attributes:
        keys: the names of the entries of the state, among them ``x``, the sample.
        rotate: the entries that are rotated after the lifts of a step: each takes the value of the next in this tuple,
            and the last takes that of the first. Empty for none.
        remedy: what a user should change if a state leaves the lattice or the range ``spread``.
        spread: the range of the root mean square of a code's x, in units of that of noise. A code outside it still
            reconstructs its image, but is not a typical sample of noise, so that it cannot be edited or interpolated.
        repeats: whether every step ends with the network call that the next step begins with, in both directions: the
            same entries at the same node. The state then carries the answer, and the next step does not ask again, as
            long as it has the same denoiser. ``nfe`` counts such a call once; a run makes one call more in all.
    """

    keys: ClassVar[tuple[str, ...]]
    rotate: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = "use weaker guidance, or fewer steps"
    spread: ClassVar[tuple[float, float]] = (0.02, 10.0)
    repeats: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    floor_db: ClassVar[float] = math.inf

    @abstractmethod
    def amplification(self, grid: Grid) -> float:
        """Returns the largest factor by which the method enlarges a disturbance over the whole inversion; 1 for none.

        A network that is not smooth enlarges it further, with every method.
        """

    @abstractmethod
    def first(self, grid: Grid) -> int:
        """Returns the first step that is a list of lifts, less than S. A code stores the state at ``grid[first]``."""

    @abstractmethod
    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns the lifts of the step from ``grid[i]`` to ``grid[i + 1]``, i >= ``first(grid)``, in their order."""

    @abstractmethod
    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Returns all entries at the data end, as floats, for the image x0 alone, [N, ...]."""

    def enter(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> Mapping[str, Tensor]:
        """Returns all entries at ``grid[i + 1]``, as floats, from x alone at ``grid[i]``, i < ``first(grid)``."""
        ahead = move(denoise(x, grid[i]), grid[i + 1])
        return dict.fromkeys(self.keys, ahead)

    def init(self, x: Tensor, grid: Grid) -> State:
        """Returns the state at ``grid[0]`` for a sample x alone, [N, ...]."""
        return {"x": x} if self.first(grid) else self.on_lattice(dict.fromkeys(self.keys, x), grid, 0)

    def solver(self) -> "ReversibleSolver":
        """Returns this solver, which also reconstructs the images."""
        return self

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Inverts images to the state at ``grid[first]``; warns if its x lies outside ``spread``."""
        denoise = problem.denoiser(problem.inversion_guidance)
        with torch.no_grad():
            state = self.from_image(denoise, x0, grid)
        state = solve_back(denoise, self, state, grid, on_step=on_step)
        assert isinstance(state, LatticeState)
        state = state.with_integers(state.integers)  # without ``answer``, which would keep the model in memory
        self._check_spread(state, grid)
        return InversionResult(state, grid, problem.prompts, {})

    def check_steps(self, grid: Grid) -> None:
        """Raises InputError if the grid has no more steps than ``first``, so that none can be inverted."""
        if grid.steps <= self.first(grid):
            raise InputError(
                f"{grid.steps} step{'s leave' if grid.steps > 1 else ' leaves'} {self.name!r} nothing to invert on "
                f"this grid; use {self.first(grid) + 1} or more.",
                parameter="steps",
            )

    def from_image(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
        """Returns the state at the data end for images [N, ...], rounded to the nearest point of the lattice.

        Raises:
            InputError: the grid has no more steps than ``first``.
        """
        self.check_steps(grid)
        return self.on_lattice(self.start(denoise, x0, grid), grid, grid.steps)

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None = None) -> State:
        """Returns the state at ``grid[i + 1]`` from the one at ``grid[i]``."""
        if i < self.first(grid):
            entries = self.enter(denoise, state["x"], grid, i)
            return self.on_lattice(entries, grid, i + 1) if i + 1 == self.first(grid) else entries
        return self._lifted(denoise, _at(state, i), grid, i, 1)

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``, i >= ``first(grid)``.

        It subtracts the integers that ``step`` added.
        """
        return self._lifted(denoise, _at(state, i + 1), grid, i, -1)

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state holds, as floats [N, ...]."""
        return state.entry("x") if isinstance(state, LatticeState) else state["x"]

    def on_lattice(
        self, entries: Mapping[str, Tensor], grid: Grid, i: int, dtype: torch.dtype | None = None
    ) -> LatticeState:
        """Makes a state on the lattice at ``grid[i]``, i >= ``first(grid)``.

        Args:
            entries: one tensor [N, ...] for each of ``keys``. Floats are rounded to the nearest point of the lattice;
                integers, such as those of a code, are used unchanged.
            grid: the grid of S + 1 nodes.
            i: the index of the node.
            dtype: the dtype in which the entries are read. By default float64 for float64 entries, else float32.

        Raises:
            NotFinite: an entry is not finite, or too large for the lattice.
        """
        spacing = _spacings(self, grid, grid.path)[i - self.first(grid)][0]
        dtype = dtype or (torch.float64 if entries["x"].dtype == torch.float64 else torch.float32)
        integers: dict[str, Tensor] = {}
        in_range: list[Tensor] = []
        for key in self.keys:
            points = entries[key]
            if points.is_floating_point():
                points = points.to(torch.float64) / spacing[key]
                in_range.append((points.abs() < LARGEST).all())
                points = points.round().to(torch.int64)
            integers[key] = points
        self._check(in_range, grid, i, list(entries.values()))
        return LatticeState(i, integers, spacing, dtype)

    def _lifted(self, denoise: Denoiser, state: LatticeState, grid: Grid, i: int, direction: int) -> LatticeState:
        """Applies the lifts of step i (``direction`` 1), or undoes them in reverse order (``direction`` -1)."""
        table, k = _spacings(self, grid, grid.path), i - self.first(grid)
        stages, lifts = table[k], self.lifts(grid, i)
        source = _rotated(self.rotate)
        ask = _Repeating(denoise, state.answer) if self.repeats else denoise
        # Undoing a step begins by undoing the rotation that ended it.
        integers = {source.get(key, key) if direction < 0 else key: state[key] for key in state}
        in_range: list[Tensor] = []
        added_floats: list[Tensor] = []
        for j in range(len(lifts))[::direction]:
            lift = lifts[j]
            # Only the lifted entry differs before and after lift j, and ``add`` does not read it. Both directions
            # therefore compute ``added`` from the same bits, divide it by the same float64 and round it alike.
            reader = LatticeState(state.node, integers, stages[j], state.dtype)
            others = {key: reader.entry(key) for key in self.keys if key != lift.key}
            added = lift.add(ask, others).to(torch.float64) / stages[j + 1][lift.key]
            integers = {**integers, lift.key: integers[lift.key] + direction * added.round().to(torch.int64)}
            in_range += [(added.abs() < LARGEST).all(), (integers[lift.key].abs() < LARGEST).all()]
            added_floats.append(added)
        self._check(in_range, grid, i + 1 if direction > 0 else grid.steps - i, added_floats)
        spacing = table[k + (direction > 0)][0]
        rotation = source if direction > 0 else {}
        integers = {key: integers[rotation.get(key, key)] for key in self.keys}
        answer = ask.answer if isinstance(ask, _Repeating) else None
        return LatticeState(state.node + direction, integers, spacing, state.dtype, answer)

    def _check_spread(self, state: State, grid: Grid) -> None:
        """Warns if the root mean square of x, relative to that of noise at its node, lies outside ``spread``."""
        node = grid[self.first(grid)]
        spread = float(self.read(state).double().square().mean().sqrt()) / math.hypot(node.alpha, node.sigma)
        low, high = self.spread
        if not low <= spread <= high:
            warnings.warn(
                f"The code of {self.name} in {grid.steps} steps reconstructs its image to the bit, but it is no latent "
                f"to edit or to interpolate: its spread is {spread:.2g} times that of noise; {self.remedy}.",
                DDIMWarning,
                stacklevel=3,
            )

    def _check(self, in_range: Sequence[Tensor], grid: Grid, step: int, floats: Sequence[Tensor]) -> None:
        """Raises NotFinite if numbers do not fit the lattice.

        NaN counts as out of range. Converted to an integer it would become a finite number, and the round trip would be
        exact although the images are meaningless.

        Args:
            in_range: for each tensor that was rounded, whether all of it fits.
            grid, step: for the message.
            floats: the numbers before rounding, which tell NaN and infinity from numbers that are too large.
        """
        if not in_range:
            return

        def error() -> NotFinite:
            finite = all(bool(torch.isfinite(f).all()) for f in floats)
            what = (
                f"The numbers of {self.name!r} grow beyond its lattice in step {step} of {grid.steps}; {self.remedy}."
                if finite
                else f"The sample is no longer finite in step {step} of {grid.steps}: the network returned NaN or "
                "infinity."
            )
            return NotFinite(what, step=step)

        require(torch.stack(list(in_range)).all(), error)


class _Repeating:
    """The denoiser of one step of a solver that ``repeats``. It does not make a first call that was made already.

    Args:
        denoise: the denoiser of the step.
        answer: the last call of the step before, which is the same as the first call of this step if it was made by
            the same denoiser: no entry that it depends on has changed. Under attention control every step has a
            denoiser of its own, and nothing is reused.
    """

    def __init__(self, denoise: Denoiser, answer: Answer | None) -> None:
        self._denoise = denoise
        self._known = answer if answer is not None and answer.denoise is denoise else None
        self.answer: Answer | None = None

    def __call__(self, x: Tensor, node: Node) -> Pair:
        known, self._known = self._known, None
        pair = known.pair if known is not None and known.node == node else self._denoise(x, node)
        self.answer = Answer(self._denoise, node, pair)
        return pair


def _rotated(rotate: Sequence[str]) -> dict[str, str]:
    """Returns, for each entry that is rotated, the entry whose value it takes."""
    return dict(zip(rotate, (*rotate[1:], *rotate[:1]), strict=True))


def _at(state: State, node: int) -> LatticeState:
    if not isinstance(state, LatticeState) or state.node != node:
        where = f"at node {state.node}" if isinstance(state, LatticeState) else "not on a lattice"
        raise InputError(f"it is {where}; this reversible step needs a state at node {node}.", parameter="state")
    return state


@lru_cache(maxsize=16)
def _spacings(solver: ReversibleSolver, grid: Grid, path: GaussianPath | None) -> list[list[dict[str, float]]]:
    """Computes the lattice spacing of every entry at every stage of every step from ``first`` on.

    The spacing is 2**-k times the running product of the scales of the lifts, in float64. Both directions read the same
    table. The products are multiplied by one power of two that centres them: a coarse spacing loses precision of the
    sample, and a fine spacing leaves less room below the bound of the integers.

    Args:
        solver: the solver.
        grid: the grid.
        path: ``grid.path``. Scales may depend on it, and equal grids, which share a result here, may differ in it.

    Returns:
        for each node, a list with the spacings by entry: before the first lift and after each lift of the step that
        starts there. The data node has one stage.

    Raises:
        InputError: the products span a larger range than the lattice has room for.
    """
    weight = dict.fromkeys(solver.keys, 1.0)
    table: list[list[dict[str, float]]] = []
    source = _rotated(solver.rotate)
    for i in range(solver.first(grid), grid.steps):
        stages = [weight]
        for lift in solver.lifts(grid, i):
            stages.append({**stages[-1], lift.key: stages[-1][lift.key] * lift.scale})
        table.append(stages)
        weight = {key: stages[-1][source.get(key, key)] for key in solver.keys}
    table.append([weight])
    every = [abs(w) for stages in table for stage in stages for w in stage.values()]
    if not (min(every) > 0 and max(every) / min(every) < COARSEST * FINEST):
        raise InputError(
            f"{grid.steps} are too many for {solver.name!r}: its scales multiply to more than its lattice can hold; "
            f"{solver.remedy}.",
            parameter="steps",
        )
    # A power of two changes no digits of the weights. The -1 moves them one bit to the coarse side, so that the widest
    # range that is allowed runs from 1 / FINEST to COARSEST.
    middle = 2.0 ** -round((math.log2(max(every)) + math.log2(min(every))) / 2 - 1)
    return [[{key: w * middle * 2.0**-BITS for key, w in stage.items()} for stage in stages] for stages in table]
