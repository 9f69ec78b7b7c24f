"""Law 5 for SDXL: diffusers' StableDiffusionXLPipeline as a witness, on one tiny random SDXL.

The same latents go through both, and agree to 1e-5 of their largest value in float32. Each row also measures what
another prompt, another negative prompt, another guidance and other size ids change, and each change is at least 1,000
times the tolerance, so that the agreement says something. Step counts divide T, so that diffusers' fixed stride meets
the level that its own list names next.
"""

from functools import partial
from typing import Any

import pytest
import tiny_sdxl
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img
from oracles import noise_like
from refusals import refused
from torch import Tensor

import ddim
from ddim import Guidance, SizeIds
from ddim.core.conditioning import PromptConditioning
from ddim.models.sdxl import StableDiffusionXL

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of what is only likely
AGREE = 1e-5
STEPS = 10
PROMPTS = ["a cat", "two red dogs", "an old house"]
OTHER_SIZES = SizeIds(original=(512, 600), crop=(40, 8), target=(700, 300))
LEADING, TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("ddim", LEADING),
    "euler": ("euler", LEADING),
    "euler trailing": ("euler", TRAILING),
    "euler karras": ("euler", {**LEADING, "use_karras_sigmas": True}),
    "edm": ("edm", {}),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)


def pair(scheduler: str = "ddim", **options: Any) -> tuple[Any, StableDiffusionXL]:
    """A pipeline, and our model on the same networks."""
    kind, usual = SCHEDULERS[scheduler]
    pipeline = tiny_sdxl.pipeline(kind, **usual, **options)
    model = ddim.load(pipeline)
    assert isinstance(model, StableDiffusionXL)
    return pipeline, model


