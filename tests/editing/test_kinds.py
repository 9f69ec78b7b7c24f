"""The kinds of attention control: MasaCtrl, plug-and-play and KV-Edit, against what their papers say, written out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny_flow
import tiny_text
import torch
from dense_attention import dense
from refusals import refused, unknown
from torch import Tensor, nn
from torch.nn import functional as F

import ddim
from ddim import AttentionEdit, LatentCode
from ddim._utils.choices import ATTENTIONS
from ddim.core.solve import solve
from ddim.editing.attention import AttentionController
from ddim.editing.plan import IMAGE_FIRST, NOTHING, PRESETS, SELF, AttentionPlan, AttentionSite
from ddim.models.base import Model
from ddim.models.sd import StableDiffusion
from ddim.pipelines.edit_plan import planned

SOURCE, TARGET = "a cat next to a mirror", "a tiger next to a mirror"
NEW_KINDS = ("masactrl", "plug-and-play", "kv-edit")
WHOLE, NO_STEP = (0.0, 1.0), (0.0, 0.0)
STEPS = 5
TIGHT = 1e-9


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, written out."""
    scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).exp()
    return scores / scores.sum(-1, keepdim=True) @ value


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plan_for(site: AttentionSite, edit: AttentionEdit, targets: int = 1, words: int = 5, **parts: Any) -> AttentionPlan:
    mapping, new = torch.eye(words).expand(1, targets, -1, -1), torch.zeros(1, targets, words, dtype=torch.bool)
    return AttentionPlan(edit, (site,), (8, 8), mapping, new, **parts)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_kinds_are_those_of_the_command_and_set_what_their_papers_say():
    assert tuple(PRESETS) == ATTENTIONS
    for kind, preset in PRESETS.items():
        edit = AttentionEdit(kind)
        assert {name: getattr(edit, name) for name in NOTHING} == {**NOTHING, **preset.settings}
        assert bool(preset.paper) == (kind != "none")
    masa, pnp = AttentionEdit("masactrl"), AttentionEdit("plug-and-play")
    steps, blocks = range(50), range(16)  # of Stable Diffusion
    plan = plan_for(AttentionSite("attn1", SELF, 1, 15), masa)
    assert [k for k in steps if AttentionController(plan, k, 50).key_values] == [*steps][4:]
    assert [k for k in blocks if masa.changes(k, 16)] == [*blocks][10:]
    plan = plan_for(AttentionSite("attn1", SELF, 1, 15), pnp)
    assert [k for k in steps if AttentionController(plan, k, 50).self_attention] == [*steps][:25]
    assert [k for k in steps if AttentionController(plan, k, 50).features] == [*steps][:40]
    assert [k for k in blocks if pnp.changes(k, 16)] == [*blocks][8:]  # up_blocks.1.attentions.1 and what follows


def test_settings_go_together_and_a_kind_is_only_a_set_of_defaults():
    both = AttentionEdit("refine", key_value_steps=(0.08, 1), branches="both")
    assert both.cross_steps == (0.0, 0.4)
    same = AttentionEdit(
        "refine",
        cross_steps=NO_STEP,
        self_steps=NO_STEP,
        key_value_steps=(0.08, 1.0),
        branches="both",
        layers=(0.625, 1.0),
        self_positions=math.inf,  # type: ignore[arg-type]
    )
    assert replace(same, kind="masactrl") == AttentionEdit("masactrl")
    assert AttentionEdit("masactrl", layer_indices=(3,)).layers == WHOLE
    assert AttentionEdit("masactrl", layers=None) == AttentionEdit("masactrl")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings", "refusal"),
    [
        ("masactl", {}, unknown("attention", "masactl", nearest="masactrl")),
        ("refine", {"key_value_area": "word"}, unknown("key_value_area", "word", nearest="words")),
        ("refine", {"branches": "uncond"}, unknown("branches", "uncond", nearest="cond")),
        ("refine", {"key_value_steps": 0.4}, refused("key_value_steps", 0.4)),
        ("refine", {"feature_steps": (0.0, 2.0)}, refused("feature_steps", (0.0, 2.0))),
        ("refine", {"key_value_area": "words"}, refused("key_value_area", "words")),
        ("masactrl", {"key_value_steps": NO_STEP, "key_value_area": "words"}, refused("key_value_area", "words")),
        ("refine", {"self_steps": NO_STEP, "branches": "both"}, refused("branches", "both")),
        ("masactrl", {"value_steps": (0.2, 0.5)}, refused("value_steps", (0.2, 0.5))),
        ("none", {"key_value_steps": WHOLE}, refused("key_value_steps", WHOLE)),
        ("none", {"feature_steps": WHOLE}, refused("feature_steps", WHOLE)),
        ("none", {"branches": "both"}, refused("branches", "both")),
        ("masactrl", {"layers": (0.5, 1.0), "layer_indices": (1,)}, refused("layers", (0.5, 1.0))),
    ],
)
def test_idle_and_wrong_settings_are_refused(kind: str, settings: dict[str, Any], refusal: Any):
    with refusal:
        AttentionEdit(kind, **settings)


