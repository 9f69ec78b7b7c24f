"""Words, their tokens, and who takes whose attention map."""

import itertools
import random
from typing import Any

import pytest
import tiny_text
import torch
from refusals import refused

from ddim._utils.errors import InputError
from ddim.editing.align import NEW, align, refine, replace
from ddim.editing.tokens import Tokens, tokens_of, tokens_within

TOKENIZER = tiny_text.tokenizer()
L = tiny_text.LENGTH


def cut(prompt: str, length: int = L) -> Tokens:
    return tokens_of(TOKENIZER, prompt, length)


# --- words and their tokens ------------------------------------------------------------------------------------------


def test_each_word_has_the_places_of_its_tokens():
    tokens = cut("a cat, next to a Mirror zebra")
    #                                      start a cat , next to a mirror z e b r a end
    assert tokens.words == ("a", "cat,", "next", "to", "a", "Mirror", "zebra")
    assert tokens.spans == ((1, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 13))
    assert (tokens.begin, tokens.end, len(tokens.ids)) == (1, 13, 14)
    assert list(tokens.ids) == TOKENIZER("a cat, next to a Mirror zebra").input_ids


def test_an_empty_prompt_has_start_and_end_only():
    tokens = cut("")
    assert (tokens.words, tokens.spans, tokens.begin, tokens.end, len(tokens.ids)) == ((), (), 1, 1, 2)


def test_what_is_cut_off_has_no_places():
    tokens = cut("zebra zebra zebra cat")
    assert tokens.spans == ((1, 6), (6, 11), (11, 15), (15, 15))
    assert len(tokens.ids) == L
    assert tokens.ids == tuple(TOKENIZER("zebra zebra zebra cat", truncation=True).input_ids)
    with refused("word", "'cat'", 16):
        tokens.places("cat")


def letters(**options: Any) -> Any:
    """A token a character, the spaces between words too; no start, two ends."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {chr(c): c for c in range(3, 127)} | {"<pad>": 0, "<end>": 1, "<unk>": 2}
    made = Tokenizer(models.WordLevel(vocab, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing("$A <end> <end>", special_tokens=[("<end>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", **options)


def test_a_tokenizer_whose_words_depend_on_their_neighbours():
    tokens = tokens_of(letters(), "a cat on", 20)
    assert tokens.spans == ((0, 1), (1, 5), (5, 8))
    assert (tokens.begin, tokens.end, len(tokens.ids)) == (0, 8, 10)


def test_padding_and_cutting_on_the_other_side():
    tokenizer = letters(padding_side="left", truncation_side="left")
    tokens = tokens_of(tokenizer, "a cat on", 12)
    assert (tokens.first, tokens.begin, tokens.end, tokens.stop) == (2, 2, 10, 12)
    assert [tokens.row[slice(*span)] for span in tokens.spans] == [(97,), tuple(b" cat"), tuple(b" on")]
    entries, new = mapped(refine(tokens, tokens_of(tokenizer, "a cat", 12)))
    assert entries == {(0, 0): 1, (1, 1): 1, **{(k, k + 3): 1.0 for k in range(2, 7)}, (10, 10): 1, (11, 11): 1}
    assert new == [2, 3, 4]  # padding where the source has words
    short = tokens_of(tokenizer, "a cat on", 7)
    assert short.lost == 3
    assert [short.row[slice(*span)] for span in short.spans] == [(), tuple(b"at"), tuple(b" on")]
    with pytest.raises(InputError) as caught:
        short.places("a")
    assert "cut off" in caught.value.message


@pytest.mark.parametrize("by", [refine, replace])
@pytest.mark.parametrize(("length", "shared"), [(5, {}), (6, {(5, 2): 1.0})])
def test_the_end_of_a_template_that_the_source_has_lost_is_the_targets_own(by: Any, length: int, shared: Any):
    """A template of one token before the words and three behind them, which a long prompt pushes out."""
    source, target = (tokens_within(letters(), words, "<", ">>>", length=length) for words in ("abcd", "a"))
    entries, new = mapped(by(source, target))
    assert new == list(range(2 + len(shared), length))
    assert {pair: weight for pair, weight in entries.items() if pair[1] >= 2} == shared


def test_words_that_share_a_token_share_its_place():
    tokenizer = tiny_text.tokenizer()
    tokenizer.add_tokens(["next to"])
    tokens = tokens_of(tokenizer, "a cat next to a mat", L)
    assert tokens.words == ("a", "cat", "next", "to", "a", "mat")
    assert tokens.spans == ((1, 2), (2, 3), (3, 4), (3, 4), (4, 5), (5, 6))


def test_a_special_token_among_the_words_is_a_token_like_any():
    tokens = cut("a <|endoftext|> cat")
    assert list(tokens.ids) == TOKENIZER("a <|endoftext|> cat").input_ids
    assert tokens.spans == ((1, 2), (2, 3), (3, 4))
    assert tokens.places("cat") == [3]


def test_a_word_that_the_tokenizer_drops_is_said_to_be_dropped():
    with pytest.raises(InputError) as caught:
        tokens_of(dropping(), "a \u200b\u200b cat", L).places("\u200b\u200b")
    assert caught.value.parameter == "word"
    assert "no token" in caught.value.message
    assert tokens_of(dropping(), "a \u200b\u200b cat", L).places("cat") == [2]


def dropping() -> Any:
    """CLIP's, with a normaliser that takes zero-width spaces out."""
    from tokenizers import normalizers

    tokenizer = tiny_text.tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("\u200b", ""), backend.normalizer])
    return tokenizer


