"""Laws of editors, which walk the registry: self-edits, strength, masks, batches, refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny_flow
import tiny_text
import torch
from refusals import refused, unknown
from torch import Tensor

import ddim
from ddim import EDITORS, Guidance
from ddim.editing.strength import Reach
from ddim.models.base import Model

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
STEPS = 4
MODELS = {
    "sd": tiny_text.model,
    "sd v": lambda: tiny_text.model("v_prediction"),
    **{
        name: tiny_flow.FAMILIES[name].model
        for name in ("sd3", "flux schnell", "qwen-image", "z-image", "flux kontext", "flux2 klein")
    },
}
EQUAL = 1.5
"""The guidance of both sides in self-edits."""


FEW = ("sd", "sd3", "flux kontext")
"""The models of the laws that take many edits: a U-Net, a flow model with guidance, and one with a reference."""


@pytest.fixture(params=FEW, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


@pytest.fixture(params=EDITORS)
def editor(request: pytest.FixtureRequest, model: Model) -> str:
    why = ddim.capabilities(model)["editors"][request.param]
    if why is not None:
        pytest.skip(why)
    return request.param


def pictures(model: Model, count: int = 1) -> Tensor:
    side = 16
    return torch.rand(count, 3, *(model.picture[1:] if not model.multiple else (side, side)), generator=seeded(3))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edited(model: Model, images: Any, target: Any = TARGET, method: str = "flow-edit", **settings: Any) -> ddim.Edited:
    if "source_prompt" not in settings:
        settings["source_prompt"] = SOURCE
    if EDITORS[method].steps is None:
        settings.setdefault("steps", STEPS)
    return ddim.edit(model, images, target, method=method, **settings)


def equal_sides(model: Model, method: str) -> dict[str, Any]:
    """Settings under which both sides have the same guidance."""
    fields = ddim.make_editor(method).options  # type: ignore[union-attr]
    weight = EQUAL if "cfg" in model.info.guidance_kinds else 1.0
    guidance: float | Guidance = weight
    if "embedded" in model.info.guidance_kinds:  # the option is then the embedded scale
        guidance = Guidance(1.0, embedded=weight)
    return {"guidance": guidance, "options": {"source_guidance": weight} if "source_guidance" in fields else None}


def test_the_editors_that_promise_to_return_the_source():
    promise = {name for name in EDITORS if ddim.make_editor(name).self_edit}  # type: ignore[union-attr]
    assert promise == {"flow-edit", "flow-align", "dvrf", "chord-edit", "turbo-edit"}


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_an_edit_to_the_sources_own_prompt_is_the_source_to_the_bit(model: Model, editor: str):
    made = ddim.make_editor(editor)
    assert made is not None
    if not made.self_edit:
        pytest.skip(f"{editor} does not promise it")
    images = pictures(model, 2)
    found = edited(model, images, method=editor, target=SOURCE, **equal_sides(model, editor))
    assert torch.equal(found.edits[:, 0], found.reconstruction)
    assert not torch.equal(edited(model, images, method=editor).edits[:, 0], found.reconstruction)


def test_strength_0_is_the_source_and_the_edit_is_continuous(model: Model, editor: str):
    images = pictures(model)

    def at(strength: float) -> Tensor:
        return edited(model, images, method=editor, strength=strength, seed=5).edits

    none = edited(model, images, method=editor, strength=0.0, seed=5)
    assert torch.equal(none.edits[:, 0], none.reconstruction)
    whole = float((at(1.0) - at(0.0)).abs().max())
    assert whole > 1e-4
    middle = at(0.5)
    assert float((middle - at(0.5 + 1e-5)).abs().max()) < 0.02 * whole
    assert float((middle - at(0.5 - 1e-5)).abs().max()) < 0.02 * whole


def test_nothing_changes_outside_the_mask(model: Model, editor: str):
    images = pictures(model)
    mask = torch.zeros(images.shape[2:])
    with refused("mask", 0):
        edited(model, images, method=editor, mask=mask)
    full = edited(model, images, method=editor, mask=torch.ones_like(mask))
    plain = edited(model, images, method=editor)
    assert float((full.edits - plain.edits).abs().max()) < 1e-5
    mask[:, : mask.shape[1] // 2] = 1
    half = edited(model, images, method=editor, mask=mask)
    assert half.composites is not None
    pasted, photograph = half.composites[0][0], (images[0] * 255).round().to(torch.uint8)
    outside = mask == 0
    assert torch.equal(pasted[:, outside], photograph[:, outside])
    assert not torch.equal(half.edits[:, 0], half.reconstruction)


def test_the_latent_is_the_sources_to_the_bit_outside_the_mask(
    model: Model, editor: str, monkeypatch: pytest.MonkeyPatch
):
    """Without it the composite would still keep the photograph, and the edit would have been made without the mask."""
    latents, decode, images = list[Tensor](), model.decode, pictures(model)
    monkeypatch.setattr(model, "decode", lambda z: latents.append(z) or decode(z))
    mask = torch.zeros(images.shape[2:])
    mask[:, : mask.shape[1] // 2] = 1
    edited(model, images, method=editor, mask=mask)
    source, target = latents[0][0], latents[0][1]
    half = source.shape[2] // 2
    assert torch.equal(source[..., half:], target[..., half:])
    assert float((source - target)[..., :half].abs().max()) > 1e-4


def test_a_batch_is_its_items_and_targets_do_not_disturb_each_other(model: Model, editor: str):
    images = pictures(model, 2)
    both = edited(model, images, [[TARGET, "a red face"]] * 2, method=editor, seed=3).edits
    alone = [edited(model, images[k : k + 1], TARGET, method=editor, seed=3 + k).edits[0, 0] for k in range(2)]
    for k in range(2):
        assert float((both[k, 0] - alone[k]).abs().max()) < 2e-4
    split = edited(model, images, [[TARGET, "a red face"]] * 2, method=editor, seed=3, batch=1, batched_cfg=False).edits
    assert float((split - both).abs().max()) < 2e-4


def test_only_what_draws_depends_on_the_seed(model: Model, editor: str):
    images, made, codes = pictures(model), ddim.make_editor(editor), []
    assert made is not None
    one, two = (edited(model, images, method=editor, seed=seed, on_code=codes.append).edits for seed in (1, 2))
    inversion_draws = not torch.equal(codes[0].x, codes[1].x)
    assert torch.equal(one, two) != (made.draws or inversion_draws)


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("uni-edit", "omega", math.nan),
        ("uni-edit", "source_guidance", math.nan),
        ("steer-flow", "power", math.inf),
        ("steer-flow", "temperature", None),
        ("steer-flow", "cosine", "a"),
        ("rf-inversion", "decay", math.nan),
        ("rf-inversion", "sde", "a"),
        ("velo-edit", "threshold", math.inf),
        ("flow-edit", "draws_per_step", "a"),
        ("flow-edit", "sampled", 1.5),
        ("dna-edit", "mvg", "x"),
        ("turbo-edit", "eta", "a"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_by_name(name: str, option: str, wrong: Any):
    """In an editor that is made directly too, and before the network could be blamed."""
    with refused(option, str(wrong)):
        EDITORS[name](**{option: wrong})


def test_what_is_no_method_is_named_among_inversions_and_editors():
    model, images = tiny_text.model(), tiny_text.pictures(1)
    with unknown("method", "flowedit", "flow-edit", nearest="flow-edit"):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, method="flowedit")
    with refused("method", "'flow-edit'"):
        ddim.invert(model, images, method="flow-edit")
    with refused("options", "str"):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, options="eta=1")  # type: ignore[arg-type]
    with refused("on_code", "int"):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, on_code=3)  # type: ignore[arg-type]
    with refused("inversion_guidance", "2", "without an inversion"):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, method="flow-edit", inversion_guidance=2.0)


def test_a_code_that_an_editor_lacks_something_of_is_told_how_to_be_made():
    model, images = tiny_text.model(), tiny_text.pictures(1)
    code = ddim.invert(model, images, prompt=SOURCE, steps=STEPS)
    with refused("method", "start", "keep_trajectory") as caught:
        ddim.edit(model, code, TARGET, method="dna-edit")
    assert "options={'start': 'noise'}" in str(caught.value)
    options: dict[str, Any] = {"start": "noise"}
    made = ddim.invert(
        model, images, prompt=SOURCE, steps=STEPS, method="uni-inv", options=options, keep_trajectory=True
    )
    assert ddim.edit(model, made, TARGET, method="dna-edit").edits.isfinite().all()


@pytest.mark.parametrize("method", ["direct", "flow-edit", "ddim", "null-text"])
def test_reconstruction_guidance_without_an_image_to_pull_to_is_refused_before_work(method: str, monkeypatch):
    model, images = tiny_text.model(), tiny_text.pictures(1)
    monkeypatch.setattr(type(model), "forward", lambda *a: pytest.fail("the network was asked"))
    guidance = Guidance(3.0, proximal=ddim.Proximal(pull=0.1))
    with refused("pull", 0.1):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, method=method, guidance=guidance)
    if method != "flow-edit":
        with refused("pull", 0.1):
            ddim.invert(model, images, prompt=SOURCE, method=method, guidance=guidance)


def test_an_instruction_has_no_automatic_mask():
    model = tiny_flow.FAMILIES["flux kontext"].model()
    with refused("auto_mask", "'instruct'"):
        ddim.edit(model, pictures(model), "make it red", method="instruct", auto_mask="difference")


def test_a_code_of_an_editor_is_edited_as_its_images_are(model: Model, editor: str, tmp_path):
    images, kept = pictures(model), []
    from_images = edited(model, images, method=editor, seed=2, on_code=kept.append)
    kept[0].save(tmp_path / "code.safetensors")
    code = ddim.LatentCode.load(tmp_path / "code.safetensors")
    seed = {"seed": 2} if EDITORS[editor].draws else {}
    again = ddim.edit(model, code, TARGET, method=editor, **seed)
    assert again.strengths == from_images.strengths
    assert torch.equal(again.edits, from_images.edits)


@pytest.mark.parametrize("model", ["sd"], indirect=True)
def test_prompts_and_attention_that_an_editor_cannot_use_are_refused(model: Model, editor: str):
    images = pictures(model)
    with refused("attention", "'refine'"):
        edited(model, images, method=editor, attention="refine")
    with refused("blend", "cat/dog"):
        edited(model, images, method=editor, blend="cat/dog")
    with refused("prompt", "(dog:2)"):
        edited(model, images, "a (dog:2) on a mat", method=editor)
    for wrong in (-0.1, 1.5, "half"):
        with refused("strength", str(wrong)):
            edited(model, images, method=editor, strength=wrong)


@pytest.mark.parametrize("model", ["sd"], indirect=True)
def test_codes_that_an_editor_cannot_start_from_are_refused(model: Model):
    code = ddim.invert(model, pictures(model), steps=STEPS, prompt=SOURCE)
    with refused("method", "'flow-edit'"):
        ddim.edit(model, code, TARGET, method="flow-edit")
    kept = []
    edited(model, pictures(model), on_code=kept.append)
    with refused("code", "'flow-edit'"):
        ddim.reconstruct(model, kept[0])
    with refused("codes", "'flow-edit'"):
        ddim.interpolate(model, kept[0], kept[0])


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.75, 1.0])
def test_the_steps_of_a_strength(strength: float):
    reach = Reach.of(strength, 4)
    assert sum(reach.factor(i) for i in range(4)) == pytest.approx(4 * strength)
    assert 0 <= reach.begin <= 3


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.625, 1.0])
def test_a_window_of_the_edit_has_its_part_of_the_length_and_moves_with_the_strength(strength: float):
    for start, stop in ((0.0, 0.25), (0.1, 0.5), (0.3, 1.0)):

        def shares(strength: float, bounds: tuple[float, float] = (start, stop)) -> list[float]:
            reach = Reach.of(strength, 8)
            return [reach.inside(i, 8, *bounds) * reach.factor(i) for i in range(8)]

        assert sum(shares(strength)) == pytest.approx((stop - start) * 8 * strength)
        beside = shares(max(0.0, strength - 1e-6))
        assert shares(strength) == pytest.approx(beside, abs=1e-4)
    whole = Reach.of(strength, 8)
    rest = whole.on_rest()
    count = 8 - whole.begin
    assert rest.elapsed(count, count) == whole.elapsed(8, 8) == pytest.approx(1)
    assert [rest.inside(i, count, 0.1, 0.5) for i in range(count)] == [
        whole.inside(i, 8, 0.1, 0.5) for i in range(whole.begin, 8)
    ]


def test_targets_beside_a_source_follow_the_strength_too():
    model = tiny_text.model()
    images = pictures(model, 2)

    def at(strength: float | None, method: str) -> ddim.Edited:
        return ddim.edit(model, images, TARGET, source_prompt=SOURCE, method=method, steps=STEPS, strength=strength)

    for method in ("direct", "bdia", "edict", "rex", "edit-friendly"):
        none = at(0.0, method)
        assert torch.equal(none.edits[:, 0], none.reconstruction)
        middle, beside, whole = (at(strength, method).edits for strength in (0.5, 0.5001, 1.0))
        assert 0 < float((middle - beside).abs().max()) < 0.02 * float((whole - none.edits).abs().max())
    assert torch.equal(at(1.0, "direct").edits, at(None, "direct").edits)
    code = ddim.invert(model, images, method="direct", steps=STEPS, prompt=SOURCE, guidance=7.5)
    from_code = ddim.edit(model, code, TARGET, strength=0.5)
    assert float((from_code.edits - at(0.5, "direct").edits).abs().max()) < 1e-5


def test_proximal_guidance_acts_in_every_editor_with_guidance_or_is_refused():
    model, images = tiny_text.model(), pictures(tiny_text.model())
    plain = Guidance(3.0)
    for method in EDITORS:
        made = ddim.make_editor(method)
        assert made is not None
        if ddim.capabilities(model)["editors"][method] is not None:
            continue
        proximal = replace(plain, proximal=ddim.Proximal("l0", 0.9))
        if method == "ledits++":
            with refused("proximal", "l0"):
                edited(model, images, method=method, guidance=proximal)
            continue
        one, other = (edited(model, images, method=method, guidance=each, seed=1) for each in (plain, proximal))
        assert not torch.equal(one.edits, other.edits), method


def test_guidance_that_leaves_out_layers_is_refused():
    model = tiny_flow.FAMILIES["sd3"].model()
    with refused("skip_layers", "(0,)"):
        edited(model, pictures(model), guidance=Guidance(2.0, skip=ddim.SkipLayers((0,), interval=(0.0, 0.9))))
