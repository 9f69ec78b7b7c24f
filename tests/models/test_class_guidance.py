"""Guidance of class-conditional models, held against u + w (c - u) written out on the network's own answers."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import ddim
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS
from ddim.inversion.extras import pinned
from ddim.models.pixel import PixelModel
from ddim.solvers import REVERSIBLE

CLASSES, STEPS, W = 4, 6, 3.5
NULL = CLASSES - 1
SOURCE, TARGET = [0, 1], [2, 0]
WORKS = [name for name, method in INVERSIONS.items() if method.needs != "text"]


@pytest.fixture(scope="module")
def model() -> PixelModel:
    made = tiny.model(classes=CLASSES, prediction_type="v_prediction", dtype=torch.float64)
    made.network.class_embedding.weight.mul_(20)  # a random network hardly looks at its class
    return made


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def pair(
    model: PixelModel, x: Tensor, node: ddim.Node, labels: list[int], weight: float, null: list[int] | None = None
):
    """x0 and eps of the guided v, branch by branch."""

    def says(classes: list[int]) -> Tensor:
        with torch.no_grad():
            return model.network(x, int(node.t) - 1, class_labels=torch.tensor(classes)).sample

    u, c = says([NULL] * len(labels) if null is None else null), says(labels)
    v = u + weight * (c - u)
    return node.alpha * x - node.sigma * v, node.sigma * x + node.alpha * v


def moved(model: PixelModel, x: Tensor, asked: ddim.Node, node: ddim.Node, *told) -> Tensor:
    x0, eps = pair(model, x, asked, *told)
    return node.alpha * x0 + node.sigma * eps


def forwards(model: PixelModel, x: Tensor, grid: ddim.Grid, *told) -> Tensor:
    for t, s in pairwise(grid):
        x = moved(model, x, t, s, *told)
    return x


def backwards(model: PixelModel, x: Tensor, grid: ddim.Grid, *told) -> list[Tensor]:
    """Every node of plain DDIM inversion, the noisy end first."""
    nodes = [x]
    for t, s in reversed(list(pairwise(grid))):
        _, eps = pair(model, nodes[-1], t, *told)
        nodes.append(t.alpha * (nodes[-1] - s.sigma * eps) / s.alpha + t.sigma * eps)
    return nodes[::-1]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def picture(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0, W])
def test_sampling(model, weight):
    grid = model.schedule.grid(STEPS)
    x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(2)]).double()
    by_hand = picture(forwards(model, x, grid, SOURCE, weight))
    drawn = ddim.sample(model, 2, steps=STEPS, labels=SOURCE, guidance=weight)
    assert close(drawn, by_hand)
    apart = ddim.sample(model, 2, steps=STEPS, labels=SOURCE, guidance=ddim.Guidance(weight, batched_cfg=False))
    assert close(apart, by_hand)
    if weight != 1:
        assert not torch.allclose(drawn, ddim.sample(model, 2, steps=STEPS, labels=SOURCE), atol=1e-2)


def test_without_guidance_it_is_the_class_alone(model):
    assert torch.equal(
        ddim.sample(model, 2, steps=STEPS, labels=SOURCE), ddim.sample(model, 2, steps=STEPS, labels=SOURCE, guidance=1)
    )
    code = ddim.invert(model, torch.rand(2, 1, 8, 8), steps=2, labels=SOURCE)
    assert code.guidance["weight"] == 1.0


@pytest.mark.parametrize(("weight", "back"), [(W, 1.0), (W, W), (1.0, 2.0)])
def test_ddim_inversion_and_its_way_forward(model, pictures, weight, back):
    code = ddim.invert(
        model, pictures, steps=STEPS, labels=SOURCE, guidance=weight, inversion_guidance=back, method="ddim"
    )
    pivot = backwards(model, 2 * pictures - 1, code.grid, SOURCE, back)
    assert close(code.x, pivot[0])
    assert (code.settings["inversion_guidance"], code.guidance["weight"]) == (back, weight)
    assert close(ddim.reconstruct(model, code), picture(forwards(model, pivot[0], code.grid, SOURCE, weight)))
    assert code.conditions.uncond is not None
    assert code.conditions.uncond.tensors["labels"].tolist() == [NULL, NULL]


def test_direct_keeps_the_pivot_of_weight_1(model, pictures):
    code = ddim.invert(model, pictures, steps=STEPS, labels=SOURCE, guidance=W, method="direct")
    pivot = backwards(model, 2 * pictures - 1, code.grid, SOURCE, 1.0)
    assert close(code.x, pivot[0])
    assert close(code.extras["pivot"], torch.stack(pivot[1:], dim=1))
    assert torch.equal(ddim.reconstruct(model, code), picture(2 * pictures - 1))


def test_edit_friendly_noise_maps_fit_the_guided_steps(model, pictures):
    code = ddim.invert(
        model, pictures, steps=STEPS, labels=SOURCE, guidance=W, method="edit-friendly", options={"skip": 2}, seed=5
    )
    nodes, noise, x0 = code.grid.nodes, SeededNoise([5, 6]), 2 * pictures - 1
    noised = [node.alpha * x0 + node.sigma * noise(x0) for node in nodes[-2::-1]][::-1]
    assert close(code.x, noised[0])
    for i, (t, s) in enumerate(pairwise(nodes[:-1])):
        std = math.sqrt((s.sigma / t.sigma) ** 2 * (1 - (t.alpha / s.alpha) ** 2))
        clean, eps = pair(model, noised[i], t, SOURCE, W)
        mean = s.alpha * clean + math.sqrt(s.sigma**2 - std**2) * eps
        assert close(code.extras["noise"][:, i], (noised[i + 1] - mean) / std)
    assert torch.allclose(ddim.reconstruct(model, code), pictures, atol=1e-12)


def test_negative_prompt_puts_the_class_in_place_of_none(model, pictures):
    code = ddim.invert(model, pictures, steps=STEPS, labels=SOURCE, guidance=W, method="negative-prompt")
    pivot = backwards(model, 2 * pictures - 1, code.grid, SOURCE, 1.0)
    assert close(code.x, pivot[0])
    assert code.conditions.uncond is not None
    assert code.conditions.uncond.tensors["labels"].tolist() == SOURCE
    back = ddim.reconstruct(model, code)
    assert close(back, picture(forwards(model, pivot[0], code.grid, SOURCE, W, SOURCE)))
    assert close(back, picture(forwards(model, pivot[0], code.grid, SOURCE, 1.0)))  # the weight has no say
    edited = ddim.edit(model, code, labels=TARGET[0])
    by_hand = picture(forwards(model, pivot[0], code.grid, [TARGET[0]] * 2, W, SOURCE))  # guided away from the source
    assert close(edited.edits[:, 0], by_hand)


@pytest.mark.parametrize("method", WORKS)
def test_every_method_brings_a_guided_class_back(model, pictures, method, tmp_path):
    code = ddim.invert(model, pictures, steps=STEPS, labels=SOURCE, guidance=W, method=method)
    read = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    back = ddim.reconstruct(model, read)
    assert torch.equal(back, ddim.reconstruct(model, code))
    if INVERSIONS[method].exact:
        assert (back - pictures).abs().max() < 1e-9
    one = ddim.reconstruct(model, read[1])
    assert close(one, back[1:])


# --- edits -----------------------------------------------------------------------------------------------------------


def test_an_edit_by_class_is_the_targets_way_from_the_sources_latent(model, pictures):
    edited = ddim.edit(model, pictures, labels=[[2, 3], [0, 2]], source_labels=SOURCE, steps=STEPS, guidance=W)
    grid = model.schedule.grid(STEPS)
    latent = backwards(model, 2 * pictures - 1, grid, SOURCE, 1.0)[0]
    for k, targets in enumerate(([2, 0], [3, 2])):
        assert close(edited.edits[:, k], picture(forwards(model, latent, grid, targets, W)))
    assert torch.equal(edited.reconstruction, picture(2 * pictures - 1))
    assert edited.prompts == ((2, 3), (0, 2))
    assert edited.source is not None
    assert (edited.code.method, edited.blend_mask) == ("direct", None)


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (2, ((2,), (2,))),
        ([2], ((2,), (2,))),
        ([2, 0], ((2, 0), (2, 0))),
        ([[2], [0]], ((2,), (0,))),
        ((2, 0), ((2, 0),) * 2),
    ],
)
def test_targets_of_every_shape(model, pictures, labels, read):
    edited = ddim.edit(model, pictures, labels=labels, source_labels=1, steps=2)
    assert edited.prompts == read
    assert edited.edits.shape == (2, len(read[0]), 1, 8, 8)


def test_an_edit_of_a_code_and_in_small_batches_is_the_same(model, pictures):
    code = ddim.invert(model, pictures, steps=STEPS, labels=SOURCE, guidance=W, method="direct")
    of_code = ddim.edit(model, code, labels=[2, 3])
    again = ddim.edit(model, code, labels=[2, 3], batch=1, batched_cfg=False, source_labels=SOURCE)
    of_pictures = ddim.edit(model, pictures, labels=[2, 3], source_labels=SOURCE, steps=STEPS, guidance=W)
    for other in (again, of_pictures):
        assert torch.allclose(other.edits, of_code.edits, rtol=0, atol=1e-9)
    assert of_code.source is None


@pytest.mark.parametrize("method", WORKS)
def test_an_edit_to_its_own_class_is_the_source(model, pictures, method):
    """With equal input and condition beside its source, it goes where the source goes, if nothing puts that back."""
    inversion = ddim.make_inversion(method)  # an editor may have its name
    settings: dict[str, Any] = {"source_labels": SOURCE, "steps": STEPS, "guidance": W, "method": inversion}
    if method in REVERSIBLE:  # whose sources have the guidance of the inversion, 1 by default
        settings["inversion_guidance"] = W
    edited = ddim.edit(model, pictures, labels=[[0], [1]], **settings)
    if not pinned(INVERSIONS[method].keeps):
        assert torch.allclose(edited.edits[:, 0], edited.reconstruction, rtol=0, atol=1e-7)
    other = ddim.edit(model, pictures, labels=[[1], [2]], **settings)
    assert not torch.allclose(other.edits[:, 0], other.reconstruction, rtol=0, atol=1e-3)


def test_a_mask_leaves_the_rest_the_sources(model, pictures):
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    edited = ddim.edit(model, pictures, labels=2, source_labels=SOURCE, steps=STEPS, guidance=W, mask=mask)
    assert torch.equal(edited.edits[:, 0, :, 4:], edited.reconstruction[:, :, 4:])
    assert not torch.allclose(edited.edits[:, 0, :, :4], edited.reconstruction[:, :, :4], atol=1e-3)


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({}, "labels"),
        ({"labels": 2, "source_labels": None}, "source_labels"),
        ({"labels": 2, "source_labels": CLASSES}, "source_labels"),
        ({"labels": 2, "source_labels": "1"}, "source_labels"),
        ({"labels": 2, "source_labels": [0, 1, 2]}, "source_labels"),
        ({"labels": CLASSES}, "labels"),
        ({"labels": -1}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": [[2]]}, "labels"),
        ({"labels": [[2], [0, 1]]}, "labels"),
        ({"labels": [[], []]}, "labels"),
        ({"labels": [[2], 0]}, "labels"),
        ({"labels": "2"}, "labels"),
        ({"labels": 1.5}, "labels"),
        ({"labels": True}, "labels"),
        ({"labels": object()}, "labels"),
        ({"prompt": "a cat"}, "model"),
        ({"prompt": "a cat", "labels": 2}, "model"),
        ({"labels": 2, "source_prompt": "a cat"}, "source_prompt"),
        ({"labels": 2, "attention": "refine"}, "attention"),
        ({"labels": 2, "attention": 3}, "attention"),
        ({"labels": 2, "blend": "cat"}, "blend"),
        ({"labels": 2, "weights": {"cat": 2.0}}, "weights"),
        ({"labels": 2, "negative": "a dog"}, "negative"),
        ({"labels": 2, "method": "null-text"}, "method"),
        ({"labels": 2, "mask": torch.ones(3, 3)}, "mask"),
    ],
    ids=lambda v: ", ".join(v) if isinstance(v, dict) else v,
)
def test_an_edit_by_class_that_cannot_be(model, pictures, given, parameter):
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(model, pictures, **{"source_labels": SOURCE, "steps": 2, "guidance": W, **given})
    assert caught.value.parameter == parameter


def test_a_codes_own_class_is_not_to_be_told_otherwise(model, pictures):
    code = ddim.invert(model, pictures, steps=2, labels=SOURCE, method="direct")
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(model, code, labels=2, source_labels=[1, 0])
    assert caught.value.parameter == "source_labels"
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(model, code, labels=2, source_labels=99)
    assert caught.value.parameter == "source_labels"


def test_classes_and_words_do_not_edit_the_others_models(pictures):
    import tiny_text

    for name, given in (("labels", {"labels": 1}), ("labels", {"labels": 1, "prompt": "a cat"}), ("prompt", {})):
        with pytest.raises(ddim.InputError) as caught:
            ddim.edit(tiny_text.model(), tiny_text.pictures(), source_prompt="a dog", steps=2, **given)
        assert caught.value.parameter == name
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(tiny_text.model(), tiny_text.pictures(), "a cat", source_prompt="a dog", source_labels=1, steps=2)
    assert caught.value.parameter == "source_labels"
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(tiny.model(), pictures.float(), labels=1, source_labels=0, steps=2)
    assert caught.value.parameter == "model"


def test_guidance_of_classes_in_a_batch_is_that_of_each(model, pictures):
    code = ddim.invert(model, pictures, steps=STEPS, labels=SOURCE, guidance=W)
    for k in range(2):
        alone = ddim.invert(model, pictures[k : k + 1], steps=STEPS, labels=SOURCE[k], guidance=W)
        assert torch.allclose(alone.x, code.x[k : k + 1], rtol=0, atol=1e-9)


def test_an_edit_holds_x0_as_it_is_told(model, pictures):
    settings = {"source_labels": 0, "labels": 1, "steps": 4, "method": "ddim"}
    free = ddim.edit(model, pictures, **settings)
    held = ddim.edit(model, pictures, **settings, clip_x0=0.2)
    assert held.code.settings["hold"] == {"clip_x0": 0.2}
    assert not torch.equal(free.edits, held.edits)
    assert ddim.edit(model, pictures, **settings, threshold=0.9).code.settings["hold"] == {"threshold": 0.9}
    for name, value in {"clip_x0": 1.0, "threshold": 0.9}.items():
        with pytest.raises(ddim.InputError) as caught:
            ddim.edit(model, free.code, labels=1, **{name: value})
        assert caught.value.parameter == name


def test_an_edit_of_a_code_takes_no_number_that_the_network_is_not_told(model, pictures):
    code = ddim.invert(model, pictures, steps=3, labels=0, guidance=2.0)
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(model, code, labels=1, guidance=ddim.Guidance(2.0, embedded=3.5))
    assert caught.value.parameter == "embedded"


def test_a_folder_that_names_no_null_class_has_none(tmp_path):
    folder = tiny.pipeline_folder(tmp_path / "m", tiny.unet(classes=3))
    assert ddim.load(folder, device="cpu").info.null_class == 2  # the last label, where nothing is said
    (folder / "ddim.json").write_text("{}")
    model = ddim.load(folder, device="cpu")
    assert (model.classes, model.info.null_class) == (3, None)
    with pytest.raises(ddim.InputError) as caught:
        ddim.sample(model, 1, steps=2, labels=0, guidance=3.0)
    assert caught.value.parameter == "guidance"
    (folder / "ddim.json").write_text('{"null_class": 2}')
    model = ddim.load(folder, device="cpu")
    assert (model.classes, model.info.null_class) == (2, 2)


def test_what_is_wrong_with_classes_is_told_before_the_work():
    model = tiny.model(classes=4)
    for given, parameter in (
        ({"labels": 9}, "labels"),
        ({"labels": 1, "source_labels": 9}, "source_labels"),
        ({"labels": 1, "on_event": 3}, "on_event"),
    ):
        with pytest.raises(ddim.InputError) as caught:
            ddim.edit(model, torch.rand(1, 1, 8, 8), steps=2, **{"source_labels": 0, **given})
        assert caught.value.parameter == parameter


@pytest.mark.parametrize("method", ["direct", "bdia"])
def test_a_model_without_a_null_class_is_edited_by_class(model, pictures, method):
    bare = tiny.model(classes=CLASSES, dtype=torch.float64)
    bare.info = replace(bare.info, null_class=None)
    edited = ddim.edit(bare, pictures, labels=2, source_labels=SOURCE, steps=STEPS, method=method)
    assert not torch.allclose(edited.edits[:, 0], edited.reconstruction, rtol=0, atol=1e-3)
