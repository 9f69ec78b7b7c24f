"""The part that families share whose guidance keeps the lengths of the conditional output (Qwen-Image, Lumina 2)."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import PLAIN, Call, ModelDenoiser
from ..core.guidance import Guidance, Prompts
from ..core.path import Node
from ..core.prediction import Hold
from .flow import FlowModel
from .info import ModelInfo


class KeptLengths(FlowModel):
    """A flow model whose guided output has, part by part, the length of the output without guidance.

    The parts are the rows of the output, its numbers at one height of one channel, unless a family overrides
    ``grouped``. ``Guidance.rescale`` has no effect and is an error.
    """

    part: ClassVar[str]
    """What keeps its length, for errors: ``"token"`` or ``"row"``."""

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        return replace(super().read_info(name, device, dtype), rescales=False)

    def grouped(self, x: Tensor) -> Tensor:
        """Returns x [N, C, h, w] as [N, ..., P], whose last dimension is one part each."""
        return x

    def ungrouped(self, parts: Tensor, like: Tensor) -> Tensor:
        """Inverts ``grouped`` for an output in the shape of ``like``."""
        return parts

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """Combines the two branches of guidance: u + w (c - u), with each part scaled to its length in c.

        Raises:
            InputError: ``guidance.rescale`` is not 0.
        """
        self._refuse_rescale(guidance)
        mixed, like = self.grouped(super().combine(cond, uncond, guidance, node)), self.grouped(cond)
        lengths = like.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return self.ungrouped(mixed * lengths, cond)

    def guided(
        self,
        guidance: Guidance,
        prompts: Prompts,
        *,
        hold: Hold | None = None,
        call: Call = PLAIN,
        anchor: Tensor | None = None,
    ) -> ModelDenoiser:
        """Returns a denoiser; see ``Model.guided``. Raises InputError if ``guidance.rescale`` is not 0."""
        self._refuse_rescale(guidance)
        return super().guided(guidance, prompts, hold=hold, call=call, anchor=anchor)

    def _refuse_rescale(self, guidance: Guidance) -> None:
        if guidance.rescale:
            raise InputError(
                f"{guidance.rescale:g} would have no effect, because the guidance of {self.name!r} gives each "
                f"{self.part} its length without guidance; use 0.",
                parameter="rescale",
            )
