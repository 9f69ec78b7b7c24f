"""ProxNPI: negative-prompt inversion whose edits are sampled under proximal guidance."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from ..core.guidance import Guidance, Proximal
from .extras import ANCHOR
from .negative_prompt import NegativePrompt


@dataclass(frozen=True)
class ProxNPI(NegativePrompt):
    """Negative-prompt inversion with proximal guidance for its edits (Han et al. 2024, section 3.2).

    The inversion is that of ``negative-prompt``. The code stores the settings of proximal guidance, with which an edit
    is led away from the source prompt only where the two predictions differ most, and the image, towards which the rest
    is pulled in the last steps (see ``Proximal``). For the source both predictions are the same, so that all of it is
    pulled, and comes back better than by ``negative-prompt``. If the guidance that is asked for has its own proximal
    settings, these are used.

    Args:
        toward_empty: as for ``negative-prompt``.
        kind: ``"l0"`` or ``"l1"``, the kind of ``Proximal``.
        quantile: in (0, 1), the quantile of ``Proximal``. The authors' default is 0.7.
        pull, until, dilation: reconstruction guidance, as in ``Proximal``. The authors' defaults are 0.1, t < 400 of
            1000, and no dilation; 1 is what PnPInversion, a benchmark of methods, runs it with.

    Raises:
        InputError: an option is unknown or out of range.
    """

    kind: str = "l0"
    quantile: float = 0.7
    pull: float = 0.1
    until: float = 0.4
    dilation: int = 1

    name: ClassVar[str] = "prox-npi"
    keeps: ClassVar[tuple[str, ...]] = (ANCHOR,)
    paper: ClassVar[str] = "Han et al. 2024, arXiv 2306.05414"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._proximal()

    def _proximal(self) -> Proximal:
        return Proximal(self.kind, self.quantile, self.pull, self.until, self.dilation)

    @property
    def stores(self) -> tuple[str, ...]:
        """The image, if edits are pulled to it."""
        return self.keeps if self.pull else ()

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the result of ``NegativePrompt``, and beside it x0, if edits are pulled to it."""
        done = super().run(problem, x0, grid, on_step)
        return done._replace(extras={ANCHOR: x0[:, None]}) if self.pull else done

    def sampling_guidance(self, guidance: Guidance) -> Guidance:
        """Returns the guidance with the method's proximal settings, unless it has its own."""
        return guidance if guidance.proximal is not None else replace(guidance, proximal=self._proximal())
