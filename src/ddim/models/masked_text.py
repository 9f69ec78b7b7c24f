"""The part that flow models share whose prompts keep their own numbers of tokens (Qwen-Image, Z-Image)."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.silence import quiet
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning
from ..core.denoiser import aligned
from ..editing.tokens import Tokens, tokens_within
from .flow import FlowModel
from .tokens import warn_if_cut

_SHOWN = 32
"""The number of tokens in the prompt that the network's shapes are checked with."""


class MaskedTextModel(FlowModel):
    """A flow model whose text encoder reads each prompt inside a template and embeds as many tokens as it finds there.

    Prompts of different lengths stand in one batch: shorter ones are padded, and ``text_mask`` is true for the tokens
    of the prompt, which always come first. The network never sees the padding. Without attention control it is called
    for one row at a time, because the last bits of its output would otherwise depend on the lengths of the other
    prompts in the batch. An exact method therefore reconstructs an image to the bit from any part of a code. A network
    of this size is busy with one image, so that larger calls would hardly be faster.
    """

    conditions: ClassVar[tuple[str, ...]] = (TEXT, TEXT_MASK)
    capturable: ClassVar[bool] = False
    most_tokens: ClassVar[int] = 512
    """The largest number of embedded tokens, the default ``max_sequence_length`` of the pipelines."""

    # --- what a family states ---------------------------------------------------------------------------------------

    @abstractmethod
    def template(self) -> tuple[str, str, int]:
        """Returns what stands before and after a prompt, and how many tokens at the start are not embedded."""

    @abstractmethod
    def encode_one(self, prompt: str) -> Tensor:
        """Encodes one prompt as the family's pipeline does, [L, D]."""

    @abstractmethod
    def text_width(self) -> tuple[int, int]:
        """Returns the sizes of the embedding that the text encoder makes and that the network takes."""

    @abstractmethod
    def call_rows(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        lengths: Sequence[int],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a network of this family for a batch.

        Args:
            network, x, timestep, control: see ``call_network``.
            text: the padded embeddings, [N, L, D].
            lengths: the number of tokens of each prompt, at most L.

        Returns:
            [N, C, H, W].
        """

    # --- calls ------------------------------------------------------------------------------------------------------

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a network for one row after the other, or for all rows if attention control relates them."""
        text, mask = conditions[TEXT], conditions[TEXT_MASK]
        lengths: list[int] = [text.shape[1]] * len(x) if mask.is_meta else [int(n) for n in mask.sum(1).tolist()]
        if control is not None:
            return self.call_rows(network, x, timestep, text, lengths, control)
        rows = [
            self.call_rows(network, aligned(x[i : i + 1]), timestep, aligned(text[i : i + 1, :n]), [n], None)
            for i, n in enumerate(lengths)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of ``text`` and ``text_mask`` for one prompt of 32 tokens."""
        made, taken = self.text_width()
        self.check_width(made, taken)
        return {TEXT: (1, _SHOWN, taken), TEXT_MASK: (1, _SHOWN)}

    # --- prompts ----------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D] and ``text_mask`` [N, L]. Each prompt is encoded by itself.

        Warns (DDIMWarning) if a prompt is too long, and says where it is cut.
        """
        for prompt in prompts:
            warn_if_cut(self.tokens(prompt), self.tokenizer, self.name)
        with torch.no_grad(), quiet():
            texts = [self.encode_one(prompt).to(self.state_dtype) for prompt in prompts]
        masks = [torch.ones(1, len(text), dtype=torch.bool, device=text.device) for text in texts]
        return Conditioning.cat(
            Conditioning({TEXT: text.unsqueeze(0), TEXT_MASK: mask}) for text, mask in zip(texts, masks, strict=True)
        )

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that are embedded, those of the template among them, and the positions of the words."""
        before, after, dropped = self.template()
        with quiet():
            return tokens_within(self.tokenizer, prompt, before, after, dropped=dropped, length=self.most_tokens)

    def longest_prompt(self) -> int:
        """Returns the largest number of tokens in a prompt that leaves the template whole."""
        before, after, dropped = self.template()
        around = sum(len(self.tokenizer(text, verbose=False).input_ids) for text in (before, after) if text)
        return self.most_tokens + dropped - around
