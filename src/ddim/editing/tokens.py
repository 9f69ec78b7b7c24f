"""The tokens of a prompt. Embedding, alignment, word weights, local blend and metrics all use this one result."""

import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._utils.errors import InputError


class PromptTokens(ABC):
    """The words of a prompt and the positions of their tokens: ``Tokens`` of one text encoder, or of several.

    Attributes:
        text: the prompt.
        words: the words, split at white space.
    """

    text: str
    words: tuple[str, ...]

    @property
    @abstractmethod
    def segments(self) -> "tuple[Tokens, ...]":
        """The tokens of each text encoder, in the order in which the network gets them."""

    @property
    def length(self) -> int:
        """The number of tokens L that the network gets, padding included."""
        return sum(len(segment.row) for segment in self.segments)

    def find(self, word: str, parameter: str = "word") -> list[int]:
        """Returns the indices of the words that equal ``word``, ignoring case and punctuation at the ends.

        Raises:
            InputError: the word is not in the prompt.
        """
        found = [k for k, w in enumerate(self.words) if plain_word(w) == plain_word(word)]
        if not found or not plain_word(word):
            known = ", ".join(dict.fromkeys(self.words)) or "none"
            raise InputError(f"{word!r} is not in the prompt {self.text!r}; its words: {known}.", parameter=parameter)
        return found

    def places(self, phrase: str, parameter: str = "word") -> list[int]:
        """Returns the positions of the tokens of all words in ``phrase``. Each word is searched separately.

        Args:
            phrase: words separated by white space.
            parameter: the parameter to name in an error.

        Raises:
            InputError: a word is not in the prompt or was truncated.
        """
        each = [self.places_of(word, self.find(word, parameter), parameter) for word in phrase.split()]
        return sorted({place for places in each for place in places})

    def places_of(self, word: str, which: Sequence[int], parameter: str = "word") -> list[int]:
        """Returns the positions of the tokens of some words, from 0 to L - 1.

        Args:
            word: the word, for an error.
            which: the indices of its occurrences.
            parameter: the parameter to name in an error.

        Raises:
            InputError: no occurrence has a token that was not truncated.
        """
        places, before = list[int](), 0
        for segment in self.segments:
            places += [before + p for k in which for p in range(*segment.spans[k])]
            before += len(segment.row)
        if not places and any(segment.lost for segment in self.segments):
            most = " and ".join(str(len(segment.row)) for segment in self.segments)
            raise InputError(
                f"{word!r} was cut off: {self.text!r} is longer than the {most} tokens that the text encoder "
                "takes; shorten the prompt.",
                parameter=parameter,
            )
        if not places:
            raise InputError(f"the tokenizer makes no token of {word!r} in {self.text!r}.", parameter=parameter)
        return places


@dataclass(frozen=True)
class Tokens(PromptTokens):
    """The words and tokens of a prompt, as one text encoder gets them.

    Attributes:
        text: the prompt.
        words: the words, split at white space.
        row: the ids of all L tokens that the text encoder gets, padding included.
        spans: for each word the half-open range (begin, end) of its tokens in ``row``. Truncated tokens are not in a
            span, which may therefore be empty. Words that share a token have the same span.
        first, stop: the half-open range of the tokens that are not padding.
        begin, end: the half-open range of the tokens of words, without the start and end tokens.
        lost: the number of the words' tokens that were truncated.
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
    def segments(self) -> "tuple[Tokens, ...]":
        """These tokens alone."""
        return (self,)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the tokens without padding; the start and end tokens are included."""
        return self.row[self.first : self.stop]


@dataclass(frozen=True)
class JoinedTokens(PromptTokens):
    """The tokens of several text encoders, whose embeddings a network gets one after the other.

    A word has tokens in each segment; those of CLIP and of T5 lie at different positions of theirs.

    Attributes:
        text: the prompt.
        words: the words, split at white space.
        encoders: the tokens of each encoder.
    """

    text: str
    words: tuple[str, ...]
    encoders: tuple[Tokens, ...]

    @property
    def segments(self) -> tuple[Tokens, ...]:
        """The tokens of each encoder."""
        return self.encoders


