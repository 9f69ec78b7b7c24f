"""Reads the prompts of an edit: weighted words, blend words, and options with one value per target."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number, is_texts
from .._utils.texts import check_text
from .align import changed_words
from .tokens import PromptTokens

T = TypeVar("T")
Weights = Mapping[str, float]


def scales(tokens: PromptTokens, inline: Mapping[int, float], weights: Weights | None) -> Tensor | None:
    """Returns the factor of each token's attention map, [L]; None if no word is weighted.

    Args:
        tokens: the tokens of the target prompt.
        inline: weights by the index of the word, from ``texts.parse_weights``.
        weights: weights by word; they apply to every occurrence of the word, and override ``inline``.

    Raises:
        InputError: a word is not in the prompt or was truncated, a weight is not a number, or ``weights`` is not a
            mapping.
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
    """Splits blend words: ``"cat/tiger"`` becomes ("cat", "tiger"), the words in the source and in the target.

    An edit may change the areas of these words. Without a slash, the words are searched in both prompts. One side may
    be empty; then only the other one counts.

    Raises:
        InputError: neither side has a word, or there is more than one slash.
    """
    parts = tuple(blend.split("/")) if isinstance(blend, str) else blend if isinstance(blend, tuple) else ()
    parts = parts * 2 if len(parts) == 1 else parts
    if len(parts) != 2 or not all(isinstance(p, str) for p in parts) or not any(p.strip() for p in parts):
        raise InputError(f"{blend!r} names no words; write it 'cat/tiger', source before target.", parameter="blend")
    return parts[0].strip(), parts[1].strip()


def token_mask(tokens: PromptTokens, words: str) -> Tensor:
    """Returns a mask [L] that is 1 at the tokens of ``words`` and 0 elsewhere.

    Raises:
        InputError: a word is not in the prompt or was truncated.
    """
    out = torch.zeros(tokens.length)
    out[tokens.places(words, "blend")] = 1
    return out


def changed_masks(source: PromptTokens, target: PromptTokens) -> tuple[Tensor, Tensor]:
    """Returns masks [L] that are 1 at the tokens of the words that differ between two prompts, of source and target.

    Raises:
        InputError: the prompts do not differ in a word, or a word that differs was truncated.
    """
    each = changed_words(source, target)
    if not any(each):
        raise InputError(
            f"'auto' blends by the words that differ, and {source.text!r} and {target.text!r} have the same ones; "
            "name the words, or leave it out.",
            parameter="blend",
        )
    masks = [torch.zeros(tokens.length) for tokens in (source, target)]
    for mask, tokens, words in zip(masks, (source, target), each, strict=True):
        for k in words:
            mask[tokens.places_of(tokens.words[k], [k], "blend")] = 1
    return masks[0], masks[1]


def per_target(name: str, value: Any, images: int, targets: int) -> list[list[Any]]:
    """Expands an option to one value for each target of each image, ``[N][K]``.

    Args:
        name: the name of the option, for errors.
        value: one value for all, a list of K values, or a list of N lists of K values.
        images, targets: N and K.

    Raises:
        InputError: a list has another length.
    """
    if not isinstance(value, list):
        return [[value] * targets for _ in range(images)]
    nested = bool(value) and all(isinstance(v, list) for v in value)
    rows = value if nested else [value] * images
    if len(rows) != images or any(len(row) != targets for row in rows):
        have = f"{len(value)} lists" if nested else f"{len(value)} values"
        raise InputError(
            f"{have} were given for {images} images with {targets} targets; give one for each target.", parameter=name
        )
    return [list(row) for row in rows]


def target_prompts(prompt: "str | Sequence[str] | Sequence[Sequence[str]]", images: int) -> list[list[str]]:
    """Reads the target prompts as ``[N][K]``.

    Args:
        prompt: one prompt, a list of K prompts for all images, or a list with K prompts for each of the N images.
        images: N.

    Raises:
        InputError: there is no prompt, the number of lists is not N, the lists have different lengths, or a text cannot
            be read.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else []
    if prompts and is_texts(prompts):
        return [[check_text(p, "prompt") for p in prompts]] * images
    rows = [[check_text(p, "prompt") for p in row] for row in prompts if is_texts(row)]
    if not prompts or len(rows) != len(prompts) or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(
            f"{prompt!r} is not a target prompt, nor a list of them, nor one list for each image.", parameter="prompt"
        )
    if len(rows) != images:
        raise InputError(
            f"{len(rows)} lists of target prompts were given for {images} images; give one for each.",
            parameter="prompt",
        )
    return rows
