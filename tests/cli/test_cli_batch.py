"""``ddim batch``: its options, its report and its exit codes; tests/batch holds what is computed."""

import json
from pathlib import Path

import pytest
from commands import fails, picture, run, run_json
from typer.testing import CliRunner

from ddim.batch import Output
from ddim.cli.app import app

VERBS = ("invert", "edit", "reconstruct", "sample")


@pytest.fixture
def pictures() -> Path:
    Path("pictures").mkdir()
    for k in range(5):
        picture(Path(f"pictures/{k}.png"), k)
    return Path("pictures")


def inverting(model: str, *more: object) -> list[object]:
    return ["batch", "invert", "--data", "pictures", "-m", model, "--method", "bdia", "-S", 2, "--batch", 2, *more]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str):
    text = run("batch", verb, "--help").stdout
    for flag in ("--data", "--out", "--dry-run", "--ray", "--json"):
        assert flag in text
    assert f"Example: ddim batch {verb}" in text


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["invert", "--data", "nowhere/else/at/all", "--out", "out"], "--data: "),
        (["invert", "--out", "out"], "--data: "),
        (["invert", "--data", "pictures"], "--out: "),
        (["invert", "--data", "pictures", "--out", "out", "--prompt", "{words}"], "words"),
        (["invert", "--data", "pictures", "--out", "pictures/0.png"], "--out: "),
        (["edit", "--data", "pictures", "--out", "out", "--from", "a cat"], "--to: "),
        (["edit", "--data", "pictures", "--out", "out", "--to", "a cat"], "--from: "),
        (["edit", "--data", "pictures", "--out", "out", "--to-label", "3"], "--from-label: "),
        (["reconstruct", "--data", "pictures", "--out", "out"], "--data: "),
        (["reconstruct", "--data", "pictures", "--batch", "3", "--out", "out"], ""),
        (["sample", "--out", "out"], "--count: "),
        (["sample", "--count", "0", "--out", "out"], "--count: "),
    ],
)
def test_wrong_input_is_one_sentence(pictures: Path, words: list[str], flag: str):
    assert flag in fails("batch", *words, code=2)
    assert not Path("out").exists()


def test_a_run_reports_its_errors_goes_on_and_is_refused_other_options(pictures: Path, model: str):
    (pictures / "3.png").write_bytes(b"broken")
    dry = run_json(*inverting(model, "--out", "out", "--dry-run"))
    assert {key: dry[key] for key in ("items", "batches", "missing")} == {"items": 5, "batches": 3, "missing": 3}
    assert not Path("out").exists()
    result = CliRunner().invoke(app, [*map(str, inverting(model, "--out", "out")), "--json"])
    said = json.loads(result.stdout)
    assert result.exit_code == 3
    assert (said["computed"], said["failed"]) == (3, 1)
    assert said["errors"][0]["key"] == "3.png"
    Output(Path("out")).part(1).unlink()
    assert json.loads(CliRunner().invoke(app, [*map(str, inverting(model, "--out", "out")), "--json"]).stdout)[
        "computed"
    ] == 1  # fmt: skip
    assert "--steps: " in fails(*inverting(model, "--out", "out", "-S", 3), code=2)
    assert "--batch: " in fails(*inverting(model, "--out", "out", "--batch", 3), code=2)


def test_samples_need_no_data(model: str):
    said = run_json("batch", "sample", "-n", 3, "-m", model, "-S", 2, "--batch", 2, "--out", "out")
    assert (said["items"], said["failed"]) == (3, 0)
    assert all(row["picture"].startswith(b"\x89PNG") for row in Output(Path("out")).rows())
    assert "3 of 3 items" in run("batch", "sample", "-n", 3, "-m", model, "-S", 2, "--batch", 2, "--out", "out").stdout
