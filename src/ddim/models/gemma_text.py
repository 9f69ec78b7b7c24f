"""The part that flow models share whose prompts, behind an instruction, are embedded by Gemma 2 (Lumina 2, Sana)."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.silence import quiet
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning
from ..editing.tokens import Tokens, tokens_within
from .masked_text import MaskedTextModel
from .tokens import warn_if_cut


class GemmaTextModel(MaskedTextModel):
    """A flow model whose pipeline puts an instruction before each prompt, and none before a negative prompt.

    The same text is therefore another condition as a negative prompt than as a prompt: ``encode_prompt`` encodes
    prompts, and ``encode_negative`` a negative one. A prompt that is the empty text is still the instruction.

    The tokenizer and its ``padding_side``, which some pipelines set in each call, are not changed here.
    """

    @abstractmethod
    def instruction(self) -> str:
        """Returns the text before each prompt."""

    @abstractmethod
    def embedded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the language model's embeddings [1, L, D] of tokens [1, L] and their mask [1, L]."""

    def cleaned(self, prompt: str) -> str:
        """Returns a prompt as the pipeline writes it before it is tokenized; by default as it is."""
        return prompt

    def encode_text(self, text: str, length: int) -> Tensor:
        """Encodes a text that is padded, or cut, to ``length`` tokens. Returns only the tokens of the text, [L, D]."""
        with torch.no_grad(), quiet():
            read = self.tokenizer(
                [text],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
                padding_side="right",
            )
            where = self.pipeline._execution_device
            states = self.embedded(read.input_ids.to(where), read.attention_mask.to(where))
        return states[0, : int(read.attention_mask.sum())].to(self.pipeline.text_encoder.dtype)

    def encode_negative(self, negative: str) -> Conditioning:
        """Encodes a negative prompt, which stands behind no instruction, to ``text`` [1, L, D] and ``text_mask``.

        Warns (DDIMWarning) if it is too long, and says where it is cut.
        """
        text = self.cleaned(negative)
        warn_if_cut(self._tokens_after("", text), self.tokenizer, self.name)
        embedded = self.encode_text(text, self.most_tokens).to(self.state_dtype)
        mask = torch.ones(1, len(embedded), dtype=torch.bool, device=embedded.device)
        return Conditioning({TEXT: embedded.unsqueeze(0), TEXT_MASK: mask})

    def encode_branches(
        self, prompts: Sequence[str], negative: str | None, size: tuple[int, int] | None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Encodes prompts and a negative prompt; see ``PipelineModel.encode_branches``."""
        cond, _ = super().encode_branches(prompts, None, size)
        if negative is None:
            return cond, None
        both = Conditioning.cat([cond, self.encode_negative(negative)])  # padded to one length
        return both[: len(prompts)], both[[len(prompts)] * len(prompts)]

    def template(self) -> tuple[str, str, int]:
        """Returns the instruction, which stands before a prompt; by default all of its tokens are embedded."""
        return self.instruction(), "", 0

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that are embedded, those of the instruction among them; see ``MaskedTextModel.tokens``."""
        return super().tokens(self.cleaned(prompt))

    def text_width(self) -> tuple[int, int]:
        """Returns ``hidden_size`` of the language model, and the width that the transformer takes."""
        return int(self.pipeline.text_encoder.config.hidden_size), self.taken_width()

    @abstractmethod
    def taken_width(self) -> int:
        """Returns the size of the embeddings that the transformer takes."""

    def _tokens_after(self, before: str, text: str) -> Tokens:
        with quiet():
            return tokens_within(self.tokenizer, text, before, "", length=self.most_tokens)

    def mask_of(self, lengths: Sequence[int], like: Tensor) -> Tensor:
        """Returns a mask of the first ``lengths[i]`` tokens of each row, bool [N, L] on the device of ``like``."""
        counts = torch.tensor(lengths, device=like.device).unsqueeze(1)
        return torch.arange(max(lengths), device=like.device) < counts
