"""A base class for models that wrap another model and change some of its methods."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..core.conditioning import Conditioning, PromptConditioning
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.path import Node
from ..data.images import ImageLike
from ..editing.plan import AttentionSite
from ..editing.tokens import PromptTokens
from .base import Model


class ModelWrapper(Model):
    """A model that forwards everything to another model.

    A subclass overrides ``forward``, ``encode`` or ``decode``, for example to count calls.

    Args:
        model: the model to wrap.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.info, self.schedule = model, model.info, model.schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def fingerprint(self) -> str:
        """The wrapped model's fingerprint."""
        return self.model.fingerprint

    @property
    def adapters(self) -> str:
        """The wrapped model's active LoRA adapters."""
        return self.model.adapters

    @property
    def reference(self) -> Tensor | None:
        """The wrapped model's reference picture."""
        return self.model.reference

    @reference.setter
    def reference(self, picture: ImageLike | None) -> None:
        self.model.reference = picture

    @property
    def engine(self) -> str:
        """How the wrapped model's network computes."""
        return self.model.engine

    @property
    def tf32(self) -> bool | None:  # type: ignore[override]
        """The wrapped model's setting."""
        return self.model.tf32

    @property
    def low_memory(self) -> bool:  # type: ignore[override]
        """The wrapped model's setting."""
        return self.model.low_memory

    @property
    def whole_timesteps(self) -> bool:
        """Whether the wrapped model's network takes only whole timesteps."""
        return self.model.whole_timesteps

    @property
    def quantised(self) -> Sequence[str]:
        """The wrapped model's quantised layers."""
        return self.model.quantised

    def row_work(self, shape: Sequence[int] | None = None) -> float | None:
        """Estimates the work of the wrapped model's network."""
        return self.model.row_work(shape)

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the wrapped model's network."""
        return self.model.forward(x, node, cond, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """Combines the two branches of guidance as the wrapped model does."""
        return self.model.combine(cond, uncond, guidance, node)

    def guidance_of(self, guidance_scale: float) -> Guidance:
        """Translates a pipeline's guidance scale as the wrapped model does."""
        return self.model.guidance_of(guidance_scale)

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Makes the conditions with the wrapped model."""
        return self.model.condition(labels, count, prompts, negative, size)

    def tokens(self, prompt: str) -> PromptTokens:
        """Tokenizes a prompt with the wrapped model."""
        return self.model.tokens(prompt)

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts with the wrapped model."""
        return self.model.encode_prompt(prompts, size)

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """Lists the wrapped model's attention layers."""
        return self.model.attention_sites()

    def feature_sites(self) -> tuple[str, ...]:
        """Names the wrapped model's modules whose features can be taken over."""
        return self.model.feature_sites()

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Enables attention control in the wrapped model."""
        with self.model.controlled():
            yield

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images with the wrapped model."""
        return self.model.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """Decodes x0 with the wrapped model."""
        return self.model.decode(x0)

    def describe(self) -> dict[str, Any]:
        """Describes the wrapped model."""
        return self.model.describe()