def test_words_are_found_whatever_their_case_and_punctuation():
    tokens = cut("a Cat, next to a cat")
    assert tokens.find("CAT") == [1, 5]
    assert tokens.places("cat") == [2, 3, 7]
    assert tokens.places("next cat") == [2, 3, 4, 7]


def test_an_unknown_word_names_those_there_are():
    with refused("word", "'dog'", "'a cat on a mat'", "a, cat, on, mat"):
        cut("a cat on a mat").find("dog")


# --- replace ---------------------------------------------------------------------------------------------------------


def mapped(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[dict[tuple[int, int], float], list[int]]:
    mapping, new = pair
    entries = {(int(i), int(j)): round(float(mapping[i, j]), 6) for i, j in mapping.nonzero()}
    return entries, new.nonzero().flatten().tolist()


IDENTITY = {(i, i): 1.0 for i in range(L)}


@pytest.mark.parametrize("mapping", [replace, refine])
@pytest.mark.parametrize("prompt", ["a cat on a mat", "", "zebra, zebra on a hat", "zebra zebra zebra cat"])
def test_a_prompt_is_mapped_on_itself_one_to_one(mapping, prompt: str):
    entries, new = mapped(mapping(cut(prompt), cut(prompt)))
    assert entries == IDENTITY
    assert new == []


def test_replace_of_words_of_one_token():
    assert mapped(replace(cut("a cat on a mat"), cut("a tiger on a mat"))) == (IDENTITY, [])


def test_replace_by_a_longer_word_moves_what_follows():
    # start a cat on end pad..  ->  start a z e b r a on end pad..
    entries, new = mapped(replace(cut("a cat on"), cut("a zebra on")))
    word = {(2, j): 0.2 for j in range(2, 7)}
    assert entries == {(0, 0): 1, (1, 1): 1, **word, (3, 7): 1, (4, 8): 1, **{(k, k): 1.0 for k in range(9, L)}}
    assert new == []


def test_replace_by_a_shorter_word_sums_what_the_longer_had():
    entries, new = mapped(replace(cut("a zebra on"), cut("a cat on")))
    word = {(i, 2): 1.0 for i in range(2, 7)}
    assert entries == {(0, 0): 1, (1, 1): 1, **word, (7, 3): 1, (8, 4): 1, **{(k, k): 1.0 for k in range(9, L)}}
    assert new == [5, 6, 7, 8]  # padding where the source still has words


def test_replace_loses_no_attention():
    mapping, _ = replace(cut("a cat on a zebra"), cut("a zebra on a cat"))
    assert torch.allclose(mapping.sum(1), torch.ones(L))


def test_replace_of_unequal_numbers_of_words_offers_refine():
    with refused("attention", "'a cat'", 2, "'a red cat'", 3, "'refine'"):
        replace(cut("a cat"), cut("a red cat"))


# --- refine ----------------------------------------------------------------------------------------------------------


def test_refine_by_an_inserted_word():
    # start a cat on end pad  ->  start a red cat on end pad
    entries, new = mapped(refine(cut("a cat on"), cut("a red cat on")))
    assert entries == {(0, 0): 1, (1, 1): 1, (2, 3): 1, (3, 4): 1, (4, 5): 1, **{(k, k): 1.0 for k in range(6, L)}}
    assert new == [2]


def test_refine_by_another_word():
    entries, new = mapped(refine(cut("a cat on a mat"), cut("a dog on a mat")))
    assert entries == {k: v for k, v in IDENTITY.items() if k != (2, 2)}
    assert new == [2]


def test_refine_by_leaving_out():
    entries, new = mapped(refine(cut("a red cat"), cut("a cat")))
    assert entries == {(0, 0): 1, (1, 1): 1, (3, 2): 1, (4, 3): 1, **{(k, k): 1.0 for k in range(5, L)}}
    assert new == [4]


def test_refine_of_an_empty_source_is_all_new():
    entries, new = mapped(refine(cut(""), cut("a cat")))
    assert entries == {(0, 0): 1, (1, 3): 1, **{(k, k): 1.0 for k in range(4, L)}}
    assert new == [1, 2]


# --- Needleman-Wunsch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([], [], []),
        ([1], [], []),
        ([], [1, 2], [NEW, NEW]),
        ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
        ([1, 2, 3], [1, 9, 3], [0, NEW, 2]),
        ([1, 2, 3], [3, 1, 2], [NEW, 0, 1]),
        ([1, 2, 1, 3], [1, 3], [2, 3]),  # the later of two equals
    ],
)
def test_alignment_by_hand(source: list[int], target: list[int], expected: list[int]):
    assert align(source, target) == expected


def pairings(n: int, m: int):
    """Every increasing choice of pairs, enumerated outright."""
    for size in range(min(n, m) + 1):
        for left in itertools.combinations(range(n), size):
            for right in itertools.combinations(range(m), size):
                yield list(zip(left, right, strict=True))


def test_alignment_scores_as_well_as_every_other():
    draw = random.Random(0)
    for _ in range(300):
        source = tuple(draw.choices(range(3), k=draw.randrange(6)))
        target = tuple(draw.choices(range(3), k=draw.randrange(6)))
        found = align(source, target)
        pairs = [(i, j) for j, i in enumerate(found) if i != NEW]
        assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
        score = sum(1 if source[i] == target[j] else -1 for i, j in pairs)
        every = max(
            sum(1 if source[i] == target[j] else -1 for i, j in choice) for choice in pairings(len(source), len(target))
        )
        assert score == every
