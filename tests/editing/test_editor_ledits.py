"""LEDITS++ against the paper's formulas, written out; lists of concepts, masks and pictures of any shape."""

import pytest
import tiny_flow
import tiny_text
import torch
from refusals import refused
from written_out import BOTH, OTHER, SOURCE, TARGET, Written, assert_same, ddpm_mean, written

import ddim
from ddim.editing.editors.base import Concept

SEED, STEPS = 3, 4


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


@pytest.mark.parametrize("source_guidance", [0.0, 2.0])
def test_ledits_is_the_papers_algorithm(tiny: Written, source_guidance: float):
    weight, threshold = 3.0, 0.6
    options = {"threshold": threshold, "source_guidance": source_guidance}
    settings = {"steps": STEPS, "strength": 1.0, "guidance": weight, "options": options, "seed": SEED}
    source, ours = tiny.edited("ledits++", f"{TARGET}; (a red hat:-1.5)", **settings)
    _, other = tiny.edited("ledits++", f"{TARGET}; (a red hat:1.5)", **settings)
    xs, grid = tiny.noised(source, STEPS, SEED)
    y = xs[0]
    for i in range(STEPS):
        t, s = grid[i], grid[i + 1]
        x0, eps = empty = tiny.predict(y, t, "")
        for concept, factor in ((TARGET, 1.0), ("a red hat", -1.5)):
            added = tiny.predict(y, t, concept)
            size = (added[0] - empty[0]).abs().sum(1, keepdim=True)  # that of eps but for a factor
            mask = size >= torch.quantile(size.flatten(), threshold)
            x0, eps = (p + mask * weight * factor * (a - e) for p, a, e in zip((x0, eps), added, empty, strict=True))
        own = tiny.guided(xs[i], t, SOURCE, source_guidance)
        y = xs[i + 1] + ddpm_mean(x0, eps, t, s) - ddpm_mean(*own, t, s)
    assert_same(ours, y, source, other)


def test_the_mask_is_the_share_of_the_image_above_the_quantile(tiny: Written):
    source, some = tiny.edited("ledits++", steps=1, strength=1.0, options={"threshold": 0.9}, guidance=3.0)
    _, all_of_it = tiny.edited("ledits++", steps=1, strength=1.0, options={"threshold": 0.0}, guidance=3.0)
    _, none = tiny.edited("ledits++", "(dog:0)", steps=1, strength=1.0, guidance=3.0)
    changed = ((some - none).abs().amax(1) > 1e-9).double().mean()
    assert float(changed) == pytest.approx(0.1, abs=0.01)
    assert float(((all_of_it - none).abs().amax(1) > 1e-9).double().mean()) > 0.99
    assert float((none - source).abs().max()) < 1e-9


def test_lists_of_concepts():
    made = ddim.make_editor("ledits++")
    assert made is not None
    assert made.concepts("sunglasses; (a long beard: -1.5) ;hat") == (
        Concept("sunglasses", 1.0),
        Concept("a long beard", -1.5),
        Concept("hat", 1.0),
    )
    assert made.concepts("") == (Concept("", 1.0),)
    with refused("prompt", "'hat;'"):
        made.concepts("hat;")
    flow_edit = ddim.make_editor("flow-edit")
    assert flow_edit is not None
    assert flow_edit.concepts("a; b") == (Concept("a; b", 1.0),)


def test_targets_with_other_numbers_of_concepts_do_not_disturb_each_other():
    model, images = tiny_text.model(), tiny_text.pictures(2)
    targets = ["hat; (mirror:-1)", "dog"]

    def edited(which: slice, prompts: list[str]) -> ddim.Edited:
        rows = [prompts] * len(images[which])
        return ddim.edit(model, images[which], rows, source_prompt=SOURCE, method="ledits++", steps=4, seed=which.start)

    both = edited(slice(0, 2), targets)
    assert both.prompts[0] == ("hat; mirror", "dog")
    for k in range(2):
        for j in range(2):
            alone = edited(slice(k, k + 1), targets[j : j + 1]).edits[0, 0]
            assert float((alone - both.edits[k, j]).abs().max()) < 2e-4
    assert not torch.equal(both.edits[0, 0], edited(slice(0, 1), ["hat"]).edits[0, 0])


def test_pictures_need_not_be_square():
    model = tiny_flow.FAMILIES["sd3"].model()
    images = torch.rand(1, 3, 16, 48, generator=torch.Generator().manual_seed(0))
    found = ddim.edit(model, images, TARGET, source_prompt="", method="ledits++", steps=4)
    assert found.edits.shape[-2:] == (16, 48)
    assert not torch.equal(found.edits[:, 0], found.reconstruction)


def test_the_interval_of_guidance_limits_the_concepts(tiny: Written):
    never = ddim.Guidance(3.0, interval=(0.0, 1e-9))
    _, found = tiny.edited("ledits++", steps=STEPS, strength=1.0, guidance=never)
    _, without = tiny.edited("ledits++", "(dog:0)", steps=STEPS, strength=1.0, guidance=3.0)
    assert torch.equal(found, without)
    assert float((found - tiny.edited("ledits++", OTHER, steps=STEPS, strength=1.0)[1]).abs().max()) > 1e-3


def test_what_ledits_cannot_do_is_refused():
    schnell = tiny_flow.FAMILIES["flux schnell"].model()
    with refused("method", "'ledits++'"):
        ddim.edit(schnell, torch.rand(1, 3, 16, 16), TARGET, source_prompt=SOURCE, method="ledits++")
    model, images = tiny_text.model(), tiny_text.pictures()
    with refused("rescale", "0.5"):
        ddim.edit(
            model, images, TARGET, source_prompt=SOURCE, method="ledits++", guidance=ddim.Guidance(3.0, rescale=0.5)
        )
    for name, wrong in {"threshold": 1.0, "source_guidance": float("nan")}.items():
        with refused(name, f"{wrong}"):
            ddim.make_editor("ledits++", {name: wrong})


def test_no_source_prompt_is_needed():
    model, images = tiny_text.model(), tiny_text.pictures()
    plain = ddim.edit(model, images, TARGET, method="ledits++", steps=4)
    empty = ddim.edit(model, images, TARGET, source_prompt="", method="ledits++", steps=4)
    assert torch.equal(plain.edits, empty.edits)
    with_it = ddim.edit(
        model, images, TARGET, source_prompt=SOURCE, method="ledits++", steps=4, options={"source_guidance": 3.5}
    )
    assert not torch.equal(with_it.edits, plain.edits)
