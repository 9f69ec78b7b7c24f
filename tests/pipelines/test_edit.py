"""The verb ``edit``: the laws of attention control, on a tiny Stable Diffusion in float64."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import bits
import pytest
import tiny
import tiny_text
import torch
from refusals import not_finite, refused, unknown, warned
from torch import Tensor

import ddim
from ddim import AttentionEdit, Edited, Guidance, InputError, LatentCode
from ddim._utils.errors import DDIMError
from ddim.core.conditioning import PromptConditioning
from ddim.core.solve import solve
from ddim.inversion.extras import pinned, shared
from ddim.models.sd import StableDiffusion
from ddim.pipelines.events import StepEvent
from ddim.solvers import REVERSIBLE
from ddim.solvers.reversible_heun import ReversibleHeun

SOURCE, TARGET = "a cat next to a mirror", "a tiger next to a mirror"
OTHERS = ["a red cat on a mat", "a zebra next to a mirror"]
ALWAYS = AttentionEdit("refine", cross_steps=(0, 1), self_steps=(0, 1))
STEPS = 5
TIGHT = 1e-9


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return tiny_text.model(dtype=torch.float64)


@pytest.fixture(scope="module")
def code(model: StableDiffusion) -> LatentCode:
    return coded(model)


def coded(model: StableDiffusion, method: str = "ddim", count: int = 1, **options) -> LatentCode:
    pictures = tiny_text.pictures(count, *options.pop("size", (32, 32)))
    settings = {"prompt": SOURCE, "guidance": 3.0, "steps": STEPS, **options}
    return ddim.invert(model, pictures, method=method, **settings)


def words(prompts: PromptConditioning) -> Tensor:
    return prompts.cond.tensors["text"]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


SOME_PLACE = replace(ALWAYS, blend_threshold=0.93)
"""A threshold at which the words of a random network are in some places and not in others."""


# --- the laws of the issue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["replace", "refine"])
def test_replacing_a_prompt_by_itself_changes_nothing(model, code, kind):
    edited = ddim.edit(model, code, SOURCE, attention=replace(ALWAYS, kind=kind))
    assert apart(edited.edits[:, 0], edited.reconstruction) < TIGHT
    assert apart(edited.reconstruction, ddim.reconstruct(model, code)) < TIGHT


def test_a_window_of_no_steps_is_plain_editing(model, code):
    plain = ddim.edit(model, code, TARGET, attention="none")
    nowhere = AttentionEdit("refine", cross_steps=(0, 0), self_steps=(0, 0))
    assert torch.equal(ddim.edit(model, code, TARGET, attention=nowhere).edits, plain.edits)
    as_reconstructed = replace(code, conditions=model.condition(None, 1, TARGET))
    assert apart(plain.edits[:, 0], ddim.reconstruct(model, as_reconstructed)) < TIGHT
    for window in ("cross_steps", "self_steps"):
        other = replace(nowhere, **{window: (0.0, 0.2)})  # one step
        assert apart(ddim.edit(model, code, TARGET, attention=other).edits, plain.edits) > 1e-4


def test_a_warning_points_at_the_line_that_edits(model):
    masks = [torch.ones(32, 32), torch.zeros(32, 32)]
    settings = {"source_prompt": SOURCE, "steps": 2}
    with warned() as caught:
        ddim.edit(model, tiny_text.pictures(2), TARGET, mask=masks, **settings)
    assert [one.filename for one in caught] == [__file__]


def test_a_full_mask_is_no_blending_and_an_empty_one_the_source(model, code):
    free = ddim.edit(model, code, TARGET)
    full = ddim.edit(model, code, TARGET, mask=torch.ones(32, 32))
    assert torch.equal(full.edits, free.edits)
    assert apart(free.edits[:, 0], free.reconstruction) > 1e-2
    assert free.blend_mask is None
    two = torch.stack([torch.zeros(32, 32), torch.ones(32, 32)])
    with warned("image 1"):
        half = ddim.edit(model, coded(model, count=2), TARGET, mask=two)
    assert torch.equal(half.edits[0, 0], half.reconstruction[0])
    assert apart(half.edits[1, 0], half.reconstruction[1]) > 1e-2
    assert half.blend_mask is not None
    assert not half.blend_mask[0].any()


def test_masks_that_let_nothing_change_are_refused_before_any_work(model, code, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the network was called"))
    for source, mask in ((code, torch.zeros(32, 32)), (tiny_text.pictures(2), torch.zeros(2, 32, 32))):
        with refused("mask", 0):
            ddim.edit(model, source, TARGET, mask=mask, source_prompt=None if source is code else SOURCE)


def test_weights_of_one_change_nothing(model, code):
    plain = ddim.edit(model, code, TARGET)
    ones = ddim.edit(model, code, TARGET, weights={"tiger": 1.0, "mirror": 1})
    assert apart(ones.edits, plain.edits) < TIGHT
    assert torch.equal(ones.reconstruction, plain.reconstruction)
    brackets = ddim.edit(model, code, "a (tiger:1.0) next to a mirror")
    assert torch.equal(brackets.edits, ones.edits)
    assert brackets.prompts == ((TARGET,),)


@pytest.mark.parametrize("attention", ["none", "refine", "replace"])
def test_weights_change_the_target_and_not_the_source(model, code, attention):
    plain = ddim.edit(model, code, TARGET, attention=attention)
    heavy = ddim.edit(model, code, "a (tiger:3) next to a mirror", attention=attention)
    assert apart(heavy.edits, plain.edits) > 1e-4
    assert torch.equal(heavy.reconstruction, plain.reconstruction)
    assert torch.equal(ddim.edit(model, code, TARGET, attention=attention, weights={"tiger": 3}).edits, heavy.edits)
    # outside their window they count for nothing
    idle = AttentionEdit(attention, weight_steps=(0, 0))
    quiet = ddim.edit(model, code, "a (tiger:3) next to a mirror", attention=idle)
    assert apart(quiet.edits, plain.edits) < TIGHT


@pytest.mark.parametrize("kind", ["none", "refine", "replace"])
def test_weights_act_where_cross_maps_are_taken_over_unless_told_otherwise(model, code, kind):
    """In prompt-to-prompt's code the equaliser is part of what a step in the cross window takes over."""
    weights = {"tiger": 3.0}
    by_default, like_theirs, always = (
        ddim.edit(model, code, TARGET, attention=AttentionEdit(kind, weight_steps=window), weights=weights).edits
        for window in (None, (0.0, 0.4), (0.0, 1.0))
    )
    assert torch.equal(by_default, like_theirs)
    assert apart(by_default, always) > 1e-4
    if kind != "none":
        wide = AttentionEdit(kind, cross_steps=(0.2, 1.0))
        same = replace(wide, weight_steps=(0.2, 1.0))
        assert torch.equal(*(ddim.edit(model, code, TARGET, attention=a, weights=weights).edits for a in (wide, same)))


