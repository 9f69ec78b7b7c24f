"""The verb ``edit`` on every family of rectified flow: the laws of attention control from inversion to picture."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_flow
import torch
from refusals import failed, refused
from torch import Tensor

import ddim
from ddim import AttentionEdit, LatentCode
from ddim.core.solve import solve
from ddim.models.base import Model
from ddim.pipelines.edit_plan import planned

SOURCE, TARGET = "a cat on a mat", "a zebra on a mat"
NOWHERE = AttentionEdit(cross_steps=(0, 0), self_steps=(0, 0))
ALWAYS = AttentionEdit(cross_steps=(0, 1), self_steps=(0, 1))
STEPS = 3
TIGHT = 1e-9
"""In float64. Z-Image computes rotary embeddings, and FLUX and Z-Image their timesteps, in float32 in any case."""


FORMS = (
    *("sd3", "sd3 without t5", "flux schnell", "flux kontext", "flux2 base", "flux2 klein with a reference"),
    *("chroma", "qwen-image", "z-image", "lumina2"),
)
"""A form or two of each family; ``tests/editing/test_joint_families.py`` has the network of every form."""


@pytest.fixture(params=FORMS, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    family = tiny_flow.FAMILIES[request.param]
    return family.load(family.pipeline().to(torch.float64))


@pytest.fixture(scope="module")
def code(model: Model) -> LatentCode:
    return coded(model)


def coded(model: Model, count: int = 1, method: str = "ddim", **options: Any) -> LatentCode:
    draw = torch.Generator().manual_seed(4)
    pictures = torch.rand(count, 3, *options.pop("size", (16, 24)), generator=draw)
    settings = {"prompt": SOURCE, "steps": STEPS, **options}
    if "cfg" in model.info.guidance_kinds:
        settings.setdefault("guidance", 2.0)
    return ddim.invert(model, pictures, method=method, **settings)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def test_attention_follows_the_source_and_leaves_it_alone(model: Model, code: LatentCode):
    plain = ddim.edit(model, code, TARGET, attention="none")
    assert torch.equal(ddim.edit(model, code, TARGET, attention=NOWHERE).edits, plain.edits)
    for how in ("refine", "replace", replace(NOWHERE, value_steps=(0, 0.5))):
        edited = ddim.edit(model, code, TARGET, attention=how)
        assert apart(edited.edits, plain.edits) > 1e-6
        assert apart(edited.reconstruction, plain.reconstruction) < TIGHT
    assert apart(edited.reconstruction, ddim.reconstruct(model, code)) < TIGHT


@pytest.mark.parametrize("window", ["cross_steps", "self_steps", "value_steps"])
def test_every_window_acts_in_its_steps_and_layers(model: Model, code: LatentCode, window: str):
    plain = ddim.edit(model, code, TARGET, attention="none").edits
    some = [
        ddim.edit(model, code, TARGET, attention=replace(NOWHERE, **{window: (0, 1), **layers})).edits
        for layers in ({}, {"layers": (0, 0.7)}, {"layer_indices": (model.attention_sites()[-1].block,)})
    ]
    for k, one in enumerate(some):
        assert min(apart(one, other) for other in (plain, *some[:k])) > 1e-8
    none = ddim.edit(model, code, TARGET, attention=replace(NOWHERE, **{window: (0, 1), "layers": (0.5, 0.5)}))
    assert apart(none.edits, plain) < TIGHT


@pytest.mark.parametrize("kind", ["refine", "replace"])
def test_a_prompt_replaced_by_itself_changes_nothing(model: Model, code: LatentCode, kind: str):
    how, guidance = replace(ALWAYS, kind=kind, value_steps=(0, 1)), ddim.Guidance.of(code.guidance)
    if model.info.embedded:  # a distilled network inverts at the scale 1
        guidance = replace(guidance, embedded=1.0)
    edited = ddim.edit(model, code, SOURCE, attention=how, guidance=guidance)
    assert apart(edited.edits[:, 0], edited.reconstruction) < 1e-12  # the latents are equal; they are decoded together


def test_weights_change_the_target_and_not_the_source(model: Model, code: LatentCode):
    plain, heavy, ones = (
        ddim.edit(model, code, f"a (zebra:{weight}) on a mat", attention=ALWAYS) for weight in ("1", "3", "1.0")
    )
    assert apart(plain.edits, ones.edits) < TIGHT
    assert apart(heavy.edits, plain.edits) > 1e-7
    assert torch.equal(heavy.reconstruction, plain.reconstruction)


def test_outside_the_words_the_latent_stays_the_sources(model: Model, monkeypatch: pytest.MonkeyPatch):
    ends: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        ends.append(solve(*args, **kwargs))
        return ends[-1]

    code = coded(model, method="direct")
    probe = ddim.edit(model, code, TARGET, attention=ALWAYS, blend="cat/zebra").blend_mask
    assert probe is not None
    for threshold in (0.3, 0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999):
        how = replace(ALWAYS, blend_threshold=threshold, blend_start=0.0)
        with monkeypatch.context() as patch:
            patch.setattr("ddim.pipelines.beside.solve", watched)
            edited = ddim.edit(model, code, TARGET, attention=how, blend="cat/zebra")
        assert edited.blend_mask is not None
        side = model.downscaling
        outside = edited.blend_mask[0, 0, ::side, ::side] == 0
        if 0 < float(outside.double().mean()) < 1:
            break
    else:
        pytest.fail("no threshold puts the words in one place and not in another")
    x = ends[-1]["x"]
    assert torch.equal(x[0, :, outside], x[1, :, outside])
    assert apart(x[0, :, ~outside], x[1, :, ~outside]) > 1e-6


def test_targets_and_images_do_not_know_each_other(model: Model):
    code = coded(model, 2, prompt=[SOURCE, "two dogs"])
    targets = [[TARGET, "a red cat on a mat"], ["two red dogs", "two cats"]]
    together = ddim.edit(model, code, targets, attention=ALWAYS)
    for i in (0, 1):
        alone = ddim.edit(model, code[i], targets[i], attention=ALWAYS)
        assert apart(alone.edits[0], together.edits[i]) < 1e-6
        one = ddim.edit(model, code[i], targets[i][1], attention=ALWAYS)
        assert apart(one.edits[0, 0], together.edits[i, 1]) < 1e-6
    apiece = ddim.edit(model, code, targets, attention=ALWAYS, batch=3)
    assert apart(apiece.edits, together.edits) < 1e-6


def test_each_target_of_each_image_has_its_own_words(model: Model):
    sources, targets = [SOURCE, "two dogs"], [[TARGET, "a red cat on a mat"], ["two red dogs", "two cats"]]
    weights = [[{"zebra": 2.0}, None], [{"red": 0.5}, {"cats": 3.0}]]
    blends = [["cat/zebra", None], [None, "dogs/cats"]]
    plan = planned(model, sources, targets, (16, 24), ALWAYS, blends, weights)[1]
    assert plan is not None
    assert plan.scales is not None
    assert plan.blend is not None
    for i in (0, 1):
        for j in (0, 1):
            tokens, before = model.tokens(targets[i][j]), model.tokens(sources[i])
            factors, marks = torch.ones_like(plan.scales[i, j]), torch.zeros_like(plan.blend[i, j])
            for word, factor in (weights[i][j] or {}).items():
                factors[tokens.places(word)] = factor
            if pair := blends[i][j]:
                was, is_now = pair.split("/")
                marks[0, before.places(was)] = marks[1, tokens.places(is_now)] = 1
            assert torch.equal(plan.scales[i, j], factors)
            assert torch.equal(plan.blend[i, j], marks)


def test_a_block_that_the_network_lacks_is_refused_before_any_work(model: Model):
    with refused("layer_indices", 1000):
        ddim.edit(
            model,
            torch.rand(1, 3, 16, 24),
            TARGET,
            source_prompt=SOURCE,
            attention=AttentionEdit(layer_indices=(1000,)),
        )
    with refused("layers", (0.0, 0.5)):
        ddim.edit(model, coded(model), TARGET, attention=AttentionEdit("none", layers=(0.0, 0.5)))


IDLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weights": ({"cross_steps": (0.4, 0.4)}, {"weights": {"zebra": 2.0}}),
    "self_positions": ({"self_positions": 23}, {}),  # the image has 4 x 6 tokens
    "blend_side": ({"blend_side": 5}, {"blend": "cat/zebra"}),
    "blend_start": ({"blend_start": 1.0}, {"blend": "cat/zebra"}),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_setting_without_a_step_a_layer_or_a_map_is_refused_before_any_work(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str
):
    settings, words = IDLE[name]
    for work in ("forward", "encode", "encode_prompt"):
        monkeypatch.setattr(model, work, _never)
    with refused(name):
        ddim.edit(
            model,
            torch.rand(1, 3, 16, 24),
            TARGET,
            source_prompt=SOURCE,
            steps=STEPS,
            attention=AttentionEdit(**settings),
            **words,
        )


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("some work was done")


@pytest.mark.parametrize(("method", "steps"), [("belm", 10), ("edit-friendly", 3)])
def test_the_shortest_window_holds_the_step_in_which_it_begins(model: Model, method: str, steps: int):
    """Of the steps that are sampled: ``belm`` and ``edit-friendly`` leave out the first of them here."""
    code = coded(model, method=method, steps=steps)
    edited = ddim.edit(model, code, TARGET, attention=replace(NOWHERE, self_steps=(0, 0.01)))
    assert apart(edited.edits, ddim.edit(model, code, TARGET, attention=NOWHERE).edits) > 1e-8


def test_branches_in_one_call_or_two_are_edited_alike(model: Model, code: LatentCode):
    if "cfg" not in model.info.guidance_kinds:
        pytest.skip("it has one branch")
    settings: dict[str, Any] = {"attention": ALWAYS, "blend": "cat/zebra", "weights": {"zebra": 2.0}}
    one, two = (ddim.edit(model, code, TARGET, batched_cfg=both, **settings) for both in (True, False))
    assert apart(one.edits, two.edits) < 1e-6
    assert one.blend_mask is not None
    assert two.blend_mask is not None
    assert torch.equal(one.blend_mask, two.blend_mask)


def test_a_layer_that_does_not_pass_by_in_the_first_of_two_calls_raises(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Branches that are asked one after the other are counted together."""
    if "cfg" not in model.info.guidance_kinds:
        pytest.skip("it has one branch")
    code, call = coded(model), type(model).call_network  # type: ignore[attr-defined]

    def forgetful(self: Any, network: Any, x: Tensor, t: Tensor, conditions: Any, control: Any, **more: Any) -> Tensor:
        out = call(self, network, x, t, conditions, control, **more)
        if control is not None and control["cfg_branch"] == "uncond":
            control["control"].seen.popitem()
        return out

    monkeypatch.setattr(type(model), "call_network", forgetful)
    with failed(None, len(model.attention_sites())):
        ddim.edit(model, code, TARGET, attention=ALWAYS, batched_cfg=False)


def test_skip_layer_guidance_goes_with_attention_control():
    """Its third call is not controlled, since it lacks layers; the source beside the target knows nothing of it."""
    family = tiny_flow.FAMILIES["sd3"]
    model = family.load(family.pipeline().to(torch.float64))
    guidance = ddim.Guidance(3.0, skip=ddim.SkipLayers((0,), 2.0, (0.0, 1.0)))
    code = coded(model, method="bdia", guidance=guidance)
    for batched in (True, False):
        plain, edited = (ddim.edit(model, code, TARGET, attention=how, batched_cfg=batched) for how in ("none", ALWAYS))
        assert apart(edited.edits, plain.edits) > 1e-4
        assert apart(edited.reconstruction, plain.reconstruction) < TIGHT
        itself = ddim.edit(model, code, SOURCE, attention=ALWAYS, batched_cfg=batched)
        assert apart(itself.edits[:, 0], itself.reconstruction) < 1e-12  # they are decoded together
