"""Classifier-free guidance: one formula for every prediction, when it asks once, rescale, interval."""

import pytest
import torch
from oracles import Conditional, arc, conditional, gaussian, mixture, noise_like, prompts
from refusals import refused
from torch import Tensor

import ddim
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.denoiser import Call
from ddim.core.guidance import Guidance, combine, guided
from ddim.core.prediction import PREDICTIONS, Pair, from_pair, to_pair
from ddim.core.schedule import Schedule

DATA = conditional(mixture(2, 3))
BOTH = prompts(noise_like((4, 5, 6), seed=1), noise_like((4, 5, 6), seed=2))
assert BOTH.uncond is not None
X, NODE = noise_like((4, 2, 3)), arc(5)[2]
COND, UNCOND = DATA.pair(X, NODE, BOTH.cond), DATA.pair(X, NODE, BOTH.uncond)


class Asked(Conditional):
    """The oracle as a network of any prediction, with the branches and the rows that were asked for."""

    def __init__(self, prediction: str = "eps") -> None:
        super().__init__(DATA.base, DATA.lead, Schedule(ddim.ddpm_linear(), prediction))
        object.__setattr__(self, "calls", [])
        self.calls: list[tuple[tuple[str, ...], int]]

    def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
        self.calls.append((call.branches, len(x)))
        return from_pair(self.schedule.prediction, self.pair(x, node, cond), node.alpha, node.sigma)


def said(prediction: str, pair: Pair) -> Tensor:
    return from_pair(prediction, pair, NODE.alpha, NODE.sigma)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0, 7.5])