@pytest.mark.parametrize(
    ("how", "options", "parameter"),
    [
        (AttentionEdit(blend_start=0.5), {}, "blend_start"),
        (AttentionEdit(blend_threshold=0.5), {"weights": {"tiger": 2}}, "blend_threshold"),
        (AttentionEdit(blend_side=8), {"blend": [None]}, "blend_side"),
        (AttentionEdit("none", blend_start=0.5), {}, "blend_start"),
        (AttentionEdit(weight_steps=(0.0, 1.0)), {"blend": "cat/tiger"}, "weight_steps"),
        (AttentionEdit("none", weight_steps=(0.0, 1.0)), {"weights": {}}, "weight_steps"),
        (AttentionEdit(cross_steps=(0, 0)), {"weights": {"tiger": 2}}, "weights"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(model, code, how, options, parameter):
    with pytest.raises(InputError) as caught:
        ddim.edit(model, code, **{"prompt": TARGET, "attention": how, **options})
    assert caught.value.parameter == parameter


METHODS = ddim.inversion_names()


@pytest.mark.parametrize("method", METHODS)
def test_the_source_is_never_touched(model, method):
    """Beside any target it comes back as it does alone, whatever the method keeps; and its words still edit."""
    code = coded(model, method, 2)
    edited = ddim.edit(model, code, [TARGET, *OTHERS], attention=SOME_PLACE, blend=["cat/tiger", "cat", None])
    assert apart(edited.reconstruction, ddim.reconstruct(model, code)) < TIGHT
    plain = ddim.edit(model, code, [TARGET, *OTHERS], attention="none")
    assert torch.equal(plain.reconstruction, edited.reconstruction)
    assert apart(plain.edits, edited.edits) > 1e-3
    assert min(apart(plain.edits[:, k], edited.reconstruction) for k in range(3)) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_keeps_for_the_source_serves_its_targets(model, method):
    """Tuned nulls and noise maps do: a prompt replaced by itself is the source. Pivots hold the source alone."""
    code = coded(model, method)
    free = replace(code, extras=shared(code.extras))
    edited = ddim.edit(model, free, SOURCE, attention=ALWAYS)
    assert apart(edited.edits[:, 0], edited.reconstruction) < 1e-8
    # in other company a row's last bits differ, and sampling with two coupled samples enlarges that (edict, rex)
    assert apart(edited.reconstruction, ddim.reconstruct(model, free)) < 1e-6
    if pinned(code.extras):
        held = ddim.edit(model, code, SOURCE, attention="none")
        assert apart(held.reconstruction, ddim.reconstruct(model, code)) < TIGHT
        assert (apart(held.edits[:, 0], edited.reconstruction) < TIGHT) is ("asked" not in code.extras)
        assert apart(held.edits[:, 0], held.reconstruction) > 1e-3


def test_targets_are_asked_at_their_own_sample_and_the_offset_of_their_source(model):
    """DirectEdit beside two sources with two targets each, under guidance, written out."""
    pictures = tiny_text.pictures(2).double()
    code = ddim.invert(model, pictures, steps=STEPS, method="direct-edit", prompt=SOURCE, guidance=4.0)
    edited = ddim.edit(model, code, [TARGET, OTHERS[0]], attention="none")
    x0 = model.encode(pictures)
    assert torch.equal(edited.reconstruction, ddim.reconstruct(model, code))
    assert apart(edited.reconstruction, model.decode(x0)) < TIGHT
    nodes, path = code.grid.nodes, torch.cat([code.x[:, None], code.extras["asked"]], 1)
    assert torch.equal(path[:, -1], x0)
    for k, prompt in enumerate([TARGET, OTHERS[0]]):
        denoise = model.guided(Guidance(4.0), model.condition(None, 2, prompt))
        u = code.x / nodes[0].alpha  # in x / alpha, as the inversion's own steps
        for i, (t, s) in enumerate(pairwise(nodes)):
            offset = path[:, i + 1] / s.alpha - path[:, i] / t.alpha
            u = u + (s.ratio - t.ratio) * denoise((u + offset) * s.alpha, s).eps
        assert apart(edited.edits[:, k], model.decode(u * nodes[-1].alpha)) < TIGHT


def test_at_the_guidance_of_the_inversion_a_target_with_its_sources_prompt_is_the_source(model):
    """The offset alone leads back: nothing puts a target on the trajectory."""
    code = coded(model, "direct-edit", guidance=1.0)
    edited = ddim.edit(model, code, [SOURCE, TARGET], attention="none")
    assert apart(edited.edits[:, 0], edited.reconstruction) < 1e-8
    assert apart(edited.edits[:, 1], edited.reconstruction) > 1e-3


def test_one_target_alone_equals_itself_among_several(model, code):
    blends = ["cat/tiger", "mirror/mat", "/zebra"]
    several = ddim.edit(model, code, [TARGET, *OTHERS], attention=SOME_PLACE, blend=blends)
    assert several.edits.shape == (1, 3, 3, 32, 32)
    assert several.blend_mask is not None
    for k, target in enumerate([TARGET, *OTHERS]):
        alone = ddim.edit(model, code, target, attention=SOME_PLACE, blend=blends[k])
        assert apart(alone.edits[:, 0], several.edits[:, k]) < TIGHT
        assert alone.blend_mask is not None
        assert torch.equal(alone.blend_mask[:, 0], several.blend_mask[:, k])


@pytest.mark.parametrize("batch", [1, 4, 6, 64])
def test_a_batch_of_images_equals_one_by_one(model, batch):
    code = coded(model, count=3, prompt=[SOURCE, "a dog on a mat", "a cat with a hat"])
    targets = [[TARGET, SOURCE], ["a cat on a mat", "a dog on a red mat"], ["a cat with a red hat", "a dog with a hat"]]
    blends = [["cat/tiger", None], ["dog/cat", "/red"], [None, "cat/dog"]]
    together = ddim.edit(model, code, targets, blend=blends, attention=SOME_PLACE, batch=batch)
    assert together.prompts == tuple(map(tuple, targets))
    for k in range(3):
        alone = ddim.edit(model, code[k], targets[k], blend=blends[k], attention=SOME_PLACE)
        assert apart(alone.edits[0], together.edits[k]) < TIGHT
        assert apart(alone.reconstruction[0], together.reconstruction[k]) < TIGHT


@pytest.mark.parametrize("size", [(24, 40), (20, 12)])
def test_pictures_that_are_not_square(model, size):
    code = coded(model, size=size)
    edited = ddim.edit(model, code, TARGET, attention=SOME_PLACE, blend="cat/tiger")
    assert edited.edits.shape == (1, 1, 3, *size)
    assert edited.blend_mask is not None
    assert edited.blend_mask.shape == (1, 1, *size)
    itself = ddim.edit(model, code, SOURCE, attention=ALWAYS, blend="cat")
    assert apart(itself.edits[:, 0], itself.reconstruction) < TIGHT


# --- blending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "direct-edit", "ddim", *REVERSIBLE])
def test_every_tensor_outside_the_words_stays_the_sources(model, method, monkeypatch: pytest.MonkeyPatch):
    ends: list[Mapping[str, Tensor]] = []

    def watched(*args, **kwargs):
        ends.append(solve(*args, **kwargs))
        return ends[-1]

    monkeypatch.setattr("ddim.pipelines.beside.solve", watched)
    code = coded(model, method)
    edited = ddim.edit(model, code, TARGET, attention=SOME_PLACE, blend="cat/tiger")
    assert edited.blend_mask is not None
    outside = edited.blend_mask[0, 0, ::2, ::2] == 0  # the latent's pixels, enlarged
    assert 0 < float(outside.double().mean()) < 1
    assert set(ends[0]) == {"x"}
    x = ends[0]["x"]
    assert torch.equal(x[0, :, outside], x[1, :, outside])
    assert apart(x[0, :, ~outside], x[1, :, ~outside]) > 1e-3


def test_blending_begins_after_its_start(model, code):
    never = AttentionEdit("refine", blend_start=1.0, blend_threshold=0.93)
    free = ddim.edit(model, code, TARGET)
    with refused("blend_start", 1):
        ddim.edit(model, code, TARGET, attention=never, blend="cat/tiger")
    early, late = (
        ddim.edit(model, code, TARGET, attention=replace(never, blend_start=s), blend="cat/tiger") for s in (0.0, 0.8)
    )
    assert apart(early.edits, free.edits) > 1e-4
    assert apart(late.edits, early.edits) > 1e-4


def test_a_target_without_words_to_blend_by_changes_everywhere(model, code):
    two = ddim.edit(model, code, [TARGET, TARGET], attention=SOME_PLACE, blend=["cat/tiger", None])
    free = ddim.edit(model, code, TARGET, attention=ALWAYS)
    assert apart(two.edits[:, 1], free.edits[:, 0]) < TIGHT
    assert apart(two.edits[:, 0], free.edits[:, 0]) > 1e-4


def test_words_and_mask_together_are_where_both_may_change(model, code):
    half = torch.zeros(32, 32)
    half[:, :16] = 1
    words = ddim.edit(model, code, TARGET, attention=SOME_PLACE, blend="cat/tiger").blend_mask
    both = ddim.edit(model, code, TARGET, attention=SOME_PLACE, blend="cat/tiger", mask=half).blend_mask
    assert words is not None
    assert both is not None
    assert bool((both <= half).all())
    assert both.any()


def test_the_words_maps_gather_over_the_steps(model, code, monkeypatch: pytest.MonkeyPatch):
    maps: list[Tensor] = []

    def watched(*args, on_step, **kwargs):
        return solve(*args, on_step=lambda i, state: maps.append(state.maps), **kwargs)

    monkeypatch.setattr("ddim.pipelines.beside.solve", watched)
    ddim.edit(model, code, TARGET, blend="cat/tiger")
    assert len(maps) == STEPS
    assert all(bool((after > before).all()) for before, after in pairwise(maps))


@pytest.mark.parametrize("batch", [2, 64])
def test_a_mask_an_image(model, batch):
    code, masks = coded(model, count=2), torch.zeros(2, 32, 32)
    masks[0, :, :8], masks[1, 10:20] = 1, 1
    both = ddim.edit(model, code, TARGET, mask=masks, batch=batch)
    for k in range(2):
        assert apart(ddim.edit(model, code[k], TARGET, mask=masks[k]).edits[0], both.edits[k]) < TIGHT


# --- from pictures ---------------------------------------------------------------------------------------------------


def test_a_picture_is_inverted_first(model):
    pictures = tiny_text.pictures(2)
    seen: list[tuple[int, int]] = []
    edited = ddim.edit(
        model,
        pictures,
        [TARGET, *OTHERS],
        source_prompt=SOURCE,
        steps=STEPS,
        batch=4,
        on_event=lambda event: seen.append((event.done, event.total)) if isinstance(event, StepEvent) else None,
    )
    assert isinstance(edited, Edited)
    assert edited.code.method == "direct"
    assert edited.code.guidance["weight"] == 7.5
    assert edited.code.prompts == (SOURCE, SOURCE)
    assert edited.source is not None
    assert torch.equal(edited.source, pictures)
    assert edited.edits.shape == (2, 3, 3, 32, 32)
    assert apart(edited.reconstruction, model.decode(model.encode(pictures))) < TIGHT
    again = ddim.edit(model, edited.code, [TARGET, *OTHERS])
    assert apart(again.edits, edited.edits) < TIGHT
    assert again.source is None
    dones = [done for done, _ in seen]
    assert dones == sorted(dones)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("source", ["image", "code"])
def test_the_code_is_handed_on_before_sampling_begins(model, code, source: str, monkeypatch: pytest.MonkeyPatch):
    image, seen = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)), []
    options = {"source_prompt": SOURCE, "steps": 3} if source == "image" else {}
    edited = ddim.edit(model, image if source == "image" else code, TARGET, on_code=seen.append, **options)
    assert len(seen) == 1
    assert seen[0] is edited.code

    def stopping(*_: object, **__: object) -> None:
        raise DDIMError("stop")

    monkeypatch.setattr("ddim.pipelines.beside.solve", stopping)
    with pytest.raises(DDIMError):
        ddim.edit(model, image if source == "image" else code, TARGET, on_code=seen.append, **options)
    assert len(seen) == 2
    assert torch.equal(seen[1].state["x"], seen[0].state["x"])


def test_a_saved_code_edits_as_the_one_that_was_saved(model, tmp_path: Path):
    code = coded(model, "null-text")
    loaded = LatentCode.load(code.save(tmp_path / "code.safetensors"))
    assert torch.equal(ddim.edit(model, loaded, TARGET).edits, ddim.edit(model, code, TARGET).edits)


def test_guidance_is_the_codes_own_unless_another_is_given(model, code):
    code = coded(model, "direct")
    own, three, nine = (ddim.edit(model, code, TARGET, guidance=w) for w in (None, 3.0, Guidance(9.0)))
    assert torch.equal(own.edits, three.edits)
    assert apart(own.edits, nine.edits) > 1e-3
    one = ddim.edit(model, code, TARGET, guidance=1.0, attention=ALWAYS)  # asked once, of one branch
    assert apart(one.edits, ddim.edit(model, code, TARGET, guidance=1.0, attention="none").edits) > 1e-3


def test_the_network_keeps_no_edit(model, code):
    before = ddim.reconstruct(model, code)
    ddim.edit(model, code, TARGET, attention=ALWAYS, blend="cat/tiger", weights={"tiger": 4})
    assert torch.equal(ddim.reconstruct(model, code), before)


def test_v_prediction_and_float32():
    model = tiny_text.model("v_prediction")
    code = coded(model)
    edited = ddim.edit(model, code, [SOURCE, TARGET], attention=ALWAYS)
    assert apart(edited.edits[:, 0], edited.reconstruction) < 1e-4
    assert apart(edited.edits[:, 1], edited.reconstruction) > 1e-3


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"prompt": "a red cat", "attention": "replace"}, refused("attention", 6, "'a red cat'", 3, "'refine'")),
        ({"blend": "dog/tiger"}, refused("blend", "'dog'", repr(SOURCE))),
        ({"blend": "cat/dog"}, refused("blend", "'dog'", repr(TARGET))),
        ({"weights": {"cat": 2.0}}, refused("weights", "'cat'", repr(TARGET), "a, tiger, next, to, mirror")),
        ({"mask": torch.ones(16, 16)}, refused("mask", "16x16", "32x32")),
        ({"attention": "replce"}, unknown("attention", "replce", nearest="replace")),
        ({"prompt": []}, refused("prompt", [])),
        ({"batch": 0}, refused("batch", 0)),
        ({"source_prompt": "a dog"}, refused("source_prompt", "'a dog'", repr(SOURCE))),
        ({"negative": "ugly"}, refused("negative", "'ugly'", "''")),
        ({"prompt": "a \udcff"}, refused("prompt", r"'a \udcff'", "UTF-8")),
        ({"prompt": ["a\0"]}, refused("prompt", "NUL")),
        ({"negative": 3}, refused("negative", 3)),
        ({"source_prompt": []}, refused("source_prompt", 0, 1)),
        ({"source_prompt": "a (cat:2)"}, refused("source_prompt", "'(cat:2)'")),
        ({"attention": 3}, refused("attention", 3, "refine", "replace", "none")),
        ({"weights": "dog"}, refused("weights", "'dog'")),
        ({"weights": {"tiger": None}}, refused("weights", None, "'tiger'")),
        ({"blend": 3}, refused("blend", 3)),
        ({"blend": ("cat", 3)}, refused("blend", ("cat", 3))),
        ({"prompt": None}, refused("prompt")),
        ({"prompt": 3}, refused("prompt", 3)),
        ({"prompt": [3]}, refused("prompt", [3])),
        ({"source_prompt": 3}, refused("source_prompt", 3)),
        ({"guidance": "a"}, refused("guidance", "a")),
        # what is of the inversion, which a code has behind it
        ({"method": "ddim"}, refused("method")),
        ({"steps": 50, "seed": 0}, refused("steps")),
        ({"options": {"iterations": 5}}, refused("options")),
        ({"inversion_guidance": 1.0}, refused("inversion_guidance")),
        ({"spacing": "leading"}, refused("spacing")),
        ({"resize": True}, refused("resize")),
    ],
)
def test_bad_input(model, code, options, refusal):
    with refusal:
        ddim.edit(model, code, **{"prompt": TARGET, **options})


