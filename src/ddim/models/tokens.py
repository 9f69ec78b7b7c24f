"""CLIP's tokenizer from a folder, once it is seen to tell words apart."""

from pathlib import Path
from typing import Any

from .._utils.error_text import reason_of
from .._utils.errors import InputError, is_whole
from .._utils.silence import loading

_ASKED = 8  # words of the vocabulary, the longest


def read_tokenizer(folder: Path, *, parameter: str = "model") -> Any:
    """The CLIPTokenizer of a folder.

    Raises:
        InputError: the folder lacks a part of it, it cannot be read, or it makes the same of different words.
    """
    names = {p.name for p in folder.glob("*")}
    if "tokenizer.json" not in names:  # transformers would make an empty one in silence
        lacking = [name for name in ("vocab.json", "merges.txt") if name not in names]
        if lacking:
            raise InputError(
                f"{folder} has no CLIP tokenizer: it holds neither tokenizer.json nor {lacking[0]}.",
                parameter=parameter,
            )
    return checked_tokenizer(str(folder), parameter=parameter)


def checked_tokenizer(source: str, *, parameter: str) -> Any:
    """The CLIPTokenizer of a folder or hub id. Raises InputError as ``read_tokenizer``."""
    from transformers import CLIPTokenizer

    with loading():
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
            apart = _tells_words_apart(tokenizer)
        except Exception as error:  # tokenizers and transformers raise dozens of kinds
            raise InputError(f"{source} has no CLIP tokenizer: {reason_of(error)}", parameter=parameter) from None
    if not apart:
        raise InputError(
            f"{source} has no CLIP tokenizer: its vocabulary and merges do not tell words apart.", parameter=parameter
        )
    return tokenizer


def _tells_words_apart(tokenizer: Any) -> bool:
    """Whether any of the longest words that the vocabulary has as one token becomes that token."""
    ending = "</w>"
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = [t.removesuffix(ending) for t in vocabulary if t.endswith(ending)]
    plain = [w for w in words if w.isascii() and (len(w) == 1 or (w.isalpha() and w.islower()))]
    asked = sorted(plain, key=lambda w: (-len(w), w))[:_ASKED]
    return any(vocabulary[w + ending] in tokenizer(w).input_ids for w in asked)


def longest_prompt(tokenizer: Any, positions: int) -> int:
    """How many tokens a prompt has at most, start and end among them; the encoder's positions where no limit is set.

    Args:
        positions: those of the text encoder.

    Raises:
        InputError: the tokenizer's limit is none, or more than the encoder takes.
    """
    limit = tokenizer.model_max_length
    if is_whole(limit) and limit > 10**20:  # what transformers says where a config says nothing
        return positions
    if not is_whole(limit) or not 3 <= limit <= positions:
        raise InputError(
            f"the tokenizer's model_max_length is {limit!r}, and the text encoder has {positions} positions; "
            f"put {positions} into tokenizer_config.json.",
            parameter="model",
        )
    return int(limit)
