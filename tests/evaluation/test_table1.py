"""Table 1: its cells, their images and distances, the command, and a run that is killed."""

import json
import math
import os
import shlex
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_features
import torch
from commands import fails
from measuring import Flat, measured, opened
from oracles import Gaussian
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import DDIMError, InputError
from ddim.cli.app import app
from ddim.core.process import eta_std, sigma_hat
from ddim.evaluation import generation
from ddim.evaluation import rows as rows_module
from ddim.evaluation.benchmarks.table1 import Table1, layout, places
from ddim.evaluation.generation import generate, grid_within, network_calls, spacing_label
from ddim.evaluation.metrics.feature_extractor import as_saved
from ddim.evaluation.metrics.frechet import Statistics, frechet_distance
from ddim.evaluation.rows import RowColumns, Rows
from ddim.models.base import Model
from ddim.models.wrapper import ModelWrapper
from ddim.pipelines.common import grid_for
from ddim.pipelines.sample import solver_with_eta
from ddim.solvers import make_solver

SCALE = 0.3


def gaussian_model(scale: float = SCALE) -> Model:
    """A model whose data are N(0, scale^2) in [-1, 1], known exactly; pictures of 2x2."""
    return Known(Gaussian(torch.zeros(1, 2, 2, dtype=torch.float64), torch.full((1, 2, 2), scale, dtype=torch.float64)))


class Known(ModelWrapper):
    """The tiny model's schedule and pictures, answering from a closed form in float64."""

    def __init__(self, known: Gaussian) -> None:
        super().__init__(tiny.model())
        self.known = known
        self.info = replace(self.info, name="gaussian", shape=(1, 2, 2), picture=(1, 2, 2), dtype=torch.float64)

    @property
    def fingerprint(self) -> str:
        return "g" * 64

    def forward(self, x: torch.Tensor, node: Any, cond: Any, call: Any) -> torch.Tensor:
        return self.known(x, node).eps


