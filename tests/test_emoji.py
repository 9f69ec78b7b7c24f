"""The carried text-to-image model: what its card says of it."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddim
from ddim import walks
from ddim.denoiser import bound
from ddim.evaluation.pairs import psnr
from ddim.images import read_images

FOLDER = ddim.bundled_models()["emoji"]


@pytest.fixture(scope="module")
def model() -> Any:
    return ddim.load("emoji")


def listed(kind: str) -> tuple[list[str], Tensor]:
    """Prompts and pictures [N, 3, 64, 64] of ``test_images`` or ``answers``."""
    with (FOLDER / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith(kind)]
    return [row["prompt"] for row in rows], read_images([FOLDER / row["file"] for row in rows], (3, 64, 64))


def test_it_is_small_and_holds_no_pickle():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    assert {file.suffix for file in files} <= {".json", ".md", ".csv", ".png", ".safetensors", ".txt"}


def test_a_new_process_loads_it_without_a_word():
    code = "import ddim; ddim.load('emoji')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_plain_diffusers_loads_the_folder_and_draws_the_same(model: Any):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(FOLDER))
    pipeline.set_progress_bar_config(disable=True)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    theirs = pipeline("noto dog face", num_inference_steps=5, latents=x, output_type="pt").images
    cond = model.condition(None, 1, "noto dog face")
    denoise = bound(walks.guided_by(model, ddim.Guidance(7.5)), cond)
    grid = walks.grid_for(model, 5, None)
    ours = model.decode(ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"])
    assert float((ours - theirs).abs().max()) < 1e-3


def test_every_carried_picture_is_listed_and_was_held_out(model: Any):
    held = (Path(__file__).parent.parent / "recipes" / "emoji-held-out.csv").read_text(encoding="utf-8").splitlines()
    files = {f"test_images/{file.name}" for file in (FOLDER / "test_images").iterdir()}
    with (FOLDER / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith("test_images/")]
    assert {row["file"] for row in rows} == files
    for row in rows:
        style, word = row["prompt"].split(" ", 1)
        assert f"{style.replace('fluent', 'fluent-3d')},{word}" in held


def test_the_autoencoder_keeps_held_out_drawings(model: Any):
    _, pictures = listed("test_images/")
    assert float(psnr(model.decode(model.encode(pictures)), pictures).mean()) > 27


def test_a_held_out_drawing_comes_back_under_guidance_as_the_autoencoder_has_it(model: Any):
    prompts, pictures = (part[:2] for part in listed("test_images/"))
    floor = psnr(model.decode(model.encode(pictures)), pictures)
    code = ddim.invert(model, pictures, prompt=prompts, method="direct", guidance=7.5, steps=10)
    torch.testing.assert_close(psnr(ddim.reconstruct(model, code), pictures), floor, atol=0.1, rtol=0)


def test_edits_of_held_out_drawings_go_towards_their_answers(model: Any):
    prompts, pictures = (part[:3] for part in listed("test_images/"))
    targets, answers = listed("answers/")
    edited = ddim.edit(model, pictures, [[t] for t in targets], source_prompt=prompts, steps=20).edits[:, 0]
    for edit, source, answer in zip(edited, pictures, answers, strict=True):
        assert float((edit - answer).square().mean()) < float((source - answer).square().mean())
