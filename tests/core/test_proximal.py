"""Proximal guidance: the operator, where it acts, how it is kept, and the method that stores it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from oracles import arc, conditional, mixture, noise_like, prompts
from refusals import refused, unknown, warned
from tiny_flow import FAMILIES
from torch import Tensor

import ddim
from ddim import Guidance, Proximal
from ddim.core.denoiser import PLAIN
from ddim.core.guidance import guided
from ddim.core.prediction import PREDICTIONS, Pair, from_pair
from ddim.core.schedule import Schedule

BASE = mixture(2, 6)
BOTH = prompts(noise_like((4, 5, 6), seed=1), noise_like((4, 5, 6), seed=2))
X, NODE = noise_like((4, 2, 6)), arc(5)[2]
KINDS = [Proximal("l0", 0.7), Proximal("l1", 0.7), Proximal("l0", 0.31), Proximal("l1", 0.05)]


def by_hand(difference: torch.Tensor, kind: str, quantile: float) -> torch.Tensor:
    """The operator in numpy, element by element."""
    out = np.zeros(difference.shape)
    for n, row in enumerate(difference.numpy()):
        threshold = np.quantile(np.abs(row), quantile)
        for place, value in np.ndenumerate(row):
            if abs(value) > threshold:
                out[(n, *place)] = value if kind == "l0" else np.sign(value) * (abs(value) - threshold)
    return torch.from_numpy(out)


@pytest.mark.parametrize("proximal", KINDS, ids=str)
def test_the_operator_is_the_threshold_of_each_sample(proximal):
    difference = noise_like((3, 2, 5, 4)) * torch.tensor([1.0, 10.0, 0.1]).double().view(3, 1, 1, 1)
    found = proximal(difference)
    assert torch.allclose(found, by_hand(difference, proximal.kind, proximal.quantile), rtol=0, atol=1e-12)
    kept = (found != 0).flatten(1).double().mean(1)
    assert torch.allclose(kept, torch.full_like(kept, 1 - proximal.quantile), atol=0.03)
    assert not proximal(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("proximal", KINDS[:2], ids=str)
def test_it_is_the_same_for_every_prediction(proximal, prediction):
    """eps = uncond + w prox(cond - uncond), whatever the network predicts."""
    eps = [conditional(BASE).pair(X, NODE, c).eps for c in (BOTH.uncond, BOTH.cond) if c]
    expected = eps[0] + 3.0 * by_hand(eps[1] - eps[0], proximal.kind, proximal.quantile)
    network = conditional(BASE, schedule=Schedule(ddim.ddpm_linear(), prediction))
    pair = guided(network, Guidance(3.0, proximal=proximal), BOTH)(X, NODE)
    assert torch.allclose(pair.eps, expected, rtol=0, atol=1e-10)
    assert torch.allclose(NODE.alpha * pair.x0 + NODE.sigma * pair.eps, X, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", ["sd3", "qwen-image", "lumina2", "z-image"])
@torch.no_grad()
def test_the_family_s_own_guidance_gets_the_reduced_difference(family: str):
    model = FAMILIES[family].model()
    x, node = torch.randn(2, *model.shape), model.schedule.grid(4, image_size=model.shape[1:])[1]
    both, proximal = model.condition(None, 2, "a cat", "a dog"), Proximal("l1", 0.5)
    assert both.uncond is not None
    uncond, cond = model.ask(x, node, both.uncond, both.cond, call=ddim.Call(branches=("uncond", "cond")))
    reduced = uncond + by_hand((cond - uncond).double(), "l1", 0.5).float()
    guidance = Guidance(4.0, proximal=proximal)
    expected = model.combine(reduced, uncond, guidance, node)
    pair = model.guided(guidance, both)(x, node)
    output = from_pair(model.schedule.prediction, pair, node.alpha, node.sigma)
    assert torch.allclose(output, expected, atol=1e-4)
    assert not torch.allclose(output, model.combine(cond, uncond, guidance, node), atol=1e-4)


def test_without_a_difference_or_at_weight_one_it_does_nothing():
    network = conditional(BASE)
    same = prompts(noise_like((4, 5, 6), seed=1), noise_like((4, 5, 6), seed=1))
    plain, led = (guided(network, Guidance(w, proximal=KINDS[0]), both)(X, NODE) for w, both in ((1, BOTH), (9, same)))
    assert torch.allclose(led.eps, plain.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("proximal", KINDS, ids=str)
def test_options_come_back(proximal):
    guidance = Guidance(5.0, 0.5, proximal=proximal)
    assert guidance.options["proximal"] == {"kind": proximal.kind, "quantile": proximal.quantile}
    assert Guidance.of(guidance.options) == guidance
    assert guidance.at(2.0).proximal == proximal
    assert "proximal" not in Guidance(5.0).options


@pytest.mark.parametrize(
    ("made", "refusal"),
    [
        (lambda: Proximal("l3"), unknown("proximal", "l3", "l0, l1", nearest="l1")),
        (lambda: Proximal("l0", 0.0), refused("proximal_quantile", 0)),
        (lambda: Proximal("l0", 1.0), refused("proximal_quantile", 1)),
        (lambda: Proximal("l0", "a"), refused("proximal_quantile", "a")),  # type: ignore[arg-type]
        (lambda: Proximal(pull=1.5), refused("pull", 1.5)),
        (lambda: Proximal(until=0), refused("until", 0)),
        (lambda: Proximal(dilation=2), refused("dilation", 2)),
        (lambda: Guidance(3.0, proximal="l0"), refused("proximal", "str")),  # type: ignore[arg-type]
        (lambda: Proximal.of({"kind": "l0"}), refused("proximal")),
    ],
)
def test_bad_settings(made: Any, refusal: Any):
    with refusal:
        made()


# --- through the verbs -----------------------------------------------------------------------------------------------


def test_where_it_does_nothing_it_is_refused():
    model, idle = tiny_text.model(), Guidance(1.0, proximal=KINDS[0])
    with refused("proximal", "'l0'"):
        ddim.sample(model, 1, steps=2, prompt="a cat", guidance=idle)
    with refused("proximal", "'l0'"):
        ddim.edit(model, tiny_text.pictures(1), "a dog", source_prompt="a cat", guidance=idle)
    with refused("proximal", "'l0'"):
        ddim.sample(FAMILIES["flux schnell"].model(), 1, steps=2, prompt="a cat", guidance=idle)


@pytest.mark.parametrize("how", ["a weight", "a Guidance", "a code"])
def test_the_method_is_negative_prompt_whose_edits_are_proximal(how: str, tmp_path):
    model, pictures = tiny_text.model(dtype=torch.float64), tiny_text.pictures(2)
    asked: dict[str, Any] = {"source_prompt": "a cat", "steps": 4}
    proximal = Proximal("l1", 0.4)
    mine: dict[str, Any] = {"method": "prox-npi", "options": {"kind": "l1", "quantile": 0.4, "pull": 0}}
    if how == "a code":
        code = ddim.invert(model, pictures, steps=4, prompt="a cat", **mine)  # at weight 1, where it does not act
        code = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
        with warned(repr("prox-npi"), 1, 5):
            edited = ddim.edit(model, code, "a dog", guidance=5.0)
    else:
        edited = ddim.edit(
            model, pictures, "a dog", guidance=5.0 if how == "a weight" else Guidance(5.0), **mine, **asked
        )
    assert Guidance.of(edited.code.guidance).proximal == proximal
    theirs = ddim.edit(
        model, pictures, "a dog", method="negative-prompt", guidance=Guidance(5.0, proximal=proximal), **asked
    )
    plain = ddim.edit(model, pictures, "a dog", method="negative-prompt", guidance=5.0, **asked)
    assert torch.allclose(edited.edits, theirs.edits, rtol=0, atol=1e-9)
    assert torch.allclose(edited.reconstruction, plain.reconstruction, rtol=0, atol=1e-9)
    assert (edited.edits - plain.edits).abs().max() > 1e-4
    own = ddim.make_inversion("prox-npi").sampling_guidance(Guidance(5.0, proximal=proximal))
    assert own.proximal == proximal  # what is asked for comes first


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"kind": "l3"}, unknown("proximal", "l3", "l0, l1", nearest="l1")),
        ({"quantile": 1.5}, refused("proximal_quantile", 1.5)),
        ({"toward_empty": 1.5}, refused("toward_empty", 1.5)),
        ({"pull": -1}, refused("pull", -1.0)),
        ({"until": 1.5}, refused("until", 1.5)),
        ({"dilation": 4}, refused("dilation", 4)),
    ],
)
def test_bad_options_of_the_method(options, refusal):
    with refusal:
        ddim.make_inversion("prox-npi", options)


@pytest.mark.parametrize("dilation", [1, 3])
def test_reconstruction_guidance_moves_x0_where_the_difference_is_ignored(dilation: int):
    """By the paper's rule, written out: x0 + pull (image - x0) outside the mask, and eps = (x - alpha x0) / sigma."""
    model, node = tiny_text.model(dtype=torch.float64), tiny_text.model().schedule.grid(4)[3]
    both, proximal = model.condition(None, 2, "a cat", "a dog"), Proximal("l0", 0.9, 0.3, 0.4, dilation)
    generator = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 2, *model.shape, generator=generator, dtype=torch.float64)
    pair = model.guided(Guidance(5.0, proximal=proximal), both, anchor=image)(x, node)
    assert both.uncond is not None
    uncond, cond = model.ask(x, node, both.uncond, both.cond, call=replace(PLAIN, branches=("uncond", "cond")))
    difference = cond - uncond
    large = difference.abs() > torch.quantile(difference.abs().flatten(1), 0.9, dim=1).view(-1, 1, 1, 1)
    eps = uncond + 5.0 * difference * large
    x0 = (x - node.sigma * eps) / node.alpha
    near = torch.zeros_like(large)
    for rows in range(large.shape[2]):
        for columns in range(large.shape[3]):
            reach = dilation // 2
            window = large[:, :, max(0, rows - reach) : rows + reach + 1, max(0, columns - reach) : columns + reach + 1]
            near[:, :, rows, columns] = window.flatten(2).any(2)
    expected = torch.where(near, x0, x0 + 0.3 * (image - x0))
    assert torch.allclose(pair.x0, expected, rtol=0, atol=1e-9)
    assert torch.allclose(pair.eps, (x - node.alpha * expected) / node.sigma, rtol=0, atol=1e-9)
    assert near.any()
    assert not near.all()
    early = model.schedule.grid(4)[1]
    assert early.t >= 0.4 * model.schedule.path.t_max
    pulled = model.guided(Guidance(5.0, proximal=proximal), both, anchor=image)(x, early)
    plain = model.guided(Guidance(5.0, proximal=Proximal("l0", 0.9)), both)(x, early)
    assert torch.equal(pulled.x0, plain.x0)


