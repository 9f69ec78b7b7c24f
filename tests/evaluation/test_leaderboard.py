"""The leaderboard: memory, edits of the codes, the order of the table, the command on tiny models."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.evaluation import leaderboard, material
from ddim.evaluation.edits import Picture, edit_pairs
from ddim.evaluation.leaderboard import COLUMNS, FLOOR, Leaderboard, lines, ranked, summary
from ddim.evaluation.material import Material
from ddim.evaluation.memory import MEGA, peak_memory
from ddim.evaluation.methods import way_of
from ddim.evaluation.nearest import Gallery
from ddim.evaluation.store import Rows
from ddim.evaluation.trips import Trip

STYLES, NAMES = ("red", "next"), ("cat", "dog", "hat")
CPU = torch.device("cpu")


def test_memory_by_hand():
    weight = torch.zeros(MEGA)  # 4 MB

    def run() -> None:
        a = torch.zeros(MEGA // 4)  # 1 MB
        b = a.repeat(2)  # 2 MB
        del a
        view = weight.view(2, -1).t()  # no memory of its own
        c, d = torch.zeros(MEGA // 8), torch.zeros(MEGA // 16)  # 2.75 MB at a time, less than before
        assert len(b) + len(c) + len(d) + len(view)

    assert peak_memory(run, CPU) == pytest.approx(3.0, abs=0.01)
    assert peak_memory(lambda: weight[1:], CPU) == 0.0


def test_memory_counts_what_a_gradient_needs():
    x = torch.ones(MEGA // 4, requires_grad=True)

    def run(gradient: bool) -> None:
        with torch.set_grad_enabled(gradient):
            y = x
            for _ in range(4):
                y = y.sin()
            if gradient:
                torch.autograd.grad(y.sum(), x)

    assert peak_memory(lambda: run(gradient=False), CPU) == pytest.approx(2.0, abs=0.01)
    assert peak_memory(lambda: run(gradient=True), CPU) >= 4.0


def pictures() -> list[Picture]:
    """Two styles of three names, of which ``cat`` is held out."""
    out = []
    for s, style in enumerate(STYLES):
        for n, name in enumerate(NAMES):
            pixels = tiny_text.pictures(1, seed=10 * s + n)[0]
            out.append(Picture(style, name, "", f"{style} {name}", pixels, name == "cat"))
    return out


@pytest.fixture
def found() -> Material:
    known = pictures()
    gallery = Gallery(torch.stack([p.pixels for p in known]), [p.prompt for p in known])
    return Material([p for p in known if p.held], known, "made up", {"": gallery})


def row(**given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS.measured), "failed": "", **given}


def test_a_summary_by_hand():
    rows = [
        row(psnr=20.0, ssim=0.5, nfe=10.0, seconds=1.0, memory_mb=3.0, edits=2, right=1),
        row(psnr=30.0, ssim=0.7, nfe=10.0, seconds=2.0, edits=4, right=3),
        row(failed="no"),
    ]
    got = summary(Trip(way_of("ddim"), 10, 7.5), rows)
    assert (got["psnr"], got["psnr_worst"], got["images"], got["failed"]) == (25.0, 20.0, 3, 1)
    assert (got["edits"], got["top1"], got["memory_mb"], got["seconds"], got["lpips"]) == (6, 4 / 6, 3.0, 1.5, None)


def test_the_order_and_the_plot():
    def line(method: str, guidance: float | None, steps: int | None, psnr: float | None, nfe: float) -> dict[str, Any]:
        return {"method": method, "guidance": guidance, "steps": steps, "psnr": psnr, "nfe": nfe}

    table = [
        line("a", 7.5, 10, 20.0, 20),
        line("b", 7.5, 10, None, 20),
        line("c", 7.5, 10, 25.0, 30),
        line("a", 7.5, 5, 10.0, 10),
        line("a", 1.0, 20, 10.0, 40),
        line("autoencoder", None, None, 30.0, 0),
    ]
    order = [(r["method"], r["guidance"], r["steps"]) for r in ranked(table)]
    assert order == [
        *(("autoencoder", None, None), ("a", 1.0, 20), ("a", 7.5, 5)),
        *(("c", 7.5, 10), ("a", 7.5, 10), ("b", 7.5, 10)),
    ]
    weight, drawn = lines(ranked(table))
    assert weight == 7.5
    assert {name: [p[:2] for p in points] for name, points in drawn.items()} == {
        "a": [(10, 10.0), (20, 20.0)],
        "c": [(30, 25.0)],
    }


def test_edits_are_of_the_code_that_came_back_and_are_ranked(found: Material, monkeypatch: pytest.MonkeyPatch):
    """An editor that draws each answer but one."""
    answers, seen = {p.prompt: p.pixels for p in found.known}, []

    def edited(model: Any, code: Any, prompts: Any, **given: Any) -> Any:
        seen.append((code, prompts, given))
        drawn = torch.stack([torch.stack([answers[p] for p in row]) for row in prompts])
        drawn[0, 0] = answers["next cat"]
        return SimpleNamespace(edits=drawn)

    monkeypatch.setattr(leaderboard, "edit", edited)
    board = Leaderboard(tiny_text.model(), found, lambda images: 1.0, words=2, styles=1)
    assert [[p.key for p in board.targets[id(s)]] for s in found.pictures] == [
        [p.key for p in edit_pairs(found.known, 2, 1) if p.source is source] for source in found.pictures
    ]
    trip = Trip(way_of("direct"), 2, 7.5)
    rows = board.run(trip, board.items(trip))
    assert [(r["edits"], r["right"]) for r in rows] == [(3, 2), (3, 3)]
    ((code, prompts, given),) = seen
    assert code.method == "direct"
    assert len(code) == 2
    assert given == {"attention": "refine"}
    assert [len(p) for p in prompts] == [3, 3]
    assert rows[0]["memory_mb"] > 0
    assert rows[1]["memory_mb"] is None  # of the first picture alone


def test_an_edit_that_fails_leaves_the_numbers_of_the_round_trip(found: Material, monkeypatch: pytest.MonkeyPatch):
    def edited(model: Any, code: Any, prompts: Any, **given: Any) -> Any:
        if code.prompts[0] == "red cat":
            raise ddim.DDIMError("The sample is no longer finite.")
        return SimpleNamespace(edits=torch.zeros(len(code), len(prompts[0]), 3, 32, 32))

    monkeypatch.setattr(leaderboard, "edit", edited)
    board = Leaderboard(tiny_text.model(), found, lambda images: 1.0, words=1, styles=0)
    trip = Trip(way_of("direct"), 2, 1.0)
    rows = board.run(trip, board.items(trip))
    assert [r["failed"] for r in rows] == ["edit: The sample is no longer finite.", ""]
    assert [(r["edits"], r["right"], r["psnr"] > 0) for r in rows] == [(1, 0, True), (1, 0, True)]


def test_a_methods_code_is_made_once(found: Material, monkeypatch: pytest.MonkeyPatch):
    made = []
    invert = ddim.invert
    monkeypatch.setattr("ddim.evaluation.trips.invert", lambda *a, **k: made.append(len(a[1])) or invert(*a, **k))
    board = Leaderboard(tiny_text.model(), found, lambda images: 1.0)
    trip = Trip(way_of("null-text inner=1"), 2, 7.5)
    rows = board.run(trip, board.items(trip))
    assert made == [2, 1]  # both pictures for all their edits; the first again under the eyes of the memory
    assert all(r["edits"] == 3 for r in rows)


def test_the_floor_is_the_autoencoders(found: Material):
    model = tiny_text.model()
    board = Leaderboard(model, found, lambda images: 1.0)
    first, *_ = board.trips([(way_of("ddim"), 7.5, 2)])
    assert first.way == FLOOR
    rows = board.run(first, board.items(first))
    with torch.no_grad():
        back = model.decode(model.encode(found.pixels))
    error = (back.double() - found.pixels.double()).square().flatten(1).mean(1)
    assert [r["mse"] for r in rows] == pytest.approx(error.tolist(), rel=1e-5)
    assert {(r["nfe"], r["edits"]) for r in rows} == {(0.0, None)}


# the command


@pytest.fixture
def bench(tmp_path: Path, found: Material, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_text.pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(material, "_carried", lambda model, count: found)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    return tmp_path


def evaluated(bench: Path, *more: Any, code: int = 0) -> Any:
    words = ["evaluate", "leaderboard", "--model", bench / "model", "--out", bench / "out", "--json", "-S", 2, *more]
    ran = CliRunner().invoke(app, [str(w) for w in words])
    assert ran.exit_code == code, ran.output
    return json.loads(ran.stdout) if code == 0 else " ".join(ran.stderr.split())


def test_the_command_measures_every_method_once(bench: Path, monkeypatch: pytest.MonkeyPatch):
    told = evaluated(bench, "--method", "direct", "--method", "null-text inner=1", "--method", "belm", "--words", 1)
    assert [(r["method"], r["guidance"]) for r in told["rows"] if r["steps"] is None] == [("autoencoder", None)]
    assert {(r["method"], r["guidance"]) for r in told["rows"] if r["steps"] == 2} == {
        *(("direct", 1.0), ("belm", 1.0), ("direct", 7.5), ("belm", 7.5), ("null-text inner=1", 7.5))
    }
    best = {r["method"]: r["psnr"] for r in told["rows"] if r["guidance"] == 7.5}
    assert best["direct"] == pytest.approx(told["rows"][0]["psnr"], abs=0.01)  # it comes back to the ceiling
    assert {r["edits"] for r in told["rows"][1:]} == {4}
    assert {r["lpips"] for r in told["rows"]} == {None}
    assert len(told["warnings"]) == 1
    assert "The column lpips is empty" in told["warnings"][0]
    page = (bench / "out" / "leaderboard-model.md").read_text()
    assert f"command: {told['command']}" in page
    assert "answers: each sought among 6 pictures" in page
    count = len(Rows(bench / "out" / "rows", COLUMNS))
    assert count == 6 * 2

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Leaderboard, "_measured", never)
    again = evaluated(bench, "--method", "direct", "--method", "belm", "-w", 7.5, "--words", 1)
    assert [r["psnr"] for r in again["rows"]] == [
        r["psnr"]
        for r in told["rows"]
        if (r["guidance"], r["method"]) in [(None, "autoencoder"), (7.5, "direct"), (7.5, "belm")]
    ]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--method", "dirct"], "Did you mean 'direct'"),
        (["--method", "null-text", "-w", "1"], "nothing to tune"),
        (["--data", "somewhere"], "needs prompts beside its pictures"),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
        (["--steps", "0"], "steps'"),
        (["--words", "-1"], "words'"),
        (["--model", "fashion", "-w", "2"], "--guidance: it goes with prompts"),
        (["--model", "emojy"], "Did you mean 'emoji'"),
    ],
)
def test_wrong_input_is_one_sentence(bench: Path, extra: list[str], sentence: str):
    said = evaluated(bench, *extra, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (bench / "out").exists()
