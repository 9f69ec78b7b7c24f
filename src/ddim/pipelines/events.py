"""What a pipeline tells while it works: one callback for steps, losses, images and codes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..inversion.latent_code import LatentCode


@dataclass(frozen=True)
class StepEvent:
    """A step is done.

    Args:
        done, total: steps done and steps in all, over every batch.
    """

    done: int
    total: int


@dataclass(frozen=True)
class LossEvent:
    """A method that tunes has done so at a step.

    Args:
        step: counted from 0.
        loss: what is left.
    """

    step: int
    loss: float


@dataclass(frozen=True, eq=False)
class ImagesEvent:
    """A batch has become images.

    Args:
        first: the place of its first image among all.
        images: [n, C, H, W] in [0, 1]; of an edit [n, 1 + K, C, H, W].
    """

    first: int
    images: Tensor


@dataclass(frozen=True, eq=False)
class CodeEvent:
    """A batch has been inverted.

    Args:
        first: the place of its first image among all.
        code: the batch's own.
    """

    first: int
    code: LatentCode


Event = StepEvent | LossEvent | ImagesEvent | CodeEvent
OnEvent = Callable[[Event], None]
"""Called with each event, in the thread that works."""


def silent(event: Event) -> None:
    """What is called where nobody listens."""


Progress = Callable[[int, int], None]
"""Called with how many steps are done, and how many there are."""


def steps_of(progress: Progress | None) -> OnEvent:
    """A listener that tells steps alone; nobody listens where there is no ``progress``."""

    def heard(event: Event) -> None:
        if progress is not None and isinstance(event, StepEvent):
            progress(event.done, event.total)

    return heard
