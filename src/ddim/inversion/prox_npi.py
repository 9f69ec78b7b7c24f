"""ProxNPI: negative-prompt inversion whose edits are sampled under proximal guidance."""

from dataclasses import dataclass, replace
from typing import ClassVar

from ..core.guidance import Guidance, Proximal
from .negative_prompt import NegativePrompt


@dataclass(frozen=True)
class ProxNPI(NegativePrompt):
    """Negative-prompt inversion with proximal guidance for its edits (Han et al. 2024, section 3.2).

    The inversion is that of ``negative-prompt``, and so is the reconstruction: both branches of guidance predict the
    same for the source, so that there is no difference to reduce. The code stores the settings of proximal guidance,
    with which an edit is led away from the source prompt only where the two predictions differ most (see ``Proximal``).
    If the guidance that is asked for has its own proximal settings, these are used.

    The paper also pulls the x0 of an edit towards the source outside of these places, in the last steps. That part,
    "reconstruction guidance", is not included.

    Args:
        toward_empty: as for ``negative-prompt``.
        kind: ``"l0"`` or ``"l1"``, the kind of ``Proximal``.
        quantile: in (0, 1), the quantile of ``Proximal``. The authors' default is 0.7.

    Raises:
        InputError: an option is unknown or out of range.
    """

    kind: str = "l0"
    quantile: float = 0.7

    name: ClassVar[str] = "prox-npi"
    paper: ClassVar[str] = "Han et al. 2024, arXiv 2306.05414"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._proximal()

    def _proximal(self) -> Proximal:
        return Proximal(self.kind, self.quantile)

    def sampling_guidance(self, guidance: Guidance) -> Guidance:
        """Returns the guidance with the method's proximal settings, unless it has its own."""
        return guidance if guidance.proximal is not None else replace(guidance, proximal=self._proximal())