def noise(model: StableDiffusionXL, count: int, size: tuple[int, int] | None = None) -> Tensor:
    """[count, C, H, W] of N(0, 1) for pictures of (height, width) ``size``."""
    height, width = size or model.picture[1:]
    return noise_like((count, model.shape[0], height // model.multiple, width // model.multiple)).float()


def theirs(
    pipeline: Any,
    x: Tensor,
    prompts: list[str],
    weight: float = 5.0,
    negative: str | None = None,
    sizes: SizeIds | None = None,
    **options: Any,
) -> Tensor:
    """diffusers' own loop: latents or, with output_type="pt", pictures in [0, 1]."""
    settings: dict[str, Any] = {"output_type": "latent", "eta": 0.0, "num_inference_steps": STEPS} | options
    settings |= {"height": x.shape[2] * 2, "width": x.shape[3] * 2, "guidance_scale": weight}
    if sizes is not None:
        settings |= {
            "original_size": sizes.original,
            "crops_coords_top_left": sizes.crop,
            "target_size": sizes.target,
        }
    several = None if negative is None else [negative] * len(prompts)
    return pipeline(prompts, negative_prompt=several, latents=x, **settings).images


def conditions(model: StableDiffusionXL, x: Tensor, prompts: list[str], negative: str | None) -> PromptConditioning:
    """Both branches for latents x."""
    return model.condition(None, len(x), prompts, negative, (x.shape[2] * 2, x.shape[3] * 2))


def solved(model: StableDiffusionXL, x: Tensor, both: PromptConditioning, weight: float) -> Tensor:
    """Our loop, to latents; x is N(0, 1)."""
    grid = model.schedule.grid(STEPS)
    start = {"x": x * model.schedule.prior_std(grid)}
    return ddim.solve(model.guided(Guidance(weight), both), ddim.make_solver("ddim"), start, grid)["x"]


def ours(
    model: StableDiffusionXL,
    x: Tensor,
    prompts: list[str],
    weight: float = 5.0,
    negative: str | None = None,
    sizes: SizeIds | None = None,
) -> Tensor:
    """As ``theirs``."""
    model.size_ids = sizes
    return solved(model, x, conditions(model, x, prompts, negative), weight)


def apart(a: Tensor, b: Tensor, scale: Tensor) -> float:
    """The largest difference, in parts of the largest value of ``scale`` (or of 1, if that is more)."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / scale.abs().max().clamp(min=1))


def row(
    name: str,
    pipeline: Any,
    model: StableDiffusionXL,
    x: Tensor,
    prompts: list[str],
    weight: float,
    negative: str | None,
    sizes: SizeIds | None = None,
) -> None:
    """One line of the table: agreement, and what each of the four inputs changes."""
    a = ours(model, x, prompts, weight, negative, sizes)
    b = theirs(pipeline, x, prompts, weight, negative, sizes)
    moves = {
        "prompt": ours(model, x, [f"{p} on mars" for p in prompts], weight, negative, sizes),
        "negative": ours(model, x, prompts, weight, "bright", sizes),
        "guidance": ours(model, x, prompts, weight + 2, negative, sizes),
        "size ids": ours(model, x, prompts, weight, negative, SizeIds((16, 16), (3, 5), (200, 100))),
    }
    far = {key: apart(a, moved, b) for key, moved in moves.items()}
    worst = apart(a, b, b)
    print(f"parity {name:44} {worst:.1e}  " + "  ".join(f"{key} {value:.2g}" for key, value in far.items()))
    assert worst <= AGREE, name
    if weight == 1:  # there the unconditional branch has no say, and that is right
        assert far.pop("negative") <= AGREE, name
    assert min(far.values()) >= 1000 * AGREE, (name, far)


@every_scheduler
@pytest.mark.parametrize("negative", [None, "", "grey"])
@pytest.mark.parametrize("weight", [1.0, 5.0, 7.5])
def test_guidance_and_negative_prompts(scheduler, weight, negative):
    pipeline, model = pair(scheduler)
    row(
        f"{scheduler}, w {weight:g}, negative {negative!r}",
        pipeline,
        model,
        noise(model, 1),
        ["a cat"],
        weight,
        negative,
    )


@every_scheduler
def test_three_prompts(scheduler):
    pipeline, model = pair(scheduler)
    row(f"{scheduler}, three prompts", pipeline, model, noise(model, 3), PROMPTS, 5.0, "grey")


@every_scheduler
@pytest.mark.parametrize("size", [(32, 48), (64, 24)])
def test_sizes_that_are_not_square(scheduler, size):
    pipeline, model = pair(scheduler)
    row(f"{scheduler}, {size[1]}x{size[0]}", pipeline, model, noise(model, 1, size), ["a cat"], 5.0, None)


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_size_ids(weight):
    pipeline, model = pair()
    row(f"size ids set, w {weight:g}", pipeline, model, noise(model, 1), ["a cat"], weight, None, OTHER_SIZES)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_unconditional_branch_that_is_the_encoded_empty_prompt(prediction):
    pipeline, model = pair(zeros=False, prediction_type=prediction)
    x = noise(model, 1)
    row(f"no zeros, {prediction}", pipeline, model, x, ["a cat"], 5.0, None)
    zeros = pair(prediction_type=prediction)[1]
    a, b = ours(model, x, ["a cat"]), ours(zeros, x, ["a cat"])
    assert apart(a, b, a) >= 1000 * AGREE
    assert torch.equal(a, ours(model, x, ["a cat"], negative=""))


def test_rescaled_guidance():
    pipeline, model = pair()
    x = noise(model, 2)
    b = theirs(pipeline, x, PROMPTS[:2], guidance_rescale=0.7)
    both, grid = conditions(model, x, PROMPTS[:2], None), model.schedule.grid(STEPS)
    denoise = model.guided(Guidance(5.0, rescale=0.7), both)
    a = ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"]
    assert apart(a, b, b) <= AGREE
    assert apart(a, ours(model, x, PROMPTS[:2]), b) >= 1000 * AGREE


@pytest.mark.parametrize("batched", [True, False])
def test_both_branches_in_one_batch_or_one_after_the_other(batched):
    pipeline, model = pair()
    x = noise(model, 2)
    both, grid = conditions(model, x, PROMPTS[:2], None), model.schedule.grid(STEPS)
    denoise = model.guided(Guidance(5.0, batched_cfg=batched), both)
    b = theirs(pipeline, x, PROMPTS[:2])
    assert apart(ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"], b, b) <= AGREE


# --- wrong rules are seen ---------------------------------------------------------------------------------------------


def test_the_pooled_embedding_of_the_other_branch_is_seen(monkeypatch):
    """Guidance once exchanged the words alone, and the prompt's own pooled embedding stood in both branches."""
    pipeline, model = pair()
    x = noise(model, 1)
    for negative in (None, "grey"):
        right, b = conditions(model, x, ["a cat"], negative), theirs(pipeline, x, ["a cat"], 7.5, negative)
        assert right.uncond is not None
        assert apart(solved(model, x, right, 7.5), b, b) <= AGREE
        wrong = PromptConditioning(right.cond, right.cond.replace(text=right.uncond.tensors["text"]))
        assert apart(solved(model, x, wrong, 7.5), b, b) >= 1000 * AGREE
    monkeypatch.setattr(
        model, "zero_conditioning", lambda cond: cond.replace(text=torch.zeros_like(cond.tensors["text"]))
    )
    with refused(None, "wrong rule", kind=AssertionError):
        row("wrong rule", pipeline, model, x, ["a cat"], 7.5, None)


@pytest.mark.parametrize("order", [(3, 4, 2, 5, 0, 1), (1, 0, 2, 3, 4, 5)])
def test_size_ids_in_another_order_are_seen(order, monkeypatch):
    pipeline, model = pair()
    numbers = SizeIds.numbers
    monkeypatch.setattr(SizeIds, "numbers", lambda self, size: tuple(numbers(self, size)[k] for k in order))
    with refused(None, "wrong order", kind=AssertionError):
        row("wrong order", pipeline, model, noise(model, 1), ["a cat"], 5.0, None, OTHER_SIZES)


# --- what the encoders say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, "", "grey"])
def test_conditions_are_the_pipelines_own(negative):
    pipeline, model = pair()
    both = model.condition(None, 3, PROMPTS, negative)
    several = None if negative is None else [negative] * 3
    with torch.no_grad():
        words, no_words, pooled, no_pooled = pipeline.encode_prompt(PROMPTS, negative_prompt=several)
    assert both.uncond is not None
    for ours_, theirs_ in ((both.cond, (words, pooled)), (both.uncond, (no_words, no_pooled))):
        for name, tensor in zip(("text", "pooled"), theirs_, strict=True):
            assert apart(ours_.tensors[name], tensor, tensor) <= 1e-6
        assert ours_.tensors["size_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 3
    for tensor in (words, pooled):
        assert min(float((tensor[j] - tensor[k]).abs().max()) for j, k in ((0, 1), (0, 2), (1, 2))) > 0.01


# --- pictures ---------------------------------------------------------------------------------------------------------

PLAYGROUND = {"latents_mean": [-1.6574, 1.886, -1.383, 2.5155], "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}


@pytest.mark.parametrize("config", [{}, {"scaling_factor": 0.5}, PLAYGROUND])
def test_encode_and_decode_are_those_of_the_img2img_pipeline(config, monkeypatch):
    pipeline = tiny_sdxl.pipeline()
    pipeline.vae.register_to_config(**config)
    model = ddim.load(pipeline)
    images = tiny_sdxl.pictures(2, 32, 48)
    other = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    mode = partial(img2img.retrieve_latents, sample_mode="argmax")
    monkeypatch.setattr(img2img, "retrieve_latents", mode)
    with torch.no_grad():
        b = other.prepare_latents(images * 2 - 1, None, 2, 1, torch.float32, "cpu", add_noise=False)
    a = model.encode(images)
    assert apart(a, b, b) <= 1e-6
    assert apart(model.encode(images.flip(3)), b, b) > 0.01
    x = noise_like((1, 4, 16, 16)).float()
    latents, shown = theirs(pipeline, x, ["a cat"]), theirs(pipeline, x, ["a cat"], output_type="pt")
    assert apart(model.decode(latents), shown, shown) <= AGREE
    if config:
        plain = ddim.load(tiny_sdxl.pipeline())
        assert apart(plain.encode(images), b, b) >= 0.01
        assert apart(plain.decode(latents), shown, shown) >= 0.01


def test_the_pipeline_draws_what_diffusers_draws():
    pipeline, model = pair()
    from ddim.core.noise import SeededNoise

    x = SeededNoise([3, 4])(torch.empty(2, *model.shape))
    images = ddim.sample(model, 2, steps=STEPS, seed=3, prompt=PROMPTS[:2], guidance=5.0)
    shown = theirs(pipeline, x, PROMPTS[:2], output_type="pt")
    assert apart(images, shown, shown) <= AGREE
