"""Round trips: methods by name, the images that are taken, Table 2, and wrong input of the command."""

import json
import subprocess
import sys
import time
from math import log10
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from killing import killed
from measuring import kept, measured, opened
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.data.images import read_images
from ddim.evaluation import round_trip, rows
from ddim.evaluation.benchmarks.table2 import Table2, page
from ddim.evaluation.columns import summarise
from ddim.evaluation.eval_images import eval_images, spread
from ddim.evaluation.method_spec import VARIANTS, MethodSpec, accepted, all_methods, chosen_methods, refusal
from ddim.evaluation.round_trip import consecutive

TITLES = ["ddim", "ddim iterations=5", "heun"]


def test_a_method_is_the_same_however_it_is_written():
    by_text = MethodSpec.parse("ddim iterations=5")
    assert by_text == MethodSpec.of("ddim", {"iterations": "5"}) == MethodSpec.of("ddim", {"iterations": 5})
    assert MethodSpec.parse("ddim iterations=1") == MethodSpec.parse("ddim")
    assert MethodSpec.parse("edict p=0.90").title == "edict p=0.9"
    assert [spec.title for spec in all_methods()][:3] == TITLES
    assert {spec.method for spec in all_methods()} == set(ddim.inversion_names())
    assert len(all_methods()) == len(ddim.inversion_names()) + sum(map(len, VARIANTS.values()))


def test_an_option_belongs_to_the_one_method():
    assert chosen_methods(["ddim", "ddim"], None) == [MethodSpec("ddim")]
    assert chosen_methods(None, None) == []
    assert chosen_methods(["ddim"], {"iterations": 5}) == [MethodSpec.parse("ddim iterations=5")]
    for several in (None, ["ddim", "heun"]):
        with pytest.raises(ddim.InputError) as caught:
            chosen_methods(several, {"iterations": 5})
        assert caught.value.parameter == "option"


@pytest.mark.parametrize(
    ("text", "parameter"), [("dirct", "method"), ("ddim iterations", "method"), ("ddim it=5", "options")]
)
def test_a_text_that_names_no_method(text: str, parameter: str):
    with pytest.raises(ddim.InputError) as caught:
        MethodSpec.parse(text)
    assert caught.value.parameter == parameter


def test_what_a_method_refuses_is_known_without_asking_the_network(monkeypatch: pytest.MonkeyPatch):
    pixel, text = tiny.model(), tiny_text.model()
    for model in (pixel, text):
        monkeypatch.setattr(type(model), "forward", lambda *a: pytest.fail("the network was asked"))
    refused = {spec.title for spec in all_methods() if refusal(pixel, spec, 2, 1.0) is not None}
    assert refused == {"null-text", "null-text start=prompt", "negative-prompt", "prox-npi", "spd"}
    refused = {spec.title for spec in all_methods() if refusal(text, spec, 2, 1.0)}
    assert refused == {"null-text", "null-text start=prompt"}
    assert not {spec.title for spec in all_methods() if refusal(text, spec, 2, 7.5)}
    null_text, naive = MethodSpec.parse("null-text"), MethodSpec.parse("ddim")
    combinations = accepted(text, [null_text, naive], [2], [1.0, 7.5])
    assert combinations == [(null_text, 7.5, 2), (naive, 1.0, 2), (naive, 7.5, 2)]
    with pytest.raises(ddim.InputError) as caught:
        accepted(text, [null_text], [2], [1.0])
    assert caught.value.parameter == "guidance"
    with pytest.raises(ddim.InputError) as caught:
        accepted(pixel, [], [2000], [1.0])
    assert caught.value.parameter == "steps"


def test_pictures_are_spread_evenly():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 3) == [0, 1, 2]
    with pytest.raises(ddim.InputError) as caught:
        spread(range(3), 4)
    assert caught.value.parameter == "images"


def test_a_folder_of_pictures_and_a_test_split(tmp_path: Path):
    model = tiny.model()
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for k in range(3):
            value = 0.1 * k + 0.5 * (part == "test")
            ddim.save_image(torch.full((1, 8, 8), value), tmp_path / part / f"{k}.png")
    found = eval_images(model, 2, data=tmp_path)
    assert [round(float(image.pixels.mean()), 1) for image in found.images] == [0.5, 0.6]
    assert len(eval_images(model, 3, data=tmp_path / "train").images) == 3
    for wrong, parameter in [
        ({"model": model}, "data"),  # nothing is bundled with it
        ({"model": tiny_text.model(), "data": tmp_path}, "recipe"),  # it needs prompts
        ({"model": model, "data": tmp_path, "recipe": object()}, "recipe"),
        ({"model": model, "data": tmp_path / "nowhere.parquet"}, "data.path"),
    ]:
        with pytest.raises(ddim.InputError) as caught:
            eval_images(**wrong)
        assert caught.value.parameter == parameter


def test_seeds_follow_a_picture_whatever_is_done_already():
    items = [{"seed": k} for k in (0, 1, 3, 4, 7)]
    assert [[i["seed"] for i in run] for run in consecutive(items)] == [[0, 1], [3, 4], [7]]


def test_the_summary_of_a_setting_with_a_failure():
    row = {column.name: 1.0 for column in Table2.columns if column.kind is not None} | {"method": "ddim", "options": ""}
    rows = [row | {"failed": ""}, {**row, "mse": None, "psnr": None, "max": None, "failed": "diverged"}]
    found = summarise(Table2.columns, rows)
    assert (found["images"], found["failed"], found["mse"], found["max"]) == (2, 1, 1.0, 1.0)


