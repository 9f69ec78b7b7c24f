"""Attention control on joint attention: the rule against dense attention written out, its laws, and its memory."""

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from dense_attention import dense
from refusals import failed, refused
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from ddim.editing import attention
from ddim.editing.attention import AttentionController
from ddim.editing.plan import IMAGE_FIRST, SELF, WORDS_FIRST, AttentionEdit, AttentionPlan, AttentionSite, Part

L, SIZE, TOKENS = 5, (8, 8), 16  # words, sides of the latent, the image's tokens at half of them
HEADS, WIDTH = 3, 4
ORDERS: dict[str, tuple[Part, ...]] = {"image first": IMAGE_FIRST, "words first": WORDS_FIRST}
NEVER = {"cross_steps": (0.0, 0.0), "self_steps": (0.0, 0.0)}
CROSS = {**NEVER, "cross_steps": (0.0, 1.0)}
IMAGE = {**NEVER, "self_steps": (0.0, 1.0)}
VALUE = {**NEVER, "value_steps": (0.0, 1.0)}
EVERYTHING = {"cross_steps": (0.0, 1.0), "self_steps": (0.0, 1.0), "value_steps": (0.0, 1.0)}


def site(order: tuple[Part, ...] = ORDERS["image first"], block: int = 0, **facts: Any) -> AttentionSite:
    return AttentionSite(f"transformer_blocks.{block}.attn", order, 1, block, **facts)


def plan(
    settings: dict[str, Any],
    sites: tuple[AttentionSite, ...],
    images: int = 1,
    targets: int = 1,
    kind: str = "refine",
    **parts: Any,
) -> AttentionPlan:
    mapping = parts.pop("mapping", torch.eye(L).expand(images, targets, L, L))
    new = parts.pop("new", torch.zeros(images, targets, L, dtype=torch.bool))
    return AttentionPlan(AttentionEdit(kind, **settings), sites, parts.pop("size", SIZE), mapping, new, **parts)


def qkv(rows: int, keys: int = TOKENS + L, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (3, rows, HEADS, keys, WIDTH)
    query, key, value = torch.randn(shape, generator=draw, dtype=torch.float64)
    return query, key, value


def aligned(images: int = 1, targets: int = 1) -> dict[str, Tensor]:
    """A mapping with a token that takes none, one that takes of two, and one that is new."""
    mapping = torch.zeros(images, targets, L, L)
    mapping[..., 0, 0] = mapping[..., 2, 1] = 1.0
    mapping[..., 1:3, 3] = 0.5
    new = torch.zeros(images, targets, L, dtype=torch.bool)
    new[..., 4] = True
    return {"mapping": mapping, "new": new}


def places(order: tuple[Part, ...]) -> tuple[range, range]:
    """Where the image's keys lie, and where the words' do."""
    if order[0] == "words":
        return range(L, L + TOKENS), range(L)
    return range(TOKENS), range(TOKENS, TOKENS + L)


# --- the rule --------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([[[1.0, 2.0, 0.0, -1.0, 1.0], [1.0, 1.0, 0.5, 1.0, 3.0]]])
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cross": ("refine", CROSS, aligned(1, 2)),
    "image": ("refine", IMAGE, aligned(1, 2)),
    "value": ("refine", VALUE, {}),
    "cross and image": ("replace", {"cross_steps": (0.0, 1.0), "self_steps": (0.0, 1.0)}, aligned(1, 2)),
    "weights": ("none", {"weight_steps": (0.0, 1.0)}, {"scales": WEIGHTS}),
    "everything": ("refine", {**EVERYTHING, "weight_steps": (0.0, 1.0)}, {**aligned(1, 2), "scales": WEIGHTS}),
}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_the_output_is_dense_attention_with_the_replaced_entries(case: str, order: tuple[Part, ...], masked: bool):
    kind, settings, parts = CASES[case]
    one = site(order)
    query, key, value = qkv(3)
    mask = torch.zeros(3, 1, 1, TOKENS + L, dtype=torch.float64)
    mask[1, ..., 2] = mask[:, ..., 7] = 1.3
    edited = plan(settings, (one,), 1, 2, kind, **parts)
    out = AttentionController(edited, 0, 1).attend(one, query, key, value, mask if masked else None, "cond")
    expected = dense(query, key, value, edited, *places(order), mask if masked else None)
    assert torch.allclose(out, expected, atol=1e-12)
    plain = scaled_dot_product_attention(query, key, value, attn_mask=mask if masked else None)
    assert torch.equal(out[0], plain[0])  # the source, to the bit
    assert float((out[1:] - plain[1:]).abs().max()) > 1e-2
    words = slice(0, L) if order[0] == "words" else slice(TOKENS, None)
    if case != "value":  # what the words see is theirs, but they see the image's values
        assert torch.allclose(out[1:, :, words], expected[1:, :, words], atol=1e-12)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_what_the_words_see_is_not_edited(order: tuple[Part, ...]):
    one, words = site(order), slice(0, L) if order[0] == "words" else slice(TOKENS, None)
    query, key, value = qkv(2)
    control = AttentionController(plan({**EVERYTHING, "value_steps": (0.0, 0.0)}, (one,), **aligned()), 0, 1)
    out = control.attend(one, query, key, value, None, "cond")
    assert torch.equal(out[:, :, words], scaled_dot_product_attention(query, key, value)[:, :, words])


