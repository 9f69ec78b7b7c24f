"""A model that counts how often its network is asked, and tells a lack of memory there from any other."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from .._utils.errors import NetworkMemory, out_of_memory
from ..core.conditioning import Conditioning
from ..core.denoiser import Call
from ..core.path import Node
from .base import Model
from .wrapped import ModelWrapper


class Counted(ModelWrapper):
    """A model that counts how often its network is asked; everything else is the model's own."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.evaluations = 0

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """The model's, counted: one for each image it is asked about."""
        self.evaluations += len(x)
        with _network_memory(len(x)):
            return self.model.forward(x, node, cond, call)

    def encode(self, images: Tensor) -> Tensor:
        """The model's."""
        with _network_memory(len(images)):
            return self.model.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """The model's."""
        with _network_memory(len(x0)):
            return self.model.decode(x0)

    def calls(self, images: int) -> float:
        """Network calls an image since the last time this was asked."""
        value, self.evaluations = self.evaluations / images, 0
        return int(value) if value == int(value) else round(value, 2)


@contextmanager
def _network_memory(rows: int) -> Iterator[None]:
    """Tells a network's lack of memory, which smaller batches mend, from any other."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise NetworkMemory(rows) from error
