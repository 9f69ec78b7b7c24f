"""Edits with a known answer: which pairs are made, what is measured, and the command on a tiny model."""

import io
import json
import os
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from killing import killed
from measuring import kept, measured, opened
from PIL import Image
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.evaluation import rows as rows_module
from ddim.evaluation.benchmarks.edits import Edits, shown_pairs
from ddim.evaluation.columns import summarise
from ddim.evaluation.edit_settings import edit_pairs
from ddim.evaluation.eval_images import eval_images, recipe_images
from ddim.evaluation.rows import RowColumns, Rows
from ddim.training import load_config

STYLES, NAMES = ("round", "square"), ("cat", "dog", "hat", "mat")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A parquet file of two styles of four names, of which two pictures are held out."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows: dict[str, list[Any]] = {"image": [], "style": [], "name": [], "subgroup": []}
    for s, style in enumerate(STYLES):
        for n, name in enumerate(NAMES):
            file = io.BytesIO()
            ddim.to_pil(tiny_text.pictures(1, seed=10 * s + n)[0]).save(file, "PNG")
            rows["image"].append({"bytes": file.getvalue(), "path": None})
            rows["style"].append(style)
            rows["name"].append(name)
            rows["subgroup"].append("animal" if name in ("cat", "dog") else "thing")
    features = Features({"image": ImageFeature(), **{k: Value("string") for k in ("style", "name", "subgroup")}})
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set.parquet"))
    (tmp_path / "held.csv").write_text("# held out\nstyle,name\nround,cat\nsquare,hat\n")
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"""
task = "text"
[data]
path = "{tmp_path}/set.parquet"
size = 32
prompt = "a {{style}} {{name}}"
rewrite = [["^a ", ""]]
without = "{tmp_path}/held.csv"
[train]
steps = 1
[output]
folder = "runs/none"
"""
    )
    return file


def test_pairs_start_at_held_out_pictures_and_end_at_answers(recipe: Path):
    pictures = recipe_images(load_config(recipe))
    assert len(pictures) == 8
    assert {(p.style, p.word) for p in pictures if p.held} == {("round", "cat"), ("square", "hat")}
    assert {p.prompt for p in pictures} == {f"{s} {n}" for s in STYLES for n in NAMES}
    pairs = edit_pairs(pictures, words=2, styles=2)
    assert [(p.kind, p.key) for p in pairs] == [
        ("word", "round cat -> round dog"),  # the only other animal
        ("style", "round cat -> square cat"),
        ("word", "square hat -> square mat"),
        ("style", "square hat -> round hat"),
    ]
    assert [p.key for p in edit_pairs(pictures, words=2, styles=2)] == [p.key for p in pairs]


@pytest.fixture
def bench(recipe: Path, tmp_path: Path) -> Any:
    """The benchmark of one setting."""

    def open_with(**options: Any) -> Edits:
        usual = {"recipe": recipe, "method": "direct", "attention": "none"}
        return opened("edits", tiny_text.model(), tmp_path / "bench", **{**usual, **options})

    return open_with


def test_a_perfect_editor_ranks_first_and_keeps_what_is_common(bench: Any, monkeypatch: pytest.MonkeyPatch):
    made = bench()
    answers = {pair.answer.prompt: pair.answer.pixels for pair in made.pairs.values()}

    def perfect(model: Any, source: torch.Tensor, prompts: list[str], **_: Any) -> Any:
        return SimpleNamespace(
            reconstruction=source[None] + 0.1, edits=torch.stack([answers[p] for p in prompts])[None]
        )

    monkeypatch.setattr("ddim.pipelines.edit.edit", perfect)
    (setting,) = made.settings()
    items = made.items(setting)
    assert [len(block) for block in made.blocks(setting, items)] == [2, 2]  # the edits of one source together
    rows = measured(made, setting)
    assert [row["pair"] for row in rows] == list(made.pairs)
    found = summarise(made.columns, rows)
    assert found["top1"] == found["top5"] == 1.0
    assert found["source_psnr"] == pytest.approx(20.0, abs=1e-3)
    assert found["answer_psnr"] is None  # the same image
    assert [line["edit"] for line in made.summary(setting, rows)] == ["word", "style"]
    assert made.run(setting, items[1:2])[0]["rank"] == 1