@pytest.mark.parametrize("settings", [CROSS, IMAGE, {**CROSS, **IMAGE}, EVERYTHING], ids=str)
def test_rows_sum_to_one(settings: dict[str, Any]):
    query, key, _ = qkv(2)
    ones = torch.ones_like(query)
    out = AttentionController(plan(settings, (site(),), **aligned()), 0, 1).attend(site(), query, key, ones, None, None)
    assert torch.allclose(out, ones, atol=1e-12)
    weighted = plan({**settings, "weight_steps": (0.0, 1.0)}, (site(),), **aligned(), scales=WEIGHTS[:, :1])
    out = AttentionController(weighted, 0, 1).attend(site(), query, key, ones, None, None)
    assert float((out[1, :, :TOKENS] - 1).abs().max()) > 1e-2  # a weight acts on its word alone
    assert torch.allclose(out[1, :, TOKENS:], ones[1, :, TOKENS:], atol=1e-12)


def test_a_target_like_its_source_does_not_change():
    query, key, value = (x[:1].repeat(2, 1, 1, 1) for x in qkv(1))
    out = AttentionController(plan(EVERYTHING, (site(),)), 0, 1).attend(site(), query, key, value, None, "cond")
    assert torch.allclose(out, scaled_dot_product_attention(query, key, value), atol=1e-14)


def test_a_row_that_is_taken_over_whole_is_the_sources():
    query, key, value = qkv(2)
    both = AttentionController(plan({**CROSS, **{"self_steps": (0.0, 1.0)}}, (site(),)), 0, 1)
    out = both.attend(site(), query, key, value, None, "cond")
    maps = (query[0] @ key[0].transpose(-1, -2) / math.sqrt(WIDTH)).softmax(-1)
    assert torch.allclose(out[1, :, :TOKENS], (maps @ value[1])[:, :TOKENS], atol=1e-12)


def test_windows_of_no_steps_and_of_no_layers_change_nothing():
    query, key, value = qkv(2)
    plain = scaled_dot_product_attention(query, key, value)
    idle = AttentionController(plan(NEVER, (site(),), **aligned()), 0, 1)
    assert idle.idle
    assert torch.equal(idle.attend(site(), query, key, value, None, "cond"), plain)
    nowhere = plan({**EVERYTHING, "layers": (0.0, 0.0)}, (site(),), **aligned(), scales=WEIGHTS[:, :1])
    assert torch.equal(AttentionController(nowhere, 0, 1).attend(site(), query, key, value, None, "cond"), plain)


@pytest.mark.parametrize(
    ("chosen", "changed"),
    [
        ({"layers": (0.0, 0.5)}, {0, 1}),
        ({"layers": (0.5, 1.0)}, {2, 3}),
        ({"layers": (0.25, 0.5)}, {1}),
        ({"layer_indices": (0, 3)}, {0, 3}),
        ({"layer_indices": (2,)}, {2}),
    ],
    ids=str,
)
def test_only_the_chosen_layers_change(chosen: dict[str, Any], changed: set[int]):
    sites = tuple(site(block=k) for k in range(4))
    query, key, value = qkv(2)
    plain = scaled_dot_product_attention(query, key, value)
    for settings in (CROSS, IMAGE, VALUE):
        control = AttentionController(plan({**settings, **chosen}, sites, **aligned()), 0, 1)
        outs = [control.attend(one, query, key, value, None, "cond") for one in sites]
        assert {k for k, out in enumerate(outs) if not torch.equal(out, plain)} == changed
        control.finish()


