"""Which tokens of a target prompt take whose attention maps from the source's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError
from .tokens import Tokens

NEW = -1
"""In an alignment: this target token has no partner in the source."""


def replace(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Word k of the target takes the maps of word k of the source (Hertz et al. 2022, section 3.2, "Word Swap").

    Where the two words have different numbers of tokens, each token of the target's takes the sum of the source
    word's maps, divided by their number, so that no attention is lost.

    Returns:
        M [L, L], M[i, j] the share of source token i's map in target token j's, and ``new`` [L], true where j keeps
        its own map.

    Raises:
        InputError: prompts with different numbers of words.
    """
    if len(source.words) != len(target.words):
        raise InputError(
            f"'replace' swaps word for word, but {source.text!r} has {len(source.words)} words and "
            f"{target.text!r} has {len(target.words)}; use 'refine'.",
            parameter="attention",
        )
    mapping, new = _frame(source, target)
    for (a, b), (c, d) in zip(source.spans, target.spans, strict=True):
        if b - a == d - c:
            mapping[range(a, b), range(c, d)] = 1
        elif b > a and d > c:
            mapping[a:b, c:d] = 1 / (d - c)
        else:  # cut off in the source
            new[c:d] = True
    return mapping, new


def refine(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """Tokens that both prompts share keep the source's maps ("Adding a New Phrase", section 3.2 there).

    Returns:
        M and ``new`` as ``replace`` does; M has one 1 in a column, or none where the token is new.
    """
    mapping, new = _frame(source, target)
    pairs = align(source.row[source.begin : source.end], target.row[target.begin : target.end])
    for j, i in enumerate(pairs):
        if i == NEW:
            new[target.begin + j] = True
        else:
            mapping[source.begin + i, target.begin + j] = 1
    return mapping, new


def _frame(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """What both mappings share: tokens before the words, the end token, and padding place by place.

    A target's padding that stands where the source still has words or its end has no partner and keeps its own map.
    """
    length = target.length
    mapping, new = torch.zeros(length, length), torch.zeros(length, dtype=torch.bool)
    mapping[range(source.first, source.begin), range(target.first, target.begin)] = 1
    mapping[range(source.end, source.stop), range(target.end, target.stop)] = 1
    for place in (*range(target.first), *range(target.stop, length)):
        if source.first <= place < source.stop:
            new[place] = True
        else:
            mapping[place, place] = 1
    return mapping, new


def align(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The best global alignment of two sequences: gap 0, match 1, mismatch -1.

    Needleman and Wunsch 1970, doi 10.1016/0022-2836(70)90057-4. Among equals, what both have in common is paired as
    late as it can be, and a gap comes before a mismatch.

    Returns:
        for each item of ``target`` the place of its partner in ``source``, or ``NEW``.
    """
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            match = 1 if source[i - 1] == target[j - 1] else -1
            best[i][j] = max(best[i - 1][j - 1] + match, best[i - 1][j], best[i][j - 1])
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