def test_an_editor_that_does_nothing_is_told_from_one_that_edits(bench: Any, monkeypatch: pytest.MonkeyPatch):
    def lazy(model: Any, source: torch.Tensor, prompts: list[str], **_: Any) -> Any:
        return SimpleNamespace(reconstruction=source[None], edits=torch.stack([source] * len(prompts))[None])

    monkeypatch.setattr("ddim.pipelines.edit.edit", lazy)
    made = bench(method="ddim", styles=0)
    rows = measured(made, made.settings()[0])
    assert summarise(made.columns, rows)["top1"] == 0.0
    assert all(row["kept_mse"] == 0 or row["kept_mse"] != row["kept_mse"] for row in rows)


def test_pictures_to_measure_on_may_have_names_that_are_not_utf_8(tmp_path: Path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    ddim.save_image(torch.rand(1, 8, 8), name)
    model: Any = SimpleNamespace(name="tiny", text=False, picture=(1, 8, 8))
    (image,) = eval_images(model, 1, data=tmp_path).images
    assert image.word.endswith(r"caf\xe9.png")
    rows = Rows(tmp_path / "rows", RowColumns({"word": "string"}, {}))
    rows.add([{"word": image.word}])
    rows.flush()


def test_the_command_measures_resumes_and_shows(recipe: Path, tmp_path: Path):
    folder = tmp_path / "model"
    tiny_text.pipeline().save_pretrained(folder)
    out = tmp_path / "out"
    words = ["evaluate", "edits", recipe, "--model", folder, "--method", "direct", "--attention", "none", "--steps", 2]
    first = CliRunner().invoke(app, [str(w) for w in [*words, "--out", out, "--limit", 2, "--json"]])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, [str(w) for w in [*words, "--out", out, "--json"]])
    assert second.exit_code == 0, second.output
    assert len(kept(out, "edits")) == 4
    table = json.loads(second.output)["rows"]
    assert [(row["edit"], row["pairs"]) for row in table] == [("word", 2), ("style", 2)]
    (sheet,) = out.glob("direct_*.png")
    assert sheet.stem == f"direct_S2_none_w7.5_{json.loads(second.output)['fingerprint'][:12]}"
    assert len(list((out / sheet.stem).iterdir())) == 4
    with Image.open(sheet) as image:
        assert image.width > 3 * 32


def evaluated(recipe: Path, out: Path, *more: Any) -> dict[str, Any]:
    """What the command tells when it is run on the tiny model beside the recipe."""
    folder = recipe.parent / "model"
    if not folder.is_dir():
        tiny_text.pipeline().save_pretrained(folder)
    words = ["evaluate", "edits", recipe, "--model", folder, "--out", out, "--json", "--attention", "none", *more]
    ran = CliRunner().invoke(app, [str(w) for w in words])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_another_run_in_the_same_folder_is_not_taken_for_this_one(recipe: Path, tmp_path: Path):
    out = tmp_path / "out"
    direct = ["--method", "direct", "--words", 0]
    first = evaluated(recipe, out, *direct, "--steps", 2)
    others = [
        evaluated(recipe, out, *direct, "--steps", 3),
        evaluated(recipe, out, *direct, "--steps", 2, "--guidance", 1.5),
    ]
    tiny_text.pipeline(seed=1).save_pretrained(tmp_path / "model")  # other weights under the same name
    others.append(evaluated(recipe, out, *direct, "--steps", 2))
    assert first["fingerprint"] != others[-1]["fingerprint"]
    assert len(kept(out, "edits")) == 4 * 2
    assert [run["rows"][0]["pairs"] for run in (first, *others)] == [2] * 4
    assert len({run["rows"][0]["answer_psnr"] for run in (first, *others)}) == 4
    assert len(list(out.glob("direct_*.png"))) == 4
    # fewer pairs: a table of those alone
    less = evaluated(recipe, out, *direct, "--steps", 2, "--limit", 1)
    assert [row["pairs"] for row in less["rows"]] == [1]
    assert len(kept(out, "edits")) == 4 * 2