def test_values_beside_keys_and_values_act_where_those_leave_them():
    AttentionEdit("masactrl", value_steps=(0.0, 0.5))  # masactrl begins later
    AttentionEdit("kv-edit", value_steps=(0.0, 0.5))  # inside the mask


# --- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_masactrl_asks_with_the_targets_queries_over_the_sources_keys_and_values(branch: str):
    site = AttentionSite("attn1", SELF, 1)
    rows = 6 if branch == "both" else 3
    query, key, value = (drawn(rows, 2, 16, 3, seed=k) for k in range(3))
    control = AttentionController(plan_for(site, AttentionEdit("masactrl"), 2), 4, 50)
    out = control.attend(site, query, key, value, None, branch)
    for first in range(0, rows, 3):
        for row in range(first, first + 3):
            assert torch.allclose(out[row], attention(query[row], key[first], value[first]), atol=1e-6)
    assert torch.equal(out[0], F.scaled_dot_product_attention(query, key, value)[0])
    before = AttentionController(control.plan, 3, 50).attend(site, query, key, value, None, branch)
    assert torch.equal(before, F.scaled_dot_product_attention(query, key, value))


def test_masactrl_in_joint_attention_takes_the_keys_and_values_of_the_image_alone():
    site = AttentionSite("attn", IMAGE_FIRST, 1)
    query, key, value = (drawn(2, 2, 21, 3, seed=k) for k in range(3))
    out = AttentionController(plan_for(site, AttentionEdit("masactrl")), 4, 50).attend(
        site, query, key, value, None, "cond"
    )
    keys, values = (torch.cat([x[0, :, :16], x[1, :, 16:]], dim=1) for x in (key, value))
    assert torch.allclose(out[1], attention(query[1], keys, values), atol=1e-6)


def test_the_conditional_branch_alone_follows_unless_both_are_asked_to():
    site, how = AttentionSite("attn1", SELF, 1), AttentionEdit("masactrl", branches="cond")
    query, key, value = (drawn(4, 2, 16, 3, seed=k) for k in range(3))
    plain = F.scaled_dot_product_attention(query, key, value)
    for edit, same in ((how, 3), (AttentionEdit("masactrl"), 1)):
        out = AttentionController(plan_for(site, edit), 4, 50).attend(site, query, key, value, None, "both")
        assert [torch.equal(a, b) for a, b in zip(out, plain, strict=True)] == [True, same == 3, True, False]


def test_masks_of_the_words_part_the_keys():
    """Cao et al., section 3.3: foreground queries ask the source's foreground, and the others its background."""
    site = AttentionSite("attn1", SELF, 1)
    query, key, value = (drawn(2, 2, 16, 3, seed=k) for k in range(3))
    areas = torch.zeros(1, 1, 2, 8, 8, dtype=torch.bool)
    areas[0, 0, 0, :4, :2] = areas[0, 0, 1, 2:6, 4:] = True
    how = AttentionEdit("masactrl", key_value_area="words")
    out = AttentionController(plan_for(site, how, areas=areas), 4, 50).attend(site, query, key, value, None, "cond")
    source, target = (areas[0, 0, side, ::2, ::2].flatten() for side in (0, 1))
    for kind in (True, False):
        keys = source == kind
        expected = attention(query[1], key[0][:, keys], value[0][:, keys])
        assert torch.allclose(out[1][:, target == kind], expected[:, target == kind], atol=1e-6)
    nowhere = torch.zeros_like(areas)
    nowhere[:, :, 1] = areas[:, :, 1]  # no foreground in the source: the target's sees all
    out = AttentionController(plan_for(site, how, areas=nowhere), 4, 50).attend(site, query, key, value, None, "cond")
    assert torch.allclose(out[1], attention(query[1], key[0], value[0]), atol=1e-6)


