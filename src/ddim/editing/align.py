"""Which tokens make a word, and which tokens of a target prompt take whose attention maps from the source's."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

NEW = -1
"""In an alignment: this target token has no partner in the source."""


@dataclass(frozen=True)
class Tokens:
    """A prompt as its tokenizer cuts it.

    Attributes:
        text: the prompt.
        words: split at white space.
        ids: every token that the encoder sees before padding, start and end among them; of at most ``length``.
        spans: of each word, the places of its tokens in the encoder's sequence: (begin, end), end left out. What was
            cut off is left out of a span, so that it may be empty.
        begin, end: where the words' tokens begin and end in ``ids``.
        length: L, the places of the encoder's sequence, padding among them.
    """

    text: str
    words: tuple[str, ...]
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    begin: int
    end: int
    length: int

    def find(self, word: str) -> list[int]:
        """Which words of the prompt are ``word``: case and punctuation at the edges are of no account.

        Raises:
            InputError: none is; the prompt's words are named.
        """
        found = [k for k, w in enumerate(self.words) if _bare(w) == _bare(word)]
        if not found or not _bare(word):
            known = ", ".join(dict.fromkeys(self.words)) or "none"
            raise InputError(f"{word!r} is not in the prompt {self.text!r}; its words: {known}.", parameter="word")
        return found

    def places(self, phrase: str) -> list[int]:
        """The places of all tokens of the words in ``phrase``, each word looked for by itself.

        Raises:
            InputError: a word that is not in the prompt, or that was cut off with its end.
        """
        out: list[int] = []
        for word in phrase.split():
            places = [p for k in self.find(word) for p in range(*self.spans[k])]
            if not places:
                raise InputError(
                    f"{word!r} was cut off: {self.text!r} is longer than the {self.length} tokens that the "
                    "text encoder takes; shorten the prompt.",
                    parameter="word",
                )
            out += places
        return sorted(set(out))


def tokens_of(tokenizer: Any, prompt: str, length: int) -> Tokens:
    """Cuts a prompt into words, and finds each word's tokens.

    Args:
        tokenizer: of transformers, or anything that is called the same way and returns ``input_ids``.
        prompt: as it is embedded.
        length: L of the embedding [L, D].
    """
    words = tuple(prompt.split())
    inner = _ids(tokenizer, prompt)
    begin = _before(tokenizer)
    after = len(_ids(tokenizer, "a", special=True)) - len(_ids(tokenizer, "a")) - begin
    last = max(length - after, begin)  # where the end token must stand at the latest
    ends = [min(begin + k, last) for k in _ends(tokenizer, words, inner)]
    end = min(begin + len(inner), last)
    whole = _ids(tokenizer, prompt, special=True)
    ids = (*whole[:end], *whole[len(whole) - after :])
    return Tokens(prompt, words, ids, tuple(zip([begin, *ends], ends, strict=False)), begin, end, length)


def _ids(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, truncation=False, verbose=False).input_ids)


def _before(tokenizer: Any) -> int:
    """How many tokens stand before the prompt's own."""
    bare, whole = _ids(tokenizer, "a"), _ids(tokenizer, "a", special=True)
    return next(k for k in range(len(whole)) if whole[k : k + len(bare)] == bare)


def _ends(tokenizer: Any, words: Sequence[str], inner: Sequence[int]) -> list[int]:
    """Where each word's tokens end in ``inner``."""
    alone = [_ids(tokenizer, word) for word in words]
    if [i for ids in alone for i in ids] != list(inner):  # a tokenizer whose words depend on their neighbours
        alone = [_ids(tokenizer, " ".join(words[: k + 1])) for k in range(len(words))]
        return [min(len(ids), len(inner)) for ids in alone]
    return torch.tensor([0, *map(len, alone)]).cumsum(0).tolist()[1:]


def _bare(word: str) -> str:
    return word.lower().strip(string.punctuation) or word.lower()


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
    pairs = align(source.ids[source.begin : source.end], target.ids[target.begin : target.end])
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
    length, stop = target.length, len(target.ids)
    mapping, new = torch.zeros(length, length), torch.zeros(length, dtype=torch.bool)
    mapping[range(target.begin), range(target.begin)] = 1
    mapping[range(source.end, len(source.ids)), range(target.end, stop)] = 1
    padding = torch.arange(stop, length)
    partner = padding[padding >= len(source.ids)]
    mapping[partner, partner] = 1
    new[padding[padding < len(source.ids)]] = True
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