def tokens_of(tokenizer: Any, prompt: str, length: int, convert: Callable[[str], str] = str) -> Tokens:
    """Splits a prompt into words, tokenizes it, and finds the tokens of each word.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt: the prompt as it is embedded.
        length: the length L of the embedding [L, D].
        convert: how the pipeline changes a text before it is tokenized (for learnt words of several vectors).

    Raises:
        InputError: the tokens of the prompt are not those of its text between the usual start and end tokens, so that
            they cannot be assigned to words.
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
    gone = lost if tokenizer.truncation_side == "left" else 0  # how many were truncated at the start
    if lost < 0 or list(row[begin:end]) != whole[gone : gone + end - begin]:
        raise InputError(
            f"the tokenizer makes other tokens of {prompt!r} than of its words, so that they cannot be matched.",
            parameter="prompt",
        )
    bounds = _bounds(prompt, words, whole, bare)
    spans = tuple(
        (begin + min(max(a - gone, 0), end - begin), begin + min(max(b - gone, 0), end - begin)) for a, b in bounds
    )
    return Tokens(prompt, words, row, spans, first, begin, end, stop, lost)


def tokens_within(tokenizer: Any, prompt: str, before: str, after: str, *, dropped: int = 0, length: int) -> Tokens:
    """Tokenizes a prompt inside a template, and finds the tokens of each word.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt: the prompt.
        before, after: the parts of the template around it.
        dropped: how many tokens at the start are not embedded.
        length: the largest number of embedded tokens. Further ones are cut off at the end.

    Returns:
        The tokens. ``row`` has those that are embedded, of the template too, and no padding.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, truncation=False, verbose=False).input_ids)

    whole = ids(f"{before}{prompt}{after}")
    begin = _common(ids(before), whole)
    stop = max(begin, _common(ids(f"{before}{prompt}"), whole))
    words = tuple(prompt.split())
    bounds = _bounds(prompt, words, whole[begin:stop], lambda text: ids(f"{before}{text}")[begin:])
    row = tuple(whole[dropped : dropped + length])

    def kept(place: int) -> int:
        return min(max(place - dropped, 0), len(row))

    spans = tuple((kept(begin + a), kept(begin + b)) for a, b in bounds)
    lost = stop - begin - (kept(stop) - kept(begin))
    return Tokens(prompt, words, row, spans, 0, kept(begin), kept(stop), len(row), lost)


def filled(tokens: Tokens, tokenizer: Any, length: int) -> Tokens:
    """Returns tokens with the padding that the tokenizer adds up to ``length`` tokens, at the side where it does.

    Args:
        tokens: tokens without padding, at most ``length``.
        tokenizer: a tokenizer of transformers.
        length: the number of tokens L with padding.
    """
    more = length - len(tokens.row)
    padding, left = (tokenizer.pad_token_id,) * more, more if tokenizer.padding_side == "left" else 0
    return replace(
        tokens,
        row=(*padding, *tokens.row) if left else (*tokens.row, *padding),
        spans=tuple((a + left, b + left) for a, b in tokens.spans),
        first=tokens.first + left,
        begin=tokens.begin + left,
        end=tokens.end + left,
        stop=tokens.stop + left,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns how many tokens at the start two lists have in common."""
    return next((k for k, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def agreed(name: str, read: Sequence[Tokens]) -> Tokens:
    """Returns the tokens of the first of several tokenizers whose text encoders' outputs are joined along D.

    Args:
        name: the name of the model, for an error.
        read: the tokens of a prompt, as each tokenizer makes them.

    Raises:
        InputError: the tokenizers put the words at different positions.
    """
    if any(other.spans != read[0].spans for other in read):
        raise InputError(
            f"the tokenizers of {name!r} split {read[0].text!r} differently, so that its words have no common "
            "positions.",
            parameter="prompt",
        )
    return read[0]


def padding(prompt: str, length: int) -> Tokens:
    """Returns ``length`` tokens of padding, which a network gets in place of the tokens of an absent text encoder."""
    words = tuple(prompt.split())
    return Tokens(prompt, words, (0,) * length, ((0, 0),) * len(words), 0, 0, 0, 0)


def _around(tokenizer: Any) -> tuple[int, int]:
    """Returns how many tokens the tokenizer puts before the tokens of a prompt, and after them."""
    bare, whole = (
        list(tokenizer("a", add_special_tokens=special, truncation=False, verbose=False).input_ids)
        for special in (False, True)
    )
    before = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
    return before, len(whole) - len(bare) - before


def _bounds(
    prompt: str, words: Sequence[str], whole: Sequence[int], bare: Callable[[str], list[int]]
) -> list[tuple[int, int]]:
    """Returns for each word the half-open range of its tokens in ``whole``, the tokens of the prompt.

    The end of a word is found by tokenizing the prompt up to it. If those tokens are not the first tokens of the whole
    prompt, the tokenizer merges the word with the next one. Both words then get the range of all their tokens.

    Args:
        prompt: the prompt.
        words: its words.
        whole: the tokens of the prompt, without start and end tokens.
        bare: tokenizes a text without start and end tokens.
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


def plain_word(word: str) -> str:
    """Returns a word in lower case without punctuation at its ends; a word of punctuation only is kept."""
    return word.lower().strip(string.punctuation) or word.lower()
