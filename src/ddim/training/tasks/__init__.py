"""The training tasks. Each has a file of its own and a line here; the training loop is the same for all."""

from ..config import TrainConfig
from .autoencoder import AutoencoderTask
from .base import Task
from .classifier import ClassifierTask
from .flow import FlowTask
from .pixel import PixelTask
from .text import TextTask

TASKS: dict[str, type[Task]] = {
    "pixel": PixelTask,
    "autoencoder": AutoencoderTask,
    "text": TextTask,
    "flow": FlowTask,
    "classifier": ClassifierTask,
}


def make_task(config: TrainConfig) -> Task:
    """Makes the task that ``config.task`` names. Raises InputError if ``[model]`` has options that do not fit it."""
    return TASKS[config.task](config)


__all__ = ["TASKS", "Task", "make_task"]