def test_values_are_taken_over_where_attention_is_to_the_image_alone():
    lone = AttentionSite("transformer_blocks.0.attn2", SELF, 1)
    query, key, value = qkv(2, TOKENS)
    out = AttentionController(plan(VALUE, (lone, site())), 0, 1).attend(lone, query, key, value, None, "cond")
    assert torch.equal(out[0], scaled_dot_product_attention(query, key, value)[0])
    assert torch.allclose(out[1], scaled_dot_product_attention(query, key, value[:1].repeat(2, 1, 1, 1))[1], atol=1e-12)
    small = AttentionController(plan({**VALUE, "self_positions": TOKENS - 1}, (lone, site())), 0, 1)
    plain = scaled_dot_product_attention(query, key, value)
    assert torch.equal(small.attend(lone, query, key, value, None, "cond"), plain)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_only_the_conditional_branch_is_edited(order: tuple[Part, ...]):
    one = site(order)
    query, key, value = qkv(4)
    plain = scaled_dot_product_attention(query, key, value)
    control = AttentionController(plan(EVERYTHING, (one,), **aligned()), 0, 1)
    out = control.attend(one, query, key, value, None, "both")
    assert torch.equal(out[:3], plain[:3])
    assert torch.allclose(control.attend(one, query[2:], key[2:], value[2:], None, "cond"), out[2:], atol=1e-12)
    assert torch.equal(
        control.attend(one, query[:2], key[:2], value[:2], None, "uncond"),
        scaled_dot_product_attention(query[:2], key[:2], value[:2]),
    )


