"""Chroma beyond parity: its mask, its prompts, codes, folders, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_chroma
import tiny_sdxl
import torch
from oracles import noise_like
from recording import recorded
from refusals import refused, warned
from tiny_flow import FAMILIES, STEPS, t5_encoder
from torch import Tensor

import ddim
from ddim import Guidance
from ddim.models.chroma import Chroma

PROMPTS = ["a cat", "two red dogs in a garden"]
FAR = 0.01
"""What a wrong number changes, at the least, in parts of the largest value."""


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in parts of the largest value of ``b``."""
    assert a.shape == b.shape
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.fixture
def pipeline() -> Any:
    return FAMILIES["chroma"].pipeline()


@pytest.fixture
def model(pipeline) -> Chroma:
    return ddim.load(pipeline)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("chroma") / "m"
    FAMILIES["chroma"].pipeline().save_pretrained(there)
    return there


def ours(model: Chroma, x: Tensor, prompts: list[str], guidance: float) -> Tensor:
    grid = model.schedule.grid(STEPS, image_size=model.shape[1:])
    both = model.condition(None, len(x), prompts)
    return ddim.solve(model.guided(Guidance(guidance), both), ddim.make_solver("ddim"), {"x": x}, grid)["x"]


# --- what the network is told -----------------------------------------------------------------------------------------


def test_what_a_model_says_of_itself(model):
    assert isinstance(model, Chroma)
    assert (model.shape, model.picture, model.multiple) == ((4, 16, 16), (3, 32, 32), 4)
    assert (model.info.guidance, model.info.embedded, model.info.guidance_kinds) == (5.0, None, {"cfg"})
    assert (model.info.prompt_tokens, model.info.steps) == (511, 35)
    assert model.guidance_of(1.0) == model.guidance_of(0.0) == Guidance(1.0)
    assert model.guidance_of(5.0) == Guidance(5.0)
    assert model.graphs is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_call_has_the_inputs_of_the_pipeline_to_the_bit(pipeline, dtype):
    pipeline = pipeline.to(dtype)
    model = ddim.load(pipeline)
    x = noise_like((2, *model.shape)).to(dtype).float()
    draw = FAMILIES["chroma"].draw
    theirs = recorded(pipeline.transformer, lambda: draw(pipeline, x, PROMPTS, None, guidance_scale=1.0))[0]
    mine = recorded(pipeline.transformer, lambda: ours(model, x, PROMPTS, 1.0))[0]
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            assert value.dtype == mine[name].dtype, name
            assert torch.equal(value, mine[name]), name
    mask = theirs["attention_mask"]
    assert mask.shape == (2, 512 + 64)
    assert mask[:, :512].sum(1).tolist() == [len(model.tokens(p).ids) + 1 for p in PROMPTS]


def test_the_mask_is_true_for_the_prompt_and_one_token_of_padding(model):
    cond = model.encode_prompt(PROMPTS)
    mask, text = cond.tensors["text_mask"], cond.tensors["text"]
    assert (mask.dtype, mask.shape, text.shape) == (torch.bool, (2, 512), (2, 512, 32))
    for row, prompt in zip(mask, PROMPTS, strict=True):
        count = len(model.tokens(prompt).ids) + 1
        assert row.nonzero().flatten().tolist() == list(range(count))
    x, node = noise_like((2, *model.shape)).float(), model.schedule.grid(STEPS, image_size=model.shape[1:])[1]
    (right,) = model.ask(x, node, cond)
    for other in (torch.ones_like(mask), mask.roll(-1, 1) & mask):
        (wrong,) = model.ask(x, node, cond.replace(text_mask=other))
        assert apart(wrong, right) > 5e-4


def test_a_prompt_that_fills_the_encoder_has_no_padding(model):
    cond = model.encode_prompt(["a" * 510])
    assert bool(cond.tensors["text_mask"].all())
    with warned(600, 511):
        model.encode_prompt(["a" * 599])


def test_the_unconditional_branch_is_the_empty_prompt(model):
    for negative, text in ((None, ""), ("", ""), ("grey", "grey")):
        uncond = model.condition(None, 1, "a cat", negative).uncond
        assert uncond is not None
        for name, tensor in model.encode_prompt([text]).tensors.items():
            # each text is encoded in a batch with the prompt, which may change the last bits
            assert torch.allclose(uncond.tensors[name].float(), tensor.float(), atol=1e-5)


# --- codes ------------------------------------------------------------------------------------------------------------