def test_the_formula_is_the_same_for_every_prediction(prediction, weight):
    """It is linear, and so is what leads from an output to a pair: outputs may be combined, or pairs."""
    by_output = to_pair(
        prediction, combine(said(prediction, COND), said(prediction, UNCOND), Guidance(weight)), X, NODE
    )
    by_pair = Pair(*(u + weight * (c - u) for c, u in zip(COND, UNCOND, strict=True)))
    by_network = guided(Asked(prediction), Guidance(weight), BOTH)(X, NODE)
    for a, b, c in zip(by_output, by_pair, by_network, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
        assert torch.allclose(c, b, rtol=0, atol=1e-11)
    assert torch.allclose(NODE.alpha * by_network.x0 + NODE.sigma * by_network.eps, X, rtol=0, atol=1e-12)


def test_a_guided_gaussian_is_the_gaussian_whose_mean_is_guided():
    data = conditional(gaussian(2, 3))
    weight = 4.0
    assert BOTH.uncond is not None
    null, text = (data.move(c.tensors["text"]) for c in (BOTH.uncond, BOTH.cond))
    mean = null + weight * (text - null)
    truth = data.base(X - NODE.alpha * mean, NODE)
    pair = guided(data, Guidance(weight), BOTH)(X, NODE)
    assert torch.allclose(pair.eps, truth.eps, rtol=0, atol=1e-12)
    assert torch.allclose(pair.x0, truth.x0 + mean, rtol=0, atol=1e-12)


def test_weight_one_asks_once_and_is_the_model():
    asked = Asked()
    pair = guided(asked, Guidance(1.0), BOTH)(X, NODE)
    assert asked.calls == [(("cond",), 4)]
    assert torch.equal(pair.eps, COND.eps)


def test_weight_zero_is_the_unconditional_branch():
    assert torch.equal(guided(DATA, Guidance(0.0), BOTH)(X, NODE).eps, UNCOND.eps)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_in_one_batch_is_one_after_the_other(rescale):
    one, two = Asked(), Asked()
    labelled = PromptConditioning(*(c.replace(labels=torch.arange(4)) for c in (BOTH.cond, BOTH.uncond) if c))
    a = guided(one, Guidance(5.0, rescale), labelled)(X, NODE)
    b = guided(two, Guidance(5.0, rescale, batched_cfg=False), labelled)(X, NODE)
    assert one.calls == [(("uncond", "cond"), 8)]
    assert two.calls == [(("uncond",), 4), (("cond",), 4)]
    for left, right in zip(a, b, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_what_a_call_is_told_reaches_the_network_with_the_denoisers_own_controller():
    told: list[Call] = []

    class Listens(Asked):
        def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
            told.append(call)
            return super().forward(x, node, cond, call)

    layout = ddim.core.denoiser.Layout(2, 1)
    guided(Listens(), Guidance(3.0), BOTH, call=Call(layout=layout))(X, NODE, Call(controller="mine"))
    assert [(c.branches, c.controller, c.layout) for c in told] == [(("uncond", "cond"), "mine", layout)]


def test_conditions_may_be_each_node_s_own():
    def at(node: ddim.Node) -> PromptConditioning:
        return BOTH if node == NODE else BOTH[[1, 0, 2, 3]]

    denoise, other = guided(DATA, Guidance(3.0), at), arc(5)[3]
    assert torch.equal(denoise(X, NODE).eps, guided(DATA, Guidance(3.0), BOTH)(X, NODE).eps)
    assert torch.equal(denoise(X, other).eps, guided(DATA, Guidance(3.0), BOTH[[1, 0, 2, 3]])(X, other).eps)


def test_without_an_unconditional_branch_there_is_no_guidance():
    asked = Asked()
    lone = PromptConditioning(BOTH.cond)
    guided(asked, Guidance(1.0), lone)(X, NODE)
    assert asked.calls == [(("cond",), 4)]
    with refused("guidance", 7.5):
        guided(asked, Guidance(7.5), lone)(X, NODE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_rescale_brings_the_spread_back(prediction):
    cond = said(prediction, COND)

    def spread(x: Tensor) -> Tensor:
        return x.flatten(1).std(1)

    plain, half, full = (combine(cond, said(prediction, UNCOND), Guidance(9.0, phi)) for phi in (0.0, 0.5, 1.0))
    assert torch.allclose(spread(full), spread(cond))
    assert not torch.allclose(spread(plain), spread(cond), rtol=0.05)
    assert torch.allclose(spread(half), (spread(plain) + spread(cond)) / 2)  # Eq. 16: a straight line in phi
    for phi, output in ((0.5, half), (1.0, full)):
        pair = guided(Asked(prediction), Guidance(9.0, phi), BOTH)(X, NODE)
        assert torch.allclose(said(prediction, pair), output, rtol=0, atol=1e-11)
        assert torch.allclose(NODE.alpha * pair.x0 + NODE.sigma * pair.eps, X, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("t", "inside"), [(0.1, False), (0.3, True), (0.5, True), (0.7, True), (0.8, False)])
def test_interval(t, inside):
    asked, guidance = Asked(), Guidance(3.0, interval=(0.3, 0.7))
    node = ddim.Node(t * 1000, 0.8, 0.6)
    guided(asked, guidance, BOTH)(X, node)
    assert guidance.applies(node, 1000.0) == inside
    assert asked.calls == ([(("uncond", "cond"), 8)] if inside else [(("cond",), 4)])


def test_options_come_back():
    guidance = Guidance(6.0, 0.7, (0.1, 0.9))
    assert Guidance.of(guidance.options) == guidance
    assert Guidance.of({}) == Guidance()
    assert Guidance.of(guidance.options, batched_cfg=False) == Guidance(6.0, 0.7, (0.1, 0.9), batched_cfg=False)
    assert guidance.at(2.0) == Guidance(2.0, 0.7, (0.1, 0.9))
    told = Guidance(4.0, embedded=3.5)
    assert told.options["embedded"] == 3.5
    assert Guidance.of(told.options) == told


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"weight": float("nan")}, refused("guidance", "nan")),
        ({"weight": float("inf")}, refused("guidance", "inf")),
        ({"weight": "7.5"}, refused("guidance", 7.5)),
        ({"weight": None}, refused("guidance", None)),
        ({"weight": "a"}, refused("guidance", "a")),
        ({"rescale": "a"}, refused("rescale", "a")),
        ({"interval": 0.5}, refused("interval", 0.5)),
        ({"interval": (0.0, 0.5, 1.0)}, refused("interval", (0.0, 0.5, 1.0))),
        ({"interval": ("a", "b")}, refused("interval", ("a", "b"))),
        ({"rescale": 1.2}, refused("rescale", 1.2)),
        ({"embedded": "a"}, refused("embedded", "a")),
        ({"interval": (0.8, 0.2)}, refused("interval", (0.8, 0.2))),
    ],
)
def test_bad_settings(options, refusal):
    with refusal:
        Guidance(**options)
