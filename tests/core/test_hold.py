"""How x0 is held: what a folder's config says, on the way back and forward, kept in the code."""

import math

import pytest
import tiny
import tiny_text
import torch
from diffusers import DDIMPipeline

import ddim
from ddim.core.conditioning import PromptConditioning
from ddim.core.guidance import Guidance, guided
from ddim.core.prediction import Hold
from ddim.core.schedule import Schedule
from ddim.inversion import INVERSIONS
from ddim.inversion.latent_code import HOLD
from ddim.inversion.replay import prompts_of, replay
from ddim.models import bundled_models
from ddim.models.base import Model
from ddim.pipelines.common import hold_of, solver_of
from ddim.pipelines.events import LossEvent


@pytest.fixture(scope="module")
def clipped():
    return tiny.model(clip_sample=True)


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class Overshoots:
    """A network of one Gaussian, the same at every pixel, whose eps is off by as much at every level: what it takes for
    x0 lies the further outside the range the more noise there is."""

    path = ddim.ddpm_linear()

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        node, variance = self.path.node(float(t[0]) + 1), 0.3
        x0 = node.alpha * variance / (node.alpha**2 * variance + node.sigma**2) * x
        return (x - node.alpha * x0) / node.sigma + 0.2 * torch.tanh(20 * x)

    def model(self) -> Model:
        return Model.from_network(self, Schedule(self.path, "eps", "leading"), shape=(1, 8, 8), dtype=torch.float64)


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_a_network_that_needs_the_clamp_comes_back_better_with_it():
    model = Overshoots().model()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05
    codes = [ddim.invert(model, images, steps=50, method="heun", clip_x0=limit) for limit in (None, 1.0)]
    without, held = (decibels(ddim.reconstruct(model, code), images) for code in codes)
    assert held > without + 15  # 88 and 68 dB where this was written
    # what was held on the way back has to be held on the way forward
    forgotten = ddim.LatentCode(**{**vars(codes[1]), "settings": {}})
    assert decibels(ddim.reconstruct(model, forgotten), images) < held - 30


@pytest.mark.parametrize("method", [name for name, method in INVERSIONS.items() if not method.needs])
def test_the_configs_hold_is_the_default_of_every_way(clipped, pictures, method):
    plain = tiny.model(clip_sample=False)
    own = ddim.invert(clipped, pictures, steps=4, method=method)
    asked = ddim.invert(plain, pictures, steps=4, method=method, clip_x0=1.0)
    off = ddim.invert(clipped, pictures, steps=4, method=method, clip_x0=math.inf)
    assert dict(own.settings[HOLD]) == {"clip_x0": 1.0}
    assert HOLD not in off.settings
    assert torch.equal(own.x, asked.x)
    assert torch.equal(off.x, ddim.invert(plain, pictures, steps=4, method=method).x)
    again = ddim.reconstruct(clipped, own)
    assert torch.equal(again, ddim.reconstruct(plain, asked))  # by the code's word, whatever the model's config says
    if INVERSIONS[method].exact:
        assert (again - pictures).abs().max() < 1e-4


def test_sample_draws_as_the_config_says(clipped):
    plain = tiny.model(clip_sample=False)
    held = ddim.sample(plain, 2, steps=5, clip_x0=1.0)
    assert torch.equal(ddim.sample(clipped, 2, steps=5), held)
    assert torch.equal(ddim.sample(clipped, 2, steps=5, clip_x0=math.inf), ddim.sample(plain, 2, steps=5))
    assert not torch.equal(held, ddim.sample(plain, 2, steps=5))


def test_evaluation_draws_as_the_config_says(clipped):
    from ddim.evaluation.generation import generate

    held = ddim.sample(clipped, 2, steps=5)
    grid = ddim.make_grid(clipped.schedule.path, 5, "leading")
    assert torch.equal(generate(clipped, ddim.make_solver("ddim"), grid, [0, 1]), held)


def test_dynamic_thresholding_as_a_config_says():
    config = {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9}
    model = tiny.model(**config)
    code = ddim.invert(model, torch.rand(1, 1, 8, 8), steps=3)
    assert dict(code.settings[HOLD]) == {"threshold": 0.9, "largest": 2.0}
    assert model.describe()["hold"] == {"threshold": 0.9, "largest": 2.0}
    off = ddim.sample(tiny.model(), 1, steps=5, threshold=0.9)
    assert not torch.equal(ddim.sample(model, 1, steps=5), off)  # without the largest it is another


