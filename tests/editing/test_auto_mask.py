"""Automatic masks: the formula of DiffEdit, written out, and its limits; and what an edit makes of them."""

from collections.abc import Sequence
from typing import Any

import pytest
import tiny_flow
import tiny_text
import torch
from refusals import refused, unknown, warned
from torch import Tensor

import ddim
from ddim import AutoMask, Guidance, Node, RectifiedFlow, Schedule
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.denoiser import PLAIN, Call
from ddim.core.noise import SeededNoise
from ddim.editing.sides import Side
from ddim.models.base import Model

SOURCE, TARGETS = "a cat on a mat", ["a dog on a mat", "a red face"]
STEPS = 4


class Halves:
    """A network whose answer depends on the condition only in the part of the picture that the condition names."""

    def __init__(self, prediction: str) -> None:
        self.schedule = Schedule(RectifiedFlow() if prediction == "flow" else ddim.ddpm_linear(), prediction)

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        return [0.3 * x + cond.tensors["where"].to(x) for cond in conditionings]

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Any, node: Node) -> Tensor:
        raise AssertionError("there is no guidance")


def side(areas: list[Tensor], images: int) -> Side:
    where = torch.stack(areas)[:, None].expand(-1, 2, -1, -1)
    return Side(PromptConditioning(Conditioning({"where": where})), Guidance(), images)


def area(rows: slice, columns: slice, value: float = 1.0) -> Tensor:
    out = torch.zeros(8, 8)
    out[rows, columns] = value
    return out


ALL, LEFT = slice(None), slice(0, 4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_conditions_that_differ_in_one_part_give_that_part(prediction: str, level: float):
    network, auto = Halves(prediction), AutoMask(level)
    none, left, top = area(ALL, slice(0), 0), area(ALL, LEFT), area(LEFT, ALL, -0.01)
    found = auto.mask(
        network,
        auto.node(network),
        torch.randn(2, 2, 8, 8),
        side([none, left], 2),
        side([left, top, none, left], 2),
        SeededNoise([0, 1]),
    )
    expected = torch.stack([left, -100 * top, left, none]).reshape(2, 2, 8, 8)
    assert torch.equal(found, expected)


def test_outliers_do_not_hide_the_rest_and_the_mask_grows():
    difference = area(ALL, LEFT)[None, None] * 1.0
    difference[0, 0, 0, 0] = 1e6
    assert torch.equal(AutoMask().of_map(difference)[0, 0], area(slice(0, 1), slice(0, 1)))  # the mean follows it too
    difference[0, 0, 0, 0] = 4.0
    assert torch.equal(AutoMask().of_map(difference)[0, 0], area(ALL, LEFT))  # 1 of 4 would be below one half
    assert torch.equal(AutoMask(grow=1).of_map(difference)[0, 0], area(ALL, slice(0, 5)))
    few = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    assert AutoMask(threshold=0.5).of_map(few).tolist() == [[[[0, 0, 1, 1]]]]
    assert AutoMask(threshold=0).of_map(few).tolist() == [[[[0, 1, 1, 1]]]]


def written_out(model: Model, x0: Tensor, conditions: tuple[Tensor, Tensor], seed: int, auto: AutoMask) -> Tensor:
    """The paper's formula for one image and one target, on a model of eps or v; another order of the same sums."""
    t = round(auto.level * model.schedule.path.t_max)
    node, draw = model.schedule.path.node(t), torch.Generator().manual_seed(seed)
    maps = []
    for _ in range(auto.draws):
        x = node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=draw).to(x0)
        eps = []
        for text in conditions:
            (out,) = model.ask(x[None], node, Conditioning({"text": text[None]}))
            eps.append(out[0] if model.schedule.prediction == "eps" else node.alpha * out[0] + node.sigma * x)
        maps.append((eps[0] - eps[1]).abs())
    found = torch.stack(maps).mean((0, 1))
    clamped = found.clamp(max=3 * found.mean())
    return (clamped / clamped.max() > auto.threshold).float()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_mask_of_an_edit_is_the_papers(prediction: str):
    model = tiny_text.model(prediction, dtype=torch.float64)
    images, auto = tiny_text.pictures(2).double(), AutoMask(0.4, 3, 0.4)
    settings = {"source_prompt": SOURCE, "steps": STEPS, "seed": 7, "guidance": 3.0}
    found = ddim.edit(model, images, TARGETS, auto_mask=auto, **settings).blend_mask
    assert found is not None
    latents, texts = model.encode(images), model.encode_prompt([SOURCE, *TARGETS]).tensors["text"]
    for k in range(2):
        for j in range(2):
            mask = written_out(model, latents[k], (texts[0], texts[1 + j]), 7 + k, auto)
            shown = torch.nn.functional.interpolate(mask[None, None], found.shape[2:])[0, 0]
            assert torch.equal(found[k, j].float(), shown)
            assert 0 < shown.mean() < 1
    assert not torch.equal(found[:, 0], found[:, 1])