def test_a_code_pulls_its_source_and_its_edits_to_the_image(tmp_path, monkeypatch):
    """The source, for which both predictions are the same, is pulled as a whole, and not by rounding only in part."""
    model, pictures = tiny_text.model(dtype=torch.float64), tiny_text.pictures(2)
    image = model.decode(model.encode(pictures))

    def edited(**options: Any) -> tuple[float, Any]:
        code = ddim.invert(model, pictures, steps=4, prompt="a cat", method="prox-npi", guidance=5.0, options=options)
        code = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
        made = ddim.edit(model, code, "a dog", guidance=5.0)
        assert torch.allclose(made.reconstruction, ddim.reconstruct(model, code), rtol=0, atol=1e-9)
        return float((made.reconstruction - image).abs().max()), made.edits

    seen: list[Tensor] = []
    pulled = Proximal.pulled

    def watched(self: Proximal, pair: Pair, difference: Tensor, *rest: Any) -> Pair:
        seen.append(difference)
        return pulled(self, pair, difference, *rest)

    monkeypatch.setattr(Proximal, "pulled", watched)
    (loose, free), (usual, near), (tight, nearest) = edited(pull=0.0), edited(), edited(pull=1.0)
    assert tight < usual < loose
    apart = [float((edits[:, 0] - image).square().mean()) for edits in (nearest, near, free)]
    assert apart == sorted(apart)
    assert apart[0] > 1e-6  # it is an edit still
    beside = [difference for difference in seen if len(difference) == 4]
    assert all(not difference[::2].any() and difference[1::2].all() for difference in beside)
    assert beside


