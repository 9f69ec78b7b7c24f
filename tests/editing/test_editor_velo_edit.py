"""Instruction edits, plain and with VeloEdit: the formulas written out, the reference picture, and how much drifts."""

from itertools import pairwise

import pytest
import tiny_flow
import torch
from recording import recorded
from refusals import refused
from torch import Tensor
from witness import drawn, far, flow_model, pictures, times, velocity

import ddim
from ddim import Guidance
from ddim.editing.editors.velo_edit import VeloEdit

TARGET, SEED = "make the hat red", 6
MODELS = ("flux kontext", "flux2 base")


def edited(family: str, method: str = "velo-edit", target: str = TARGET, **settings) -> ddim.Edited:
    usual = {"steps": 6, "seed": SEED, "guidance": 1.4}
    return ddim.edit(flow_model(family), pictures(), target, method=method, **usual | settings)


def sampled(family: str, found: ddim.Edited, threshold: float, held: list[float], hold: float) -> Tensor:
    """The formulas of the paper, with so much of each step held, decoded."""
    model = flow_model(family)
    x0, time = model.encode(pictures()), times(found)
    v, noise = velocity(model, TARGET, x0, 1.4, model.info.embedded, looks=True), drawn(x0, SEED)
    x = (1 - time[0]) * x0 + time[0] * noise
    for (now, after), share in zip(pairwise(time), held, strict=True):
        own = v(x, now)
        reference = (x - x0) / now
        similarity = reference.abs() / (reference.abs() + (own - reference).abs())
        kept = torch.where(similarity >= threshold, reference, hold * reference + (1 - hold) * own)
        x = x + (after - now) * (share * kept + (1 - share) * own)
    return model.decode(x)


@pytest.mark.parametrize("family", MODELS)
def test_it_is_the_method_of_the_paper(family: str):
    found = edited(family)  # one of six steps
    assert far(found.edits[:, 0], sampled(family, found, 0.8, [1, 0, 0, 0, 0, 0], 0.0)) < 1e-7
    options = {"threshold": 0.5, "part": 0.6, "hold": 0.2}
    found = edited(family, options=options)
    assert far(found.edits[:, 0], sampled(family, found, 0.5, [1, 1, 1, 0.6, 0, 0], 0.2)) < 1e-7
    late = edited(family, options=options, strength=0.5)
    assert far(late.edits[:, 0], sampled(family, late, 0.5, [1, 0.8, 0], 0.2)) < 1e-7
    plain = edited(family, "instruct")
    assert far(plain.edits[:, 0], sampled(family, plain, 2.0, [0] * 6, 0.0)) < 1e-7
    for other in (
        edited(family, target="a red face", options=options),
        edited(family, options={**options, "threshold": 0.7}),
        edited(family, options={**options, "hold": 0.0}),
        edited(family, options={**options, "part": 1.0}),
        edited(family, options=options, seed=5),
        edited(family, options=options, guidance=1.0),
        edited(family, "instruct"),
    ):
        assert far(found.edits, other.edits) > 1e-4


@pytest.mark.parametrize("family", MODELS)
def test_the_thresholds_at_both_ends_are_the_plain_edit_and_the_image(family: str):
    plain = edited(family, "instruct")
    assert torch.equal(edited(family, options={"threshold": 1.1}).edits, plain.edits)
    assert torch.equal(edited(family, options={"part": 0.0}).edits, plain.edits)
    whole = edited(family, options={"threshold": 1e-9, "part": 1.0})
    assert torch.equal(whole.edits[:, 0], whole.reconstruction)
    assert far(plain.edits[:, 0], plain.reconstruction) > 0.1


@pytest.mark.parametrize("family", MODELS)
def test_each_image_is_its_own_reference_whatever_the_models_is(family: str):
    model = flow_model(family)
    x0 = model.encode(pictures())
    found = edited(family, "instruct")
    calls = recorded(model.network, lambda: edited(family, "instruct"))
    assert calls
    alone = [
        ddim.edit(model, pictures()[k : k + 1], TARGET, method="instruct", steps=6, seed=SEED + k, guidance=1.4)
        for k in range(2)
    ]
    assert far(torch.cat([one.edits for one in alone]), found.edits) < 1e-7
    model.reference = pictures(3)[2]  # type: ignore[attr-defined]
    try:
        assert far(edited(family, "instruct").edits, found.edits) < 1e-7
    finally:
        model.reference = None  # type: ignore[attr-defined]
    assert calls[0]["hidden_states"].shape[1] == 2 * (x0.shape[2] // 2) * (x0.shape[3] // 2)  # as many tokens again


@pytest.mark.parametrize("family", MODELS)
def test_preservation_reduces_the_drift_outside_the_region_that_was_asked_for(family: str, record_property):
    """The weights are random: no region is asked for, so that any half of the image stands for the outside, and the
    velocity is seldom like the one to the image, so that only a low threshold or ``hold`` keeps something."""
    outside = torch.zeros(32, 32, dtype=torch.bool)
    outside[:, 16:] = True

    def drift(method: str, **settings) -> float:
        found = edited(family, method, **settings)
        return float((found.edits[:, 0] - found.reconstruction).abs()[..., outside].mean())

    plain = drift("instruct")
    alike = drift("velo-edit", options={"threshold": 0.3, "part": 1.0})
    held = [drift("velo-edit", options={"part": 1.0, "hold": hold}) for hold in (0.5, 0.75, 1.0)]
    record_property("drift", {"instruct": plain, "threshold 0.3": alike, "hold 0.5, 0.75, 1": held})
    assert alike < 0.85 * plain
    assert plain > held[0] > held[1] > held[2] == 0


@pytest.mark.parametrize("family", MODELS)
def test_a_mask_keeps_the_photograph(family: str):
    mask = torch.zeros(32, 32)
    mask[:, :16] = 1
    found = edited(family, "instruct", mask=mask)
    assert found.composites is not None
    photograph = (pictures()[0] * 255).round().to(torch.uint8)
    assert torch.equal(found.composites[0][0][:, :, 16:], photograph[:, :, 16:])
    assert not torch.equal(found.composites[0][0][:, :, :16], photograph[:, :, :16])


def test_models_that_look_at_no_reference_are_refused_by_one_sentence():
    for method in ("instruct", "velo-edit"):
        for model in (flow_model(), tiny_flow.FAMILIES["flux dev"].model()):
            with refused("method", f"'{method}'"):
                ddim.edit(model, pictures(), TARGET, method=method)


def test_the_prompt_of_the_source_is_not_used_and_may_be_left_out():
    found = edited("flux kontext")
    assert torch.equal(edited("flux kontext", source_prompt="a cat").edits, found.edits)
    assert found.code.prompts == ("", "")
    guided = edited("flux kontext", guidance=Guidance(1.4, embedded=1.0))
    assert far(guided.edits, found.edits) > 1e-4


def test_options_out_of_range_are_refused():
    for options in ({"threshold": 0.0}, {"part": 1.5}, {"hold": -0.5}):
        ((name, value),) = options.items()
        with refused(name, f"{value:g}"):
            VeloEdit(**options)
