"""The carried text-to-image model: what its card says of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ddim
from ddim.demo.editing import Gallery
from ddim.evaluation.metrics import psnr
from ddim.pipelines.common import grid_for

FOLDER = ddim.bundled_models()["emoji"]
GALLERY = Gallery("emoji", (3, 64, 64))


@pytest.fixture(scope="module")
def model() -> Any:
    return ddim.load("emoji")


def test_it_is_small_and_holds_no_pickle():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    assert {file.suffix for file in files} <= {".json", ".md", ".csv", ".png", ".safetensors", ".txt"}


def test_a_new_process_loads_it_and_a_pixel_model_without_a_word():
    code = "import ddim; ddim.load('emoji'); ddim.load('fashion')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_plain_diffusers_loads_the_folder_and_draws_the_same(model: Any):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(FOLDER))
    pipeline.set_progress_bar_config(disable=True)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    theirs = pipeline("noto dog face", num_inference_steps=5, latents=x, output_type="pt").images
    denoise = model.guided(ddim.Guidance(7.5), model.condition(None, 1, "noto dog face"))
    grid = grid_for(model, 5, None)
    ours = model.decode(ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"])
    assert float((ours - theirs).abs().max()) < 1e-3


def test_every_carried_picture_is_listed_and_was_held_out():
    file = Path(__file__).parents[2] / "recipes" / "emoji-held-out.csv"
    held = set(file.read_text(encoding="utf-8").splitlines())

    def entry(prompt: str) -> str:
        style, word = prompt.split(" ", 1)
        return f"{style.replace('fluent', 'fluent-3d')},{word}"

    assert {f"{name}.png" for name in GALLERY.names} == {p.name for p in (FOLDER / "test_images").iterdir()}
    assert {entry(prompt) for prompt in GALLERY.prompts} <= held
    assert not {entry(prompt) for prompt in GALLERY.known} & held
    assert len(GALLERY.known) == 16
    assert all(GALLERY.owners)


def test_the_autoencoder_keeps_held_out_drawings(model: Any):
    assert float(psnr(model.decode(model.encode(GALLERY.pixels)), GALLERY.pixels).mean()) > 27


def test_a_held_out_drawing_comes_back_under_guidance(model: Any):
    prompts, pictures = GALLERY.prompts[:2], GALLERY.pixels[:2]
    floor = psnr(model.decode(model.encode(pictures)), pictures)

    def lost(method: str) -> float:
        code = ddim.invert(model, pictures, prompt=prompts, method=method, guidance=7.5, steps=20)
        return float((floor - psnr(ddim.reconstruct(model, code), pictures)).mean())

    assert lost("direct") == pytest.approx(0, abs=0.1)
    assert lost("negative-prompt") < 5
    assert lost("ddim") > 8


def test_edits_of_held_out_drawings_go_towards_their_answers(model: Any):
    sources, answers, count = GALLERY.pixels, GALLERY.answers, len(GALLERY.targets)
    made = ddim.edit(
        model,
        sources[:count],
        [[target] for target in GALLERY.targets],
        source_prompt=GALLERY.prompts[:count],
        guidance=3,
        steps=20,
    )
    for k, answer in enumerate(answers):
        gone = float((made.edits[k, 0] - answer).square().mean() / (made.reconstruction[k] - answer).square().mean())
        assert gone < 0.5