def test_each_image_follows_its_own_source():
    """Two images with two targets: rows s1 t11 t12 s2 t21 t22."""
    query, key, value = qkv(6)
    mapping = torch.stack([torch.eye(L).roll(k, 0) for k in range(4)]).view(2, 2, L, L)
    both = AttentionController(plan(EVERYTHING, (site(),), 2, 2, mapping=mapping), 0, 1)
    out = both.attend(site(), query, key, value, None, "cond")
    for image in (0, 1):
        for target in (0, 1):
            rows = [3 * image, 3 * image + 1 + target]
            pair = mapping[image : image + 1, target : target + 1]
            one = AttentionController(plan(EVERYTHING, (site(),), mapping=pair), 0, 1)
            alone = one.attend(site(), query[rows], key[rows], value[rows], None, "cond")
            assert torch.allclose(out[rows], alone, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_maps_in_float32(dtype: torch.dtype):
    """Scores of about 30, of which bfloat16 keeps no decimal: the output is wrong only by its own rounding."""
    query, key, value = (x.to(dtype) for x in (4 * part for part in qkv(2)))
    blend = torch.ones(1, 1, 2, L)
    half, full = (
        AttentionController(plan({**CROSS, **IMAGE}, (site(),), **aligned(), blend=blend), 0, 1) for _ in (0, 1)
    )
    out = half.attend(site(), query, key, value, None, "cond")
    expected = full.attend(site(), query.double(), key.double(), value.double(), None, "cond")
    assert out.dtype == dtype
    assert float((out[1] - expected[1]).abs().max()) < 0.02 * float(value.abs().max())
    assert half.maps is not None
    assert full.maps is not None
    assert half.maps.dtype == torch.float32
    assert torch.allclose(half.maps.double(), full.maps, atol=1e-5)


# --- what is not a word ----------------------------------------------------------------------------------------------


def test_keys_behind_the_words_of_the_plan_keep_their_own_attention():
    """Z-Image pads a caption with learned tokens; a batch pads the shorter prompts."""
    one, more = site(varies=True), 3
    query, key, value = qkv(2, TOKENS + L + more)
    control = AttentionController(plan(CROSS, (one,), **aligned()), 0, 1)
    wide = {
        k: torch.nn.functional.pad(v, (0, more) if k == "new" else (0, more, 0, more)) for k, v in aligned().items()
    }
    wide["new"][..., L:] = True
    same = AttentionController(plan(CROSS, (site(),), **wide), 0, 1)
    out = control.attend(one, query, key, value, None, "cond")
    assert torch.allclose(out, same.attend(site(), query, key, value, None, "cond"), atol=1e-12)


def test_a_batch_may_be_shorter_than_the_longest_prompt_of_the_plan():
    one, fewer = site(varies=True), 2
    query, key, value = qkv(2, TOKENS + L - fewer)
    parts = aligned()
    short = {"mapping": parts["mapping"][..., :-fewer, :-fewer], "new": parts["new"][..., :-fewer]}
    out = AttentionController(plan(CROSS, (one,), **parts), 0, 1).attend(one, query, key, value, None, "cond")
    same = AttentionController(plan(CROSS, (site(),), **short), 0, 1).attend(site(), query, key, value, None, "cond")
    assert torch.allclose(out, same, atol=1e-12)


def test_a_reference_picture_is_neither_words_nor_the_image():
    """FLUX Kontext: words, image, reference. Attention to the reference is the target's own."""
    one, more = site(ORDERS["words first"], reference=True), 6
    query, key, value = qkv(2, L + TOKENS + more)
    control = AttentionController(plan(EVERYTHING, (one,), **aligned()), 0, 1)
    out = control.attend(one, query, key, value, None, "cond")
    maps = (query @ key.transpose(-1, -2) / math.sqrt(WIDTH)).softmax(-1)
    mapping, new = (part[0, 0] for part in aligned().values())
    words = torch.where(new, maps[1, ..., :L], maps[0, ..., :L] @ mapping.double())
    line = torch.cat([words, maps[0, ..., L : L + TOKENS], maps[1, ..., L + TOKENS :]], -1)
    seen = torch.cat([value[1, :, :L], value[0, :, L : L + TOKENS], value[1, :, L + TOKENS :]], 1)
    image = slice(L, L + TOKENS)
    assert torch.allclose(out[1, :, image], ((line / line.sum(-1, keepdim=True)) @ seen)[:, image], atol=1e-12)
    assert torch.allclose(out[1, :, L + TOKENS :], (maps[1] @ seen)[:, L + TOKENS :], atol=1e-12)


def test_a_padded_image_is_taken_over_with_its_padding_and_its_maps_have_none():
    """24 tokens of an image of 4 x 6, padded to 32."""
    one, size = site(multiple=32, varies=True), (8, 12)
    query, key, value = qkv(2, 32 + L)
    blend = torch.ones(1, 1, 2, L)
    control = AttentionController(plan({**CROSS, **IMAGE}, (one,), size=size, blend=blend), 0, 1)
    control.attend(one, query, key, value, None, "cond")
    assert control.maps is not None
    assert control.maps.shape == (1, 1, 2, 4, 6)
    maps = (query @ key.transpose(-1, -2) / math.sqrt(WIDTH)).softmax(-1)
    assert torch.allclose(control.maps[0, 0, 0].flatten(), maps[0, :, :24, 32:].sum(-1).mean(0), atol=1e-12)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_maps_to_blend_by_are_of_the_image_to_its_words(order: tuple[Part, ...]):
    """They are averaged over heads and summed over layers, also over those that do not change."""
    sites = (site(order), site(order, 1))
    query, key, value = qkv(3)
    blend = torch.zeros(1, 2, 2, L)
    blend[0, 0, 0, 1] = blend[0, 0, 1, 2] = blend[0, 0, 1, 3] = blend[0, 1, 1, 4] = 1
    scales = torch.full((1, 2, L), 9.0)
    settings = {"weight_steps": (0.0, 1.0), "layer_indices": (1,)}
    control = AttentionController(plan(settings, sites, 1, 2, "none", blend=blend, scales=scales), 0, 1)
    for one in sites:
        control.attend(one, query, key, value, None, "cond")
    maps = 2 * (query @ key.transpose(-1, -2) / math.sqrt(WIDTH)).softmax(-1).mean(1)
    first = order[0] == "words"
    to_words = maps[:, L:, :L] if first else maps[:, :TOKENS, TOKENS:]
    assert control.maps is not None
    assert torch.allclose(control.maps[0, 0, 0].flatten(), to_words[0, :, 1], atol=1e-12)
    assert torch.allclose(control.maps[0, 0, 1].flatten(), to_words[1, :, 2] + to_words[1, :, 3], atol=1e-12)
    assert not control.maps[0, 1, 0].any()
    assert torch.allclose(control.maps[0, 1, 1].flatten(), to_words[2, :, 4], atol=1e-12)


def test_sizes_on_a_network_of_one_resolution():
    p = plan({}, tuple(site(block=k) for k in range(24)), size=(128, 128))
    assert (p.blend_size, p.self_positions, p.blocks) == ((64, 64), 64 * 64, 24)
    assert plan({"blend_side": 16}, (site(),), size=(128, 96)).blend_size == (64, 48)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "keys"), [(3, TOKENS + L), (2, TOKENS + L + 1), (2, TOKENS)])
