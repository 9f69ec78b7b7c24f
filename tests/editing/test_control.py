"""Attention control at the layers: what is left alone, what is taken over, and what is counted."""

import math
from contextlib import suppress
from types import SimpleNamespace

import pytest
import tiny_text
import torch
from refusals import failed, refused, unknown
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ddim._utils.errors import InputError
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.denoiser import Call
from ddim.core.guidance import Guidance
from ddim.core.prediction import NO_HOLD
from ddim.editing.attention import AttentionController
from ddim.editing.plan import CROSS as WORDS
from ddim.editing.plan import SELF, AttentionEdit, AttentionPlan, AttentionSite, within
from ddim.models.attention.unet import ControlledAttention, controlled, sites
from ddim.models.sd import StableDiffusion

L, SIZE = 5, (8, 8)
CROSS, ITSELF = AttentionSite("down_blocks.1.attn2", WORDS, 1), AttentionSite("down_blocks.1.attn1", SELF, 1)
ALWAYS = {"cross_steps": (0.0, 1.0), "self_steps": (0.0, 1.0)}


def plan(targets: int = 1, images: int = 1, kind: str = "refine", size=SIZE, **parts) -> AttentionPlan:
    usual = {"weight_steps": (0.0, 1.0)} if kind == "none" else ALWAYS
    edit = AttentionEdit(kind, **{**usual, **parts.pop("edit", {})})  # type: ignore[arg-type]
    mapping = parts.pop("mapping", torch.eye(L).expand(images, targets, L, L))
    new = parts.pop("new", torch.zeros(images, targets, L, dtype=torch.bool))
    return AttentionPlan(edit, (ITSELF, CROSS), size, mapping, new, **parts)


def qkv(rows: int, queries: int = 16, keys: int = L, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(rows, 2, n, 3, generator=draw, dtype=torch.float64) for n in (queries, keys, keys)
    )


def maps(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)


# --- options and windows ---------------------------------------------------------------------------------------------


def test_windows_are_rounded_down_to_whole_steps():
    assert [i for i in range(50) if within((0.0, 0.4), i, 50)] == list(range(20))
    assert [i for i in range(5) if within((0.2, 0.7), i, 5)] == [1, 2]
    assert sum(within((0.0, 0.29), i, 100) for i in range(100)) == 29  # 0.29 * 100 is a little less in floats
    assert not any(within((0.0, 0.0), i, 10) for i in range(10))
    assert all(within((0.0, 1.0), i, 7) for i in range(7))


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"kind": "refin"}, unknown("attention", "refin", nearest="refine")),
        ({"cross_steps": 0.4}, refused("cross_steps", 0.4)),
        ({"self_steps": ("a", "b")}, refused("self_steps", ("a", "b"))),
        ({"weight_steps": "01"}, refused("weight_steps", "01")),
        ({"blend_start": "a"}, refused("blend_start", "a")),
        ({"blend_threshold": None}, refused("blend_threshold", None)),
        ({"cross_steps": (0.5, 0.2)}, refused("cross_steps", (0.5, 0.2))),
        ({"self_steps": (0.0, 20)}, refused("self_steps", (0.0, 20))),
        ({"weight_steps": (-0.1, 0.5)}, refused("weight_steps", (-0.1, 0.5))),
        ({"self_positions": 0}, refused("self_positions", 0)),
        ({"blend_side": 2.5}, refused("blend_side", 2.5)),
        ({"blend_start": 2}, refused("blend_start", 2)),
        ({"blend_threshold": 1.0}, refused("blend_threshold", 1.0)),
    ],
)
def test_options_out_of_range(options, refusal):
    with refusal:
        AttentionEdit(**options)


def test_the_resolution_of_maps_follows_the_latent():
    layers = tuple(AttentionSite(f"{level}{keys}", keys, level) for level in range(4) for keys in (WORDS, SELF))

    def sizes(height: int, width: int, **options):
        p = AttentionPlan(AttentionEdit(**options), layers, (height, width), torch.zeros(0), torch.zeros(0))
        return p.blend_size, p.self_positions

    assert sizes(64, 64) == ((16, 16), 32 * 32)  # Stable Diffusion at 512
    assert sizes(96, 96) == ((24, 24), 48 * 48)  # and at 768
    assert sizes(64, 96) == ((16, 24), 32 * 48)
    assert sizes(65, 64) == ((17, 16), 33 * 32)  # a convolution of stride 2 rounds up
    assert sizes(16, 16) == ((8, 8), 64)
    assert sizes(8, 8) == ((8, 8), 16)
    assert sizes(200, 8) == ((50, 2), 400)
    assert sizes(64, 64, blend_side=32, self_positions=64) == ((32, 32), 64)
    assert sizes(64, 64, blend_side=2) == ((8, 8), 32 * 32)  # none is so small: the smallest


