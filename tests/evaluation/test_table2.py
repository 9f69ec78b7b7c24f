"""Round trips in numbers: methods by name, the pictures that are taken, Table 2, and the commands' bad input."""

import json
import subprocess
import sys
import time
from math import log10
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from killing import killed
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.data.images import read_images
from ddim.evaluation import store, table2, trips
from ddim.evaluation.material import material, spread
from ddim.evaluation.methods import VARIANTS, all_ways, refusal, taken, way, way_of
from ddim.evaluation.store import Rows
from ddim.evaluation.trips import Trip, in_runs, measured_alone

TITLES = ["ddim", "ddim iterations=5", "heun"]


def test_a_way_is_the_same_however_it_is_written():
    assert way_of("ddim iterations=5") == way("ddim", {"iterations": "5"}) == way("ddim", {"iterations": 5})
    assert way_of("ddim iterations=1") == way_of("ddim")
    assert way_of("edict p=0.90").title == "edict p=0.9"
    assert [w.title for w in all_ways()][:3] == TITLES
    assert {w.method for w in all_ways()} == set(ddim.inversion_names())
    assert len(all_ways()) == len(ddim.inversion_names()) + sum(map(len, VARIANTS.values()))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("dirct", "Did you mean 'direct'"), ("ddim iterations", "is no method with options"), ("ddim it=5", "it")],
)
def test_a_way_that_is_none(text: str, sentence: str):
    with pytest.raises(ddim.InputError, match=sentence):
        way_of(text)


def test_what_a_method_refuses_is_known_without_asking_the_network(monkeypatch: pytest.MonkeyPatch):
    pixel, text = tiny.model(), tiny_text.model()
    for model in (pixel, text):
        monkeypatch.setattr(type(model), "forward", lambda *a: pytest.fail("the network was asked"))
    refused = {w.title for w in all_ways() if refusal(pixel, w, 2, 1.0) is not None}
    assert refused == {"null-text", "null-text start=prompt", "negative-prompt"}
    assert {w.title for w in all_ways() if refusal(text, w, 2, 1.0)} == {"null-text", "null-text start=prompt"}
    assert not {w.title for w in all_ways() if refusal(text, w, 2, 7.5)}
    combinations = taken(text, [way_of("null-text"), way_of("ddim")], [2], [1.0, 7.5])
    assert [(w.title, g, s) for w, g, s in combinations] == [("null-text", 7.5, 2), ("ddim", 1.0, 2), ("ddim", 7.5, 2)]
    with pytest.raises(ddim.InputError, match="nothing to tune"):
        taken(text, [way_of("null-text")], [2], [1.0])
    with pytest.raises(ddim.InputError, match="2000"):
        taken(pixel, [], [2000], [1.0])


def test_pictures_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 3) == [0, 1, 2]
    with pytest.raises(ddim.InputError, match="images: 4 is more than the 3 pictures"):
        spread(range(3), 4)


def test_a_folder_of_pictures_and_a_test_split(tmp_path: Path):
    model = tiny.model()
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for k in range(3):
            value = 0.1 * k + 0.5 * (part == "test")
            ddim.save_image(torch.full((1, 8, 8), value), tmp_path / part / f"{k}.png")
    found = material(model, 2, data=tmp_path)
    assert [round(float(p.pixels.mean()), 1) for p in found.pictures] == [0.5, 0.6]
    assert len(material(model, 3, data=tmp_path / "train").pictures) == 3
    with pytest.raises(ddim.InputError, match="carries no pictures for the model 'tiny'"):
        material(model)
    with pytest.raises(ddim.InputError, match="needs prompts beside its pictures"):
        material(tiny_text.model(), data=tmp_path)
    with pytest.raises(ddim.InputError, match="no file or folder"):
        material(model, data=tmp_path / "nowhere.parquet")


def test_seeds_follow_a_picture_whatever_is_done_already():
    items = [{"seed": k} for k in (0, 1, 3, 4, 7)]
    assert [[i["seed"] for i in run] for run in in_runs(items)] == [[0, 1], [3, 4], [7]]