def test_pulling_without_an_image_is_refused():
    model = tiny_text.model()
    with refused("pull", 0.1):
        ddim.sample(model, 1, steps=2, prompt="a cat", guidance=Guidance(5.0, proximal=Proximal(pull=0.1)))


def test_exact_methods_come_back_under_it():
    model, pictures = tiny_text.model(), tiny_text.pictures(2)
    code = ddim.invert(
        model, pictures, steps=4, method="belm", prompt="a cat", guidance=Guidance(3.0, proximal=KINDS[0])
    )
    assert torch.equal(ddim.reconstruct(model, code), model.decode(code_end(model, pictures)))


def code_end(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """The latents of the pictures on the lattice of the solver."""
    solver, grid = ddim.make_solver("belm"), model.schedule.grid(4)
    x0 = model.encode(pictures)
    return solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), grid, 4))


def test_null_text_tunes_under_it():
    """The step that the embedding is tuned for is the one that is sampled."""
    model, pictures = tiny_text.model(dtype=torch.float64), tiny_text.pictures(1)
    guidance = Guidance(5.0, proximal=Proximal("l0", 0.5))
    errors = []
    for tuned_for in (guidance, Guidance(5.0)):
        code = ddim.invert(model, pictures, steps=4, method="null-text", prompt="a cat", guidance=tuned_for)
        back = ddim.reconstruct(model, replace(code, guidance=guidance.options))
        errors.append(float((back - model.decode(model.encode(pictures))).square().mean()))
    assert errors[0] < errors[1]
