"""Models that are distilled to a few steps: their defaults, their round trips at S = 1, 2, 4, 8, and their edits."""

import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from refusals import refused, warned
from tiny_few_step import FEW_STEP, sd
from tiny_flow import FAMILIES
from torch import Tensor

import ddim
from ddim import AttentionEdit
from ddim.models.base import Model

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
FEW = (1, 2, 4, 8)
KINDS = ["sd lcm", "sdxl lcm embedded", "sdxl tcd", "sd turbo", "sdxl turbo", "sdxl lightning", "sdxl hyper-sd"]
"""The rows of the parity table, one for each kind of model."""
FLOW = ["flux schnell", "z-image turbo"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Model:
    make = FAMILIES[kind].pipeline if kind in FAMILIES else FEW_STEP[kind][0]
    return ddim.load(make().to(dtype))


def pictures(kind: str, count: int = 2) -> Tensor:
    return torch.rand(count, *model_of(kind).picture, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "hyper" not in kind])
def test_defaults_are_those_of_a_distilled_model(kind):
    model = model_of(kind)
    assert model.info.steps == 4
    assert model.info.guidance == 1
    assert model.schedule.solver == ("lcm" if "lcm" in kind else "tcd" if "tcd" in kind else "ddim")
    assert (model.info.embedded is not None) == ("embedded" in kind)
    drawn = ddim.sample(model, 1, prompt="a cat")
    told = ddim.sample(model, 1, prompt="a cat", steps=4, solver=model.schedule.solver, guidance=1.0)
    assert torch.equal(drawn, told)
    assert not torch.equal(drawn, ddim.sample(model, 1, prompt="a cat", steps=5))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "hyper" not in kind])
def test_the_number_zero_of_diffusers_means_no_guidance(kind):
    model = model_of(kind)
    if model.info.embedded is not None:
        assert model.guidance_of(0).embedded == 0  # an input of the network like any other
        return
    assert torch.equal(
        ddim.sample(model, 1, prompt="a cat", guidance_scale=0), ddim.sample(model, 1, prompt="a cat", guidance=1)
    )


def test_a_model_with_an_embedded_scale_takes_no_negative_prompt():
    model = model_of("sdxl lcm embedded")
    with refused("negative", "'grey'"):
        ddim.sample(model, 1, prompt="a cat", negative="grey")
    with refused("guidance", "3"):
        ddim.sample(model, 1, prompt="a cat", guidance=3.0)


def test_a_table_without_signal_at_its_end_is_no_few_step_model():
    """Models with zero terminal SNR need the spacing ``trailing`` in any number of steps."""
    settings = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    assert ddim.load(sd("EulerDiscreteScheduler", rescale_betas_zero_snr=True, **settings)).info.steps == 50
    assert ddim.load(sd("EulerDiscreteScheduler", **settings)).info.steps == 4


def test_what_is_only_likely_is_said_where_it_is_used():
    """An Euler scheduler may be set to ``trailing`` for any model, and DDIM's says nothing about the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ddim.load(sd("EulerDiscreteScheduler", timestep_spacing="trailing"))
        ddim.sample(model, 1, prompt="a cat", steps=2, guidance=3.0)
        assert ddim.load(sd("DDIMScheduler", timestep_spacing="trailing", clip_sample=False)).info.guidance == 7.5
        ddim.sample(ddim.load(sd("LCMScheduler")), 1, prompt="a cat")
    for settings in ({}, {"steps": 2}, {"guidance": 3.0}):
        with warned("'trailing'", 4):
            ddim.sample(model, 1, prompt="a cat", **settings)


def test_one_step_of_a_method_that_needs_two_is_refused_by_edit_too():
    model = model_of("sd turbo")
    with refused("steps", 1, "'bdia'"):
        ddim.edit(model, pictures("sd turbo"), ["a dog"], source_prompt="a cat", method="bdia", steps=1)


@every_kind
@pytest.mark.parametrize("steps", FEW)
def test_edit_friendly_finds_the_noise_of_the_model_s_own_sampler(kind, steps, tmp_path: Path):
    model = model_of(kind)
    sampler = model.schedule.solver
    images = pictures(kind)
    code = ddim.invert(
        model, images, method="edit-friendly", steps=steps, prompt="a cat", options={"sampler": sampler, "skip": 0}
    )
    assert code.solver == sampler
    code.save(tmp_path / "x.code.safetensors")
    loaded = ddim.LatentCode.load(tmp_path / "x.code.safetensors")
    with model.in_threads():
        autoencoder = model.decode(model.encode(images))
    torch.testing.assert_close(ddim.reconstruct(model, loaded), autoencoder, rtol=0, atol=1e-5)
    if steps == 1:
        return
    assert code.extras["noise"][:, :-1].std() > 0.3
    edited = ddim.edit(model, loaded, ["a dog on mars"], attention="none")
    assert torch.isfinite(edited.edits).all()
    torch.testing.assert_close(edited.reconstruction, autoencoder, rtol=0, atol=1e-5)
    assert (edited.edits[:, 0] - edited.reconstruction).abs().max() > 1e-3


def test_edit_friendly_refuses_samplers_and_options_that_do_not_go_together():
    with refused("sampler", "'heun'"):
        ddim.EditFriendly(sampler="heun")
    with refused("eta", "0.5"):
        ddim.EditFriendly(sampler="lcm", eta=0.5)


@pytest.mark.parametrize("steps", [1, 2])
def test_attention_control_holds_a_step_of_the_fewest(steps):
    """With windows of the usual edit, of which one step is more than all."""
    model = model_of("sd turbo")
    code = ddim.seeded_code(model, steps=steps, prompt="a cat")
    plain = ddim.edit(model, code, ["a dog"], attention="none")
    controlled = ddim.edit(model, code, ["a dog"], attention="refine")
    assert not torch.equal(plain.edits, controlled.edits)
    whole = ddim.edit(model, code, ["a dog"], attention=AttentionEdit(cross_steps=(0, 1), self_steps=(0, 1)))
    if steps == 1:
        assert torch.equal(controlled.edits, whole.edits)
    none = AttentionEdit(cross_steps=(0, 0), self_steps=(0, 0))
    off = ddim.edit(model, code, ["a dog"], attention=none)
    torch.testing.assert_close(off.edits, plain.edits, rtol=0, atol=1e-5)


def test_no_guidance_of_diffusers_is_not_our_zero():
    """w = 0 is the unconditional model: a number from a model card that means no guidance there."""
    model = model_of("sd turbo")
    for verb in (
        lambda w: ddim.sample(model, 1, prompt="a cat", guidance=w, steps=2),
        lambda w: ddim.seeded_code(model, 1, prompt="a cat", guidance=w, steps=2),
        lambda w: ddim.invert(model, pictures("sd turbo"), prompt="a cat", guidance=w, steps=2),
    ):
        for weight in (0, 0.0, ddim.Guidance(0)):
            with warned("guidance_scale", 0):
                verb(weight)
