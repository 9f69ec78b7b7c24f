"""Paths between x_T: their numbers on paths that are known, and the command."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_features
import torch
from commands import fails
from measuring import Flat, opened
from test_table1 import gaussian_model
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.core.slerp import slerp
from ddim.evaluation.benchmarks.interpolation import EPSILON, WAYS, Interpolation, distance
from ddim.evaluation.metrics.frechet import Statistics, frechet_distance


def bench(folder: Path, frames: int = 5, steps: int = 3) -> Interpolation:
    made = opened("interpolation", gaussian_model(), folder, steps=steps, spacing="leading", frames=frames)
    made.network = Flat()
    return made


def numbers(along: Interpolation, points: torch.Tensor, speed: float = 0.0) -> dict[str, Any]:
    """Of frames [F, 4] whose neighbours at a random place lie ``speed`` * epsilon apart."""
    near = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5 + speed * EPSILON, 0.5, 0.5, 0.5]], dtype=torch.float64)
    return along.numbers(torch.cat([points.double(), near])[None].unflatten(2, (1, 2, 2)))[0]


def test_a_straight_even_path_is_1_by_all_measures(tmp_path: Path):
    ends = torch.tensor([[0.0, 0.2, 0.4, 0.6], [0.4, 0.6, 0.8, 1.0]])  # in steps of whole grey levels' tenths
    found = numbers(bench(tmp_path), torch.stack([ends[0] + (ends[1] - ends[0]) * k / 4 for k in range(5)]), 3.0)
    assert found["pace_pixels"] == pytest.approx(1.0)
    assert found["length_pixels"] == pytest.approx(1.0)
    assert found["pace_features"] == pytest.approx(1.0, abs=0.05)  # of 8-bit images
    assert found["contrast"] == pytest.approx(1.0)
    assert found["ppl"] == pytest.approx(9.0, rel=1e-3)
    assert found["end"] == pytest.approx([0.0, 0.2, 0.4, 0.6], abs=1e-6)
    assert found["middle"] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-6)


def test_a_jump_and_an_arc(tmp_path: Path):
    jump = torch.tensor([[0.0, 1, 0, 1]] * 3 + [[1.0, 1, 0, 1]] * 2)
    assert numbers(bench(tmp_path), jump)["pace_pixels"] == pytest.approx(4.0)  # all of four steps in one
    angle = torch.linspace(0, math.pi, 181)
    arc = torch.stack([0.5 + 0.5 * angle.cos(), 0.5 * angle.sin(), angle * 0, angle * 0 + 1], 1)
    assert numbers(bench(tmp_path, frames=181), arc)["length_pixels"] == pytest.approx(math.pi / 2, rel=1e-4)


def test_what_does_not_move_or_has_one_grey_has_no_number(tmp_path: Path):
    found = numbers(bench(tmp_path), torch.full((5, 4), 0.5))
    assert [found[k] for k in ("pace_pixels", "length_pixels", "contrast")] == [None] * 3


def test_paths_go_between_the_images_of_two_seeds(tmp_path: Path):
    model = tiny.model()
    along = opened("interpolation", model, tmp_path, steps=3, spacing="leading", frames=5)
    ends = ddim.sample(model, 3, steps=3, seed=7)
    for way in WAYS:
        frames = along.path(way, [7, 8])
        assert frames.shape == (2, 7, 1, 8, 8)
        assert torch.allclose(frames[:, 0], ends[:2], atol=1e-5), way
        assert torch.allclose(frames[:, 4], ends[1:], atol=1e-5), way
        assert torch.allclose(along.path(way, [8])[0], frames[1], atol=1e-5), way  # whatever the batch
    assert torch.allclose(along.path("pixels", [7])[0, 2], (ends[0] + ends[1]) / 2, atol=1e-5)


def test_the_middle_of_an_arc_keeps_the_norm_and_that_of_a_line_does_not(tmp_path: Path):
    """On Gaussian data images are x_T times a number, so the ways can be written down."""
    along = bench(tmp_path)
    a, b = (torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    known = {"slerp": slerp(a[None], b[None], 0.5)[0], "lerp": (a + b) / 2, "pixels": (a + b) / 2}
    for way in WAYS:
        frames = along.path(way, [0])[0].double() * 2 - 1
        factor = (frames[0] / a).mean()
        assert torch.allclose(frames[2], factor * known[way], atol=1e-5), way


def test_the_middles_distance_needs_more_paths_than_features():
    vectors = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    reference = Statistics.of(torch.rand(30, 4, generator=torch.Generator().manual_seed(1)))
    found = distance(vectors.tolist(), reference)
    assert found["distance"] == pytest.approx(frechet_distance(Statistics.of(vectors), reference))
    assert distance(vectors[:4].tolist(), reference)["distance"] is None
    assert distance(vectors.tolist(), None)["distance"] is None


def test_the_command(tmp_path: Path):
    folder = tiny.pipeline_folder(tmp_path / "small")
    seen = tiny_features.features_folder(tmp_path / "seen")
    data = tiny_features.pictures_folder(tmp_path / "pictures")
    fixed = ["evaluate", "interpolation", "--model", folder, "--features", seen, "--data", data, "--steps", 2]
    words = [str(w) for w in (*fixed, "--samples", 8, "--frames", 3, "--out", tmp_path / "out", "--json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert [row["way"] for row in told["rows"]] == list(WAYS)
    assert all(row["paths"] == 8 and row["distance"] > 0 for row in told["rows"])
    pixels = told["rows"][2]
    assert pixels["pace_pixels"] == pytest.approx(1.0, abs=1e-4)
    assert pixels["length_pixels"] == pytest.approx(1.0, abs=1e-4)
    assert {Path(f).name for f in told["files"]} == {f"interpolation-small.{e}" for e in ("md", "csv", "json", "png")}
    assert "distance of the ends" in told
    assert json.loads(CliRunner().invoke(app, words).stdout)["rows"] == told["rows"]  # nothing is drawn anew
    few = json.loads(CliRunner().invoke(app, [*words, "--samples", "3"]).stdout)
    assert few["rows"][0]["distance"] is None
    assert few["distance"].startswith("none")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--frames", 4], ["--frames: 4", "odd"]),
        (["--way", "slrep"], ["'slrep'", "Did you mean 'slerp'?"]),
        (["--steps", 0], ["--steps: 0"]),
        (["--spacing", "linear"], ["'linear'"]),
        (["--batch", 0], ["--batch: 0"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, more: list[Any], said: list[str]):
    folder = tiny.pipeline_folder(tmp_path / "small")
    sentence = fails("evaluate", "interpolation", "--model", folder, "--out", tmp_path / "out", *more, code=2)
    assert all(part in sentence for part in said), sentence
