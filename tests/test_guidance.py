"""Classifier-free guidance: one formula for every prediction, when it asks once, rescale, interval."""

from typing import Any

import pytest
import torch
from oracles import arc, conditional, gaussian, mixture, noise_like
from torch import Tensor

import ddim
from ddim._utils.errors import InputError
from ddim.core.guidance import Guidance, blend, classifier_free, combine
from ddim.core.prediction import Pair, from_pair, to_pair

DATA = conditional(mixture(2, 3))
COND = {"words": noise_like((4, 5, 6), seed=1), "null": noise_like((4, 5, 6), seed=2)}
X, NODE = noise_like((4, 2, 3)), arc(5)[2]


class Asked:
    """The oracle, with the rows and the halves that were asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, int]] = []

    def __call__(self, x: Tensor, node: ddim.Node, cond: Any = None) -> Pair:
        self.calls.append((cond.get("half"), len(x)))
        assert "null" not in cond
        return DATA(x, node, cond)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0, 7.5])
def test_the_formula_is_the_same_for_every_prediction(prediction, weight):
    null, words = DATA(X, NODE, {"words": COND["null"]}), DATA(X, NODE, COND)
    said = [from_pair(prediction, pair, NODE.alpha, NODE.sigma) for pair in (null, words)]
    by_network = to_pair(prediction, said[0] + weight * (said[1] - said[0]), X, NODE)
    by_pair = combine(null, words, weight)
    for a, b in zip(by_network, by_pair, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
    assert torch.allclose(NODE.alpha * by_pair.x0 + NODE.sigma * by_pair.eps, X, rtol=0, atol=1e-12)


def test_a_guided_gaussian_is_the_gaussian_whose_mean_is_guided():
    data = conditional(gaussian(2, 3))
    weight = 4.0
    mean = data.move(COND["null"]) + weight * (data.move(COND["words"]) - data.move(COND["null"]))
    truth = data.base(X - NODE.alpha * mean, NODE)
    pair = classifier_free(data, Guidance(weight))(X, NODE, COND)
    assert torch.allclose(pair.eps, truth.eps, rtol=0, atol=1e-12)
    assert torch.allclose(pair.x0, truth.x0 + mean, rtol=0, atol=1e-12)


def test_weight_one_asks_once_and_is_the_model():
    asked = Asked()
    pair = classifier_free(asked, Guidance(1.0))(X, NODE, COND)
    assert asked.calls == [(None, 4)]
    assert torch.equal(pair.eps, DATA(X, NODE, COND).eps)


def test_weight_zero_is_the_null_embedding():
    assert torch.equal(
        classifier_free(DATA, Guidance(0.0))(X, NODE, COND).eps, DATA(X, NODE, {"words": COND["null"]}).eps
    )


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_together_is_one_after_the_other(rescale):
    one, two = Asked(), Asked()
    a = classifier_free(one, Guidance(5.0, rescale))(X, NODE, {**COND, "labels": torch.arange(4)})
    b = classifier_free(two, Guidance(5.0, rescale, together=False))(X, NODE, {**COND, "labels": torch.arange(4)})
    assert one.calls == [("both", 8)]
    assert two.calls == [("null", 4), ("words", 4)]
    for left, right in zip(a, b, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_without_a_null_embedding_there_is_no_guidance():
    asked = Asked()
    classifier_free(asked, Guidance(7.5))(X, NODE, {"words": COND["words"]})
    assert asked.calls == [(None, 4)]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_rescale_brings_the_spread_back(prediction):
    null, words = DATA(X, NODE, {"words": COND["null"]}), DATA(X, NODE, COND)

    def spread(pair: Pair) -> Tensor:
        return from_pair(prediction, pair, NODE.alpha, NODE.sigma).flatten(1).std(1)

    plain, full = (blend(null, words, X, NODE, Guidance(9.0, phi), prediction) for phi in (0.0, 1.0))
    assert torch.allclose(spread(full), spread(words))
    assert not torch.allclose(spread(plain), spread(words), rtol=0.05)
    half = blend(null, words, X, NODE, Guidance(9.0, 0.5), prediction)
    assert torch.allclose(spread(half), (spread(plain) + spread(words)) / 2)  # Eq. 16: a straight line in phi
    for pair in (half, full):
        assert torch.allclose(NODE.alpha * pair.x0 + NODE.sigma * pair.eps, X, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.3, True), (0.5, True), (0.7, True), (0.8, False)])
def test_interval(t, inside):
    asked, guidance = Asked(), Guidance(3.0, interval=(0.3, 0.7))
    node = ddim.Node(t * 1000, 0.8, 0.6)
    classifier_free(asked, guidance)(X, node, COND)
    assert guidance.applies(node, 1000.0) == inside
    assert asked.calls == ([("both", 8)] if inside else [(None, 4)])


def test_options_come_back():
    guidance = Guidance(6.0, 0.7, (0.1, 0.9))
    assert Guidance.of(guidance.options) == guidance
    assert Guidance.of({}) == Guidance()
    assert Guidance.of(guidance.options, together=False) == Guidance(6.0, 0.7, (0.1, 0.9), together=False)
    assert guidance.at(2.0) == Guidance(2.0, 0.7, (0.1, 0.9))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight": float("nan")}, "guidance: nan is not a number"),
        ({"weight": float("inf")}, "guidance: inf is not a number"),
        ({"weight": "7.5"}, "guidance: 7.5 is not a number"),
        ({"weight": None}, "guidance: None is not a number"),
        ({"weight": "a"}, "guidance: a is not a number"),
        ({"rescale": "a"}, r"rescale: a lies outside \[0, 1\]"),
        ({"interval": 0.5}, "interval: 0.5 is not a pair of numbers"),
        ({"interval": (0.0, 0.5, 1.0)}, r"interval: \(0.0, 0.5, 1.0\) is not a pair of numbers"),
        ({"interval": ("a", "b")}, "is not a pair of numbers"),
        ({"rescale": 1.2}, r"rescale: 1.2 lies outside \[0, 1\]"),
        ({"interval": (0.8, 0.2)}, r"interval: \(0.8, 0.2\) is no part of \[0, 1\]"),
    ],
)
def test_bad_settings(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Guidance(**options)
