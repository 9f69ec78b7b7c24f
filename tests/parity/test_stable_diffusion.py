"""Law 6 for words: diffusers' StableDiffusionPipeline as a witness, on one tiny random Stable Diffusion.

The same latents go through both; pictures and latents agree to 1e-4 (their tables are float32). Step counts divide T,
so that diffusers' fixed stride meets the level that its own list names next. Each test prints its largest disagreement.
"""

from typing import Any

import pytest
import tiny_text
import torch
from diffusers import DDIMScheduler
from oracles import noise_like
from torch import Tensor

import ddim
from ddim.core.guidance import Guidance
from ddim.models.sd import StableDiffusion
from ddim.pipelines.common import grid_for

AGREE = 1e-4
PROMPTS = ["noto dog face", "twemoji cat face", "a red apple"]
PREDICTIONS = ("epsilon", "v_prediction")
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_spacing = pytest.mark.parametrize("spacing", ["leading", "trailing"])


def pair(prediction: str = "epsilon", spacing: str = "leading", **config: Any) -> tuple[Any, StableDiffusion]:
    """A pipeline with Stable Diffusion's scheduler config, and our model on the same networks."""
    pipeline = tiny_text.pipeline(prediction=prediction)
    for name, weight in pipeline.unet.named_parameters():
        if ".to_q." in name or ".to_k." in name:  # attention so sharp as theirs makes a chaos of the last bits
            weight.data /= 6
    changed = {"timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    usual = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    pipeline.scheduler = DDIMScheduler(**usual | changed | config)
    pipeline.set_progress_bar_config(disable=True)
    model = StableDiffusion("tiny", pipeline)
    assert (model.schedule.prediction, model.schedule.spacing) == (
        {"epsilon": "eps", "v_prediction": "v"}[prediction],
        spacing,
    )
    return pipeline, model


def noise(model: StableDiffusion, count: int, size: tuple[int, int] | None = None) -> Tensor:
    """[count, C, H, W] of N(0, 1) for pictures of (height, width) ``size``."""
    height, width = size or model.picture[1:]
    return noise_like((count, model.shape[0], height // model.multiple, width // model.multiple)).float()


def theirs(pipeline: Any, x: Tensor, prompts: list[str], steps: int, **options: Any) -> Tensor:
    """diffusers' own loop: latents or, with output_type="pt", pictures in [0, 1]."""
    factor = pipeline.vae_scale_factor
    size = {"height": x.shape[2] * factor, "width": x.shape[3] * factor}
    settings: dict[str, Any] = {"guidance_scale": 7.5, "output_type": "latent", "eta": 0.0} | size | options
    return pipeline(prompts, num_inference_steps=steps, latents=x, **settings).images


def ours(
    model: StableDiffusion,
    x: Tensor,
    prompts: list[str],
    steps: int,
    guidance: Guidance | None = None,
    negative: str | None = None,
) -> Tensor:
    """Our loop, to latents."""
    conditions = model.condition(None, len(x), prompts, negative)
    denoise = model.guided(guidance or Guidance(7.5), conditions)
    return ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid_for(model, steps, None))["x"]


def agree(name: str, a: Tensor, b: Tensor, record_property: Any, tolerance: float = AGREE) -> None:
    """The largest difference is at most ``tolerance`` times the largest value of ``b`` (or of 1, if that is more)."""
    assert a.shape == b.shape
    worst = float((a - b).abs().max() / b.abs().max().clamp(min=1))
    record_property("largest_disagreement", worst)
    print(f"parity {name:60} {worst:.1e}")
    assert worst <= tolerance


@every_prediction
@every_spacing
@pytest.mark.parametrize("steps", [10, 50])
def test_guided_ddim(prediction, spacing, steps, record_property):
    pipeline, model = pair(prediction, spacing)
    x = noise(model, 1)
    a, b = ours(model, x, PROMPTS[:1], steps), theirs(pipeline, x, PROMPTS[:1], steps)
    agree(f"latents {prediction} {spacing} S {steps}", a, b, record_property)
    shown = theirs(pipeline, x, PROMPTS[:1], steps, output_type="pt")
    agree(f"pictures {prediction} {spacing} S {steps}", model.decode(a), shown, record_property)
    # neither guidance nor the words are idle here, so the agreement says something
    assert (a - ours(model, x, PROMPTS[:1], steps, Guidance(1.0))).abs().max() > 100 * AGREE
    assert (a - ours(model, x, PROMPTS[1:2], steps)).abs().max() > 100 * AGREE


@every_prediction
@pytest.mark.parametrize("at_one", [True, False])
def test_both_data_ends(prediction, at_one, record_property):
    pipeline, model = pair(prediction, set_alpha_to_one=at_one)
    x = noise(model, 1)
    a, b = ours(model, x, PROMPTS[:1], 20), theirs(pipeline, x, PROMPTS[:1], 20)
    agree(f"latents {prediction} set_alpha_to_one {at_one}", a, b, record_property)


def test_zero_terminal_snr(record_property):
    """SD 2's v-prediction as Lin et al. 2024 repair it: no signal is left at T."""
    pipeline, model = pair("v_prediction", "trailing", rescale_betas_zero_snr=True, set_alpha_to_one=True)
    x = noise(model, 1)
    assert model.schedule.path.node(model.schedule.path.t_max).alpha == 0
    agree("zero terminal SNR", ours(model, x, PROMPTS[:1], 10), theirs(pipeline, x, PROMPTS[:1], 10), record_property)


@every_prediction
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale(prediction, phi, record_property):
    pipeline, model = pair(prediction)
    x = noise(model, 2)
    a = ours(model, x, PROMPTS[:2], 10, Guidance(7.5, rescale=phi))
    b = theirs(pipeline, x, PROMPTS[:2], 10, guidance_rescale=phi)
    agree(f"guidance_rescale {phi} {prediction}", a, b, record_property)
    assert (a - ours(model, x, PROMPTS[:2], 10)).abs().max() > 100 * AGREE


@every_prediction
@pytest.mark.parametrize("size", [(1, 2), (3, 2)])
def test_sizes_that_are_not_square(prediction, size, record_property):
    pipeline, model = pair(prediction)
    x = noise(model, 1, (size[0] * 16, size[1] * 16))
    a = ours(model, x, PROMPTS[:1], 10)
    shown = theirs(pipeline, x, PROMPTS[:1], 10, output_type="pt")
    assert tuple(shown.shape[2:]) == (size[0] * 16, size[1] * 16)
    agree(f"{size[1] * 16}x{size[0] * 16} {prediction}", model.decode(a), shown, record_property)


@every_prediction
def test_a_batch_of_three_images_with_three_prompts(prediction, record_property):
    pipeline, model = pair(prediction)
    x = noise(model, 3)
    a = ours(model, x, PROMPTS, 10)
    shown = theirs(pipeline, x, PROMPTS, 10, output_type="pt")
    agree(f"three prompts {prediction}", model.decode(a), shown, record_property)
    alone = torch.cat([ours(model, x[k : k + 1], [PROMPTS[k]], 10) for k in range(3)])
    agree(f"three prompts one by one {prediction}", a, alone, record_property)
    assert (a - ours(model, x, PROMPTS[::-1], 10)).abs().max() > 100 * AGREE


@every_prediction
def test_negative_prompts(prediction, record_property):
    pipeline, model = pair(prediction)
    x = noise(model, 2)
    a = ours(model, x, PROMPTS[:2], 10, negative="blurry sad face")
    b = theirs(pipeline, x, PROMPTS[:2], 10, negative_prompt=["blurry sad face"] * 2)
    agree(f"negative prompt {prediction}", a, b, record_property)
    assert (a - ours(model, x, PROMPTS[:2], 10)).abs().max() > 100 * AGREE


@every_prediction
def test_halves_together_or_one_after_the_other(prediction, record_property):
    _, model = pair(prediction)
    x = noise(model, 2)
    apart = ours(model, x, PROMPTS[:2], 10, Guidance(7.5, batched_cfg=False))
    agree("apart", apart, ours(model, x, PROMPTS[:2], 10), record_property)


def test_the_verb_draws_what_the_pipeline_draws(record_property):
    pipeline, model = pair()
    from ddim.core.noise import SeededNoise

    x = SeededNoise([3, 4])(torch.empty(2, *model.shape))
    images = ddim.sample(model, 2, steps=10, seed=3, prompt=PROMPTS[:2], negative="grey", guidance=7.5)
    shown = theirs(pipeline, x, PROMPTS[:2], 10, negative_prompt=["grey"] * 2, output_type="pt")
    agree("ddim.sample", images, shown, record_property)


@pytest.mark.parametrize(("scale", "shift"), [(0.18215, None), (0.5, None), (1.7, 0.3)])
def test_the_autoencoders_own_scale_and_shift(scale, shift, record_property):
    pipeline = tiny_text.pipeline()
    pipeline.vae.register_to_config(scaling_factor=scale, **({"shift_factor": shift} if shift else {}))
    model = StableDiffusion("tiny", pipeline)
    images = torch.rand(2, *model.picture, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
        shown = (pipeline.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    codes = model.encode(images)
    agree(f"encode {scale} {shift}", codes, (mean - (shift or 0.0)) * scale, record_property, 1e-6)
    agree(f"decode {scale} {shift}", model.decode(codes), shown, record_property, 1e-5)


def test_condition_is_the_pipelines_own_encoding(record_property):
    pipeline, model = pair()
    conditions = model.condition(None, 3, PROMPTS, "grey")
    assert conditions.uncond is not None
    with torch.no_grad():
        words, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, ["grey"] * 3)
    agree("words", conditions.cond.tensors["text"], words, record_property, 1e-6)
    agree("null", conditions.uncond.tensors["text"], null, record_property, 1e-6)
    assert (words[0] - words[1]).abs().max() > 0.01