def test_one_that_diverges_takes_no_other_with_it():
    asked = []

    def run(items: Any) -> Any:
        asked.append([i["seed"] for i in items])
        if any(i["seed"] == 1 for i in items):
            raise ddim.DDIMError("The sample is no longer finite.\nAt step 3.")
        return [{**i, **dict.fromkeys(table2.COLUMNS.measured, 1.0), "failed": ""} for i in items]

    items: Any = [{"seed": k} for k in range(3)]
    rows = measured_alone(table2.COLUMNS, items, run)
    assert asked == [[0, 1, 2], [0], [1], [2]]
    assert [row["failed"] for row in rows] == ["", "The sample is no longer finite. At step 3.", ""]
    assert rows[1]["mse"] is None
    found = table2.summary(Trip(way_of("ddim"), 5), [{**r, "psnr": r["psnr"]} for r in rows])
    assert (found["images"], found["failed"], found["mse"]) == (3, 1, 1.0)


def test_what_cannot_be_used_at_all_is_no_result():
    def run(items: Any) -> Any:
        raise ddim.InputError("guidance = nan is not a number.")

    with pytest.raises(ddim.InputError, match="guidance = nan"):
        measured_alone(table2.COLUMNS, [{"seed": 0}, {"seed": 1}], run)


def test_the_numbers_of_a_cell_by_hand(monkeypatch: pytest.MonkeyPatch):
    """A trip that darkens the k-th picture by (k + 1) / 100."""
    pixels = torch.full((2, 1, 16, 16), 0.5)
    pictures: Any = [SimpleNamespace(pixels=p, prompt="") for p in pixels]
    model: Any = SimpleNamespace(
        **{
            "state_dtype": torch.float32,
            "dtype": torch.float32,
            "text": False,
            "fingerprint": "f",
            "schedule": SimpleNamespace(spacing="leading"),
        }
    )
    off = torch.tensor([0.01, 0.02]).view(2, 1, 1, 1)
    monkeypatch.setattr(trips, "invert", lambda model, images, **given: images)
    monkeypatch.setattr(trips, "reconstruct", lambda model, code, **given: code - off[: len(code)])
    counts = iter([0, 5, 4])
    bench = table2.Reconstructions(model, pictures, lambda images: next(counts))
    trip = Trip(way_of("ddim"), 5)
    rows = bench.run(trip, bench.items(trip))
    assert [row["mse"] for row in rows] == pytest.approx([1e-4, 4e-4], rel=1e-4)
    assert [row["max"] for row in rows] == pytest.approx([0.01, 0.02], rel=1e-4)
    found = table2.summary(trip, rows)
    assert found["mse"] == pytest.approx(2.5e-4, rel=1e-4)
    assert found["psnr"] == pytest.approx(-10 * log10(2.5e-4), abs=1e-3)
    assert found["psnr_worst"] == pytest.approx(-10 * log10(4e-4), abs=1e-3)
    assert (found["nfe_back"], found["nfe_forward"], found["failed"]) == (5, 4, 0)


def test_the_page_has_the_papers_layout():
    row = {"images": 1, "psnr": 30.0, "psnr_worst": 20.0, "nfe_back": 10.0, "nfe_forward": 9.0, "seconds": 0.5}
    row |= {"failed": 0, "mse": 0.001}
    table = [{**row, "method": m, "steps": s} for m in ("ddim", "belm") for s in (10, 50)]
    table[3] |= {"mse": None, "failed": 1}
    text = table2.page(table)
    assert "| method | S = 10 | S = 50 |" in text
    assert "| DDIM on CIFAR10, as published | 0.014 | 0.0023 |" in text
    assert "| belm | 0.001 | – |" in text
    assert "| ddim | 10 + 9 | 10 + 9 |" in text
    assert "Pictures that failed" in text
    assert list(table2.lines(table)["belm"]) == [(10, 0.001, None, None)]


