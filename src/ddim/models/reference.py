"""The part that flow models share whose network can look at a reference picture (FLUX.1 Kontext, FLUX.2 klein)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import REFERENCE, PromptConditioning
from ..data.images import ImageLike, read_images
from .flow import FlowModel
from .info import ModelInfo


class ReferenceModel(FlowModel):
    """A flow model whose network can look at a reference picture.

    Set ``reference`` to a picture, and all conditions that the model makes contain its latents. A code stores them, so
    that it can be reconstructed and edited without setting them again.
    """

    _reference: Tensor | None = None

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        return replace(super().read_info(name, device, dtype), optional_conditions=(REFERENCE,))

    @property
    def reference(self) -> Tensor | None:
        """The latents of the reference picture, [1, C, h, w], or None.

        Set it to a picture (a path, a PIL image or a tensor in [0, 1]) that all images share, or to None for no
        reference. The picture may have another size than the images. It is never resized: its sides must be multiples
        of ``multiple``.

        Raises:
            InputError: the picture cannot be read, has another size or number of channels, or there are several.
        """
        return self._reference

    @reference.setter
    def reference(self, picture: ImageLike | None) -> None:
        if picture is None:
            self._reference = None
            return
        try:
            pixels = read_images(picture, self.picture, multiple=self.multiple)
        except InputError as error:
            raise InputError(error.message, parameter="reference") from None
        if len(pixels) != 1:
            raise InputError(f"{len(pixels)} pictures were given; the images share one.", parameter="reference")
        self._reference = self.encode(pixels)

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Makes the conditions of both branches, with ``reference`` [count, C, h, w] if one is set."""
        both = super().condition(labels, count, prompts, negative, size)
        if self._reference is None:
            return both
        rows = {REFERENCE: self._reference.repeat(count, 1, 1, 1)}
        return PromptConditioning(
            both.cond.replace(**rows), None if both.uncond is None else both.uncond.replace(**rows)
        )
