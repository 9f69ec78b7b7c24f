"""A model around another: the same in everything but what a subclass changes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..core.conditioning import Conditioning, PromptConditioning
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.path import Node
from ..editing.plan import AttentionSite
from ..editing.tokens import Tokens
from .base import Model


class ModelWrapper(Model):
    """Delegates to ``model``; a subclass overrides ``forward``, ``encode`` or ``decode`` to watch or to stand in."""

    def __init__(self, model: Model) -> None:
        self.model, self.info, self.schedule = model, model.info, model.schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return self.model.fingerprint

    @property
    def adapters(self) -> str:
        """The model's."""
        return self.model.adapters

    @property
    def engine(self) -> str:
        """The model's."""
        return self.model.engine

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """The model's."""
        return self.model.forward(x, node, cond, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """The model's."""
        return self.model.combine(cond, uncond, guidance, node)

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """The model's."""
        return self.model.condition(labels, count, prompts, negative, size)

    def tokens(self, prompt: str) -> Tokens:
        """The model's."""
        return self.model.tokens(prompt)

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """The model's."""
        return self.model.encode_prompt(prompts, size)

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """The model's."""
        return self.model.attention_sites()

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """The model's."""
        with self.model.controlled():
            yield

    def encode(self, images: Tensor) -> Tensor:
        """The model's."""
        return self.model.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """The model's."""
        return self.model.decode(x0)

    def describe(self) -> dict[str, Any]:
        """The model's."""
        return self.model.describe()