def test_what_is_none_was_not_given(model, code):
    nothing = dict.fromkeys(("method", "steps", "options", "inversion_guidance", "seed", "spacing"))
    edited = ddim.edit(model, code, TARGET, **nothing, resize=False)
    assert torch.equal(edited.edits, ddim.edit(model, code, TARGET).edits)
    walked = ddim.edit(model, tiny_text.pictures(1), TARGET, source_prompt=SOURCE, **{**nothing, "steps": STEPS})
    assert (walked.code.method, walked.code.grid.steps) == ("direct", STEPS)


def test_words_are_checked_before_the_work(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.pipelines.edit_source.invert", None)
    with refused("blend", "'dog'", repr(SOURCE)):
        ddim.edit(model, tiny_text.pictures(1), TARGET, source_prompt=SOURCE, blend="dog/tiger")


def test_a_picture_needs_its_prompt(model):
    with refused("source_prompt"):
        ddim.edit(model, tiny_text.pictures(1), TARGET)
    with refused("source_prompt", 2, 3):
        ddim.edit(model, tiny_text.pictures(3), TARGET, source_prompt=["a", "b"])
    with refused("images", "33x32", 2):
        ddim.edit(model, torch.zeros(1, 3, 32, 33), TARGET, source_prompt=SOURCE)


def test_literal_brackets_reach_the_model_as_they_are(model):
    said = r"a \(cat:2) next to a mirror"
    edited = ddim.edit(model, tiny_text.pictures(1), said, source_prompt=said, steps=2)
    assert edited.code.prompts == ("a (cat:2) next to a mirror",)
    assert edited.prompts == (edited.code.prompts,)
    assert torch.equal(words(edited.code.conditions), words(model.condition(None, 1, "a (cat:2) next to a mirror")))
    again = ddim.edit(model, edited.code, said, source_prompt=said)
    assert torch.equal(again.edits, edited.edits)


@pytest.mark.parametrize("verb", ["sample", "invert"])
@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"prompt": "a (cat:2)"}, "prompt"),
        ({"prompt": ["a", "a (cat:2)"]}, "prompt"),
        ({"prompt": "a", "negative": "(ugly:2)"}, "negative"),
        ({"prompt": "\udcff"}, "prompt"),
        ({"prompt": "a", "negative": "\udcff"}, "negative"),
        ({"prompt": "a", "negative": b"ugly"}, "negative"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
    ],
)
def test_prompts_that_other_verbs_cannot_read(model, monkeypatch: pytest.MonkeyPatch, verb, options, parameter):
    monkeypatch.setattr(model, "ask", None)
    monkeypatch.setattr(model, "encode", None)
    given = {"sample": 2, "invert": tiny_text.pictures(2)}[verb]
    with pytest.raises(InputError) as caught:
        getattr(ddim, verb)(model, given, **options)
    assert caught.value.parameter == parameter