def test_a_code_keeps_the_mask(model, tmp_path):
    images = tiny_sdxl.pictures(2)
    code = ddim.invert(model, images, steps=3, method="bdia", prompt=PROMPTS, guidance=4.0)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "code"))
    mask = loaded.conditions.cond.tensors["text_mask"]
    assert mask.dtype == torch.bool
    assert torch.equal(mask, code.conditions.cond.tensors["text_mask"])
    back = ddim.reconstruct(model, loaded, strict=True)
    assert torch.equal(back, ddim.reconstruct(model, code, strict=True))
    assert torch.equal(ddim.reconstruct(model, loaded[1], strict=True)[0], back[1])
    edited = ddim.edit(model, loaded, "a green bird")
    assert apart(edited.reconstruction, back) < 1e-4
    assert apart(edited.edits[:, 0], back) > FAR


def test_null_text_keeps_the_mask_of_the_empty_prompt(model):
    code = ddim.invert(
        model, tiny_sdxl.pictures(1), steps=2, method="null-text", prompt="a cat", options={"inner": 2}, guidance=4.0
    )
    assert bool(torch.isfinite(ddim.reconstruct(model, code)).all())
    with refused("toward_empty", 0.5):
        ddim.invert(
            model,
            tiny_sdxl.pictures(1),
            steps=2,
            method="negative-prompt",
            options={"toward_empty": 0.5},
            prompt="a cat",
            guidance=4.0,
        )


# --- folders and refusals ---------------------------------------------------------------------------------------------


def test_a_folder_is_the_pipeline_it_was_saved_from(folder, model, tmp_path):
    loaded, again = (ddim.load(folder, device="cpu") for _ in range(2))
    assert type(loaded) is Chroma
    assert loaded.fingerprint == again.fingerprint == model.fingerprint
    settings = {"steps": 3, "prompt": "a cat", "size": (32, 32)}
    assert apart(ddim.sample(loaded, 1, **settings), ddim.sample(model, 1, **settings)) <= 1e-5
    index = json.loads((folder / "model_index.json").read_text())
    there = Path(shutil.copytree(folder, tmp_path / "m"))
    (there / "model_index.json").write_text(json.dumps({**index, "_class_name": "ChromaImg2ImgPipeline"}))
    assert ddim.load(there, device="cpu").fingerprint == model.fingerprint


def test_an_img2img_pipeline_is_the_same_networks(pipeline, model):
    other = diffusers.ChromaImg2ImgPipeline(
        **{
            name: part
            for name, part in pipeline.components.items()
            if name not in ("image_encoder", "feature_extractor")
        }
    )
    assert ddim.load(other).fingerprint == model.fingerprint


def test_a_folder_in_bfloat16(folder):
    model = ddim.load(folder, device="cpu", dtype="bfloat16")
    assert bool(torch.isfinite(ddim.sample(model, 1, steps=3, prompt="a cat", size=(32, 32))).all())
    assert {p.dtype for part in model.networks().values() for p in part.parameters()} == {torch.bfloat16}


def test_an_inpainting_folder_is_refused(folder, tmp_path):
    there = Path(shutil.copytree(folder, tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text())
    (there / "model_index.json").write_text(json.dumps({**index, "_class_name": "ChromaInpaintPipeline"}))
    with refused("model", "ChromaInpaintPipeline", "mask", hint=True):
        ddim.load(there, device="cpu")


@pytest.mark.parametrize(
    ("make", "value"), [(lambda p: t5_encoder(p.tokenizer, 24), 24), (lambda _: t5_encoder(range(9)), 9)]
)
def test_a_folder_whose_parts_do_not_fit_is_refused(pipeline, tmp_path, make, value):
    pipeline.register_modules(text_encoder=make(pipeline))
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", value):
        ddim.load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    ("config", "values"), [({"in_channels": 32}, [32, 16]), ({"patch_size": 2}, [2])], ids=["channels", "patches"]
)
def test_other_networks_are_refused(pipeline, config, values):
    pipeline.transformer = tiny_chroma.transformer(**config)
    with refused("model", *values):
        ddim.load(pipeline)


def test_an_ip_adapter_and_another_scheduler_are_refused(pipeline):
    own, pipeline.scheduler = pipeline.scheduler, tiny_sdxl.scheduler()
    with refused("model", "DDIMScheduler"):
        ddim.load(pipeline)
    pipeline.scheduler = own
    pipeline.transformer.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with refused("model", "IP-Adapter"):
        ddim.load(pipeline)
