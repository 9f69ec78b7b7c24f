"""The leaderboard: memory, edits of the codes, the order of the table, the command on tiny models."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from measuring import kept, measured, opened
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.editing.editors import EDITORS
from ddim.evaluation import eval_images
from ddim.evaluation.benchmarks.leaderboard import AUTOENCODER, Leaderboard
from ddim.evaluation.columns import summarise
from ddim.evaluation.edit_settings import edit_pairs
from ddim.evaluation.eval_images import EvalImage, EvalImages
from ddim.evaluation.metrics.memory import MEGA, peak_memory
from ddim.evaluation.metrics.retrieval import Gallery

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


def pictures() -> list[EvalImage]:
    """Two styles of three names, of which ``cat`` is held out."""
    out = []
    for s, style in enumerate(STYLES):
        for n, name in enumerate(NAMES):
            pixels = tiny_text.pictures(1, seed=10 * s + n)[0]
            out.append(EvalImage(style, name, "", f"{style} {name}", pixels, name == "cat"))
    return out


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> EvalImages:
    """What every model is measured on: no LPIPS judges it."""
    known = pictures()
    gallery = Gallery(torch.stack([p.pixels for p in known]), [p.prompt for p in known])
    images = EvalImages([p for p in known if p.held], known, "made up", {"": gallery})
    monkeypatch.setattr(eval_images, "_bundled", lambda model, count: images)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    return images


@pytest.fixture
def board(found: EvalImages, tmp_path: Path) -> Any:
    def opened_with(**options: Any) -> Any:
        with pytest.warns(ddim.DDIMWarning, match="The column lpips is empty"):
            return opened("leaderboard", tiny_text.model(), tmp_path / "board", steps=2, **options)

    return opened_with


def row(**values: Any) -> dict[str, Any]:
    every = dict.fromkeys(column.name for column in Leaderboard.columns if column.kind is not None)
    return {**every, "method": "ddim", "options": "", "steps": 10, "guidance": 7.5, "failed": "", **values}


def test_a_summary_by_hand():
    rows = [
        row(psnr=20.0, ssim=0.5, nfe=10.0, seconds=1.0, memory_mb=3.0, edits=2, right=1),
        row(psnr=30.0, ssim=0.7, nfe=10.0, seconds=2.0, edits=4, right=3),
        row(failed="no"),
    ]
    got = summarise(Leaderboard.columns, rows)
    assert (got["psnr"], got["psnr_worst"], got["images"], got["failed"]) == (25.0, 20.0, 3, 1)
    assert (got["edits"], got["top1"], got["memory_mb"], got["seconds"], got["lpips"]) == (6, 4 / 6, 3.0, 1.5, None)


def test_the_order_and_the_plot(board: Any):
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
    ranked = board(method="ddim").arrange(table)
    order = [(r["method"], r["guidance"], r["steps"]) for r in ranked]
    assert order == [
        *(("autoencoder", None, None), ("a", 1.0, 20), ("a", 7.5, 5)),
        *(("c", 7.5, 10), ("a", 7.5, 10), ("b", 7.5, 10)),
    ]
    plot = board(method="ddim").plots(ranked)[""]
    assert plot.title.endswith(", w = 7.5")
    assert {name: [p[:2] for p in points] for name, points in plot.lines.items()} == {
        "a": [(10, 10.0), (20, 20.0)],
        "c": [(30, 25.0)],
    }


@pytest.mark.parametrize(("method", "weight"), [("direct", 7.5), ("bdia", 1.0)])
def test_edits_are_of_the_code_that_came_back_and_are_ranked(
    method: str, weight: float, found: EvalImages, board: Any, monkeypatch: pytest.MonkeyPatch
):
    """An editor that gives each answer but one. The code of an exact method is one at guidance 1."""
    answers, seen = {p.prompt: p.pixels for p in found.known}, []

    def edited(model: Any, code: Any, prompts: Any, **arguments: Any) -> Any:
        seen.append((code, prompts, arguments))
        images = torch.stack([torch.stack([answers[p] for p in row]) for row in prompts])
        images[0, 0] = answers["next cat"]
        return SimpleNamespace(edits=images, reconstruction=images[:, 0])

    monkeypatch.setattr("ddim.pipelines.edit.edit", edited)
    bench = board(method=method, guidance=7.5, words=2, styles=1)
    assert [[p.key for p in bench.targets[id(s)]] for s in found.images] == [
        [p.key for p in edit_pairs(found.known, 2, 1) if p.source is source] for source in found.images
    ]
    rows = measured(bench, bench.settings()[1])
    assert [(r["edits"], r["right"]) for r in rows] == [(3, 2), (3, 3)]
    ((code, prompts, arguments),) = seen
    assert (code.method, len(code), code.guidance["weight"]) == (method, 2, weight)
    assert arguments == {"guidance": 7.5, "attention": "refine", "batch": 8}
    assert [len(p) for p in prompts] == [3, 3]
    assert rows[0]["memory_mb"] > 0
    assert rows[1]["memory_mb"] is None  # measured on the first image only


def test_an_edit_that_fails_leaves_the_numbers_of_the_round_trip(board: Any, monkeypatch: pytest.MonkeyPatch):
    def edited(model: Any, code: Any, prompts: Any, **_: Any) -> Any:
        if code.prompts[0] == "red cat":
            raise ddim.DDIMError("The sample is no longer finite.")
        edits = torch.zeros(len(code), len(prompts[0]), 3, 32, 32)
        return SimpleNamespace(edits=edits, reconstruction=edits[:, 0])

    monkeypatch.setattr("ddim.pipelines.edit.edit", edited)
    bench = board(method="direct", guidance=1.0, words=1, styles=0)
    with pytest.warns(ddim.DDIMWarning, match="edit: The sample is no longer finite"):
        rows = measured(bench, bench.settings()[1])
    assert [r["failed"] for r in rows] == ["edit: The sample is no longer finite.", ""]
    assert [(r["edits"], r["right"], r["psnr"] > 0) for r in rows] == [(1, 0, True), (1, 0, True)]


def test_a_methods_code_is_made_once(board: Any, monkeypatch: pytest.MonkeyPatch):
    made = []
    invert = ddim.invert
    bench = board(method="null-text inner=1", guidance=7.5)
    monkeypatch.setattr("ddim.evaluation.round_trip.invert", lambda *a, **k: made.append(len(a[1])) or invert(*a, **k))
    rows = measured(bench, bench.settings()[1])
    assert made == [2, 1]  # both images for all their edits; the first again to measure the memory
    assert all(r["edits"] == 3 for r in rows)


def test_the_autoencoder_alone_is_the_ceiling(found: EvalImages, board: Any):
    bench = board(method="ddim")
    first, *_ = bench.settings()
    assert first.spec.method == AUTOENCODER
    rows = measured(bench, first)
    with torch.no_grad():
        back = bench.session.model.decode(bench.session.model.encode(found.pixels))
    error = (back.double() - found.pixels.double()).square().flatten(1).mean(1)
    assert [r["mse"] for r in rows] == pytest.approx(error.tolist(), rel=1e-5)
    assert {(r["nfe"], r["edits"]) for r in rows} == {(0.0, None)}
    (line,) = bench.summary(first, rows)
    assert (line["method"], line["guidance"], line["steps"]) == (AUTOENCODER, None, None)


# the command


@pytest.fixture
def bench(tmp_path: Path, found: EvalImages) -> Path:
    tiny_text.pipeline().save_pretrained(tmp_path / "model")
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
    assert "answers: each searched among 6 images" in page
    assert len(kept(bench / "out", "leaderboard")) == 6 * 2

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Leaderboard, "run", never)
    again = evaluated(bench, "--method", "direct", "--method", "belm", "-w", 7.5, "--words", 1)
    assert [r["psnr"] for r in again["rows"]] == [
        r["psnr"]
        for r in told["rows"]
        if (r["guidance"], r["method"]) in [(None, "autoencoder"), (7.5, "direct"), (7.5, "belm")]
    ]


def test_every_editor_and_attention_control_is_measured_unless_methods_are_named(board: Any):
    titles = {(trip.spec.title, trip.guidance, trip.steps) for trip in board(guidance=[3.0]).settings()}
    for name, kind in EDITORS.items():
        own = kind().usual(tiny_text.model().info)
        count = kind().steps or 2
        works = name not in ("instruct", "velo-edit")
        assert ((name, own.guidance, count) in titles) == works
        assert ((name, 3.0, count) in titles) == works or name == "chord-edit"
    for attention in ("none", "masactrl", "plug-and-play"):
        assert (f"direct attention={attention}", 3.0, 2) in titles
    assert ("direct", 3.0, 2) in titles
    named = board(guidance=[3.0], method=["direct attention=masactrl"]).settings()
    assert [trip.spec.title for trip in named] == [AUTOENCODER, "direct attention=masactrl"]
    without = {trip.spec.title for trip in board(guidance=[3.0], words=0, styles=0).settings()}
    assert "direct" in without
    assert not without & set(EDITORS)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--method", "instruct"], "shows the image to the network as a reference"),
        (["--method", "dirct"], "Did you mean 'direct'"),
        (["--method", "null-text", "-w", "1"], "nothing to tune"),
        (["--data", "somewhere"], "--recipe: "),
        (["--recipe", "nowhere.toml"], "nowhere.toml"),
        (["--steps", "0"], "--steps: 0 "),
        (["--words", "-1"], "--words: -1 "),
        (["--model", "fashion", "-w", "2"], "--guidance: it goes with prompts"),
        (["--model", "emojy"], "Did you mean 'emoji'"),
    ],
)
def test_wrong_input_is_one_sentence(bench: Path, extra: list[str], sentence: str):
    said = evaluated(bench, *extra, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (bench / "out").exists()


def test_an_editor_is_measured_on_the_images_themselves(board: Any):
    """Its own latent decoded is its reconstruction; what it keeps, and at what cost, is that of its edits."""
    bench = board(method=["flow-edit"], words=2, styles=1)
    (_, setting, *_) = bench.settings()
    usual = ddim.make_editor("flow-edit").usual(bench.session.model.info).guidance
    assert (setting.spec.method, setting.guidance) == ("flow-edit", usual)
    rows = measured(bench, setting)
    ceiling = measured(bench, bench.settings()[0])
    for row_, best in zip(rows, ceiling, strict=True):
        assert row_["psnr"] == pytest.approx(best["psnr"], abs=0.01)
        assert (row_["nfe"], row_["seconds"], row_["memory_mb"]) == (None, None, None)
        assert row_["edits"] == 3
        assert row_["edit_nfe"] > 0
        assert 0 <= row_["kept_bytes"] <= 1
        assert row_["kept_mse"] > 0
    table = [*bench.summary(setting, rows)]
    (points,) = bench.plots(table)["-pareto"].lines.values()
    assert points[0].low <= points[0].y <= points[0].high


def test_what_an_edit_keeps_is_measured_where_source_and_answer_agree(
    found: EvalImages, board: Any, monkeypatch: pytest.MonkeyPatch
):
    answers = {p.prompt: p.pixels for p in found.known}

    def edited(model: Any, source: Any, prompts: Any, **_: Any) -> Any:
        images = torch.stack([torch.stack([answers[p] for p in row]) for row in prompts])
        return SimpleNamespace(edits=images, reconstruction=images[:, 0])

    monkeypatch.setattr("ddim.pipelines.edit.edit", edited)
    bench = board(method="flow-edit", words=1, styles=0)
    source = found.images[0]
    (pair,) = bench.targets[id(source)]
    both = [image.pixels.clone() for image in (source, pair.answer)]
    rows = measured(bench, bench.settings()[1])
    common = ((both[0] - both[1]).abs().amax(0) > 0.1).float()[None, None]
    common = torch.nn.functional.max_pool2d(common, 3, 1, 1)[0, 0] == 0
    if not bool(common.any()):
        assert rows[0]["kept_mse"] is None
    else:
        error = (both[0] - both[1])[:, common].square().mean()
        assert rows[0]["kept_mse"] == pytest.approx(float(error), rel=1e-4)
