"""The code of a method that edits without an inversion: the encoded images themselves."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM


@dataclass(frozen=True)
class Encoded(ByDDIM):
    """Stores the encoded images and calls no network. Nothing can be sampled from its codes, so no registry has it.

    Args:
        editor: the name of the editor that the code is for; it is the method of the code.
    """

    editor: str

    exact: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    nfe: ClassVar[int] = 0
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the editor."""
        return self.editor

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the images as they are, as the sample x."""
        return InversionResult({"x": x0}, grid, problem.prompts, {})
