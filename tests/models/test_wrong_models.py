"""Wrong inputs of every family of tiny pipelines: each is one sentence, before any work."""

from pathlib import Path

import diffusers
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
    with refused("size", f"height {height + 1}", f"width {height}", side):
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


@families
def test_a_family_that_the_installed_diffusers_does_not_have(family: str, tmp_path: Path, monkeypatch):
    pipeline = FAMILIES[family].pipeline()
    pipeline.save_pretrained(tmp_path)
    adapter = type(ddim.load(pipeline))
    monkeypatch.setattr(adapter, "pipeline_class", "PipelineOfTomorrow")
    with refused("model", "PipelineOfTomorrow", diffusers.__version__):
        ddim.load(tmp_path)


def test_a_transformer_without_its_pipeline_is_named_as_such(tmp_path: Path):
    FAMILIES["flux dev"].pipeline().transformer.save_pretrained(tmp_path / "transformer")
    for folder in (tmp_path, tmp_path / "transformer"):
        with refused("model", str(folder), "FluxTransformer2DModel", "model_index.json"):
            ddim.load(folder)


def test_a_part_whose_folder_is_missing_is_named_with_the_index(tmp_path: Path):
    FAMILIES["flux dev"].pipeline().save_pretrained(tmp_path)
    (tmp_path / "text_encoder_2").rename(tmp_path / "elsewhere")
    with refused("model", "'text_encoder_2'", "model_index.json") as caught:
        ddim.load(tmp_path)
    assert "weights" not in str(caught.value)
