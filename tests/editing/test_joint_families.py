"""Attention control of every family with joint attention: its network against one whose attention is written out."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import tiny_flow
import torch
from dense_attention import dense
from refusals import failed, refused
from torch import Tensor
from torch.nn import functional as F

from ddim.core.conditioning import Conditioning
from ddim.editing.attention import AttentionController
from ddim.editing.plan import AttentionEdit, AttentionPlan
from ddim.models.base import Model
from ddim.pipelines.common import grid_for, latent_size
from ddim.pipelines.edit_plan import planned

SOURCE, TARGET = "a cat on a mat", "a red zebra on a hat"
SIZE = (16, 24)
"""The picture: 4 x 6 tokens, which Z-Image pads to 32."""
TOKENS = 24
EVERYTHING: dict[str, Any] = {"cross_steps": (0.0, 1.0), "self_steps": (0.0, 1.0)}
Places = Callable[[int, int], tuple[Sequence[int], Sequence[int]] | None]
"""Finds the positions of the image and of the words, from the numbers of all tokens and of words; None for others."""


def image_first(length: int, words: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """SD 3: a dual block also looks at the image alone."""
    return range(TOKENS), range(TOKENS, min(length, TOKENS + words))


def words_first(length: int, words: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """Qwen-Image, whose words may be fewer than those of the plan."""
    return range(length - TOKENS, length), range(words)


def words_counted(length: int, words: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """FLUX and Chroma: the tokens of a reference follow those of the image, and are left alone."""
    return range(words, words + TOKENS), range(words)


def padded(length: int, words: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """Z-Image: the image alone, the caption alone, and both."""
    return None if length == 64 else (range(32), range(32, min(length, 32 + words)))


def words_then_image(length: int, words: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """Lumina 2: the prompt alone, the image alone, and both."""
    return None if length == words else (range(length - TOKENS, length), range(length - TOKENS))


LAYOUTS: dict[str, Places] = {
    "sd3": image_first,
    "flux": words_counted,
    "chroma": words_counted,
    "qwen": words_first,
    "z-image": padded,
    "lumina2": words_then_image,
}
RAGGED = ("lumina2",)
"""Families in which the tokens of a shorter prompt are followed by those of the image, and these by padding. There the
control works on the tokens in another order, which changes the last bits of their sums."""
ROUNDING = 1e-12
JOINT = [name for name in tiny_flow.FAMILIES if not name.startswith("sana") and "shifting" not in name]
"""Sana has cross-attention, and attention without maps among the image's tokens."""


def layout(name: str) -> Places:
    return next(places for family, places in LAYOUTS.items() if name.startswith(family))


