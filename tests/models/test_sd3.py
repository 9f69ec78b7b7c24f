"""Stable Diffusion 3 beyond parity: folders, the tokens that stand for a missing T5, and what is refused by name."""

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_flow
import torch
from diffusers import DDIMScheduler
from oracles import noise_like
from refusals import refused, warned

import ddim
from ddim.core.denoiser import PLAIN
from ddim.models.sd3 import T5_TOKENS, StableDiffusion3


def saved(folder: Path, name: str = "sd3 without t5", **parts: Any) -> Path:
    """The folder of a tiny pipeline, some of whose parts are others."""
    pipeline = tiny_flow.FAMILIES[name].pipeline()
    for part, value in parts.items():
        setattr(pipeline, part, value)
    pipeline.save_pretrained(folder)
    return folder


def answers(model: Any, node: Any) -> torch.Tensor:
    """What the network says about noise, for two prompts."""
    x = noise_like((2, *model.shape)).float()
    return model.forward(x, node, model.condition(None, 2, ["a cat", "two dogs"]).cond, PLAIN)


def test_one_token_counts_for_all_zeros(tmp_path):
    pipeline = tiny_flow.FAMILIES["sd3 without t5"].pipeline()
    live, owned = ddim.load(pipeline), ddim.load(saved(tmp_path / "model"), device="cpu")
    assert isinstance(live, StableDiffusion3)
    assert isinstance(owned, StableDiffusion3)
    assert owned.counts_zeros
    assert not live.counts_zeros
    assert owned.engine != live.engine
    assert owned.fingerprint == live.fingerprint
    seen: dict[str, int] = {}
    for name, model in (("live", live), ("owned", owned)):
        block = model.network.transformer_blocks[0]
        block.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.update({name: kwargs["encoder_hidden_states"].shape[1]}),
            with_kwargs=True,
        )
    node = live.schedule.grid(4)[1]
    all_zeros, counted = answers(live, node), answers(owned, node)
    assert seen == {"live": 24 + T5_TOKENS, "owned": 24 + 1}
    assert (counted - all_zeros).abs().max() <= 1e-5 * all_zeros.abs().max()
    # a zero that counts once gives another answer, so the count is seen
    owned.network.set_attn_processor(live.network.transformer_blocks[0].attn.processor)
    assert (answers(owned, node) - all_zeros).abs().max() >= 1e-3 * all_zeros.abs().max()


@pytest.mark.parametrize("name", ["sd3", "sd3.5 dual"])
def test_a_folder_is_the_pipeline(name, tmp_path):
    live, owned = (
        ddim.load(tiny_flow.FAMILIES[name].pipeline()),
        ddim.load(saved(tmp_path / "model", name), device="cpu"),
    )
    node = live.schedule.grid(4)[1]
    assert torch.equal(answers(owned, node), answers(live, node))
    assert owned.fingerprint == live.fingerprint
    half = ddim.load(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert half.fingerprint == live.fingerprint
    assert {p.dtype for p in half.pipeline.text_encoder_3.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    near = answers(half, node)
    assert 0 < (near - answers(live, node)).abs().max() <= 0.1 * near.abs().max()


def test_the_codes_of_a_folder_are_exact(tmp_path):
    model = ddim.load(saved(tmp_path / "model"), device="cpu")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    code = ddim.invert(model, x, prompt=["a cat", "a dog"], method="bdia", steps=4, guidance=5.0)
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    first = ddim.reconstruct(model, code)
    assert torch.equal(first, ddim.reconstruct(model, code))
    assert float((first - model.decode(model.encode(x))).abs().max()) <= 1e-5


def test_what_is_refused(tmp_path):
    pipeline = tiny_flow.FAMILIES["sd3"].pipeline()
    model = ddim.load(pipeline)
    with refused("size"):  # no multiple of 4
        ddim.sample(model, 1, prompt="a cat", size=(34, 32), steps=2)
    with refused("size"):  # beyond 24 positions
        ddim.sample(model, 1, prompt="a cat", size=(100, 32), steps=2)
    assert ddim.sample(model, 1, prompt="a cat", size=(96, 32), steps=1).shape == (1, 3, 96, 32)
    with refused("model"):
        ddim.load(lacking(pipeline, "text_encoder"))
    with refused("model"):
        ddim.load(lacking(pipeline, "transformer"))
    other = tiny_flow.FAMILIES["sd3"].pipeline()
    other.scheduler = DDIMScheduler()
    with refused("model"):
        ddim.load(other)
    folder = saved(tmp_path / "wide", "sd3", text_encoder_3=tiny_flow.t5_encoder(tiny_flow.t5_tokenizer(), 48))
    with refused("model"):
        ddim.load(folder, device="cpu")
    shutil.rmtree(folder / "text_encoder_2")
    with refused("model"):
        ddim.load(folder, device="cpu")


def lacking(pipeline: Any, part: str) -> Any:
    """The same pipeline without a part."""
    parts = {k: v for k, v in pipeline.components.items() if k not in ("image_encoder", "feature_extractor")}
    return type(pipeline)(**{**parts, part: None})


@pytest.mark.parametrize("name", ["sd3", "sd3 without t5"])
def test_a_prompt_that_is_cut_causes_a_warning(name):
    model = tiny_flow.FAMILIES[name].model()
    most = T5_TOKENS if name == "sd3" else tiny_flow.LENGTH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompt(["a cat"])
    with warned("cut"):
        model.encode_prompt(["a" * (most + 1)])


def test_an_ip_adapter_is_refused():
    pipeline = tiny_flow.FAMILIES["sd3"].pipeline()
    pipeline.transformer.image_proj = torch.nn.Identity()  # what diffusers adds when it loads one
    refused_by_load(pipeline)


def test_an_encoder_without_its_tokenizer_is_refused():
    pipeline = tiny_flow.FAMILIES["sd3"].pipeline()
    pipeline.tokenizer_3 = None
    refused_by_load(pipeline)
    alone = tiny_flow.FAMILIES["sd3"].pipeline()
    alone.text_encoder_3 = None
    model = ddim.load(alone)
    assert isinstance(model, StableDiffusion3)
    assert len(model.tokenizers) == len(model.encoders) == 2
    assert ddim.sample(model, 1, prompt="a cat", steps=1).isfinite().all()


def test_a_size_fits_the_patches_of_the_network():
    pipeline = tiny_flow.Family(partial(tiny_flow.sd3, patch_size=4), tiny_flow.draw, {}).pipeline()
    model = ddim.load(pipeline)
    assert model.multiple == 8
    with refused("size"):
        ddim.sample(model, 1, prompt="a cat", size=(36, 32), steps=1)
    assert ddim.sample(model, 1, prompt="a cat", size=(40, 32), steps=1).shape == (1, 3, 40, 32)


def test_weights_that_overflow_stay_in_float32(tmp_path):
    folder = tmp_path / "model"
    tiny_flow.FAMILIES["sd3"].pipeline().to(torch.bfloat16).save_pretrained(folder)
    model = ddim.load(folder, device="cpu", dtype="float16")
    t5 = model.pipeline.text_encoder_3  # type: ignore[attr-defined]
    found = {"wo" in name.split("."): p.dtype for name, p in t5.named_parameters()}
    assert found == {True: torch.float32, False: torch.float16}


def test_half_precision_gets_all_zeros(tmp_path):
    model = ddim.load(saved(tmp_path / "model"), device="cpu", dtype="bfloat16")
    assert isinstance(model, StableDiffusion3)
    assert not model.counts_zeros


def refused_by_load(pipeline: Any) -> None:
    with refused("model"):
        ddim.load(pipeline)