def test_a_model_without_text():
    with refused("model", "'tiny'"):
        ddim.edit(tiny.model(), torch.zeros(1, 1, 8, 8), TARGET, source_prompt=SOURCE)


def test_a_code_without_a_prompt(model, code):
    with refused("code"):
        ddim.edit(model, replace(code, prompts=()), TARGET)


def test_a_prompt_that_is_cut_warns(model, code):
    with warned(21, 14):
        ddim.edit(model, code, "a tiger next to a mirror and a zebra with a zebra hat")


@pytest.mark.parametrize("method", METHODS)
def test_another_guidance_warns_unless_the_source_is_held(model, method):
    code = coded(model, method)
    if pinned(ddim.INVERSIONS[method].keeps) or method in REVERSIBLE:
        edited = ddim.edit(model, code, TARGET, guidance=5.0)  # a warning would be an error here
        assert apart(edited.reconstruction, ddim.reconstruct(model, code)) < TIGHT
        return
    with warned(repr(method), 3, 5):
        ddim.edit(model, code, TARGET, guidance=5.0)


@pytest.mark.parametrize(
    ("guidance", "named"),
    [
        (Guidance(3.0, rescale=0.7), (3, "rescale 0", "rescale 0.7")),
        (Guidance(5.0, interval=(0.0, 0.5)), (3, "interval (0, 1)", 5, "interval (0, 0.5)")),
    ],
    ids=["rescale", "interval"],
)
def test_another_rescale_or_interval_warns_too(model, guidance, named):
    code = coded(model, "null-text", options={"scope": "global", "inner": 1})
    with warned(*named):
        ddim.edit(model, code, TARGET, guidance=guidance)
    ddim.edit(model, code, TARGET, guidance=Guidance(3.0))  # no change, no warning


