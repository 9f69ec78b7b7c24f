"""Prompts as people write them for an edit: weighted words, words to blend by, and one value a target."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number, is_texts
from .._utils.texts import check_text
from .tokens import Tokens

T = TypeVar("T")
Weights = Mapping[str, float]


def scales(tokens: Tokens, inline: Mapping[int, float], weights: Weights | None) -> Tensor | None:
    """What each token's attention map is multiplied by, [L]; None where no word has a weight.

    Args:
        tokens: of the target prompt.
        inline: by the word's number, from ``texts.parse_weights``.
        weights: by the word; of a word that stands several times, every one. They go before ``inline``.

    Raises:
        InputError: a word that is not in the prompt or was cut off with its end, a weight that is no number, weights
            that are no mapping.
    """
    if weights is not None and not (isinstance(weights, Mapping) and all(isinstance(w, str) for w in weights)):
        raise InputError(f"{weights!r} does not map words to factors; write it {{'tiger': 2.0}}.", parameter="weights")
    by_place = dict[int, float]()
    for k, scale in inline.items():
        places = tokens.places_of(tokens.words[k], [k], "prompt")
        by_place |= dict.fromkeys(places, _factor(tokens.words[k], scale, "prompt"))
    for word, scale in (weights or {}).items():
        by_place |= dict.fromkeys(tokens.places(word, "weights"), _factor(word, scale, "weights"))
    if not by_place:
        return None
    out = torch.ones(tokens.length)
    out[list(by_place)] = torch.tensor(list(by_place.values()))
    return out


def _factor(word: str, scale: Any, parameter: str) -> float:
    if not is_number(scale):
        raise InputError(
            f"{scale!r} for {word!r} is not a number; 1 changes nothing, 2 doubles it.", parameter=parameter
        )
    return float(scale)


def blend_words(blend: "str | tuple[str, str]") -> tuple[str, str]:
    """``"cat/tiger"`` as ("cat", "tiger"): the words of the source and of the target whose places may change.

    Without a stroke the words are looked for in both. One side may be empty, so that only the other counts.

    Raises:
        InputError: neither side has a word, or there is more than one stroke.
    """
    parts = tuple(blend.split("/")) if isinstance(blend, str) else blend if isinstance(blend, tuple) else ()
    parts = parts * 2 if len(parts) == 1 else parts
    if len(parts) != 2 or not all(isinstance(p, str) for p in parts) or not any(p.strip() for p in parts):
        raise InputError(f"{blend!r} names no words; write it 'cat/tiger', source before target.", parameter="blend")
    return parts[0].strip(), parts[1].strip()


def token_mask(tokens: Tokens, words: str) -> Tensor:
    """1 at the tokens of ``words``, 0 elsewhere, [L].

    Raises:
        InputError: a word that is not in the prompt.
    """
    out = torch.zeros(tokens.length)
    out[tokens.places(words, "blend")] = 1
    return out


def per_target(name: str, value: Any, images: int, targets: int) -> list[list[Any]]:
    """One value for each target of each image, ``[N][K]``, from one for all, a list of K, or a list of N lists of K.

    Raises:
        InputError: a list of another length.
    """
    if not isinstance(value, list):
        return [[value] * targets for _ in range(images)]
    nested = bool(value) and all(isinstance(v, list) for v in value)
    rows = value if nested else [value] * images
    if len(rows) != images or any(len(row) != targets for row in rows):
        have = f"{len(value)} lists" if nested else f"{len(value)} values"
        raise InputError(
            f"{have} were given for {images} images with {targets} targets; give one a target.", parameter=name
        )
    return [list(row) for row in rows]


def target_prompts(prompt: "str | Sequence[str] | Sequence[Sequence[str]]", images: int) -> list[list[str]]:
    """The target prompts, ``[N][K]``: one or several for all images, or a list for each image.

    Raises:
        InputError: no prompt, not one list an image, lists of different lengths, a text that cannot be read.
    """
    given = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else []
    if given and is_texts(given):
        return [[check_text(p, "prompt") for p in given]] * images
    rows = [[check_text(p, "prompt") for p in row] for row in given if is_texts(row)]
    if not given or len(rows) != len(given) or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(
            f"{prompt!r} is not a target prompt, nor a list of them, nor one list an image.", parameter="prompt"
        )
    if len(rows) != images:
        raise InputError(
            f"{len(rows)} lists of target prompts were given for {images} images; give one for each.",
            parameter="prompt",
        )
    return rows
