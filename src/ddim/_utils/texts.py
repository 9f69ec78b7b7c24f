"""Prompts as people give them: texts that can be read, one an image, and what brackets say in them."""

import re
from collections.abc import Sequence
from typing import Any

from .errors import InputError, is_texts

_WEIGHTED = re.compile(r"(\\?)(\(([^()]*?)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\\?)\))")


def check_text(value: Any, parameter: str) -> str:
    """The value, which is a text that a tokenizer can read.

    Raises:
        InputError: no text; one with bytes that are not UTF-8, as a shell may hand them over; one with a NUL.
    """
    if not isinstance(value, str):
        raise InputError(f"{value!r} is not a text; '' is the empty one.", parameter=parameter)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{value!r} is not UTF-8 text; write it anew in a terminal or a file that is.", parameter=parameter
        ) from None
    if "\0" in value:
        raise InputError(f"{value!r} has a NUL character in it; leave that out.", parameter=parameter)
    return value


def texts_for(given: str | Sequence[str], count: int, parameter: str) -> list[str]:
    """One text an image, from one for all or one each.

    Raises:
        InputError: no text and no list of texts, an empty list or one of another length, a text that cannot be read.
    """
    if not isinstance(given, str) and not is_texts(given):
        raise InputError(f"{given!r} is neither a text nor a list of texts.", parameter=parameter)
    several = [check_text(text, parameter) for text in ([given] if isinstance(given, str) else given)]
    if len(several) not in (1, count):
        raise InputError(
            f"{len(several)} were given for {count} images; give one for each, or one for all.", parameter=parameter
        )
    return several * count if len(several) == 1 else several


def parse_weights(prompt: str) -> tuple[str, dict[int, float]]:
    r"""Takes ``(word:2.0)`` out of a prompt; several words in one pair of brackets all get the number.

    Returns:
        the prompt as the model is to read it, and which of its words (counted from 0) have which weight. Brackets
        without a number stay as they are, and so do, without the stroke, those behind one: ``\(word:2)``.

    Raises:
        InputError: brackets with a number and no word.
    """
    plain, weights, last = "", {}, 0
    for found in _WEIGHTED.finditer(prompt):
        plain += prompt[last : found.start()]
        last = found.end()
        if found[1] or found[5]:  # a stroke before either bracket
            plain += found[2].removesuffix("\\)") + ")" * bool(found[5])
            continue
        if not found[3].strip():
            raise InputError(f"{found[2]!r} weighs no word; write it (word:2).", parameter="prompt")
        # a bracket may open in the middle of what white space makes one word
        first = max(len(plain.split()) - (bool(plain) and not plain[-1].isspace()), 0)
        plain += found[3]
        for k in range(first, len(plain.split())):
            weights[k] = float(found[4])
    return plain + prompt[last:], weights


def unweighted(prompt: str, parameter: str) -> str:
    """A prompt whose words cannot be weighed, as the model is to read it.

    Raises:
        InputError: ``(word:2)``, which only the target of an edit may say.
    """
    plain, weights = parse_weights(prompt)
    if weights:
        (found, *_) = (m for m in _WEIGHTED.finditer(prompt) if not (m[1] or m[5]))
        raise InputError(
            f"{found[2]!r} weighs a word, which only the target of an edit can; leave the brackets out, or write "
            f"\\{found[2]} where the model is to read them.",
            parameter=parameter,
        )
    return plain