def test_sequences_of_another_length_raise(rows: int, keys: int):
    with failed(None, "transformer_blocks.0.attn", (rows, keys, keys)):
        AttentionController(plan({}, (site(),)), 0, 1).attend(site(), *qkv(rows, keys), None, "cond")
    with failed(None, "transformer_blocks.0.attn"):  # an image without a word
        one = site(varies=True)
        AttentionController(plan({}, (one,)), 0, 1).attend(one, *qkv(2, TOKENS), None, "cond")


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"value_steps": (0.5, 0.2)}, refused("value_steps", (0.5, 0.2))),
        ({"layers": (0.5, 2)}, refused("layers", (0.5, 2))),
        ({"layer_indices": (0.5,)}, refused("layer_indices", (0.5,))),
        ({"layer_indices": ()}, refused("layer_indices", ())),
        ({"layer_indices": [1, 2]}, refused("layer_indices", [1, 2])),
        ({"layer_indices": (-1,)}, refused("layer_indices", (-1,))),
        ({"layer_indices": (1,), "layers": (0.0, 0.5)}, refused("layers", (0.0, 0.5))),
        ({"kind": "none", "value_steps": (0.0, 0.5)}, refused("value_steps", (0.0, 0.5))),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], refusal: refused):
    with refusal:
        AttentionEdit(**options)


def test_a_block_that_the_network_lacks():
    with refused("layer_indices", 4, 3):
        plan({"layer_indices": (0, 4)}, tuple(site(block=k) for k in range(3)))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3000, 30_000, 60_000])
def test_maps_in_chunks_are_the_whole_maps(monkeypatch: pytest.MonkeyPatch, limit: int):
    query, key, value = qkv(3)
    blend = torch.ones(1, 2, 2, L)
    mask = torch.randn(3, HEADS, TOKENS + L, TOKENS + L, generator=torch.Generator().manual_seed(1)).double()

    def answer() -> tuple[Tensor, Tensor]:
        edited = plan({**EVERYTHING, "weight_steps": (0.0, 1.0)}, (site(),), 1, 2, **aligned(1, 2), scales=WEIGHTS)
        control = AttentionController(replace(edited, blend=blend), 0, 1)
        out = control.attend(site(), query, key, value, mask, "cond")
        assert control.maps is not None
        return out, control.maps

    def chunks() -> int:
        return len(list(attention._chunks(query, slice(0, TOKENS), key)))

    whole, pieces = answer(), chunks()
    assert pieces == 1
    monkeypatch.setattr(attention, "MAP_BYTES", limit)
    assert chunks() > 1
    for a, b in zip(answer(), whole, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


class Peak(TorchDispatchMode):
    """Measures the most memory that tensors made within it hold at one time, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.known |= {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and not any(tensor is a for a in args):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.known:
            return
        place, size = storage.data_ptr(), storage.nbytes()
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


@pytest.mark.parametrize("limit", [2**18, 2**20])
def test_maps_are_never_whole(monkeypatch: pytest.MonkeyPatch, limit: int):
    """4 heads of 1,024 + 77 tokens: all maps of the two rows would take 39 MB."""
    monkeypatch.setattr(attention, "MAP_BYTES", limit)
    length, size = 77, (64, 64)
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 1024 + length, 8, generator=draw)
    parts: dict[str, Any] = {
        "mapping": torch.eye(length).expand(1, 1, length, length),
        "new": torch.zeros(1, 1, length, dtype=torch.bool),
        "scales": torch.full((1, 1, length), 2.0),
        "blend": torch.ones(1, 1, 2, length),
    }
    settings = {**EVERYTHING, "weight_steps": (0.0, 1.0)}
    control = AttentionController(plan(settings, (site(),), size=size, **parts), 0, 1)
    with torch.no_grad(), Peak() as peak:
        control.attend(site(), query, key, value, None, "cond")
    assert control.maps is not None
    others = 2 * query.nbytes + 2 * control.maps.nbytes + 10_000  # the source's values, the output, the kept maps
    assert limit / 3 <= peak.most - others <= limit