def test_a_network_that_says_nan_names_the_step(code):
    sick = tiny_text.model(dtype=torch.float64)
    sick.network.conv_out.weight.data.fill_(torch.nan)
    with not_finite(1, 5):
        ddim.edit(sick, replace(code, fingerprint=""), TARGET)


def test_a_code_of_a_model_with_a_longer_text_encoder(code):
    longer = tiny_text.model(dtype=torch.float64, length=20)
    for verb in (lambda: ddim.edit(longer, code, TARGET), lambda: ddim.reconstruct(longer, code)):
        with pytest.raises(InputError) as caught:
            verb()
        assert caught.value.parameter == "code"
        assert "16x12" in caught.value.message
        assert "20x12" in caught.value.message


# --- classes in place of words ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classed():
    return tiny.model(classes=4, dtype=torch.float64)


def classed_code(classed, method: str = "direct", count: int = 2) -> LatentCode:
    pictures = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return ddim.invert(classed, pictures, steps=STEPS, method=method, labels=[0, 2][:count], guidance=2.0)


@pytest.mark.parametrize("method", ["direct", "direct-edit", "edit-friendly", "ddim", "negative-prompt"])
def test_a_class_edits_as_words_do(classed, method):
    code = classed_code(classed, method)
    edited = ddim.edit(classed, code, labels=[[1, 0], [2, 1]])
    assert edited.prompts == ((1, 0), (2, 1))
    assert edited.edits.shape == (2, 2, 1, 8, 8)
    assert apart(edited.reconstruction, ddim.reconstruct(classed, code)) < TIGHT
    assert apart(edited.edits[0, 0], edited.reconstruction[0]) > 1e-3
    if method in ("ddim", "negative-prompt"):  # nothing holds the source, so that its own class is the source
        assert apart(edited.edits[0, 1], edited.reconstruction[0]) < TIGHT
        assert apart(edited.edits[1, 0], edited.reconstruction[1]) < TIGHT


