"""The events that pipelines report through one callback: steps, losses, images, codes, and how the network runs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..inversion.latent_code import LatentCode


@dataclass(frozen=True)
class StepEvent:
    """A step has been completed.

    Args:
        done, total: the number of completed steps, and the number of steps in all batches together.
    """

    done: int
    total: int


@dataclass(frozen=True)
class LossEvent:
    """A method that optimizes an embedding has finished a step of the grid, or a sweep over it.

    Args:
        step: the index of the step or sweep, from 0.
        loss: the mean loss after the optimization.
    """

    step: int
    loss: float


@dataclass(frozen=True, eq=False)
class ImagesEvent:
    """The images of a batch are complete.

    Args:
        first: the index of the first image of the batch among all images.
        images: [n, C, H, W] in [0, 1]; for an edit [n, 1 + K, C, H, W], each reconstruction before its K edits (with
            M strengths its K M edits; see ``Edited``).
    """

    first: int
    images: Tensor


@dataclass(frozen=True, eq=False)
class CodeEvent:
    """The inversion of a batch is complete.

    Args:
        first: the index of the first image of the batch among all images.
        code: the code of the batch.
        batch: the number of images per batch from here on; smaller than requested if the memory was too small.
    """

    first: int
    code: LatentCode
    batch: int


@dataclass(frozen=True)
class EngineEvent:
    """The network does not run the fastest way.

    Args:
        message: a sentence that says what it does without, and why.
    """

    message: str


Event = StepEvent | LossEvent | ImagesEvent | CodeEvent | EngineEvent
OnEvent = Callable[[Event], None]
"""A function that is called with each event, in the thread that runs the pipeline."""


def silent(event: Event) -> None:
    """Ignores the event. It is the default of every pipeline."""


def engine_events(on_event: OnEvent) -> Callable[[str], None]:
    """Returns ``Call.on_engine`` for a run, which reports each sentence once."""
    told: set[str] = set()

    def on_engine(message: str) -> None:
        if message not in told:
            told.add(message)
            on_event(EngineEvent(message))

    return on_engine
