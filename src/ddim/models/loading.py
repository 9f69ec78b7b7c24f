"""How ``ddim.load`` was asked to read a model's folder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .additions import NOTHING, Additions

if TYPE_CHECKING:
    from .single_file import SingleFile


@dataclass(frozen=True)
class Loading:
    """How a model's folder is read, and what its networks compute with.

    Args:
        device: the device that they compute on.
        dtype: the dtype that they compute in.
        low_memory: as for ``ddim.load``.
        additions: LoRAs and words of textual inversion that are added to the model.
        variant: the variant of the weights that is preferred; None for full precision.
        file: a file with the weights; the folder then holds the configs. None if the folder holds both.
    """

    device: torch.device
    dtype: torch.dtype
    low_memory: bool = False
    additions: Additions = NOTHING
    variant: str | None = None
    file: "SingleFile | None" = None
