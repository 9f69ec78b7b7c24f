"""Checks prompts, matches them to images, and parses word weights such as ``(word:2)``."""

import re
from collections.abc import Sequence
from typing import Any

from .errors import InputError, is_texts

_WEIGHTED = re.compile(r"(\\?)(\(([^()]*?)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\\?)\))")


def check_text(value: Any, parameter: str) -> str:
    """Returns the value if it is a string that a tokenizer can read.

    Args:
        value: the prompt.
        parameter: the argument that it came from, for the error.

    Raises:
        InputError: it is not a string, contains bytes that are not UTF-8 (a shell may pass such), or contains NUL.
    """
    if not isinstance(value, str):
        raise InputError(f"{value!r} is not a text; use '' for an empty one.", parameter=parameter)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{value!r} is not UTF-8 text; enter it again in a terminal or file that uses UTF-8.", parameter=parameter
        ) from None
    if "\0" in value:
        raise InputError(f"{value!r} contains a NUL character; remove it.", parameter=parameter)
    return value


def texts_for(texts: str | Sequence[str], count: int, parameter: str) -> list[str]:
    """Returns one text for each of ``count`` images, from one text for all of them or a list with one for each.

    Args:
        texts: a string, or a sequence of 1 or ``count`` strings.
        count: how many images there are.
        parameter: the argument that the texts came from, for the error.

    Raises:
        InputError: ``texts`` is neither a string nor a sequence of strings, has the wrong length, or contains a text
            that ``check_text`` refuses.
    """
    if not isinstance(texts, str) and not is_texts(texts):
        raise InputError(f"{texts!r} is neither a text nor a list of texts.", parameter=parameter)
    checked = [check_text(text, parameter) for text in ([texts] if isinstance(texts, str) else texts)]
    if len(checked) not in (1, count):
        raise InputError(
            f"{len(checked)} were given for {count} images; give one for each image, or one for all.",
            parameter=parameter,
        )
    return checked * count if len(checked) == 1 else checked


def parse_weights(prompt: str) -> tuple[str, dict[int, float]]:
    r"""Parses word weights such as ``(word:2.0)`` in a prompt; all words in one pair of brackets get its number.

    Brackets without a number stay in the prompt. So do brackets after a backslash, which is removed: ``\(word:2)``
    becomes the text ``(word:2)``.

    Returns:
        The prompt without weights, as the model reads it, and the weights: index of a word (from 0) -> weight.

    Raises:
        InputError: brackets contain a number but no word.
    """
    plain, weights, last = "", {}, 0
    for found in _WEIGHTED.finditer(prompt):
        plain += prompt[last : found.start()]
        last = found.end()
        if found[1] or found[5]:  # a backslash before either bracket
            plain += found[2].removesuffix("\\)") + ")" * bool(found[5])
            continue
        if not found[3].strip():
            raise InputError(f"{found[2]!r} weights no word; write it as (word:2).", parameter="prompt")
        # Words are split at white space, so a bracket may open in the middle of a word; that whole word is weighted.
        first = max(len(plain.split()) - (bool(plain) and not plain[-1].isspace()), 0)
        plain += found[3]
        for k in range(first, len(plain.split())):
            weights[k] = float(found[4])
    return plain + prompt[last:], weights


def refuse_weights(prompt: str, parameter: str) -> str:
    """Returns a prompt as the model reads it, for places where words cannot have weights.

    Raises:
        InputError: the prompt contains a weight such as ``(word:2)``; only the target prompt of an edit may.
    """
    plain, weights = parse_weights(prompt)
    if weights:
        (found, *_) = (m for m in _WEIGHTED.finditer(prompt) if not (m[1] or m[5]))
        raise InputError(
            f"{found[2]!r} weights a word, but only the target prompt of an edit may do so; remove the brackets, or "
            f"write \\{found[2]} to keep them as text.",
            parameter=parameter,
        )
    return plain