@pytest.fixture
def one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A table of one cell, in pixels as features."""
    monkeypatch.setattr("ddim.evaluation.metrics.feature_extractor.feature_extractor", lambda *_: Flat())
    usual = {"steps": [10], "eta": ["0"], "solver": [], "spacing": ["leading"]}
    return lambda model, **options: opened("table1", model, tmp_path, **{**usual, **options})


# --- cells ----------------------------------------------------------------------------------------------------------


def test_costs_are_what_the_solvers_ask():
    path = tiny.model().schedule.path
    for name, calls in {"ddim": 7, "ddpm": 7, "heun": 13, "adams-bashforth": 7, "dpm++2m": 7, "bdia": 7}.items():
        assert network_calls(make_solver(name), ddim.make_grid(path, 7)) == calls, name


def test_a_budget_is_spent_as_far_as_steps_go():
    model = gaussian_model()
    steps = [grid_within(make_solver("heun"), model, "leading", n).steps for n in (1, 2, 5, 8, 10, 15, 20)]
    assert steps == [1, 1, 3, 4, 5, 8, 10]  # 2 S - 1 calls
    assert [grid_within(make_solver("dpm++2m"), model, "quadratic", n).steps for n in (5, 8)] == [5, 8]
    with pytest.raises(InputError) as caught:
        grid_within(make_solver("edict"), model, "leading", 1)
    assert caught.value.parameter == "evaluations"


def test_the_table_has_the_papers_cells_and_begins_with_the_cheap():
    where = places(gaussian_model())
    assert len(where) == 2 * (5 * 5 + 3 * 5)
    costs = [place.cell.nfe for place in where]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (5, 1000)
    # at S = T both spacings walk every level, and 10 and 20 evaluations of a one-call solver are S = 10 and 20
    assert len({place.cell for place in where}) == 2 * (4 * 5 + 3 * 5) + 5
    assert {p.cell.spacing for p in where if p.column == 1000} == {"every level"}
    heun = [p for p in where if p.row == "heun" and p.spacing == "leading"]
    assert [(p.column, p.cell.nfe) for p in heun] == [(5, 5), (8, 7), (10, 9), (15, 15), (20, 19)]


def test_every_level_is_said_of_grids_that_are_it():
    path = tiny.model().schedule.path
    assert spacing_label(path, ddim.make_grid(path, 1000, "trailing")) == "every level"
    assert spacing_label(path, ddim.make_grid(path, 999, "trailing")) == "trailing"
    assert spacing_label(path, ddim.make_grid(path, 1000, "karras")) == "karras"


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0), ("heun", 0.0)])
def test_images_are_those_of_sample(solver: str, eta: float):
    model = tiny.model()
    made = solver_with_eta(solver, eta, None)
    images = generate(model, made, grid_for(model, 3, "quadratic"), [5, 6, 7])
    alone = generate(model, made, grid_for(model, 3, "quadratic"), [7])
    theirs = ddim.sample(model, 3, steps=3, eta=eta, solver=solver, seed=5, spacing="quadratic")
    assert torch.equal(images, theirs)
    assert torch.allclose(images[2:], alone, atol=1e-5)


def test_classes_are_the_seeds_modulo_their_number():
    model = tiny.model(classes=3)
    images = generate(model, make_solver("ddim"), grid_for(model, 2, None), [4, 5])
    assert torch.equal(images, ddim.sample(model, 2, steps=2, seed=4, labels=[1, 2]))


def test_the_distance_of_a_gaussian_is_the_one_known_in_closed_form(one_cell: Any):
    model, count = gaussian_model(), 60
    bench = one_cell(model, samples=count)
    (cell,) = bench.settings()
    rows = measured(bench, cell)
    factor = 1.0  # what all steps of eta = 0 multiply x_T by
    for t, s in pairwise(cell.grid.nodes):
        factor *= (s.alpha * t.alpha * SCALE**2 + s.sigma * t.sigma) / (t.alpha**2 * SCALE**2 + t.sigma**2)
    noise = [torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(k)).double() for k in range(count)]
    images = as_saved((factor * torch.stack(noise) + 1) / 2)
    bench.reference = Statistics(torch.full((4,), 0.5).double(), torch.eye(4).double() * (SCALE / 2) ** 2, 1000)
    (line,) = bench.summary(cell, rows)
    expected = frechet_distance(Statistics.of(images.flatten(1)), bench.reference)
    assert line["distance"] == pytest.approx(expected, rel=1e-4)
    assert line["low"] < line["distance"] < line["high"]
    assert (line["images"], line["failed"], line["nfe"]) == (count, 0, 10)


@pytest.mark.parametrize("eta", ["1", "sigma-hat"])
def test_noise_has_the_variance_known_in_closed_form(one_cell: Any, eta: str):
    model, scale = gaussian_model(0.1), 0.1
    bench = one_cell(model, eta=[eta], steps=[5], samples=300)
    (cell,) = bench.settings()
    rows = measured(bench, cell)
    variance = 1.0
    for t, s in pairwise(cell.grid.nodes):
        std = eta_std(1.0, t, s)
        direction = math.sqrt(max(s.sigma**2 - std**2, 0))
        factor = (s.alpha * t.alpha * scale**2 + direction * t.sigma) / (t.alpha**2 * scale**2 + t.sigma**2)
        added = 0.0 if s.sigma == 0 else (sigma_hat(t, s) if eta == "sigma-hat" else std)
        variance = factor**2 * variance + added**2
    found = torch.tensor([row["vector"] for row in rows]).double().var() * 4
    assert found.item() == pytest.approx(variance, rel=0.2)  # 1200 numbers: 4 % is one standard deviation


def test_an_image_that_fails_is_a_row_and_takes_no_other_with_it(one_cell: Any, monkeypatch: pytest.MonkeyPatch):
    def fragile(model: Any, solver: Any, grid: Any, seeds: Any) -> torch.Tensor:
        if 3 in seeds:
            raise DDIMError("it diverged")
        return generate(model, solver, grid, seeds)

    monkeypatch.setattr(generation, "generate", fragile)
    bench = one_cell(gaussian_model(), samples=8, batch=8)
    (cell,) = bench.settings()
    rows = measured(bench, cell)
    assert [row["failed"] for row in rows] == [""] * 3 + ["it diverged"] + [""] * 4
    bench.reference = Statistics.of(torch.rand(9, 4))
    (line,) = bench.summary(cell, rows)
    assert (line["images"], line["failed"], line["distance"], line["why"]) == (7, 1, None, "it diverged")


def test_the_layout_is_the_papers():
    where = places(gaussian_model(), [20, 10], ["1", "0", "sigma-hat"], ["heun"], [5, 8], ["quadratic"])
    lines = {p.cell: {"distance": p.cell.nfe / 1, "low": 0.0, "high": 99.0, "nfe": p.cell.nfe} for p in where}
    lines.pop(next(p.cell for p in where if p.row == "eta = 1" and p.column == 20))
    assert layout(where, lines).splitlines() == [
        "**quadratic, S**",
        "",
        "| | 10 | 20 |",
        "|---|---|---|",
        "| eta = 0 | 10.00 [0.00, 99.00] | 20.00 [0.00, 99.00] |",
        "| eta = 1 | 10.00 [0.00, 99.00] | – |",
        "| sigma-hat | 10.00 [0.00, 99.00] | 20.00 [0.00, 99.00] |",
        "",
        "**quadratic, network evaluations**",
        "",
        "| | 5 | 8 |",
        "|---|---|---|",
        "| heun | 5.00 [0.00, 99.00] | 7.00 [0.00, 99.00] (7) |",
    ]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("table1")
    return {
        "--model": str(tiny.pipeline_folder(folder / "small")),
        "--features": str(tiny_features.features_folder(folder / "seen")),
        "--data": str(tiny_features.pictures_folder(folder / "pictures")),
    }


SMALL = ("--samples", 8, "--steps", 2, "--eta", 0, "--spacing", "leading", "--solver", "heun", "--evaluations", 3)


def words(here: dict[str, str], out: Path, *more: Any) -> list[str]:
    fixed = [word for pair in here.items() for word in pair]
    return [str(w) for w in ("evaluate", "table1", *fixed, "--out", out, "--json", *more)]


def evaluated(here: dict[str, str], out: Path, *more: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, words(here, out, *more))
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command_writes_the_table_and_what_can_be_typed_again(here: dict[str, str], tmp_path: Path):
    told = evaluated(here, tmp_path / "a", *SMALL)
    names = {Path(f).name for f in told["files"]}
    assert {"table1-small.md", "table1-small.csv", "table1-small.json", "table1-small.png"} >= names
    text = (tmp_path / "a" / "table1-small.md").read_text()
    assert "Fréchet distance in the features of seen" in text
    assert "12 images of pictures, test" in text
    assert "FID" not in text
    again = shlex.split(told["command"])
    assert again[:3] == ["ddim", "evaluate", "table1"]
    repeated = CliRunner().invoke(app, [*again[1:], "--out", str(tmp_path / "b"), "--json"])
    without = [{k: v for k, v in row.items() if k != "seconds"} for row in told["rows"]]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in json.loads(repeated.stdout)["rows"]] == without


def test_a_part_of_the_table_shares_its_images_with_more_of_it(
    here: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    part = evaluated(here, tmp_path, *SMALL)
    drawn: list[int] = []

    def counting(model: Any, solver: Any, grid: Any, seeds: Any) -> torch.Tensor:
        drawn.append(len(seeds))
        return generate(model, solver, grid, seeds)

    monkeypatch.setattr(generation, "generate", counting)
    more = [str(w) for w in SMALL]
    more[1] = "9"
    whole = evaluated(here, tmp_path, *more, "--eta", "sigma-hat")
    assert sorted(drawn) == [1, 1, 9]  # one more of each cell that was there
    assert len(part["rows"]) == 2
    assert len(whole["rows"]) == 3


def test_killed_five_times_the_table_is_the_same(here: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = evaluated(here, tmp_path / "whole", *SMALL)
    monkeypatch.setattr(rows_module, "FLUSH_SECONDS", 0.0)
    out = tmp_path / "killed"

    def parts() -> int:
        return len(list(out.glob("cells/*/rows/part-*")))

    for k in range(5):
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(generation, "generate", lambda *a: (time.sleep(0.05), generate(*a))[1])
            CliRunner().invoke(app, words(here, out, *SMALL, "--batch", 1))
            os._exit(0)
        while parts() < 2 * (k + 1) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    done = parts()
    assert 0 < done < 16  # the kills fell inside the work
    again = evaluated(here, out, *SMALL)
    for row in (*whole["rows"], *again["rows"]):
        row.pop("seconds")
    for name in ("distance", "low", "high", "bias"):
        for ours, theirs in zip(again["rows"], whole["rows"], strict=True):
            assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-3)  # other batches round otherwise
    assert again["rows"] == whole["rows"]
    for cell in (out / "cells").iterdir():
        assert len(Rows(cell / "rows", RowColumns.of(Table1.columns))) == 8  # none twice, none lost


BAD = [
    (["--samples", 6], ["--samples asks for 6 images", "covariance of 6 features", "7 or more"]),
    (["--samples", 20, "--steps", 0], ["--steps: 0"]),
    (["--samples", 20, "--eta", 2], ["--eta: 2", "sigma-hat"]),
    (["--samples", 20, "--eta", "big"], ["--eta: big"]),
    (["--samples", 20, "--solver", "huen"], ["'huen'", "Did you mean 'heun'?"]),
    (["--samples", 20, "--spacing", "quadratc"], ["'quadratc'", "Did you mean 'quadratic'?"]),
    (["--samples", 20, "--eta", "none", "--solver", "none"], ["nothing to measure"]),
    (["--samples", 20, "--data", "nowhere"], ["nowhere"]),
    (["--samples", 20, "--features", "nothing"], ["'nothing'"]),
    (["--samples", 20, "--batch", 0], ["--batch: 0"]),
]


@pytest.mark.parametrize(("more", "said"), BAD, ids=[" ".join(map(str, more)) for more, _ in BAD])
def test_bad_input_is_one_sentence(here: dict[str, str], tmp_path: Path, more: list[Any], said: list[str]):
    sentence = fails(*words(here, tmp_path / "out", *more), code=2)
    assert all(part in sentence for part in said), sentence


def test_a_model_that_no_features_fit_is_told_what_to_do(here: dict[str, str], tmp_path: Path):
    alone = {"--model": here["--model"]}
    sentence = fails(*words(alone, tmp_path, "--samples", 20), code=2)
    assert "--features: no bundled features fit images of 1x8x8" in sentence
    assert "with --features" in sentence
    larger = tiny_features.features_folder(tmp_path / "larger", size=16)
    sentence = fails(*words(alone, tmp_path, "--features", larger, "--samples", 20), code=2)
    assert "'larger' takes images of 1x16x16, and the model generates 1x8x8" in sentence


def test_too_few_pictures_to_compare_with(here: dict[str, str], tmp_path: Path):
    few = tiny_features.pictures_folder(tmp_path / "few", count=3)
    sentence = fails(*words({**here, "--data": str(few)}, tmp_path / "out", *SMALL), code=2)
    assert "The reference has 3 images" in sentence
