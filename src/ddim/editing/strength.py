"""Strength: how far an edit may go from its source, as a number in [0, 1]."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from .._utils.errors import InputError, is_number, is_whole
from ..core.grid import Grid


@dataclass(frozen=True)
class Reach:
    """The steps in which targets may leave their source.

    An edit of strength s acts in the last s S of S steps: the targets leave their source at the node ``begin``. The
    change of the first of these steps is multiplied by ``part``, so that the edit is a continuous function of the
    strength. At strength 0 the factor is 0, and the edit is the source.

    Attributes:
        begin: the index of the node at which the targets leave, from 0 to S - 1.
        part: the factor in [0, 1] on the change of step ``begin``.
        before: the number of steps of the strength's grid that are left out before the first of the present one.
    """

    begin: int = 0
    part: float = 1.0
    before: int = 0

    @staticmethod
    def of(strength: float, steps: int, left_out: int = 0) -> "Reach":
        """Returns the reach of a strength on a grid.

        Args:
            strength: in [0, 1].
            steps: the number of steps of the whole grid.
            left_out: how many of its first steps the present grid leaves out. A strength that needs more steps than are
                left acts in all of these.
        """
        count = max(1, math.ceil(strength * steps - 1e-9))
        whole = Reach(steps - count, min(1.0, max(0.0, strength * steps - (count - 1))))
        return whole.on_rest(left_out) if whole.begin >= left_out else Reach(before=left_out)

    def on_rest(self, node: int | None = None) -> "Reach":
        """Returns the reach on the rest of the grid, from a node up to ``begin`` on; by default from ``begin`` on."""
        first = self.begin if node is None else node
        return Reach(self.begin - first, self.part, self.before + first)

    def factor(self, i: int) -> float:
        """Returns the factor on the change of step i."""
        return 0.0 if i < self.begin else self.part if i == self.begin else 1.0

    def elapsed(self, i: float, steps: int) -> float:
        """Returns how much of the edit is done before step i of ``steps``, in [0, 1].

        The edit is ``strength * S`` steps long, of which the first counts in part.
        """
        done = max(0.0, i - self.begin - (1 - self.part))
        return done / max(steps - self.begin - (1 - self.part), 1e-9)

    def inside(self, i: int, steps: int, start: float, stop: float) -> float:
        """Returns the fraction of step i that lies in the window from ``start`` to ``stop`` of the edit.

        Args:
            i: the step, of ``steps``.
            steps: the number of steps of the grid.
            start, stop: fractions of the edit's length, in [0, 1].
        """
        begin, end = self.elapsed(i, steps), self.elapsed(i + 1, steps)
        shared = min(end, stop) - max(begin, start)
        return min(1.0, max(0.0, shared / (end - begin))) if end > begin else float(start <= begin < stop)


WHOLE = Reach()


def needed(strength: float | None, grid: Grid) -> tuple[Grid, int]:
    """Returns the last steps of a grid, which an edit of a strength needs, and the number of steps before them.

    Without a strength these are all steps.
    """
    left_out = 0 if strength is None else Reach.of(strength, grid.steps).begin
    return grid.rest(left_out), left_out


def checked_strength(strength: Any) -> float | None:
    """Returns the strength. Raises InputError if it is not None and not a number in [0, 1]."""
    if strength is not None and not (is_number(strength) and 0 <= strength <= 1):
        raise InputError(
            f"{strength!r} lies outside [0, 1]; 0 is the source, 1 is the edit at full strength.", parameter="strength"
        )
    return None if strength is None else float(strength)


def checked_strengths(strength: Any) -> tuple[float | None, ...]:
    """Returns one strength or None as a tuple of one, and a list of strengths as a tuple.

    Raises:
        InputError: a strength is not a number in [0, 1], or the list is empty.
    """
    if strength is None or is_number(strength) or isinstance(strength, str) or not isinstance(strength, Iterable):
        return (checked_strength(strength),)
    listed = [float(one) if is_number(one) else one for one in cast("Iterable[Any]", strength)]
    if not listed or None in listed:
        raise InputError(f"{listed} names no strengths; write for example [0, 0.5, 1].", parameter="strength")
    return tuple(checked_strength(one) for one in listed)


def even_strengths(count: int, most: float | None = None) -> list[float]:
    """Returns evenly spaced strengths from 0 to ``most``, which is 1 by default, for a film of an edit.

    Raises:
        InputError: ``count`` is not a whole number of 2 or more, or ``most`` is 0 or no strength.
    """
    if not is_whole(count) or count < 2:
        raise InputError(f"{count!r} is not a number of strengths from 0 on; use 2 or more.", parameter="sweep")
    end = 1.0 if most is None else checked_strength(most) or 0.0
    if end == 0:
        raise InputError("0 leaves nothing to sweep over; use a number above 0, or leave it out.", parameter="strength")
    return [end * k / (count - 1) for k in range(count)]