def test_kv_edit_keeps_what_is_inside_the_mask():
    """A token that the mask lets change in any part has keys and values of its own; all queries see the mixture."""
    site = AttentionSite("attn", IMAGE_FIRST, 1)
    query, key, value = (drawn(2, 2, 21, 3, seed=k) for k in range(3))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3:5, 1:4] = 0.1
    plan = plan_for(site, AttentionEdit("kv-edit"), mask=mask)
    out = AttentionController(plan, 0, 1).attend(site, query, key, value, None, "cond")
    inside = torch.zeros(21, dtype=torch.bool)
    inside[[4 * 1 + 0, 4 * 1 + 1, 4 * 2 + 0, 4 * 2 + 1, *range(16, 21)]] = True
    keys, values = (torch.where(inside[None, :, None], x[1], x[0]) for x in (key, value))
    assert torch.allclose(out[1], attention(query[1], keys, values), atol=1e-6)
    full = replace(plan, mask=torch.ones(1, 1, 8, 8))
    own = AttentionController(full, 0, 1).attend(site, query, key, value, None, "cond")
    assert torch.equal(own, F.scaled_dot_product_attention(query, key, value))


# --- the U-Net -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return tiny_text.model(dtype=torch.float64)


def call(model: StableDiffusion, x: Tensor, words: Tensor, control: AttentionController | None = None) -> Tensor:
    told = None if control is None else {"control": control, "cfg_branch": "both"}
    with torch.no_grad():
        return model.call_network(model.network, x, torch.tensor(500), {"text": words}, told)


@pytest.fixture(scope="module")
def running(model: StableDiffusion) -> list[tuple[str, str]]:
    """The attention layers in the order in which they run: each block, and ``attn1`` or ``attn2``."""
    blocks: list[tuple[str, str]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, i, name=name: blocks.append((name.rpartition(".")[0], name[-5:])))
        for name, module in model.network.named_modules()
        if name.endswith((".attn1", ".attn2"))
    ]
    call(model, drawn(1, 4, 16, 16), drawn(1, tiny_text.LENGTH, 12))
    for hook in hooks:
        hook.remove()
    return blocks


def with_attention(
    model: StableDiffusion, running: Sequence[tuple[str, str]], answer: Callable[..., Tensor], *given: Tensor
) -> Tensor:
    """Asks the plain U-Net, with fused attention replaced; ``answer`` gets the layer's block and kind first."""
    layers = iter(running)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, attn_mask=None, **_: answer(*next(layers), q, k, v)
        )
        return call(model, *given)


ROWS = (0, 0, 2, 2)
"""The source of each row: unconditional source and target, conditional source and target."""


