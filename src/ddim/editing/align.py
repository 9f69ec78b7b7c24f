"""Aligns the tokens of a target prompt with those of the source prompt, whose attention maps they take over."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError
from .tokens import PromptTokens, Tokens, plain_word

NEW = -1
"""The value of a target token in an alignment that has no partner in the source."""


def replace(source: PromptTokens, target: PromptTokens) -> tuple[Tensor, Tensor]:
    """Maps word k of the target to word k of the source ("Word Swap", section 3.2 of Hertz et al. 2022).

    If the two words have different numbers of tokens, each token of the target word takes the sum of the maps of the
    source word, divided by the number of target tokens, so that the total attention of the word does not change.

    Returns:
        M [L of the source, L of the target], where M[i, j] is the weight of source token i in the map of target token
        j; and ``new`` [L of the target], which is true where target token j keeps its own map. Tokens of different
        text encoders have no part in each other's maps.

    Raises:
        InputError: the prompts have different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise InputError(
            f"'replace' swaps word for word, but {source.text!r} has {len(source.words)} words and "
            f"{target.text!r} has {len(target.words)}; use 'refine'.",
            parameter="attention",
        )
    return _by_segment(source, target, _replaced)


def refine(source: PromptTokens, target: PromptTokens) -> tuple[Tensor, Tensor]:
    """Maps the tokens that both prompts share to those of the source ("Adding a New Phrase", same section 3.2).

    Returns:
        M and ``new``, as ``replace`` does. Each column of M has one 1, or none if the target token is new.
    """
    return _by_segment(source, target, _refined)


def _by_segment(
    source: PromptTokens, target: PromptTokens, one: Callable[[Tokens, Tokens], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Aligns the tokens of each text encoder by themselves."""
    pairs = [one(s, t) for s, t in zip(source.segments, target.segments, strict=True)]
    return torch.block_diag(*(mapping for mapping, _ in pairs)), torch.cat([new for _, new in pairs])


def _replaced(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Aligns the tokens of one text encoder word by word."""
    mapping, new = _frame(source, target)
    for (a, b), (c, d) in zip(source.spans, target.spans, strict=True):
        if b - a == d - c:
            mapping[range(a, b), range(c, d)] = 1
        elif b > a and d > c:
            mapping[a:b, c:d] = 1 / (d - c)
        else:  # the source word was truncated and has no map to take over
            new[c:d] = True
    return mapping, new


def _refined(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Aligns the tokens of one text encoder by what they share."""
    mapping, new = _frame(source, target)
    pairs = align(source.row[source.begin : source.end], target.row[target.begin : target.end])
    for j, i in enumerate(pairs):
        if i == NEW:
            new[target.begin + j] = True
        else:
            mapping[source.begin + i, target.begin + j] = 1
    return mapping, new


def _frame(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Returns a mapping of the tokens that belong to no word: the start and end tokens, and the padding by position.

    A padding token of the target has no partner if the source has no padding at its position. It keeps its own map.
    """
    mapping, new = torch.zeros(source.length, target.length), torch.zeros(target.length, dtype=torch.bool)
    for there, here in (
        (range(source.first, source.begin), range(target.first, target.begin)),
        (range(source.end, source.stop), range(target.end, target.stop)),
    ):
        both = min(len(there), len(here))  # they differ where a prompt was cut within its template
        mapping[there[:both], here[:both]] = 1
        new[here[both:]] = True
    for place in (*range(target.first), *range(target.stop, target.length)):
        if source.first <= place < source.stop or place >= source.length:
            new[place] = True
        else:
            mapping[place, place] = 1
    return mapping, new


def changed_words(source: PromptTokens, target: PromptTokens) -> tuple[list[int], list[int]]:
    """Finds the words that two prompts do not share, by an alignment of their words.

    Case and punctuation at the ends of words are ignored.

    Returns:
        the indices of the source's words that have no partner in the target, and of the target's that have none in the
        source.
    """
    was, now = ([plain_word(word) for word in tokens.words] for tokens in (source, target))
    partners = align(was, now)
    return sorted({*range(len(was))} - {*partners}), [k for k, partner in enumerate(partners) if partner == NEW]


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[int]:
    """Finds the best global alignment of two sequences, with the scores 0 for a gap, 1 for a match, -1 for a mismatch.

    Source: Needleman and Wunsch 1970, doi 10.1016/0022-2836(70)90057-4. Of several best alignments, it chooses the one
    that pairs common items as late as possible. A mismatch is never paired, because two gaps score higher.

    Returns:
        for each item of ``target`` the index of its partner in ``source``, or ``NEW``.
    """
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            match = 1 if source[i - 1] == target[j - 1] else -1
            best[i][j] = max(best[i - 1][j - 1] + match, best[i - 1][j], best[i][j - 1])
    # Trace the best path back from the end; a match is taken as soon as it is possible.
    out, i, j = [NEW] * m, n, m
    while i and j:
        if source[i - 1] == target[j - 1] and best[i][j] == best[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
            out[j] = i
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i -= 1
    return out