METHODS = ["direct", "ddim", "bdia", "edit-friendly", "flow-edit", "uni-edit"]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_text.model(dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_outside_of_it_every_byte_is_the_photographs(model: Model, method: str):
    images = (tiny_text.pictures(2) * 255).round() / 255
    settings = {"source_prompt": SOURCE, "steps": STEPS, "method": method, "feather": 0}
    edited = ddim.edit(model, images, TARGETS, auto_mask="difference", **settings)
    assert edited.blend_mask is not None
    assert edited.composites is not None
    assert edited.blend_mask.shape == (2, 2, *images.shape[2:])
    photographs = (images * 255).round().to(torch.uint8)
    for n in range(2):
        for k in range(2):
            outside = edited.blend_mask[n, k] == 0
            assert 0 < int(outside.sum()) < outside.numel()
            pasted = edited.composites[n][k]
            assert torch.equal(pasted[:, outside], photographs[n][:, outside])
            assert not torch.equal(pasted, photographs[n])


@pytest.mark.parametrize("method", ["direct", "flow-edit"])
def test_the_masks_of_a_batch_are_those_of_its_items(model: Model, method: str):
    images = tiny_text.pictures(2)
    settings = {"source_prompt": SOURCE, "steps": STEPS, "method": method, "auto_mask": "difference"}
    edited = ddim.edit(model, images, TARGETS, **settings)
    for k in range(2):
        alone = ddim.edit(model, images[k : k + 1], TARGETS, seed=k, **settings)
        assert torch.equal(alone.blend_mask[0], edited.blend_mask[k])  # type: ignore[index]
    split = ddim.edit(model, images, TARGETS, batch=1, batched_cfg=False, **settings)
    assert torch.equal(split.blend_mask, edited.blend_mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_code_has_the_mask_of_its_image(model: Model, method: str):
    images, kept = tiny_text.pictures(1), []
    settings = {"source_prompt": SOURCE, "steps": 20 if method == "ddim" else STEPS, "method": method, "guidance": 1.0}
    expected = ddim.edit(model, images, TARGETS, auto_mask="difference", seed=3, on_code=kept.append, **settings)
    found = ddim.edit(model, kept[0], TARGETS, auto_mask="difference", seed=3)
    assert found.blend_mask is not None
    apart = float((found.blend_mask != expected.blend_mask).float().mean())
    assert apart <= (0.2 if method == "ddim" else 0)  # which samples the image again, and not exactly


def test_a_users_mask_and_a_strength_go_with_it(model: Model):
    images = tiny_text.pictures(1)
    half = torch.zeros(images.shape[2:])
    half[:, : half.shape[1] // 2] = 1
    settings = {"source_prompt": SOURCE, "steps": STEPS}
    auto = ddim.edit(model, images, TARGETS, auto_mask="difference", **settings).blend_mask
    both = ddim.edit(model, images, TARGETS, auto_mask=AutoMask(), mask=half, **settings).blend_mask
    assert auto is not None
    assert torch.equal(both, auto * half)  # type: ignore[arg-type]
    film = ddim.edit(model, images, TARGETS, auto_mask="difference", strength=[0.0, 0.5, 1.0], **settings)
    assert film.blend_mask is not None
    for k in range(2):  # every strength has the mask of its target
        assert all(torch.equal(film.blend_mask[:, 3 * k + m], auto[:, k]) for m in range(3))


def test_flows_have_masks_too():
    flow = tiny_flow.FAMILIES["flux schnell"].model()
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for method in ("direct", "flow-edit"):
        edited = ddim.edit(
            flow, images, TARGETS[0], source_prompt=SOURCE, steps=2, method=method, auto_mask="difference"
        )
        assert edited.blend_mask is not None
        assert 0 < float(edited.blend_mask.mean()) < 1


def test_what_it_cannot_be(model: Model):
    images, settings = tiny_text.pictures(1), {"source_prompt": SOURCE, "steps": STEPS}
    with refused("auto_mask", SOURCE):
        ddim.edit(model, images, SOURCE, auto_mask="difference", **settings)
    with warned(SOURCE):
        same = ddim.edit(model, images, [[SOURCE, TARGETS[0]]], auto_mask="difference", **settings)
    assert torch.equal(same.edits[:, 0], same.reconstruction)
    assert not torch.equal(same.edits[:, 1], same.reconstruction)
    with unknown("auto_mask", "attention"):
        ddim.edit(model, images, TARGETS, auto_mask="attention", **settings)
    with refused("auto_mask", 3):
        ddim.edit(model, images, TARGETS, auto_mask=3, **settings)  # type: ignore[arg-type]
    for name, value in (("level", 0), ("level", 1.0), ("draws", 0), ("threshold", 1.0), ("grow", -1), ("grow", 0.5)):
        with refused(name, value):
            AutoMask(**{name: value})  # type: ignore[arg-type]


def test_kv_edit_takes_the_mask_of_each_target(model: Model):
    settings = {"source_prompt": SOURCE, "steps": STEPS, "attention": "kv-edit"}
    images = tiny_text.pictures(2)
    both = ddim.edit(model, images, TARGETS, auto_mask="difference", **settings)
    for k, target in enumerate(TARGETS):
        alone = ddim.edit(model, images, target, auto_mask="difference", **settings)
        assert float((alone.edits[:, 0] - both.edits[:, k]).abs().max()) < 1e-6
        drawn = alone.blend_mask
        assert drawn is not None
        given = ddim.edit(model, images, target, mask=drawn[:, 0], **settings)
        assert float((given.edits - alone.edits).abs().max()) < 1e-6


def test_a_target_of_several_concepts_has_the_masks_of_all(model: Model):
    images = tiny_text.pictures(1)
    settings = {"steps": STEPS, "method": "ledits++", "source_prompt": SOURCE, "auto_mask": AutoMask(draws=3)}
    one, other, both = (ddim.edit(model, images, p, **settings).blend_mask for p in (*TARGETS, "; ".join(TARGETS)))
    assert torch.equal(both, torch.maximum(one, other))  # type: ignore[arg-type]
    assert not torch.equal(one, other)  # type: ignore[arg-type]