def test_the_network_answers_as_masactrl_written_out(model: StableDiffusion, running: list[tuple[str, str]]):
    x, words = drawn(4, 4, 16, 16), drawn(4, tiny_text.LENGTH, 12, seed=1)
    plan = planned(model, [SOURCE], TARGET, (32, 32), AttentionEdit("masactrl"))[1]
    assert plan is not None
    control = AttentionController(plan, 4, 50)
    with model.controlled():
        ours = call(model, x, words, control)
    control.finish()
    blocks = list(dict.fromkeys(name for name, _ in running))
    late = blocks[math.floor(0.625 * len(blocks)) :]
    assert 0 < len(late) < len(blocks)

    def answer(block: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = list(ROWS) if part == "attn1" and block in late else [0, 1, 2, 3]
        return attention(query, key[rows], value[rows])

    plain, expected = call(model, x, words), with_attention(model, running, answer, x, words)
    assert float((ours - expected).abs().max()) < 1e-6
    assert float((ours - plain)[[1, 3]].abs().max()) > 1e-3
    assert torch.equal(ours[[0, 2]], plain[[0, 2]])


class Written(nn.Module):
    """Answers what it was given, and keeps what its layer answers."""

    def __init__(self, layer: nn.Module, answers: Tensor | None = None) -> None:
        super().__init__()
        self.layer, self.answers = layer, answers

    def forward(self, x: Tensor) -> Tensor:
        self.own = self.layer(x)
        return self.own if self.answers is None else self.answers


def with_features(model: StableDiffusion, answers: Tensor | None, ask: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Asks with the convolution of the fifth residual block of the decoder replaced; the output, and its own answer."""
    block: Any = model.network.up_blocks[1].resnets[1]
    layer = block.conv2
    block.conv2 = Written(layer, answers)
    try:
        return ask(), block.conv2.own
    finally:
        block.conv2 = layer


def test_the_network_answers_as_plug_and_play_written_out(model: StableDiffusion, running: list[tuple[str, str]]):
    """The source alone gives the features and the maps, which the plain network then gets in the targets' rows."""
    x, words = drawn(4, 4, 16, 16), drawn(4, tiny_text.LENGTH, 12, seed=1)
    plan = planned(model, [SOURCE], TARGET, (32, 32), AttentionEdit("plug-and-play"))[1]
    assert plan is not None
    control = AttentionController(plan, 0, 1)
    with model.controlled():
        ours = call(model, x, words, control)
    control.finish()
    blocks = list(dict.fromkeys(name for name, _ in running))
    late = blocks[len(blocks) // 2 :]
    kept: list[tuple[Tensor, Tensor]] = []

    def recorded(block: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if part == "attn1" and block in late:
            kept.append((query, key))
        return attention(query, key, value)

    sources = x[[0, 2]], words[[0, 2]]
    _, features = with_features(model, None, lambda: with_attention(model, running, recorded, *sources))
    answers = iter(kept)

    def answer(block: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if part == "attn1" and block in late:
            query, key = (of_sources[[0, 0, 1, 1]] for of_sources in next(answers))
        return attention(query, key, value)

    every = features[[0, 0, 1, 1]]
    expected, _ = with_features(model, every, lambda: with_attention(model, running, answer, x, words))
    plain = call(model, x, words)
    assert float((ours - expected).abs().max()) < 1e-6
    assert float((ours - plain)[[1, 3]].abs().max()) > 1e-3
    assert float((ours - plain)[[0, 2]].abs().max()) < TIGHT
    without, _ = with_features(model, None, lambda: with_attention(model, running, attention_alone, x, words))
    assert float((without - plain).abs().max()) < TIGHT
    assert not any(module._forward_hooks for module in model.network.modules())


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_a_target_with_the_latent_and_the_words_of_its_source_answers_as_it(model: StableDiffusion, kind: str):
    x, words = drawn(2, 4, 16, 16)[[0, 0, 0, 0]], drawn(2, tiny_text.LENGTH, 12, seed=1)[[0, 0, 1, 1]]
    plan = planned(model, [SOURCE], SOURCE, (32, 32), AttentionEdit(kind), masked=True)[1]
    assert plan is not None
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    control = AttentionController(replace(plan, mask=mask), 1, 5)
    with model.controlled():
        out = call(model, x, words, control)
    control.finish()
    assert float((out - call(model, x, words)).abs().max()) < TIGHT


def attention_alone(block: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attention(query, key, value)


def test_features_that_do_not_pass_by_raise(model: StableDiffusion):
    plan = planned(model, [SOURCE], TARGET, (32, 32), AttentionEdit("plug-and-play"))[1]
    assert plan is not None
    control = AttentionController(plan, 0, 1)
    with torch.no_grad(), model.controlled():  # the network itself, without its adapter
        model.network(
            drawn(2, 4, 16, 16),
            torch.tensor(500),
            encoder_hidden_states=drawn(2, tiny_text.LENGTH, 12),
            cross_attention_kwargs={"control": control, "cfg_branch": "cond"},
        )
    with pytest.raises(ddim.DDIMError):
        control.finish()


def test_the_network_answers_as_kv_edit_written_out(model: StableDiffusion, running: list[tuple[str, str]]):
    """At every resolution of a U-Net."""
    x, words = drawn(2, 4, 16, 16), drawn(2, tiny_text.LENGTH, 12, seed=1)
    plan = planned(model, [SOURCE], TARGET, (32, 32), AttentionEdit("kv-edit"), masked=True)[1]
    assert plan is not None
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 5:12] = 1
    plan = replace(plan, mask=mask)
    control = AttentionController(plan, 0, 1)
    with torch.no_grad(), model.controlled():
        told = {"control": control, "cfg_branch": "cond"}
        ours = model.call_network(model.network, x, torch.tensor(500), {"text": words}, told)
    control.finish()

    def answer(block: str, part: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        places: Sequence[int] = range(query.shape[2])
        return dense(query, key, value, plan, places, ()) if part == "attn1" else attention(query, key, value)

    plain, expected = call(model, x, words), with_attention(model, running, answer, x, words)
    assert float((ours - expected).abs().max()) < 1e-6
    assert float((ours - plain)[1].abs().max()) > 1e-3


# --- edits -----------------------------------------------------------------------------------------------------------


def coded(model: Model, method: str = "direct", count: int = 1, **settings: Any) -> LatentCode:
    pictures = tiny_text.pictures(count, *model.picture[1:])
    if "cfg" in model.info.guidance_kinds:
        settings = {"guidance": 3.0, **settings}
    return ddim.invert(model, pictures, method=method, **{"prompt": SOURCE, "steps": STEPS, **settings})


@pytest.fixture(params=["U-Net", "sd3", "flux schnell"], scope="module")
def any_model(request: pytest.FixtureRequest) -> Model:
    if request.param == "U-Net":
        return tiny_text.model(dtype=torch.float64)
    family = tiny_flow.FAMILIES[request.param]
    return family.load(family.pipeline().to(torch.float64))


def kinds_of(model: Model) -> list[str]:
    return [kind for kind in NEW_KINDS if kind != "plug-and-play" or isinstance(model, StableDiffusion)]


def half_mask(model: Model) -> Tensor:
    mask = torch.zeros(model.picture[1:])
    mask[:, : model.picture[2] // 2] = 1
    return mask


def test_each_kind_changes_the_targets_and_not_the_source(any_model: Model):
    code = coded(any_model)
    for kind in kinds_of(any_model):
        options: dict[str, Any] = {"mask": half_mask(any_model)} if kind == "kv-edit" else {}
        plain = ddim.edit(any_model, code, TARGET, attention="none", **options)
        edited = ddim.edit(any_model, code, TARGET, attention=kind, **options)
        assert float((edited.edits - plain.edits).abs().max()) > 1e-6, kind
        assert float((edited.reconstruction - plain.reconstruction).abs().max()) < TIGHT


def test_windows_of_no_steps_are_no_control_to_the_bit(any_model: Model):
    code, mask = coded(any_model), half_mask(any_model)
    plain = ddim.edit(any_model, code, TARGET, attention="none", mask=mask)
    for kind in kinds_of(any_model):
        none = dict.fromkeys(("self_steps", "key_value_steps", "feature_steps"), NO_STEP)
        idle = AttentionEdit(kind, **none)  # type: ignore[arg-type]
        assert torch.equal(ddim.edit(any_model, code, TARGET, attention=idle, mask=mask).edits, plain.edits), kind


@pytest.mark.parametrize("method", ["direct", "ddim"])
def test_a_prompt_replaced_by_itself_keeps_the_source(any_model: Model, method: str):
    code = coded(any_model, method)
    for kind in kinds_of(any_model):
        options: dict[str, Any] = {"mask": half_mask(any_model)} if kind == "kv-edit" else {}
        edited = ddim.edit(any_model, code, SOURCE, attention=kind, **options)
        other = ddim.edit(any_model, code, TARGET, attention=kind, **options)
        if method == "ddim":
            assert float((edited.edits[:, 0] - edited.reconstruction).abs().max()) < TIGHT
        assert float((other.edits[:, 0] - other.reconstruction).abs().max()) > 1e-6


def test_the_background_of_kv_edit_is_the_sources_to_the_bit(any_model: Model, monkeypatch: pytest.MonkeyPatch):
    ends: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        ends.append(solve(*args, **kwargs))
        return ends[-1]

    code, mask = coded(any_model), half_mask(any_model)
    monkeypatch.setattr("ddim.pipelines.beside.solve", watched)
    ddim.edit(any_model, code, TARGET, attention="kv-edit", mask=mask)
    x = ends[-1]["x"]
    middle = x.shape[-1] // 2
    assert torch.equal(x[0, ..., middle:], x[1, ..., middle:])
    assert float((x[0, ..., :middle] - x[1, ..., :middle]).abs().max()) > 1e-3


def test_a_full_mask_of_kv_edit_is_no_control(any_model: Model):
    code, full = coded(any_model), torch.ones(any_model.picture[1:])
    plain = ddim.edit(any_model, code, TARGET, attention="none", mask=full)
    assert torch.equal(ddim.edit(any_model, code, TARGET, attention="kv-edit", mask=full).edits, plain.edits)


def test_each_image_has_its_own_mask(any_model: Model):
    code = coded(any_model, "ddim", 2)
    masks = torch.stack([half_mask(any_model), 1 - half_mask(any_model)])
    together = ddim.edit(any_model, code, [TARGET, "a dog"], attention="kv-edit", mask=masks)
    for k in (0, 1):
        alone = ddim.edit(any_model, code[k], "a dog", attention="kv-edit", mask=masks[k])
        assert float((alone.edits[0, 0] - together.edits[k, 1]).abs().max()) < 1e-6


def test_branches_in_one_call_or_two_are_edited_alike(any_model: Model):
    if "cfg" not in any_model.info.guidance_kinds:
        pytest.skip("it has one branch")
    code = coded(any_model)
    hows = [AttentionEdit(kind) for kind in kinds_of(any_model)]
    hows += [AttentionEdit("refine", branches="both"), AttentionEdit("masactrl", key_value_area="words")]
    for how in hows:
        options: dict[str, Any] = {"mask": half_mask(any_model)} if how.kind == "kv-edit" else {}
        options |= {"blend": "cat/tiger"} if how.key_value_area == "words" else {}
        one, two = (
            ddim.edit(any_model, code, TARGET, attention=how, batched_cfg=both, **options) for both in (True, False)
        )
        assert float((one.edits - two.edits).abs().max()) < 1e-6, how.kind
    cond = ddim.edit(any_model, code, TARGET, attention="refine")
    both = ddim.edit(any_model, code, TARGET, attention=hows[-2])
    assert float((cond.edits - both.edits).abs().max()) > 1e-8


def test_the_areas_of_the_words_part_an_edit_without_blending(any_model: Model):
    """``blend_start=1`` leaves the latents as they are; the words then only part the keys."""
    code = coded(any_model)
    hows = [
        AttentionEdit("masactrl", key_value_area=area, blend_start=start, blend_threshold=0.9)
        for area, start in (("words", 1.0), ("image", 0.2))
    ]
    parted, blended = (ddim.edit(any_model, code, TARGET, attention=how, blend="cat/tiger") for how in hows)
    plain = ddim.edit(any_model, code, TARGET, attention="masactrl")
    assert parted.blend_mask is None
    assert blended.blend_mask is not None
    assert float((parted.edits - plain.edits).abs().max()) > 1e-9


def test_a_call_computes_the_same_from_copies_of_the_tensors_of_its_plan(
    any_model: Model, monkeypatch: pytest.MonkeyPatch
):
    """As a CUDA graph does, whose inputs they are."""
    code, made, real = coded(any_model), list[AttentionController](), AttentionController.with_tensors
    edits: list[list[Tensor]] = []

    def copied(self: AttentionController, tensors: Any) -> AttentionController:
        made.append(real(self, [None if t is None else t.clone() for t in tensors]))
        assert made[-1].key == self.key
        return made[-1]

    for patched in (False, True):
        if patched:
            monkeypatch.setattr(AttentionController, "with_tensors", copied)
        words = AttentionEdit("masactrl", key_value_area="words")
        edits.append([ddim.edit(any_model, code, TARGET, attention=words, blend="auto").edits])
        edits[-1] += [
            ddim.edit(any_model, code, TARGET, attention=kind, mask=half_mask(any_model)).edits
            for kind in kinds_of(any_model)
        ]
    assert {tuple(t is None for t in control.plan.tensors[4:]) for control in made} >= {(True, True), (False, True)}
    assert any(control.plan.areas is not None for control in made)
    assert all(torch.equal(a, b) for a, b in zip(*edits, strict=True))


def test_what_acts_tells_recorded_calls_apart():
    how = AttentionEdit("plug-and-play", self_steps=(0.0, 0.25), feature_steps=(0.25, 0.5), key_value_steps=(0.5, 0.75))
    plan = plan_for(AttentionSite("attn1", SELF, 1), how)
    assert len({AttentionController(plan, k, 4).key for k in range(4)}) == 4
    assert [AttentionController(plan, k, 4).idle for k in range(4)] == [False, False, False, True]


# --- refusals --------------------------------------------------------------------------------------------------------


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("some work was done")


def unworked(model: Model, patch: pytest.MonkeyPatch) -> Model:
    for work in ("forward", "encode", "encode_prompt"):
        patch.setattr(model, work, never)
    return model


def asked(model: Model, **settings: Any) -> None:
    pictures = tiny_text.pictures(1, *model.picture[1:])
    ddim.edit(model, pictures, TARGET, source_prompt=SOURCE, **settings)


def test_kv_edit_without_a_mask_is_refused_before_any_work(any_model: Model, monkeypatch: pytest.MonkeyPatch):
    unworked(any_model, monkeypatch)
    with refused("mask", "'kv-edit'"):
        asked(any_model, attention="kv-edit")
    with refused("key_value_area", "'words'"):
        asked(any_model, attention=AttentionEdit("masactrl", key_value_area="words"))


@pytest.mark.parametrize("name", ["sd3", "flux schnell", "sana"])
def test_features_of_a_transformer_are_refused_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch):
    family = tiny_flow.FAMILIES[name]
    model = unworked(family.load(family.pipeline()), monkeypatch)
    with refused("attention", repr(model.name)):
        asked(model, attention="plug-and-play")
    reason = ddim.capabilities(model)["controls"]["features"]
    assert reason is not None
    assert repr(model.name) in reason


def test_linear_attention_has_no_keys_to_take_over(monkeypatch: pytest.MonkeyPatch):
    family = tiny_flow.FAMILIES["sana"]
    model = unworked(family.load(family.pipeline()), monkeypatch)
    with refused("attention", "'masactrl'"):
        asked(model, attention="masactrl")


def test_a_unet_without_the_block_is_refused(model: StableDiffusion):
    from ddim.models.attention.unet import feature_sites

    assert feature_sites(model.network) == ("up_blocks.1.resnets.1.conv2",)
    assert ddim.capabilities(model)["controls"]["features"] is None
    network = nn.Module()
    network.up_blocks = nn.ModuleList([nn.Module()])
    with refused("attention", "up_blocks.1.resnets.1.conv2"):
        feature_sites(network)


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_an_edit_by_class_has_no_attention_control(kind: str):
    model = ddim.load("fashion-classes")
    with refused("attention", repr(kind)):
        ddim.edit(model, torch.rand(1, *model.picture), labels=1, source_labels=0, attention=kind)


# --- words that differ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "blend"),
    [
        ("a cat on a mat", "a tiger on a mat", "cat/tiger"),
        ("a cat on a mat", "a red cat on a mat", "/red"),
        ("a red cat on a mat", "a cat on a mat", "red/"),
        ("a cat on a mat", "a dog with a hat on a mirror", "cat mat/dog with hat mirror"),
        ("A cat, on a mat", "a cat on a hat", "mat/hat"),
    ],
)
def test_auto_blends_by_the_words_that_differ(model: StableDiffusion, source: str, target: str, blend: str):
    found, named = (planned(model, [source], target, (32, 32), AttentionEdit(), words)[1] for words in ("auto", blend))
    assert found is not None
    assert found.blend is not None
    assert named is not None
    assert named.blend is not None
    if "with" in target:  # a word by name is every word of that name: "a" is new once
        assert bool((found.blend >= named.blend).all())
        assert float(found.blend.sum() - named.blend.sum()) == 1
    else:
        assert torch.equal(found.blend, named.blend)


def test_auto_ends_in_the_composite_of_named_words(model: StableDiffusion):
    code = coded(model, keep_source=True)
    auto, named = (ddim.edit(model, code, TARGET, blend=blend) for blend in ("auto", "cat/tiger"))
    assert torch.equal(auto.edits, named.edits)
    assert auto.composites is not None
    assert named.composites is not None
    assert torch.equal(auto.composites[0][0], named.composites[0][0])
    several = ddim.edit(model, code, [TARGET, SOURCE], blend=["auto", None])
    assert several.blend_mask is not None


def test_auto_for_equal_words_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch):
    model = unworked(tiny_text.model(), monkeypatch)
    for same in (SOURCE, "A cat, next to a mirror."):
        with refused("blend", "'auto'", repr(same)):
            ddim.edit(model, tiny_text.pictures(), same, source_prompt=SOURCE, blend="auto")