def test_a_code_keeps_its_hold_in_a_file(clipped, pictures, tmp_path):
    code = ddim.invert(clipped, pictures, steps=4, method="bdia")
    read = ddim.LatentCode.load(code.save(tmp_path / "a.safetensors"))
    assert torch.equal(ddim.reconstruct(tiny.model(), read), ddim.reconstruct(clipped, code))


@pytest.mark.parametrize("hold", ["1", 1.0, {"clip": 1.0}, {"clip_x0": "1"}, {"clip_x0": -1}, {"threshold": 2}])
def test_a_hold_that_cannot_be_read_is_told_before_the_work(clipped, pictures, hold):
    code = ddim.invert(clipped, pictures, steps=2)
    broken = ddim.LatentCode(**{**vars(code), "settings": {HOLD: hold}})
    with pytest.raises(ddim.InputError):
        ddim.reconstruct(clipped, broken)


def test_interpolation_holds_as_the_codes_do(clipped, pictures):
    a, b = (ddim.invert(clipped, p[None], steps=4, method="bdia") for p in pictures)
    plain = tiny.model()
    frames = ddim.interpolate(plain, a, b, frames=3)  # the walk between has to hold too
    images = torch.cat([ddim.reconstruct(plain, code) for code in (a, b)])
    walked = ddim.invert(plain, images, steps=4, clip_x0=1.0)
    assert torch.allclose(frames[1], ddim.interpolate(plain, walked, frames=3)[1], rtol=0, atol=1e-3)
    asked = [ddim.invert(plain, p[None], steps=4, method="bdia", clip_x0=1.0) for p in pictures]
    assert torch.equal(frames, ddim.interpolate(clipped, *asked, frames=3))
    free = ddim.invert(plain, pictures[:1], steps=4, method="bdia")
    with pytest.raises(ddim.InputError) as caught:
        ddim.interpolate(plain, a, free)
    assert caught.value.parameter == "codes"


@pytest.mark.parametrize("method", ["null-text", "negative-prompt", "direct", "ddim", "edit-friendly", "bdia"])
def test_text_models_hold_after_guidance(method):
    model, pictures = tiny_text.model(), tiny_text.pictures()
    words = {"prompt": "a cat", "guidance": 3.0}
    code = ddim.invert(model, pictures, steps=4, method=method, clip_x0=0.5, **words)
    free = ddim.invert(model, pictures, steps=4, method=method, **words)
    held, unheld = (ddim.edit(model, c, "a dog", attention="none") for c in (code, free))
    assert not torch.equal(held.edits, unheld.edits)
    assert torch.allclose(held.reconstruction, ddim.reconstruct(model, code), rtol=0, atol=1e-2)
    forgotten = ddim.LatentCode(**{**vars(code), "settings": {}})
    assert (ddim.edit(model, forgotten, "a dog", attention="none").edits - held.edits).abs().max() > 1e-3


def test_an_edit_holds_both_ways_and_keeps_how_in_its_code():
    model, cat = tiny_text.model(), tiny_text.pictures(1)
    told = {"source_prompt": "a cat", "steps": 3, "guidance": 3.0}
    held, free = ddim.edit(model, cat, "a dog", clip_x0=0.2, **told), ddim.edit(model, cat, "a dog", **told)
    assert held.code.settings[HOLD] == {"clip_x0": 0.2}
    assert HOLD not in free.code.settings
    assert float((held.edits - free.edits).abs().max()) > 1e-3
    with pytest.raises(ddim.InputError) as caught:
        ddim.edit(model, held.code, "a dog", threshold=0.9)
    assert caught.value.parameter == "threshold"


