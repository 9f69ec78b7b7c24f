"""Loads tokenizers, checks that they turn different words into different tokens, and warns about long prompts."""

import warnings
from pathlib import Path
from typing import Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMWarning, InputError, is_whole
from .._utils.silence import loading
from ..editing.tokens import Tokens

_PROBES = 8  # how many words of the vocabulary are tried


def read_tokenizer(folder: Path, kind: str = "CLIPTokenizer", *, parameter: str = "model") -> Any:
    """Loads the tokenizer of a folder.

    Args:
        folder: the folder.
        kind: the class in transformers.
        parameter: the argument that an error names.

    Raises:
        InputError: a file is missing or cannot be read, or the tokenizer turns different words into the same tokens.
    """
    if not kind.startswith("CLIP"):
        return _other_tokenizer(folder, kind, parameter)
    names = {p.name for p in folder.glob("*")}
    if "tokenizer.json" not in names:  # without these files transformers would silently make an empty tokenizer
        lacking = [name for name in ("vocab.json", "merges.txt") if name not in names]
        if lacking:
            raise InputError(
                f"{folder} has no CLIP tokenizer: it holds neither tokenizer.json nor {lacking[0]}.",
                parameter=parameter,
            )
    return checked_tokenizer(str(folder), parameter=parameter)


def _other_tokenizer(folder: Path, kind: str, parameter: str) -> Any:
    """Loads a tokenizer of another class than CLIP's, and checks that it tells two words apart."""
    with loading():
        import transformers

        try:
            if not any(folder.glob("*")):
                raise FileNotFoundError("it has no files")
            tokenizer = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
            apart = tokenizer("cat").input_ids != tokenizer("dog").input_ids
        except Exception as error:  # tokenizers and transformers raise errors of many types
            raise InputError(f"{folder} has no {kind}: {reason_of(error)}", parameter=parameter) from None
    if not apart:
        raise InputError(
            f"{folder} has no working {kind}: it turns different words into the same tokens.", parameter=parameter
        )
    return tokenizer


def checked_tokenizer(source: str, *, parameter: str) -> Any:
    """Loads the CLIPTokenizer of a folder or hub id; raises as ``read_tokenizer``."""
    from transformers import CLIPTokenizer

    with loading():
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
            apart = _tells_words_apart(tokenizer)
        except Exception as error:  # tokenizers and transformers raise errors of many types
            raise InputError(f"{source} has no CLIP tokenizer: {reason_of(error)}", parameter=parameter) from None
    if not apart:
        raise InputError(
            f"{source} has no working CLIP tokenizer: its vocabulary and merges do not match, so that it turns "
            "different words into the same tokens.",
            parameter=parameter,
        )
    return tokenizer


def _tells_words_apart(tokenizer: Any) -> bool:
    """Whether the tokenizer works: at least one of the longest words in its vocabulary becomes its own token.

    A vocabulary without its merges would spell every word letter by letter.
    """
    ending = "</w>"
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = [t.removesuffix(ending) for t in vocabulary if t.endswith(ending)]
    plain = [w for w in words if w.isascii() and (len(w) == 1 or (w.isalpha() and w.islower()))]
    probes = sorted(plain, key=lambda w: (-len(w), w))[:_PROBES]
    return any(vocabulary[w + ending] in tokenizer(w).input_ids for w in probes)


def longest_prompt(tokenizer: Any, positions: int) -> int:
    """Returns the largest number of tokens of a prompt, with start and end token.

    Args:
        tokenizer: a tokenizer of transformers; if it has no limit, ``positions`` is the limit.
        positions: how many positions the text encoder has.

    Raises:
        InputError: the tokenizer's limit is not a number of tokens, or exceeds ``positions``.
    """
    limit = tokenizer.model_max_length
    if is_whole(limit) and limit > 10**20:  # the default of transformers if the config sets no limit
        return positions
    if not is_whole(limit) or not 3 <= limit <= positions:
        raise InputError(
            f"the tokenizer's model_max_length is {limit!r}, but the text encoder has {positions} positions; "
            f"write {positions} into tokenizer_config.json.",
            parameter="model",
        )
    return int(limit)


def warn_if_cut(tokens: Tokens, tokenizer: Any, name: str) -> None:
    """Warns (DDIMWarning) if a prompt was too long for the text encoder of the model ``name`` and had to be cut."""
    if tokens.lost:
        taken = tokens.end - tokens.begin
        kept = tokenizer.decode(tokens.row[tokens.begin : tokens.end]).strip()
        where = f"before {kept[:30]!r}" if tokenizer.truncation_side == "left" else f"after {kept[-30:]!r}"
        warnings.warn(
            f"The prompt has {taken + tokens.lost} tokens, but the text encoder of {name!r} takes {taken}: "
            f"it was cut {where}.",
            DDIMWarning,
            stacklevel=4,
        )
