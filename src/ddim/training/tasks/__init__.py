"""What can be trained: a file each, and a line here. The loop knows nothing of what it trains."""

from ..config import TrainConfig
from .autoencoder import AutoencoderTask
from .base import Task
from .classifier import ClassifierTask
from .pixel import PixelTask
from .text import TextTask

TASKS: dict[str, type[Task]] = {
    "pixel": PixelTask,
    "autoencoder": AutoencoderTask,
    "text": TextTask,
    "classifier": ClassifierTask,
}


def make_task(config: TrainConfig) -> Task:
    """The task that ``config.task`` names. Raises InputError for a ``[model]`` that it cannot be."""
    return TASKS[config.task](config)


__all__ = ["TASKS", "Task", "make_task"]
