"""One x_T at many S: what is compared, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_features
import torch
from commands import fails
from measuring import Flat, measured, opened
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import DDIMError
from ddim.cli.app import app
from ddim.evaluation import generation
from ddim.evaluation.benchmarks.consistency import Consistency, Trajectories
from ddim.evaluation.columns import mean_interval, median_interval
from ddim.evaluation.metrics.feature_extractor import as_saved
from ddim.models.pixel import PixelModel

SIZE = 16  # SSIM's window is 11 wide


def model() -> PixelModel:
    return PixelModel("tiny", tiny.unet(size=SIZE), tiny.DDPM)


def bench(folder: Path, network: Any = None, **options: Any) -> Consistency:
    usual = {"reference": 4, "steps": [2], "spacing": "leading", "samples": 3, "seed": 3, "batch": 2}
    made = opened("consistency", model(), folder, **{**usual, **options})
    made.network = network
    return made


def test_a_mean_has_the_usual_interval():
    assert mean_interval([]) == (None, None, None)
    assert mean_interval([2.0]) == (2.0, 2.0, 2.0)
    assert mean_interval([1.0, 3.0]) == pytest.approx((2.0, 2 - 1.96, 2 + 1.96))  # s = sqrt 2, n = 2


def test_a_median_s_interval_holds_it_as_often_as_it_says():
    assert median_interval([]) == (None, None, None)
    assert median_interval([2.0]) == (2.0, 2.0, 2.0)
    assert median_interval([3.0, 1.0, 1e9]) == (3.0, 1.0, 1e9)
    assert median_interval([float(k) for k in range(100)]) == (49.5, 39, 59)  # the 40th and the 60th
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        _, low, high = median_interval(rng.standard_cauchy(51).tolist())
        assert low is not None
        assert high is not None
        held += low <= 0 <= high
    assert 0.93 <= held / 400 <= 0.99  # of a nominal 0.95, whose deviation is 0.011 here


def test_what_is_measured_of_two_images(tmp_path: Path):
    with_features, plain = bench(tmp_path, Flat()), bench(tmp_path)
    dark, light = torch.full((1, 1, SIZE, SIZE), 0.2), torch.full((1, 1, SIZE, SIZE), 0.3)
    (found,) = with_features.compare(dark, light)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)  # an error of 0.1
    assert found["cosine"] == pytest.approx(1.0)
    assert found["l2"] == pytest.approx(0.1 * SIZE, rel=1e-5)
    # of two greys SSIM is its first factor
    assert found["ssim"] == pytest.approx((2 * 0.2 * 0.3 + 1e-4) / (0.2**2 + 0.3**2 + 1e-4), abs=1e-4)
    (same,) = with_features.compare(dark, dark)
    assert (same["psnr"], same["ssim"], same["l2"]) == (None, pytest.approx(1.0), 0.0)
    (pixels_only,) = plain.compare(dark, light)
    assert (pixels_only["cosine"], pixels_only["l2"]) == (None, None)


def test_images_are_compared_with_the_same_seeds_at_the_reference(tmp_path: Path):
    made = bench(tmp_path, Flat(), spacing="quadratic", eta=[1.0])
    assert made.settings() == [Trajectories(1.0, 4), Trajectories(1.0, 2)]
    whole, found = (measured(made, setting) for setting in made.settings())
    drawn = [
        as_saved(ddim.sample(model(), 3, steps=steps, eta=1.0, seed=3, spacing="quadratic")).flatten(1)
        for steps in (2, 4)
    ]
    distance = (drawn[0] - drawn[1]).norm(dim=1)
    assert [row["l2"] for row in found] == pytest.approx(distance.tolist(), rel=0.02)  # a grey level here or there
    assert [row["psnr"] for row in whole] == [None] * 3
    assert made.summary(made.settings()[0], whole) == []
    line, chance = made.summary(made.settings()[1], found)
    assert (line["steps"], line["images"], line["l2"]) == (2, 3, pytest.approx(float(distance.mean()), rel=0.02))
    other = (drawn[1] - drawn[1].roll(1, 0)).norm(dim=1)
    assert (chance["eta"], chance["steps"], chance["images"]) == (1.0, None, 3)
    assert chance["l2"] == pytest.approx(float(other.mean()), rel=0.02)
    made.seeds = made.seeds[:1]
    alone = made.other_seeds(1.0)
    assert (alone["eta"], alone["l2"], alone["images"]) == (1.0, None, 0)


def test_what_failed_at_the_reference_is_compared_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fragile(model: Any, solver: Any, grid: Any, seeds: Any) -> torch.Tensor:
        if 4 in seeds and grid.steps == 4:
            raise DDIMError("it diverged")
        return torch.rand(len(seeds), 1, SIZE, SIZE)

    monkeypatch.setattr(generation, "generate", fragile)
    made = bench(tmp_path, eta=[0.0], batch=3)
    whole, found = (measured(made, setting) for setting in made.settings())
    assert [row["failed"] for row in whole] == ["", "it diverged", ""]
    assert [row["ssim"] is None for row in found] == [False, True, False]


def test_the_command(tmp_path: Path):
    folder = tiny.pipeline_folder(tmp_path / "small", tiny.unet(size=SIZE))
    seen = tiny_features.features_folder(tmp_path / "seen", size=SIZE)
    base = ["evaluate", "consistency", "--model", folder, "--features", seen, "--reference", 5, "--steps", 2]
    words = [str(w) for w in (*base, "--steps", 3, "--samples", 3, "--out", tmp_path / "out", "--json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [(row["eta"], row["steps"]) for row in told["rows"]] == [(e, s) for e in (0, 1) for s in (2, 3, None)]
    assert {row["images"] for row in told["rows"]} == {3}
    assert (tmp_path / "out" / "consistency-small_eta0.png").is_file()
    assert "another x_T" in (tmp_path / "out" / "consistency-small.md").read_text()
    assert json.loads(CliRunner().invoke(app, words).stdout)["rows"] == told["rows"]  # nothing is drawn anew


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", 9, "--reference", 9], ["--steps: 9 is not less than the 9"]),
        (["--reference", 1001], ["--reference: 1001", "from 2 to 1000"]),
        (["--reference", 5], ["no usual S is less than 5", "--steps"]),
        (["--eta", 3], ["--eta: 3"]),
        (["--features", "nothing"], ["'nothing'"]),
        (["--spacing", "linear"], ["'linear'"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, more: list[Any], said: list[str]):
    folder = tiny.pipeline_folder(tmp_path / "small")
    sentence = fails("evaluate", "consistency", "--model", folder, "--out", tmp_path / "out", *more, code=2)
    assert all(part in sentence for part in said), sentence