def darkened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: int | None = None) -> Any:
    """A benchmark of two grey images whose round trip darkens the k-th by (k + 1) / 100."""
    for k in range(2):
        ddim.save_image(torch.full((1, 8, 8), 0.5), tmp_path / "data" / f"{k}.png")
    bench = opened("table2", tiny.model(), tmp_path / "out", data=tmp_path / "data", images=2, method="ddim", steps=5)
    for image in bench.images.images:
        image.pixels.fill_(0.5)
    bench.images.images[1].pixels[0, 0, 0] = 0.51  # so that the two are different items
    asked: list[list[float]] = []

    def invert(model: Any, images: torch.Tensor, **arguments: Any) -> torch.Tensor:
        asked.append([arguments["seed"], len(images)])
        if fails is not None and arguments["seed"] <= fails < arguments["seed"] + len(images):
            raise ddim.NotFinite("The sample is no longer finite.\nAt step 3.", step=3)
        model.evaluations += 5 * len(images)
        return images

    def reconstruct(model: Any, code: torch.Tensor, **_: Any) -> torch.Tensor:
        model.evaluations += 4 * len(code)
        first = asked[-1][0]
        return code - torch.tensor([0.01 * (first + k + 1) for k in range(len(code))]).view(-1, 1, 1, 1)

    monkeypatch.setattr(round_trip, "invert", invert)
    monkeypatch.setattr(round_trip, "reconstruct", reconstruct)
    monkeypatch.setattr(round_trip, "ssim", lambda a, b: torch.ones(len(a)))  # its window is larger than the images
    return bench, asked


def test_the_numbers_of_a_cell_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bench, _ = darkened(monkeypatch, tmp_path)
    (setting,) = bench.settings()
    found = measured(bench, setting)
    assert [row["mse"] for row in found] == pytest.approx([1e-4, 4e-4], rel=1e-4)
    assert [row["max"] for row in found] == pytest.approx([0.01, 0.02], rel=1e-4)
    (line,) = bench.summary(setting, found)
    assert line["mse"] == pytest.approx(2.5e-4, rel=1e-4)
    assert line["psnr"] == pytest.approx(-10 * log10(2.5e-4), abs=1e-3)
    assert line["psnr_worst"] == pytest.approx(-10 * log10(4e-4), abs=1e-3)
    assert (line["nfe_back"], line["nfe_forward"], line["failed"]) == (5, 4, 0)


def test_an_image_that_diverges_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bench, asked = darkened(monkeypatch, tmp_path, fails=1)
    (setting,) = bench.settings()
    with pytest.warns(ddim.DDIMWarning, match="no longer finite. At step 3") as warned:
        found = measured(bench, setting)
    assert len(warned) == 1
    assert asked == [[0, 2], [0, 1], [1, 1]]
    assert [row["failed"] for row in found] == ["", "The sample is no longer finite. At step 3."]
    assert (found[0]["mse"] > 0, found[1]["mse"], found[1]["seconds"]) == (True, None, None)


def test_the_page_has_the_papers_layout():
    row = {"images": 1, "psnr": 30.0, "psnr_worst": 20.0, "nfe_back": 10.0, "nfe_forward": 9.0, "seconds": 0.5}
    row |= {"failed": 0, "mse": 0.001}
    table = [{**row, "method": m, "steps": s} for m in ("ddim", "belm") for s in (10, 50)]
    table[3] |= {"mse": None, "failed": 1}
    text = page(table)
    assert "| method | S = 10 | S = 50 |" in text
    assert "| DDIM on CIFAR10, as published | 0.014 | 0.0023 |" in text
    assert "| belm | 0.001 | – |" in text
    assert "| ddim | 10 + 9 | 10 + 9 |" in text
    assert "Images that failed" in text


def test_the_plot_is_the_error_against_the_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bench, _ = darkened(monkeypatch, tmp_path)
    table = [{"method": "belm", "steps": s, "mse": mse} for s, mse in ((10, 0.001), (50, None), (100, 0.0))]
    assert bench.plots(table)[""].lines == {"belm": [(10, 0.001, None, None)]}


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
    fixed = ["evaluate", "table2", "--model", bench / "model", "--data", bench / "data", "--out", bench / "out"]
    return [str(w) for w in [*fixed, "--json", *more]]


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
    log, run = bench / "log", Table2.run

    def logged(self: Any, trip: Any, items: Any) -> Any:
        found = run(self, trip, items)
        with log.open("a") as file:
            file.write("".join(f"{trip.steps} {item['seed']}\n" for item in items))
        time.sleep(0.02)
        return found

    def lines() -> list[str]:
        return log.read_text().splitlines() if log.is_file() else []

    monkeypatch.setattr(rows, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(Table2, "run", logged)
    killed(lambda: evaluated(bench, *given), lambda: len(lines()))
    partial = len(kept(bench / "out", "table2"))
    assert 0 < partial < 36  # the kills fell inside the work
    before = len(lines())
    again = evaluated(bench, *given)
    assert len(lines()) - before == 36 - partial  # what is there is not done again
    assert len(set(lines())) == len(kept(bench / "out", "table2")) == 36
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
        (["--steps", "0"], "--steps: 0 "),
        (["--steps", "1001"], "--steps: 1001"),
        (["--images", "13"], "--images: 13"),
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
