"""A model that counts its network calls, and marks errors that mean too little memory for such a call."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from .._utils.errors import NetworkMemory, out_of_memory
from ..core.conditioning import Conditioning
from ..core.denoiser import Call
from ..core.path import Node
from .base import Model
from .wrapper import ModelWrapper


class Counted(ModelWrapper):
    """Wraps a model and counts its network calls; everything else is the wrapped model's.

    Args:
        model: the model to wrap.

    Attributes:
        evaluations: images for which the network was called since ``calls`` was last used.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.evaluations = 0

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the wrapped model's network, and counts one evaluation for each row of x."""
        self.evaluations += len(x)
        with _network_memory(len(x)):
            return self.model.forward(x, node, cond, call)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images with the wrapped model."""
        with _network_memory(len(images)):
            return self.model.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """Decodes x0 with the wrapped model."""
        with _network_memory(len(x0)):
            return self.model.decode(x0)

    def calls(self, images: int) -> float:
        """Returns the network calls per image since this method was last called, and resets the counter."""
        value, self.evaluations = self.evaluations / images, 0
        return int(value) if value == int(value) else round(value, 2)


@contextmanager
def _network_memory(rows: int) -> Iterator[None]:
    """Turns errors inside the block that mean too little memory into ``NetworkMemory``, so that callers can tell.

    A smaller batch helps against these, but not against too little memory elsewhere.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise NetworkMemory(rows) from error