# the command


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A tiny pixel model and twelve pictures."""
    tiny.pipeline_folder(tmp_path / "model")
    for k in range(12):
        noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(k))
        ddim.save_image(noise, tmp_path / "data" / f"{k:02d}.png")
    return tmp_path


def words(bench: Path, *more: Any) -> list[str]:
    given = ["evaluate", "table2", "--model", bench / "model", "--data", bench / "data", "--out", bench / "out"]
    return [str(w) for w in [*given, "--json", *more]]


def evaluated(bench: Path, *more: Any, code: int = 0) -> Any:
    ran = CliRunner().invoke(app, words(bench, *more))
    assert ran.exit_code == code, ran.output
    return json.loads(ran.stdout) if code == 0 else " ".join(ran.stderr.split())


def test_the_command_measures_what_the_verbs_give(bench: Path):
    told = evaluated(bench, "-S", 2, "-S", 3, "--images", 5, "--batch", 2, "--method", "ddim", "--method", "belm")
    assert [(r["method"], r["steps"], r["images"]) for r in told["rows"]] == [
        *(("ddim", 2, 5), ("ddim", 3, 5), ("belm", 2, 5), ("belm", 3, 5))
    ]
    model = ddim.load(bench / "model")
    images = read_images([bench / "data" / f"{k:02d}.png" for k in (0, 2, 4, 7, 9)], model.picture)
    for row in told["rows"]:
        code = ddim.invert(model, images, steps=row["steps"], method=row["method"])
        error = (ddim.reconstruct(model, code).double() - images.double()).square().flatten(1).mean(1)
        assert row["mse"] == pytest.approx(float(error.mean()), rel=1e-3, abs=1e-12)
        assert row["psnr_worst"] == pytest.approx(
            -10 * log10(float(error.max())), abs=1.0
        )  # rounding, in another batch
    assert [(r["nfe_back"], r["nfe_forward"]) for r in told["rows"]][:2] == [(2, 2), (3, 3)]
    names = {Path(f).name for f in told["files"]}
    assert {"table2-model.md", "table2-model.csv", "table2-model.json"} <= names
    page = (bench / "out" / "table2-model.md").read_text()
    for line in (f"command: {told['command']}", f"fingerprint: {model.fingerprint}", "images: 5", "diffusers "):
        assert line in page
    again = evaluated(bench, *told["command"].split()[3:])  # as it can be typed again
    assert again["rows"] == told["rows"]
    double = evaluated(bench, "-S", 3, "--images", 5, "--method", "belm", "--dtype", "float64")
    assert double["rows"][0]["mse"] < 1e-3 * told["rows"][3]["mse"]


def test_killed_five_times_the_table_is_the_same(bench: Path, monkeypatch: pytest.MonkeyPatch):
    given = ["-S", 2, "-S", 3, "-S", 4, "--images", 12, "--batch", 2, "--method", "ddim"]
    whole = evaluated(bench, *given, "--out", bench / "whole")
    log, run = bench / "log", table2.Reconstructions.run

    def logged(self: Any, trip: Trip, items: Any) -> Any:
        rows = run(self, trip, items)
        with log.open("a") as file:
            file.write("".join(f"{trip.steps} {item['seed']}\n" for item in items))
        time.sleep(0.02)
        return rows

    def lines() -> list[str]:
        return log.read_text().splitlines() if log.is_file() else []

    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(table2.Reconstructions, "run", logged)
    killed(lambda: evaluated(bench, *given), lambda: len(lines()))
    partial = len(Rows(bench / "out" / "rows", table2.COLUMNS))
    assert 0 < partial < 36  # the kills fell inside the work
    before = len(lines())
    again = evaluated(bench, *given)
    assert len(lines()) - before == 36 - partial  # what is there is not done again
    assert len(set(lines())) == len(Rows(bench / "out" / "rows", table2.COLUMNS)) == 36
    assert before - partial <= 5 * 2  # a kill costs the batch that it fell into

    def numbers(told: Any) -> Any:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in told["rows"]]

    assert numbers(again) == numbers(whole)


def test_two_runs_do_not_share_a_folder(bench: Path):
    code = "import sys; from pathlib import Path; from ddim._utils.lock import only_process\n"
    code += "with only_process(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(bench / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        said = evaluated(bench, "-S", 2, "--images", 1, code=2)
        other.communicate("")
    assert "Another process is writing results to" in said
    assert "choose another --out" in said


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--method", "dirct"], "Did you mean 'direct'"),
        (["--method", "null-text"], "null-text"),
        (["--option", "iterations=5"], "--option: it belongs to one method, and all are measured"),
        (["--steps", "0"], "steps'"),
        (["--steps", "1001"], "--steps: 1001"),
        (["--images", "13"], "--images: 13 is more than the 12 pictures there are"),
        (["--data", "nowhere"], "nowhere"),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
        (["--guidance", "2"], "no text encoder"),
        (["--spacing", "lead"], "leading"),
        (["--model", "fashon"], "Did you mean 'fashion'"),
    ],
)
def test_wrong_input_is_one_sentence(bench: Path, extra: list[str], sentence: str):
    said = evaluated(bench, *extra, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (bench / "out").exists()
