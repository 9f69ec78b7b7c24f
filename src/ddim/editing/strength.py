"""Strength: how far an edit may go from its source, as a number in [0, 1]."""

import math
from dataclasses import dataclass

from .._utils.errors import InputError, is_number


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
    def of(strength: float, steps: int) -> "Reach":
        """Returns the reach of a strength on a grid of ``steps`` steps."""
        count = max(1, math.ceil(strength * steps - 1e-9))
        return Reach(steps - count, min(1.0, max(0.0, strength * steps - (count - 1))))

    def on_rest(self) -> "Reach":
        """Returns the reach on the rest of the grid, from the node ``begin`` on."""
        return Reach(0, self.part, self.before + self.begin)

    def factor(self, i: int) -> float:
        """Returns the factor on the change of step i."""
        return 0.0 if i < self.begin else self.part if i == self.begin else 1.0


WHOLE = Reach()


def checked_strength(strength: float | None) -> float | None:
    """Returns the strength. Raises InputError if it is not None and not a number in [0, 1]."""
    if strength is not None and not (is_number(strength) and 0 <= strength <= 1):
        raise InputError(
            f"{strength!r} lies outside [0, 1]; 0 is the source, 1 is the edit at full strength.", parameter="strength"
        )
    return None if strength is None else float(strength)