# --- one layer -------------------------------------------------------------------------------------------------------


def test_cross_maps_are_taken_over_and_new_tokens_keep_their_own():
    query, key, value = qkv(2)
    mapping = torch.zeros(1, 1, L, L)
    mapping[0, 0, 1, 2] = mapping[0, 0, 3, 0] = 1
    new = torch.tensor([[[False, True, False, True, False]]])
    out = AttentionController(plan(mapping=mapping, new=new), 0, 1).attend(CROSS, query, key, value, None, "cond")
    own = maps(query, key)
    edited = torch.stack(
        [own[0, :, :, 3], own[1, :, :, 1], own[0, :, :, 1], own[1, :, :, 3], torch.zeros_like(own[0, :, :, 0])], dim=-1
    )
    assert torch.allclose(out[1], edited @ value[1], atol=1e-12)
    assert torch.equal(out[0], scaled_dot_product_attention(query, key, value)[0])


def test_weights_scale_the_map_and_rows_are_not_normalised_again():
    query, key, value = qkv(2)
    scales = torch.tensor([[[1.0, 2.0, 1.0, -1.0, 0.0]]])
    out = AttentionController(plan(kind="none", scales=scales), 0, 1).attend(CROSS, query, key, value, None, None)
    assert torch.allclose(out[1], (maps(query, key)[1] * scales[0, 0]) @ value[1], atol=1e-12)
    assert torch.equal(out[0], scaled_dot_product_attention(query, key, value)[0])


def test_self_maps_are_the_sources():
    query, key, value = qkv(3, keys=16)
    out = AttentionController(plan(targets=2), 0, 1).attend(ITSELF, query, key, value, None, "cond")
    own = maps(query, key)
    assert torch.allclose(out[1], own[0] @ value[1], atol=1e-12)
    assert torch.allclose(out[2], own[0] @ value[2], atol=1e-12)
    assert torch.equal(out[0], scaled_dot_product_attention(query, key, value)[0])


