"""Wrong inputs of every family of tiny pipelines: each is one sentence, before any work."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from tiny_flow import FAMILIES

import ddim

FULL = [name for name in FAMILIES if name.count(" ") < 2]
families = pytest.mark.parametrize("family", FULL)


@families
def test_sides_that_are_no_multiples(family: str):
    model = FAMILIES[family].model()
    side, height = model.multiple, model.picture[1]
    assert side > 1
    with refused("size", f"{height}x{height + 1}"):
        ddim.sample(model, 1, steps=1, prompt="a cat", size=(height + 1, height))
    with refused("images", f"{height}x{height + 1}", side):
        ddim.invert(model, torch.rand(1, 3, height + 1, height), steps=2, prompt="a cat")
    with refused("images", f"{height}x{height + 1}", side):
        ddim.edit(model, torch.rand(1, 3, height + 1, height), "a dog", source_prompt="a cat", attention="none")


@families
def test_a_text_encoder_that_is_not_loaded_is_named(family: str):
    adapter = type(FAMILIES[family].model())
    for part in (part for part in adapter.parts if part not in adapter.optional):
        pipeline = FAMILIES[family].pipeline()
        setattr(pipeline, part, None)
        with refused("model", part):
            ddim.load(pipeline)


@families
def test_a_network_without_its_pipeline(family: str, tmp_path: Path):
    pipeline = FAMILIES[family].pipeline()
    kind = type(pipeline.transformer).__name__
    with refused("model", kind, "transformer"):
        ddim.load(pipeline.transformer)
    pipeline.transformer.save_pretrained(tmp_path / "alone")
    with refused("model", kind, tmp_path / "alone", "transformer"):
        ddim.load(tmp_path / "alone")
    pipeline.save_pretrained(tmp_path / "whole")
    with refused("model", tmp_path / "whole"):
        ddim.load(tmp_path / "whole" / "transformer")


@families
def test_a_pipeline_object_for_inpainting_is_refused_by_name(family: str):
    pipeline = FAMILIES[family].pipeline()
    kind = type(pipeline).__name__.replace("Pipeline", "InpaintPipeline")
    other = type(kind, (type(pipeline),), {})
    pipeline.__class__ = other
    with refused("model", kind, "mask", hint=True):
        ddim.load(pipeline)