def test_killed_five_times_the_table_is_the_same(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    methods = ["direct", "ddim", "belm", "bdia", "heun", "edit-friendly"]
    given = [*(word for name in methods for word in ("--method", name)), "--steps", 2]
    whole = evaluated(recipe, tmp_path / "whole", *given)
    log, run = tmp_path / "log", Edits.run

    def logged(self: Any, setting: Any, items: Any) -> Any:
        done = run(self, setting, items)
        with log.open("a") as file:
            file.write("".join(f"{setting.spec.method} {item['pair']}\n" for item in items))
        time.sleep(0.02)
        return done

    def lines() -> list[str]:
        return log.read_text().splitlines() if log.is_file() else []

    monkeypatch.setattr(rows_module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(Edits, "run", logged)
    killed(lambda: evaluated(recipe, tmp_path / "out", *given), lambda: len(lines()))
    partial = len(kept(tmp_path / "out", "edits"))
    assert 0 < partial < 24  # the kills fell inside the work
    before = len(lines())
    again = evaluated(recipe, tmp_path / "out", *given)
    assert len(lines()) - before == 24 - partial  # what is there is not done again
    assert len(set(lines())) == len(kept(tmp_path / "out", "edits")) == 24
    assert before - partial <= 5 * 2  # a kill costs the source that it fell into

    def numbers(told: Any) -> Any:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in told["rows"]]

    assert numbers(again) == numbers(whole)


def test_the_command_under_the_table_is_the_one_that_was_given(recipe: Path, tmp_path: Path):
    given = ["--method", "direct", "--method", "ddim", "--steps", 1, "--words", 1, "--styles", 0, "--limit", 1]
    evaluated(recipe, tmp_path / "out", *given)
    (file,) = (tmp_path / "out").glob("edits-*.json")
    words = shlex.split(json.loads(file.read_text())["about"]["command"])
    assert words[:3] == ["ddim", "evaluate", "edits"]
    words.remove(str(recipe))
    flags = [*map(str, given), "--attention", "none", "--model", str(tmp_path / "model")]
    pairs = [words[3:][k : k + 2] for k in range(0, len(words[3:]), 2)]
    assert sorted(pairs) == sorted(flags[k : k + 2] for k in range(0, len(flags), 2))


def test_a_method_that_diverges_is_a_result_and_the_run_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ddim.pipelines.edit import edit

    def diverges(model: Any, source: Any, prompts: Any, **options: Any) -> Any:
        if options["source_prompt"] == "round cat":
            raise ddim.DDIMError("The sample is no longer finite.")
        return edit(model, source, prompts, **options)

    monkeypatch.setattr("ddim.pipelines.edit.edit", diverges)
    told = evaluated(recipe, tmp_path / "out", "--method", "direct", "--steps", 1)
    assert told["warnings"] == [
        f"direct · none: round cat -> {answer}: The sample is no longer finite."
        for answer in ("round dog", "square cat")
    ]
    bench = opened("edits", ddim.load(tmp_path / "model"), tmp_path, recipe=recipe, method="direct", steps=1)
    rows = kept(tmp_path / "out", "edits").of(bench.items(bench.settings()[0]))
    assert [(r["rank"], r["answer_psnr"], r["source_psnr"]) for r in rows[:2]] == [(None, None, None)] * 2
    assert {r["failed"] for r in rows[:2]} == {"The sample is no longer finite."}
    assert all(r["answer_psnr"] > 0 and not r["failed"] for r in rows[2:])
    assert [r["failed"] for r in told["rows"]] == [1, 1]
    assert [(r["edit"], r["pairs"]) for r in told["rows"]] == [("word", 2), ("style", 2)]
    assert all(r["source_psnr"] is not None for r in told["rows"])  # of the pair that came through
    again = evaluated(recipe, tmp_path / "out", "--method", "direct", "--steps", 1)
    assert again["warnings"] == []  # it is done


def test_bad_input_of_a_method_ends_the_run(bench: Any, monkeypatch: pytest.MonkeyPatch):
    def refuses(*_: Any, **__: Any) -> None:
        raise ddim.InputError("no")

    monkeypatch.setattr("ddim.pipelines.edit.edit", refuses)
    made = bench()
    with pytest.raises(ddim.InputError, match="no"):
        measured(made, made.settings()[0])


def test_nothing_to_edit_is_one_sentence(recipe: Path, tmp_path: Path):
    tiny_text.pipeline().save_pretrained(tmp_path / "model")
    none = ["--words", "0", "--styles", "0", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["evaluate", "edits", str(recipe), "--model", str(tmp_path / "model"), *none])
    assert result.exit_code == 2
    assert "--words: --words and --styles leave nothing" in " ".join(result.output.split())


def test_a_held_out_list_of_other_columns_is_one_sentence(recipe: Path):
    listed = next(recipe.parent.glob("*.csv"))
    listed.write_text("styel,name\nround,cat\n")
    with pytest.raises(ddim.InputError, match=r"Unknown column 'styel'"):
        recipe_images(load_config(recipe))


def test_a_sheet_shows_pairs_of_every_kind(recipe: Path):
    pairs = edit_pairs(recipe_images(load_config(recipe)), 2, 1)
    many = pairs * 50
    assert {pair.kind for pair in shown_pairs(many)} == {"word", "style"}
    assert len(shown_pairs(many)) == 40
    assert shown_pairs(pairs) == pairs


def test_an_option_of_the_method_is_another_setting(recipe: Path, tmp_path: Path):
    given = ["--method", "edit-friendly", "--steps", 2, "--limit", 1]
    plain = evaluated(recipe, tmp_path / "out", *given)
    told = evaluated(recipe, tmp_path / "out", *given, "--option", "skip=0")
    assert [row["method"] for row in told["rows"]] == ["edit-friendly skip=0"]
    assert told["rows"][0]["answer_psnr"] != plain["rows"][0]["answer_psnr"]
    assert "--option skip=0" in told["command"]
    assert len(list((tmp_path / "out").glob("edit-friendly_*.png"))) == 2


def test_every_inversion_and_every_editor_is_measured_by_default(recipe: Path, tmp_path: Path):
    told = evaluated(recipe, tmp_path / "out", "--steps", 2, "--limit", 1)
    works = ddim.capabilities(ddim.load(told["model"]))
    wanted = [name for kind in ("inversions", "editors") for name, why in works[kind].items() if why is None]
    assert list(dict.fromkeys(row["method"] for row in told["rows"])) == list(dict.fromkeys(wanted))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--method", "dirct"], "Did you mean 'direct'"),
        (["--model", "fashion"], "no text encoder"),
        (["--words", "-1"], "--words: -1 "),
        (["--styles", "-1"], "--styles: -1 "),
        (["--limit", "0"], "--limit: 0 "),
        (["--steps", "0"], "--steps: 0 "),
        (["--option", "skip=0"], "--option: it belongs to one method"),
        (["--method", "direct", "--option", "skip=0"], "skip"),
    ],
)
def test_wrong_input_is_one_sentence(recipe: Path, extra: list[str], sentence: str):
    result = CliRunner().invoke(app, ["evaluate", "edits", str(recipe), *extra])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
