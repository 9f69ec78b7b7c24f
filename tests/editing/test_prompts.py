"""Weighted words, words to blend by, one value a target."""

import pytest
import tiny_text
import torch
from refusals import refused

from ddim._utils.errors import InputError
from ddim._utils.texts import parse_weights, refuse_weights, texts_for
from ddim.editing.prompts import blend_words, per_target, scales, target_prompts, token_mask
from ddim.editing.tokens import Tokens, tokens_of


def cut(prompt: str) -> Tokens:
    return tokens_of(tiny_text.tokenizer(), prompt, tiny_text.LENGTH)


@pytest.mark.parametrize(
    ("prompt", "plain", "weights"),
    [
        ("a cat", "a cat", {}),
        ("a (cat:2.0) on a mat", "a cat on a mat", {1: 2.0}),
        ("(red hat:1.5), (cat:-1)", "red hat, cat", {0: 1.5, 1: 1.5, 2: -1.0}),
        ("a (cat : .5)", "a cat", {1: 0.5}),
        ("a (cat) and (a:b)", "a (cat) and (a:b)", {}),
        ("a cat (cat:0)", "a cat cat", {2: 0.0}),
        ("a big(cat:2)", "a bigcat", {1: 2.0}),
        ("a (cat:1e-1)", "a cat", {1: 0.1}),
        (r"a \(cat:2) on a (mat:3)", "a (cat:2) on a mat", {4: 3.0}),
        (r"a \(cat:2\)", "a (cat:2)", {}),
        (r"\(^_^) a \cat", r"\(^_^) a \cat", {}),
        ("", "", {}),
    ],
)
def test_weights_in_a_prompt(prompt: str, plain: str, weights: dict[int, float]):
    assert parse_weights(prompt) == (plain, weights)


def test_brackets_with_a_number_and_no_word():
    with pytest.raises(InputError) as caught:
        parse_weights("a ( :2) cat")
    assert caught.value.parameter == "prompt"


def test_weights_where_no_word_can_be_weighed():
    assert refuse_weights("a (cat) on a mat", "negative") == "a (cat) on a mat"
    assert refuse_weights(r"a \(cat:2)", "negative") == "a (cat:2)"
    with pytest.raises(InputError) as caught:
        refuse_weights(r"\(a:2) (cat:2)", "negative")
    assert caught.value.parameter == "negative"
    assert r"\(cat:2)" in caught.value.message


@pytest.mark.parametrize("given", [3, None, ["a", 3], [], ["a", "b"], "\udcff", ["a\0"], b"a"])
def test_prompts_that_are_no_texts(given):
    with pytest.raises(InputError) as caught:
        texts_for(given, 3, "prompt")
    assert caught.value.parameter == "prompt"
    str(caught.value).encode()  # what is said can be written


def test_a_weight_on_a_word_that_was_cut_off_is_refused_inline_and_by_name():
    tokens = cut("a zebra with a zebra and a zebra on a mat")
    for inline, weights, parameter in (({10: 2.0}, None, "prompt"), ({}, {"mat": 2.0}, "weights")):
        with pytest.raises(InputError) as caught:
            scales(tokens, inline, weights)
        assert caught.value.parameter == parameter
        assert "'mat' was cut off" in caught.value.message


def test_a_weight_inline_that_is_no_number():
    with pytest.raises(InputError) as caught:
        scales(cut("a cat"), parse_weights("a (cat:1e999)")[1], None)
    assert caught.value.parameter == "prompt"


def test_every_token_of_a_word_is_scaled():
    factors = scales(cut("a zebra on a mat"), {1: 2.0}, {"mat": 0.5})
    expected = torch.ones(tiny_text.LENGTH)
    expected[2:7], expected[9] = 2.0, 0.5
    assert torch.equal(factors, expected)


def test_a_mapping_means_every_occurrence_and_goes_before_the_brackets():
    factors = scales(cut("a cat on a mat"), {0: 3.0}, {"a": 2.0})
    assert factors is not None
    assert factors[:6].tolist() == [1, 2, 1, 1, 2, 1]


def test_no_weights_are_none():
    assert scales(cut("a cat"), {}, None) is None
    assert scales(cut("a cat"), {}, {}) is None


def test_a_weight_of_an_unknown_word():
    with refused("weights", "'dog'", "'a cat'", "a, cat"):
        scales(cut("a cat"), {}, {"dog": 2.0})


@pytest.mark.parametrize("weight", ["2", float("nan"), float("inf"), True])
def test_a_weight_that_is_no_number(weight):
    with refused("weights", repr(weight), "'cat'"):
        scales(cut("a cat"), {}, {"cat": weight})


@pytest.mark.parametrize(
    ("blend", "pair"),
    [
        ("cat/tiger", ("cat", "tiger")),
        (("cat", "tiger"), ("cat", "tiger")),
        ("cat", ("cat", "cat")),
        ("/red hat", ("", "red hat")),
        (" cat / ", ("cat", "")),
    ],
)
def test_blend_words(blend, pair):
    assert blend_words(blend) == pair


@pytest.mark.parametrize("blend", ["", "/", "a/b/c", ("a", "b", "c"), (" ", "")])
def test_blend_without_words(blend):
    with refused("blend", repr(blend)):
        blend_words(blend)


def test_the_mask_of_words():
    assert token_mask(cut("a zebra on a mat"), "zebra mat").nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 9]
    assert not token_mask(cut("a cat"), "").any()
    with refused("blend", "'tiger'", "'a cat'"):
        token_mask(cut("a cat"), "tiger")


def test_one_value_a_target():
    assert per_target("blend", "x", 2, 3) == [["x"] * 3] * 2
    assert per_target("blend", ["x", None], 2, 2) == [["x", None], ["x", None]]
    assert per_target("blend", [["x", "y"], [None, "z"]], 2, 2) == [["x", "y"], [None, "z"]]
    with refused("blend", 3, 2):
        per_target("blend", ["x", "y", "z"], 2, 2)
    with refused("blend", 1, 2):
        per_target("blend", [["x", "y"]], 2, 2)


def test_target_prompts():
    assert target_prompts("a", 2) == [["a"], ["a"]]
    assert target_prompts(["a", "b"], 2) == [["a", "b"], ["a", "b"]]
    assert target_prompts([["a", "b"], ("c", "d")], 2) == [["a", "b"], ["c", "d"]]
    for wrong in ([], [["a"], ["b", "c"]], [["a"], "b"], [[]]):
        with refused("prompt", wrong):
            target_prompts(wrong, 2)
    with refused("prompt", 1, 2):
        target_prompts([["a"]], 2)


@pytest.mark.parametrize("escaped", [r"a \(cat:2)", r"a \(cat:2\)", r"a (cat:2\)"])
def test_a_stroke_before_either_bracket_makes_it_text(escaped: str):
    assert parse_weights(escaped) == ("a (cat:2)", {})
