"""A prompt as its model reads it: the one reading that is embedded, aligned, weighted, blended by and measured."""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._utils.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """A prompt as its tokenizer cuts it.

    Attributes:
        text: the prompt.
        words: split at white space.
        row: every token that the encoder is handed, padding among them; L of them.
        spans: of each word, the places of its tokens in ``row``: (begin, end), end left out. What was cut off is left
            out of a span, so that it may be empty; words that share a token share their span.
        first, stop: where the tokens that are no padding begin and end.
        begin, end: where the words' tokens begin and end; before and after them are the start's and the end's.
        lost: how many of the words' tokens were cut off.
    """

    text: str
    words: tuple[str, ...]
    row: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    first: int
    begin: int
    end: int
    stop: int
    lost: int = 0

    @property
    def length(self) -> int:
        """L, the places of the encoder's sequence, padding among them."""
        return len(self.row)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens without padding, start and end among them."""
        return self.row[self.first : self.stop]

    def find(self, word: str, parameter: str = "word") -> list[int]:
        """Which words of the prompt are ``word``: case and punctuation at the edges are ignored.

        Raises:
            InputError: none is; the prompt's words are named.
        """
        found = [k for k, w in enumerate(self.words) if _bare(w) == _bare(word)]
        if not found or not _bare(word):
            known = ", ".join(dict.fromkeys(self.words)) or "none"
            raise InputError(f"{word!r} is not in the prompt {self.text!r}; its words: {known}.", parameter=parameter)
        return found

    def places(self, phrase: str, parameter: str = "word") -> list[int]:
        """The places of all tokens of the words in ``phrase``, each word looked for by itself.

        Args:
            phrase: words between white space.
            parameter: for the error.

        Raises:
            InputError: a word that is not in the prompt, or that was cut off with its end.
        """
        each = [self.places_of(word, self.find(word, parameter), parameter) for word in phrase.split()]
        return sorted({place for places in each for place in places})

    def places_of(self, word: str, which: Sequence[int], parameter: str = "word") -> list[int]:
        """The places of the words of these numbers, all of them ``word``.

        Raises:
            InputError: none of them has a token that the encoder is handed.
        """
        places = [p for k in which for p in range(*self.spans[k])]
        if not places and self.lost:
            raise InputError(
                f"{word!r} was cut off: {self.text!r} is longer than the {self.length} tokens that the text encoder "
                "takes; shorten the prompt.",
                parameter=parameter,
            )
        if not places:
            raise InputError(f"the tokenizer makes no token of {word!r} in {self.text!r}.", parameter=parameter)
        return places


def tokens_of(tokenizer: Any, prompt: str, length: int, convert: Callable[[str], str] = str) -> Tokens:
    """Cuts a prompt into words, and finds each word's tokens.

    Args:
        tokenizer: of transformers.
        prompt: as it is embedded.
        length: L of the embedding [L, D].
        convert: what the pipeline makes of a text before it is cut (learnt words of several vectors).

    Raises:
        InputError: a tokenizer that puts other tokens around a prompt than around a word.
    """

    def bare(text: str) -> list[int]:
        return list(tokenizer(convert(text), add_special_tokens=False, truncation=False, verbose=False).input_ids)

    cut = tokenizer(
        convert(prompt), padding="max_length", max_length=length, truncation=True, return_attention_mask=True
    )
    row, used = tuple(cut.input_ids), [k for k, kept in enumerate(cut.attention_mask) if kept]
    first, stop = (used[0], used[-1] + 1) if used else (0, 0)
    whole, words = bare(prompt), tuple(prompt.split())
    before, after = _around(tokenizer)
    begin, end = first + before, max(stop - after, first + before)
    lost = len(whole) - (end - begin)
    gone = lost if tokenizer.truncation_side == "left" else 0  # before the first that is kept
    if lost < 0 or list(row[begin:end]) != whole[gone : gone + end - begin]:
        raise InputError(
            f"the tokenizer makes other tokens of {prompt!r} than of its words, so that they cannot be followed.",
            parameter="prompt",
        )
    bounds = _bounds(prompt, words, whole, bare)
    spans = tuple(
        (begin + min(max(a - gone, 0), end - begin), begin + min(max(b - gone, 0), end - begin)) for a, b in bounds
    )
    return Tokens(prompt, words, row, spans, first, begin, end, stop, lost)


def _around(tokenizer: Any) -> tuple[int, int]:
    """How many tokens stand before a prompt's own, and after them."""
    bare, whole = (
        list(tokenizer("a", add_special_tokens=special, truncation=False, verbose=False).input_ids)
        for special in (False, True)
    )
    before = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
    return before, len(whole) - len(bare) - before


def _bounds(
    prompt: str, words: Sequence[str], whole: Sequence[int], bare: Callable[[str], list[int]]
) -> list[tuple[int, int]]:
    """Each word's tokens in ``whole``: (begin, end).

    A word ends where the tokens of all up to it end, if these are how the whole begins; words that are cut together
    with their neighbours have the neighbours' tokens too.
    """
    ends, at = list[int | None](), 0
    for word in words:
        at = prompt.index(word, at) + len(word)
        ids = bare(prompt[:at])
        ends.append(len(ids) if ids == list(whole[: len(ids)]) else None)
    if ends and ends[-1] is None:
        ends[-1] = len(whole)
    out = list[tuple[int, int]]()
    for k in range(len(words)):
        begin = next((e for e in reversed(ends[:k]) if e is not None), 0)
        out.append((begin, next(e for e in ends[k:] if e is not None)))
    return out


def _bare(word: str) -> str:
    return word.lower().strip(string.punctuation) or word.lower()