def test_classes_of_pictures_are_told(classed):
    pictures = torch.rand(2, 1, 8, 8)
    edited = ddim.edit(classed, pictures, labels=1, source_labels=[0, 2], steps=STEPS, guidance=2.0, batch=2)
    assert edited.prompts == ((1,), (1,))
    assert edited.code.conditions.cond.tensors["labels"].tolist() == [0, 2]
    assert apart(edited.reconstruction, pictures) < 1e-6
    again = ddim.edit(classed, edited.code, labels=[1])
    assert apart(again.edits, edited.edits) < TIGHT
    one = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    with warned("image 1"):
        nothing = ddim.edit(classed, edited.code, labels=1, mask=one)
    assert torch.equal(nothing.edits[0, 0], nothing.reconstruction[0])


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({}, "labels"),
        ({"labels": 4}, "labels"),
        ({"labels": [[1], [2], [0]]}, "labels"),
        ({"labels": [[1], [2, 0]]}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": 1, "source_labels": 1}, "source_labels"),
        ({"labels": 1, "prompt": "a cat"}, "model"),
        ({"labels": 1, "blend": "cat"}, "blend"),
        ({"labels": 1, "weights": {"cat": 2}}, "weights"),
        ({"labels": 1, "negative": "ugly"}, "negative"),
        ({"labels": 1, "attention": "refine"}, "attention"),
    ],
    ids=str,
)
def test_bad_classes(classed, options, parameter):
    with pytest.raises(InputError) as caught:
        ddim.edit(classed, classed_code(classed), **options)
    assert caught.value.parameter == parameter