def ordered(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention that gets each row of a ragged batch as prompt, padding, image, and whose answer is ordered back."""

    def answer(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, image: int) -> Tensor:
        if mask is None:
            return attention(query, key, value, mask)
        rows: list[list[int]] = []
        for total in mask.sum(-1).flatten().tolist():
            begin, stop = total - image, key.shape[2]
            rows.append([*range(begin), *range(total, stop), *range(begin, total)])
        query, key, value = (torch.stack([y[k][:, row] for k, row in enumerate(rows)]) for y in (query, key, value))
        mask = torch.stack([mask[k][..., row] for k, row in enumerate(rows)])
        out = attention(query, key, value, mask)
        return torch.stack([out[k][:, [row.index(p) for p in range(len(row))]] for k, row in enumerate(rows)])

    return answer


@pytest.fixture(params=JOINT, scope="module")
def family(request: pytest.FixtureRequest) -> tuple[str, Model]:
    """A family in float64, where its network computes in it."""
    family = tiny_flow.FAMILIES[request.param]
    return request.param, family.load(family.pipeline().to(torch.float64))


def plan_of(
    model: Model, how: AttentionEdit, source: str = SOURCE, target: str = TARGET, **words: Any
) -> AttentionPlan:
    if how.key_value_area == "words":
        words = {**words, "blend": "cat/zebra"}
    plan = planned(model, [source], target, SIZE, how, masked=True, **words)[1]
    assert plan is not None
    if how.key_value_area == "background":
        plan = replace(plan, mask=some_place(plan.size, 1, 7))
    if how.key_value_area == "words":
        areas = torch.cat([some_place(plan.size, 0, 5), some_place(plan.size, 2, 9)], 1)[:, None] > 0
        plan = replace(plan, areas=areas)
    return plan


def some_place(size: tuple[int, int], begin: int, end: int) -> Tensor:
    """A mask on the latent, [1, 1, H, W]: a rectangle that may change by a little, and a single position."""
    mask = torch.zeros(1, 1, *size)
    mask[..., begin : size[0] // 2, begin:end] = 0.3
    mask[..., -1, -1] = 1.0
    return mask


def inputs(model: Any, prompts: Sequence[str] = (SOURCE, TARGET), equal: bool = False) -> tuple[Any, ...]:
    """A latent for each prompt, a timestep, and the prompts' conditions."""
    draw = torch.Generator().manual_seed(2)
    channels, side = model.shape[0], model.downscaling
    x = torch.randn(len(prompts), channels, SIZE[0] // side, SIZE[1] // side, generator=draw, dtype=torch.float64)
    x = x[:1].repeat(len(x), 1, 1, 1) if equal else x
    conditions: Conditioning = model.condition(None, len(x), list(prompts), size=SIZE).cond
    grid = grid_for(model, 4, None, latent_size(model, SIZE))
    return x.to(model.dtype), model.timestep(grid[2], x), dict(conditions.tensors)


def asked(model: Any, control: dict[str, Any] | None, *given: Any) -> Tensor:
    with torch.no_grad():
        return model.call_network(model.network, *given, control)


def controlled(
    model: Any, plan: AttentionPlan, *given: Any, branch: str = "cond"
) -> tuple[Tensor, AttentionController]:
    control = AttentionController(plan, 0, 1)
    with model.controlled():
        out = asked(model, {"control": control, "cfg_branch": branch}, *given)
    control.finish()
    return out, control


def written_out(name: str, model: Any, plan: AttentionPlan, *given: Any) -> tuple[Tensor, int]:
    """Asks the plain network, with fused attention replaced by dense attention; and how many layers were edited."""
    fused, places, calls = F.scaled_dot_product_attention, layout(name), 0

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        nonlocal calls
        found = places(key.shape[2], plan.new.shape[2])
        if found is None:
            return fused(query, key, value, attn_mask)
        calls += 1
        if name.startswith(RAGGED):
            edited = ordered(lambda q, k, v, mask: dense(q, k, v, plan, *found, mask))
            return edited(query, key, value, attn_mask, TOKENS)
        return dense(query, key, value, plan, *found, attn_mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        return asked(model, {}, *given), calls


def same(name: str, a: Tensor, b: Tensor) -> bool:
    """Whether two answers agree: to the bit, and to rounding in ragged families."""
    if name.startswith(RAGGED):
        return float((a - b).abs().max()) <= ROUNDING * float(b.abs().max())
    return torch.equal(a, b)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "refine": ("refine", {"cross_steps": (0.0, 1.0), "self_steps": (0.0, 0.0)}, {}),
    "self": ("refine", {"cross_steps": (0.0, 0.0), "self_steps": (0.0, 1.0)}, {}),
    "value": ("refine", {"cross_steps": (0.0, 0.0), "self_steps": (0.0, 0.0), "value_steps": (0.0, 1.0)}, {}),
    "reweight": ("none", {"weight_steps": (0.0, 1.0)}, {"weights": {"zebra": 3.0}}),
    "key-value": ("masactrl", {"key_value_steps": (0.0, 1.0), "layers": (0.0, 1.0)}, {}),
    "background": ("kv-edit", {}, {}),
    "areas": ("masactrl", {"key_value_steps": (0.0, 1.0), "key_value_area": "words", "layers": (0.0, 1.0)}, {}),
    "maps and keys": ("refine", {**EVERYTHING, "key_value_steps": (0.0, 1.0)}, {"weights": {"zebra": 3.0}}),
    "everything": ("refine", {**EVERYTHING, "value_steps": (0.0, 1.0)}, {"weights": {"zebra": 3.0}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_answers_as_with_attention_written_out(family, case: str):
    """The plain network of diffusers, whose fused attention is replaced by dense attention with an edit, agrees."""
    (name, model), (kind, settings, words) = family, CASES[case]
    plan = plan_of(model, AttentionEdit(kind, **settings), **words)
    given = inputs(model)
    ours, _ = controlled(model, plan, *given)
    plain = asked(model, {}, *given)
    expected, calls = written_out(name, model, plan, *given)
    assert calls == len(plan.layers)
    scale = float(plain.abs().max())
    assert float((ours - expected).abs().max()) <= 1e-6 * scale
    assert float((ours[1] - plain[1]).abs().max()) >= 1e-4 * scale
    assert same(name, ours[0], plain[0])  # the source


def test_replaced_words_agree_too(family):
    """Word for word, a word of several tokens takes a part of another's sum."""
    (name, model), target = family, "a dog on a table"
    plan = plan_of(model, AttentionEdit("replace", **EVERYTHING), SOURCE, target)
    assert set(plan.mapping.unique().tolist()) - {0.0, 1.0}
    given = inputs(model, (SOURCE, target))
    ours, _ = controlled(model, plan, *given)
    expected, _ = written_out(name, model, plan, *given)
    assert float((ours - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


# --- laws ------------------------------------------------------------------------------------------------------------


def test_without_a_controller_it_computes_what_diffusers_computes(family):
    _, model = family
    given = inputs(model)
    before, control = asked(model, {}, *given), {"control": None, "cfg_branch": None}
    with model.controlled():
        assert torch.equal(asked(model, control, *given), before)
        assert torch.equal(asked(model, None, *given), asked(model, None, *given))
    assert torch.equal(asked(model, {}, *given), before)


def test_a_control_that_changes_nothing_computes_what_diffusers_computes(family):
    """Every token is new, every weight is 1, and maps are kept."""
    _, model = family
    how = AttentionEdit(cross_steps=(0, 1), self_steps=(0, 0), weight_steps=(0, 1))
    plan = plan_of(model, how, weights={"zebra": 1.0}, blend="cat/zebra")
    plan = replace(plan, new=torch.ones_like(plan.new))
    given = inputs(model)
    out, control = controlled(model, plan, *given)
    plain = asked(model, {}, *given)
    assert float((out - plain).abs().max()) <= 1e-6 * float(plain.abs().max())
    assert control.maps is not None
    assert control.maps.shape == (1, 1, 2, 4, 6)
    assert set(control.seen.values()) == {1}
    assert len(control.seen) == len(plan.layers)


@pytest.mark.parametrize("kind", ["refine", "replace", "masactrl", "kv-edit"])
def test_a_prompt_replaced_by_itself_changes_nothing(family, kind: str):
    _, model = family
    more = {"key_value_steps": (0, 1)} if kind == "masactrl" else {"value_steps": (0, 1)}
    plan = plan_of(model, AttentionEdit(kind, **EVERYTHING, **more), SOURCE, SOURCE)  # type: ignore[arg-type]
    given = inputs(model, (SOURCE, SOURCE), equal=True)
    out, _ = controlled(model, plan, *given)
    plain = asked(model, {}, *given)
    assert float((out - plain).abs().max()) <= 1e-6 * float(plain.abs().max())
    other = inputs(model, (SOURCE, TARGET), equal=True)
    away = controlled(model, plan_of(model, AttentionEdit("refine", **EVERYTHING)), *other)[0]
    assert float((away[1] - away[0]).abs().max()) >= 1e-4 * float(plain.abs().max())


def test_no_layers_change_nothing(family):
    name, model = family
    plan = plan_of(model, AttentionEdit(**EVERYTHING, layers=(0, 0)))
    given = inputs(model)
    assert same(name, controlled(model, plan, *given)[0], asked(model, {}, *given))


def test_both_branches_in_one_call_or_two(family):
    name, model = family
    plan = plan_of(model, AttentionEdit(**EVERYTHING))
    x, t, tensors = inputs(model, ("", "", SOURCE, TARGET))
    both, _ = controlled(model, plan, x, t, tensors, branch="both")
    plain = asked(model, {}, x, t, tensors)
    assert same(name, both[:3], plain[:3])
    half = {name: tensor[2:] for name, tensor in tensors.items()}
    cond, _ = controlled(model, plan, x[2:], t, half)
    assert float((cond - both[2:]).abs().max()) <= 1e-6 * float(plain.abs().max())


# --- words -----------------------------------------------------------------------------------------------------------


def marked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A text encoder that writes the id of each token over its embedding, in all hidden states."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        output, ids = forward(*args, **kwargs), args[0] if args else kwargs["input_ids"]
        for hidden in (output.last_hidden_state, *(output.get("hidden_states") or ())):
            hidden.copy_(ids.unsqueeze(-1).expand_as(hidden))
        return output

    return answer


READERS: dict[str, tuple[int, ...]] = {"sd3": (0, 2), "flux": (1,)}
"""The indices of the tokenizers whose tokens have a part in attention, if it is not the only one."""


def test_words_lie_where_the_network_gets_their_embeddings(family, monkeypatch: pytest.MonkeyPatch):
    name, model = family
    for encoder in model.encoders:
        base = encoder if "z-image" in name else getattr(encoder, "model", encoder)  # without the head for words
        monkeypatch.setattr(base, "forward", marked(base.forward))
    tokens, text = model.tokens(TARGET), model.encode_prompt([TARGET]).tensors["text"][0, :, 0]
    row = [place for segment in tokens.segments for place in segment.row]
    assert text.long().tolist() == row[: len(text)]
    assert not any(row[len(text) :])  # zeros in place of an absent encoder's tokens, which the network gets later
    for word in ("zebra", "hat"):
        places, begin = tokens.places(word), 0
        for k, segment in zip(READERS.get(name.split()[0].partition(".")[0], (0,)), tokens.segments, strict=True):
            end = begin + len(segment.row)
            own = [row[place] for place in places if begin <= place < end]
            if any(segment.row):
                letters = "".join(model.tokenizers[k].convert_ids_to_tokens(own))
                assert letters.replace("</w>", "").strip("▁Ġ") == word
            else:
                assert not own
            begin = end


# --- processors ------------------------------------------------------------------------------------------------------


def modules(model: Any) -> list[Any]:
    return [layer.module for layer in model.attention_layers()]


class Stop(Exception):
    """An error of no kind in particular."""


@pytest.mark.parametrize("ends", [None, Stop, KeyboardInterrupt], ids=str)
def test_processors_are_put_back_whatever_ends_an_edit(family, ends: type[BaseException] | None):
    _, model = family
    own = [module.processor for module in modules(model)]
    sites = model.attention_sites()
    with suppress(*[ends] if ends else []), model.controlled():
        assert not any(module.processor is before for module, before in zip(modules(model), own, strict=True))
        assert model.attention_sites() == sites
        if ends:
            raise ends
    assert all(module.processor is before for module, before in zip(modules(model), own, strict=True))


def test_sites_are_named_after_their_modules_and_numbered_as_they_run(family):
    _, model = family
    named = dict(model.network.named_modules())
    sites = model.attention_sites()
    assert [named[site.name] for site in sites] == modules(model)
    assert [site.block for site in sites] == sorted(site.block for site in sites)
    assert {site.block for site in sites} == set(range(sites[-1].block + 1))
    blocks = {(site.block, site.name.rpartition(".")[0]) for site in sites}  # each number is that of one block
    assert len(blocks) == sites[-1].block + 1


def test_a_layer_that_does_not_pass_by_raises(family):
    _, model = family
    plan = plan_of(model, AttentionEdit(**EVERYTHING))
    module, count = modules(model)[-1], len(plan.layers)
    own, control = module.processor, AttentionController(plan, 0, 1)
    with model.controlled():
        module.set_processor(own)
        asked(model, {"control": control, "cfg_branch": "cond"}, *inputs(model))
    with failed(None, count - 1, count):
        control.finish()
    assert module.processor is own


def test_processors_that_do_more_are_refused_by_name(family):
    class IPAdapterAttnProcessor:
        def __call__(self, attn: object) -> None: ...

    _, model = family
    module, name = modules(model)[0], model.attention_sites()[0].name
    own = module.processor
    module.processor = IPAdapterAttnProcessor()
    try:
        with refused("attention", "IPAdapterAttnProcessor", name):
            model.attention_sites()
    finally:
        module.processor = own


def test_a_compiled_network_is_refused():
    model = tiny_flow.FAMILIES["sd3"].model()
    model.network.compile()  # type: ignore[attr-defined]
    with refused("attention", "compiled", "attention = 'none'"):
        model.attention_sites()