def test_large_self_maps_are_left_alone():
    query, key, value = qkv(2, keys=16)
    out = AttentionController(plan(edit={"self_positions": 15}), 0, 1).attend(ITSELF, query, key, value, None, "cond")
    assert torch.equal(out, scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("layer", [CROSS, ITSELF], ids=["cross", "self"])
def test_only_the_conditional_branch_is_edited(layer: AttentionSite):
    query, key, value = qkv(4, keys=L if layer.words else 16)
    plain = scaled_dot_product_attention(query, key, value)
    mapping = torch.eye(L).flip(0).expand(1, 1, L, L)
    control = AttentionController(plan(mapping=mapping), 0, 1)
    out = control.attend(layer, query, key, value, None, "both")
    assert torch.equal(out[:3], plain[:3])  # null source, null target, source
    assert not torch.allclose(out[3], plain[3], atol=1e-3)
    assert torch.allclose(control.attend(layer, query[2:], key[2:], value[2:], None, "cond"), out[2:], atol=1e-12)
    null = control.attend(layer, query[:2], key[:2], value[:2], None, "uncond")
    assert torch.allclose(null, plain[:2], atol=1e-12)


@pytest.mark.parametrize("layer", [CROSS, ITSELF], ids=["cross", "self"])
def test_each_image_follows_its_own_source(layer: AttentionSite):
    """Two images with two targets: rows s1 t11 t12 s2 t21 t22."""
    query, key, value = qkv(6, keys=L if layer.words else 16)
    mapping = torch.stack([torch.eye(L).roll(k, 0) for k in range(4)]).view(2, 2, L, L)
    both = AttentionController(plan(targets=2, images=2, mapping=mapping), 0, 1).attend(
        layer, query, key, value, None, "words"
    )
    for image in (0, 1):
        for target in (0, 1):
            rows = [3 * image, 3 * image + 1 + target]
            one = AttentionController(plan(mapping=mapping[image : image + 1, target : target + 1]), 0, 1)
            alone = one.attend(layer, query[rows], key[rows], value[rows], None, "cond")
            assert torch.allclose(both[rows], alone, atol=1e-12)


def test_an_additive_mask_counts():
    query, key, value = qkv(2)
    mask = torch.zeros(2, 2, 1, L, dtype=torch.float64)
    mask[..., 3:] = -1e9
    out = AttentionController(plan(), 0, 1).attend(CROSS, query, key, value, mask, "cond")
    assert torch.allclose(out[1], maps(query[0], key[0, :, :3]) @ value[1, :, :3], atol=1e-12)


def test_maps_to_blend_by_are_the_words_mean_over_heads_and_sum_over_layers():
    query, key, value = qkv(3)
    blend = torch.zeros(1, 2, 2, L)
    blend[0, 0, 0, 1] = blend[0, 0, 1, 2] = blend[0, 0, 1, 3] = blend[0, 1, 1, 4] = 1
    two = AttentionSite("up_blocks.0.attn2", WORDS, 1)
    steady = plan(targets=2, kind="none", blend=blend)
    control = AttentionController(steady, 0, 1)
    for layer in (CROSS, two):
        control.attend(layer, query, key, value, None, "cond")
    own = 2 * maps(query, key).mean(1)
    assert control.maps is not None
    assert control.maps.shape == (1, 2, 2, 4, 4)
    assert torch.allclose(control.maps[0, 0, 0].flatten(), own[0, :, 1], atol=1e-12)
    assert torch.allclose(control.maps[0, 0, 1].flatten(), own[1, :, 2] + own[1, :, 3], atol=1e-12)
    assert not control.maps[0, 1, 0].any()
    assert torch.allclose(control.maps[0, 1, 1].flatten(), own[2, :, 4], atol=1e-12)


# --- the U-Net -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return tiny_text.model(dtype=torch.float64)


def network_call(model: StableDiffusion, height: int = 16, width: int = 16, **kwargs) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, height, width, generator=draw, dtype=torch.float64)
    words = torch.randn(2, tiny_text.LENGTH, 12, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        return model.network(x, torch.tensor(500), encoder_hidden_states=words, **kwargs).sample


def test_without_a_control_it_computes_what_diffusers_computes():
    model = tiny_text.model(dtype=torch.float32)
    model.network.double()
    before = network_call(model)
    assert {type(p).__name__ for p in model.network.attn_processors.values()} == {"AttnProcessor2_0"}
    with model.controlled():
        assert {type(p) for p in model.network.attn_processors.values()} == {ControlledAttention}
        assert torch.equal(network_call(model), before)


def whole_plan(model: StableDiffusion, size=(16, 16), **options) -> AttentionPlan:
    length = tiny_text.LENGTH
    return AttentionPlan(
        AttentionEdit(**{**ALWAYS, **options}),
        model.attention_sites(),
        size,
        torch.eye(length).expand(1, 1, length, length),
        torch.ones(1, 1, length, dtype=torch.bool),
        torch.ones(1, 1, length),
        torch.ones(1, 1, 2, length),
    )


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (10, 6)])
def test_a_control_that_changes_nothing_computes_what_diffusers_computes(model: StableDiffusion, size):
    """Every token new, every weight 1, maps kept: the explicit maps give what the fused attention gives."""
    control = AttentionController(whole_plan(model, size, self_steps=(0.0, 0.0)), 0, 1)
    kwargs = {"cross_attention_kwargs": {"control": control, "cfg_branch": "cond"}}
    with model.controlled():
        changed = network_call(model, *size, **kwargs)
    assert torch.allclose(changed, network_call(model, *size), atol=1e-12)
    seen = control.finish()
    assert seen is not None
    assert seen.shape == (1, 1, 2, -(-size[0] // 2), -(-size[1] // 2))
    # the words to blend by are all tokens: their maps are 1 everywhere, once a layer
    layers = sum(layer.words and layer.level == 1 for layer in control.plan.layers)
    assert torch.allclose(seen, torch.full_like(seen, layers))


def test_both_resolutions_have_cross_and_self_layers(model: StableDiffusion):
    layers = model.attention_sites()
    assert {(layer.words, layer.level) for layer in layers} == {(c, n) for c in (True, False) for n in (0, 1)}
    assert len(layers) == len(model.network.attn_processors)


def test_guidance_in_one_batch_or_two_is_the_same(model: StableDiffusion):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=draw, dtype=torch.float64)
    words, null = torch.randn(2, 2, tiny_text.LENGTH, 12, generator=draw, dtype=torch.float64)
    node = SimpleNamespace(t=500.0, alpha=0.6, sigma=0.8)
    prompts = PromptConditioning(Conditioning({"text": words}), Conditioning({"text": null}))
    out = []
    for batched in (True, False):
        plan = whole_plan(model)
        control = AttentionController(AttentionPlan(plan.edit, plan.layers, plan.size, plan.mapping, ~plan.new), 0, 1)
        guided = model.guided(Guidance(7.5, batched_cfg=batched), prompts, hold=NO_HOLD)
        with torch.no_grad(), model.controlled():
            out.append(guided(x, node, Call(controller=control)).eps)  # type: ignore[arg-type]
        control.finish()
    assert torch.allclose(out[0], out[1], atol=1e-12)


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_layer_that_does_not_pass_by_raises():
    model = tiny_text.model()
    layers = model.attention_sites()
    from diffusers.models.attention_processor import AttnProcessor2_0

    control = AttentionController(AttentionPlan(AttentionEdit(), layers, (16, 16), *whole_plan_of(model)), 0, 1)
    with torch.no_grad(), model.controlled():
        unhooked = dict(model.network.named_modules())[layers[3].name]
        unhooked.set_processor(AttnProcessor2_0())
        model.network(
            torch.randn(2, 4, 16, 16),
            torch.tensor(500),
            encoder_hidden_states=torch.randn(2, tiny_text.LENGTH, 12),
            cross_attention_kwargs={"control": control, "cfg_branch": None},
        )
    with failed(None, len(layers) - 1, len(layers)):
        control.finish()


def whole_plan_of(model: StableDiffusion) -> tuple[Tensor, Tensor]:
    length = tiny_text.LENGTH
    return torch.eye(length).expand(1, 1, length, length), torch.zeros(1, 1, length, dtype=torch.bool)


def test_a_layer_that_passes_twice_or_in_one_branch_only_raises():
    query, key, value = qkv(2)
    twice = AttentionController(plan(), 0, 1)
    for layer in (CROSS, ITSELF):
        for _ in range(2):
            twice.attend(layer, *(qkv(2, keys=16) if layer is ITSELF else (query, key, value)), None, None)
    with failed(None, 4, 2):
        twice.finish()
    nothing = AttentionController(plan(), 0, 1)
    for layer in (CROSS, ITSELF):
        nothing.attend(layer, *(qkv(2, keys=16) if layer is ITSELF else (query, key, value)), None, "uncond")
    with failed(None, 0, 2):
        nothing.finish()


@pytest.mark.parametrize(
    ("rows", "queries", "keys", "branch"),
    [(3, 16, L, None), (2, 15, L, None), (2, 16, L + 1, None), (2, 16, L, "both")],
)
def test_maps_of_another_size_raise(rows: int, queries: int, keys: int, branch: str | None):
    with failed(None, "down_blocks.1.attn2", (rows, queries, keys)):
        AttentionController(plan(), 0, 1).attend(CROSS, *qkv(rows, queries, keys), None, branch)


def processors(model: StableDiffusion) -> list[object]:
    return list(model.network.attn_processors.values())


def same(some: list[object], others: list[object]) -> bool:
    """Whether two lists hold the very same objects."""
    return all(a is b for a, b in zip(some, others, strict=True))


class Stop(Exception):
    """An error of no kind in particular."""


@pytest.mark.parametrize("ends", [None, Stop, KeyboardInterrupt, SystemExit], ids=str)
def test_processors_are_put_back_whatever_ends_an_edit(model: StableDiffusion, ends: type[BaseException] | None):
    own = processors(model)
    with suppress(*[ends] if ends else []), model.controlled():
        assert not any(a is b for a, b in zip(own, processors(model), strict=True))
        if ends:
            raise ends
    assert same(processors(model), own)


def test_one_controlled_block_in_another_leaves_all_as_it_was(model: StableDiffusion):
    own, layers = processors(model), model.attention_sites()
    with model.controlled():
        ours = processors(model)
        assert model.attention_sites() == layers
        with pytest.raises(Stop), model.controlled():
            raise Stop
        assert same(processors(model), ours)
    assert same(processors(model), own)
    assert model.attention_sites() == layers


def test_asking_for_the_sites_sets_nothing(model: StableDiffusion):
    own = processors(model)
    sites(model.network)
    assert same(processors(model), own)


@pytest.mark.parametrize("ends", [Stop, KeyboardInterrupt], ids=str)
def test_a_call_that_ends_midway_leaves_the_processors(model: StableDiffusion, ends: type[BaseException]):
    own = processors(model)

    def stop(*_: object) -> None:
        raise ends

    hook = model.network.mid_block.register_forward_hook(stop)
    try:
        with pytest.raises(ends), controlled(model.network):
            network_call(model)
    finally:
        hook.remove()
    assert same(processors(model), own)


def test_processors_that_do_more_are_not_thrown_away():
    class IPAdapterAttnProcessor:
        def __call__(self, attn: object) -> None: ...

    model = tiny_text.model()
    name = model.attention_sites()[0].name
    dict(model.network.named_modules())[name].set_processor(IPAdapterAttnProcessor())
    with refused("attention", "IPAdapterAttnProcessor", name):
        model.attention_sites()
    assert type(dict(model.network.named_modules())[name].processor) is IPAdapterAttnProcessor


def test_a_network_without_cross_attention():
    import tiny

    with refused("attention", "cross-attention"):
        sites(tiny.unet())


@pytest.mark.parametrize(
    ("setting", "value"), [("cross_steps", (0.0, 0.5)), ("self_steps", (0.0, 0.5)), ("self_positions", 64)]
)
def test_what_does_nothing_without_attention_control_is_refused(setting: str, value: object):
    with pytest.raises(InputError) as caught:
        AttentionEdit("none", **{setting: value})  # type: ignore[arg-type]
    assert caught.value.parameter == setting