def test_classes_that_a_model_has_not(classed, model, code):
    with refused("labels", "'tiny-text'"):
        ddim.edit(model, code, labels=1)
    with refused("model", "'tiny'"):
        ddim.edit(tiny.model(), torch.zeros(1, 1, 8, 8), labels=1)
    with refused("source_labels", 0, 3):
        ddim.edit(classed, torch.zeros(1, 1, 8, 8), labels=1)


# --- the network afterwards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [ALWAYS, "none"], ids=["refine", "none"])
@pytest.mark.parametrize("ends", [None, DDIMError("x"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_processors_stand_in_for_the_time_of_a_planned_edit_only(model, code, attention, ends):
    own, during = list(model.network.attn_processors.values()), []

    def watch(event: object) -> None:
        during.append(list(model.network.attn_processors.values()))
        if ends is not None:
            raise ends

    with nullcontext() if ends is None else pytest.raises(type(ends)):
        ddim.edit(model, code, TARGET, attention=attention, on_event=watch)
    assert during
    assert all((a is b) == (attention == "none") for a, b in zip(during[0], own, strict=True))
    after = list(model.network.attn_processors.values())
    assert all(a is b for a, b in zip(after, own, strict=True))


@pytest.mark.parametrize("method", [*REVERSIBLE, "negative-prompt"])
@pytest.mark.parametrize("attention", ["refine", "none"])
def test_an_edit_to_the_same_words_is_the_source_and_one_to_others_is_not(method: str, attention: str):
    own = tiny_text.model()
    code = ddim.invert(own, tiny_text.pictures(2), steps=4, method=method, prompt=["a cat", "a dog"], guidance=4.0)
    edited = ddim.edit(own, code, [["a cat", "a tiger"], ["a mat", "a dog"]], attention=attention)
    for image, (same, other) in enumerate([(0, 1), (1, 0)]):
        assert torch.equal(edited.edits[image, same], edited.reconstruction[image])
        assert float((edited.edits[image, other] - edited.reconstruction[image]).abs().max()) > 1e-3


@pytest.mark.parametrize("settings", [{"attention": "none"}, {"attention": "refine"}, {"blend": "cat/tiger"}], ids=str)
def test_a_call_that_is_not_repeated_changes_no_edit(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """The inversion and the replay of the source share calls between steps; its targets are sampled by DDIM."""
    own, solver, calls = tiny_text.model(), ddim.make_solver("reversible-heun"), []
    own.network.register_forward_hook(lambda *_: calls.append(1))
    code = ddim.invert(own, tiny_text.pictures(1), steps=10, method=solver, prompt="a cat", guidance=4.0)
    edited = ddim.edit(own, code, ["a tiger"], **settings)
    few = len(calls)
    monkeypatch.setattr(ReversibleHeun, "repeats", False)
    calls.clear()
    again = ddim.invert(own, tiny_text.pictures(1), steps=10, method=solver, prompt="a cat", guidance=4.0)
    assert bits.same(again.state, code.state)
    assert torch.equal(ddim.edit(own, code, ["a tiger"], **settings).edits, edited.edits)
    assert len(calls) - few == 9 + 9


def test_weighted_words_are_another_target_than_the_source():
    own = tiny_text.model()
    code = ddim.invert(own, tiny_text.pictures(1), steps=4, method="bdia", prompt="a cat", guidance=4.0)
    edited = ddim.edit(own, code, ["a (cat:3)"], attention=AttentionEdit(weight_steps=(0, 1)))
    assert float((edited.edits[0, 0] - edited.reconstruction[0]).abs().max()) > 1e-4


def test_windows_of_an_exact_code_count_its_own_steps():
    """A code of bdia begins at step 1, and its targets are sampled from there."""
    own = tiny_text.model()
    code = ddim.invert(own, tiny_text.pictures(1), steps=4, method="bdia", prompt="a cat", guidance=4.0)
    plain, weighted = (ddim.edit(own, code, [text], attention="none").edits for text in ("a cat", "a (cat:3)"))
    assert float((weighted - plain).abs().max()) > 1e-4


# --- exact codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", REVERSIBLE)
@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_targets_of_an_exact_code_are_sampled_by_ddim_from_its_sample(model, method, weight):
    """The source comes back to the bit, also at another guidance than the targets have."""
    settings: dict[str, Any] = {"steps": 5, "method": method, "prompt": SOURCE, "guidance": weight}
    code = ddim.invert(model, tiny_text.pictures(2).double(), **settings)
    edited = ddim.edit(model, code, [TARGET, SOURCE], guidance=4.0, attention="none")
    assert apart(edited.reconstruction, ddim.reconstruct(model, code, strict=True)) < TIGHT
    assert edited.code is code
    grid = code.grid.rest(ddim.make_solver(method).first(code.grid))
    denoise = model.guided(Guidance(4.0), model.condition(None, 2, TARGET))
    expected = model.decode(ddim.solve(denoise, ddim.make_solver("ddim"), {"x": code.x}, grid)["x"])
    assert apart(edited.edits[:, 0], expected) < TIGHT
    if weight == 4.0:  # the source's own prompt at its own guidance is the source
        assert torch.equal(edited.edits[:, 1], edited.reconstruction)
    else:
        assert apart(edited.edits[:, 1], edited.reconstruction) > 1e-3


@pytest.mark.parametrize("method", REVERSIBLE)
def test_images_are_inverted_exactly_at_the_guidance_1(model, method):
    settings: dict[str, Any] = {"source_prompt": SOURCE, "steps": 5, "method": method, "attention": "none"}
    edited = ddim.edit(model, tiny_text.pictures(1), TARGET, guidance=4.0, **settings)
    assert edited.code.guidance["weight"] == 1
    assert apart(edited.reconstruction, model.decode(model.encode(tiny_text.pictures(1)))) < TIGHT
    guided = ddim.edit(model, tiny_text.pictures(1), TARGET, guidance=4.0, inversion_guidance=2.0, **settings)
    assert guided.code.guidance["weight"] == 2
    assert apart(guided.reconstruction, edited.reconstruction) < TIGHT
    assert apart(guided.edits, edited.edits) > 1e-3


def test_the_steps_of_an_exact_edit_are_counted(model):
    events: list[tuple[int, int]] = []

    def count(event: object) -> None:
        if isinstance(event, ddim.StepEvent):
            events.append((event.done, event.total))

    settings: dict[str, Any] = {"source_prompt": SOURCE, "steps": 5, "method": "bdia", "on_event": count}
    ddim.edit(model, tiny_text.pictures(1), TARGET, **settings)
    assert [done for done, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][0] == events[-1][1]


def test_an_exact_code_that_is_replayed_at_another_guidance_warns(model):
    settings: dict[str, Any] = {"steps": 5, "method": "bdia", "prompt": SOURCE, "guidance": 3.0}
    code = ddim.invert(model, tiny_text.pictures(1), inversion_guidance=1.0, **settings)
    with warned("'bdia'", 1, 3):
        ddim.edit(model, code, TARGET, attention="none")


def test_settings_of_guidance_reach_an_exact_inversion(model):
    settings: dict[str, Any] = {"source_prompt": SOURCE, "steps": 5, "method": "bdia", "attention": "none"}
    asked = Guidance(4.0, rescale=0.5, batched_cfg=False)
    one = ddim.edit(model, tiny_text.pictures(1), TARGET, guidance=asked, **settings).code
    two = ddim.edit(model, tiny_text.pictures(1), TARGET, guidance=asked, inversion_guidance=2.0, **settings).code
    assert (one.guidance["weight"], one.guidance["rescale"], one.machine["batched_cfg"]) == (1, 0, False)
    assert (two.guidance["weight"], two.guidance["rescale"], two.machine["batched_cfg"]) == (2, 0.5, False)