def test_null_text_tunes_the_step_that_is_walked():
    """Its pivot, the landing and the way forward hold alike: the tuned steps land where reconstruct goes."""
    model, pictures = tiny_text.model(), tiny_text.pictures()
    losses: list[float] = []
    code = ddim.invert(
        model,
        pictures,
        steps=4,
        method="null-text",
        options={"inner": 1, "stop": 1e9},
        prompt="a cat",
        guidance=3.0,
        clip_x0=0.3,
        on_event=lambda event: losses.append(event.loss) if isinstance(event, LossEvent) else None,
    )
    pivot = ddim.invert(model, pictures, steps=4, method="direct", prompt="a cat", guidance=3.0, clip_x0=0.3)
    end = pivot.extras["pivot"][:, -1]
    both = prompts_of(code.conditions, code.grid, code.extras)
    denoise = model.guided(Guidance.of(code.guidance), both, hold=hold_of(code))
    landed = replay(denoise, solver_of(model, code), dict(code.state), code.grid, code.extras)["x"]
    assert float((landed - end).square().mean()) == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_bundled_model_in_plain_diffusers_draws_our_pictures(spacing):
    pipeline = DDIMPipeline.from_pretrained(bundled_models()["fashion"])
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, timestep_spacing=spacing)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    theirs = pipeline(2, generators, num_inference_steps=5, output_type="np").images
    ours = ddim.sample(ddim.load("fashion", device="cpu"), 2, steps=5, spacing=spacing)
    assert (ours - torch.from_numpy(theirs).permute(0, 3, 1, 2)).abs().max() < 1e-4


@pytest.mark.parametrize("name", bundled_models())
def test_no_bundled_model_clips(name):
    assert not ddim.load(name, device="cpu").schedule.hold.acts


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({"clip_x0": "1"}, "clip_x0"),
        ({"clip_x0": math.nan}, "clip_x0"),
        ({"clip_x0": -math.inf}, "clip_x0"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": "0.9"}, "threshold"),
        ({"clip_x0": 1.0, "threshold": 0.9}, "clip_x0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [ddim.sample, ddim.invert])
def test_a_bound_that_cannot_be_used(verb, given, parameter):
    pictures = () if verb is ddim.sample else (torch.rand(1, 1, 8, 8),)
    with pytest.raises(ddim.InputError) as caught:
        verb(tiny.model(), *pictures, steps=2, **given)
    assert caught.value.parameter == parameter


def test_infinity_holds_nothing_and_is_no_setting():
    assert not Hold(clip_x0=math.inf).acts
    assert Hold(clip_x0=math.inf).options == {}


def test_guidance_acts_first_and_x0_is_held_after_it():
    """As the paper's sampler does, and not the other way round: two held x0 guided apart would leave the range."""
    model = tiny_text.model()
    both, node = model.condition(None, 2, ["a cat", "a dog"], "a hat"), model.schedule.path.node(700.0)
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    free = model.guided(Guidance(7.5), both)(x, node)
    held = model.guided(Guidance(7.5), both, hold=Hold(0.5))(x, node)
    assert (free.x0.abs() > 0.5).any()
    assert torch.equal(held.x0, free.x0.clamp(-0.5, 0.5))
    assert torch.allclose(node.alpha * held.x0 + node.sigma * held.eps, x, rtol=0, atol=1e-5)


def test_a_denoiser_of_a_model_is_held_as_its_config_says(clipped):
    x, node = torch.randn(2, 1, 8, 8), clipped.schedule.path.node(900.0)
    nothing = PromptConditioning()
    own = clipped.guided(Guidance(), nothing)(x, node)
    assert own.x0.abs().max() <= 1
    free = guided(clipped, Guidance(), nothing)(x, node)
    assert free.x0.abs().max() > 1
    assert torch.equal(own.x0, free.x0.clamp(-1, 1))


def test_the_commands_flags(tmp_path, monkeypatch):
    from commands import fails
    from typer.testing import CliRunner

    from ddim.cli.app import app

    monkeypatch.chdir(tmp_path)
    folder = tiny.pipeline_folder(tmp_path / "model", clip_sample=False)
    ddim.save_image(torch.rand(1, 8, 8), "a.png")
    run = CliRunner().invoke
    result = run(app, ["invert", "a.png", "--model", str(folder), "--steps", "3", "--clip", "0.5", "--no-check"])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*.safetensors")
    assert "clip0.5" in file.name
    assert dict(ddim.LatentCode.load(file).settings[HOLD]) == {"clip_x0": 0.5}
    sentence = fails("invert", "a.png", "--clip", "1", "--threshold", "0.9", code=2)
    assert "--clip" in sentence
