"""The number of the model's own pipeline, in place of our weight."""

from functools import cache
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from refusals import refused
from tiny_flow import FAMILIES

import ddim
from ddim import Guidance
from ddim.models.base import Model
from ddim.models.counted import Counted

FULL = [name for name in FAMILIES if name.count(" ") < 2]


@cache
def model_of(family: str) -> Model:
    return FAMILIES[family].model()


@pytest.mark.parametrize("family", FULL)
def test_it_is_translated_as_the_pipeline_reads_it(family: str):
    """The rows of the parity table say what the pipeline's own number means."""
    for ours, options in FAMILIES[family].guidances.values():
        if len(options) == 1:  # and nothing beside it
            (scale,) = options.values()
            assert model_of(family).guidance_of(scale) == ours
            assert Counted(model_of(family)).guidance_of(scale) == ours


def test_a_pipeline_without_guidance_at_one_and_below():
    model = tiny_text.model()
    assert [model.guidance_of(scale).weight for scale in (0.0, 0.5, 1.0, 7.5)] == [1.0, 1.0, 1.0, 7.5]


def test_it_samples_inverts_and_edits_as_the_guidance_it_means():
    model = tiny_text.model()
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    both: list[dict[str, Any]] = [{"guidance": 3.0}, {"guidance_scale": 3.0}]
    a, b = (ddim.sample(model, 1, steps=3, prompt="a cat", **how) for how in both)
    assert torch.equal(a, b)
    codes = [ddim.invert(model, picture, steps=3, method="bdia", prompt="a cat", **how) for how in both]
    assert torch.equal(codes[0].state["x"], codes[1].state["x"])
    assert codes[0].guidance == codes[1].guidance
    edits = [ddim.edit(model, codes[0], "a dog", attention="none", **how).edits for how in both]
    assert torch.equal(*edits)


def test_wrong_numbers_are_refused():
    text = tiny_text.model()
    with refused("guidance_scale", 3.0):
        ddim.sample(text, 1, steps=2, prompt="a cat", guidance=2.0, guidance_scale=3.0)
    with refused("guidance_scale", "nan"):
        ddim.sample(text, 1, steps=2, prompt="a cat", guidance_scale=float("nan"))
    for model in (tiny.model(), tiny.model(classes=3)):
        with refused("guidance_scale", repr(model.name)):
            ddim.sample(model, 1, steps=2, labels=1 if model.classes else None, guidance_scale=3.0)


@pytest.mark.skipif("flux schnell" not in FAMILIES, reason="no such family")
def test_a_fully_distilled_model_takes_none():
    model = model_of("flux schnell")
    assert model.guidance_of(0.0) == Guidance()
    with refused("guidance_scale", 3.5, repr(model.name)):
        ddim.sample(model, 1, steps=2, prompt="a cat", guidance_scale=3.5)
