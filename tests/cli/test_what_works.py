"""``ddim methods --model`` and ``ddim models`` tell what works on a model."""

from pathlib import Path

import pytest
from commands import run, run_json
from tiny_flow import FAMILIES

import ddim
from ddim.pipelines.capabilities import CONTROLS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {"sd3": place / "sd3", "flux schnell": place / "schnell"}
    for family, folder in made.items():
        FAMILIES[family].pipeline().save_pretrained(folder)
    return {family: str(folder) for family, folder in made.items()}


def test_methods_of_a_model_say_why_one_does_not_work(folders: dict[str, str]):
    said = run_json("methods", "--model", folders["flux schnell"])
    expected = ddim.capabilities(ddim.load(folders["flux schnell"]))
    for kind in ("solvers", "inversions", "controls"):
        assert {entry["name"]: entry["why_not"] for entry in said[kind]} == expected[kind]
        assert all(entry["works"] is (entry["why_not"] is None) for entry in said[kind])
    assert {entry["name"] for entry in said["controls"]} == set(CONTROLS)
    text = " ".join(run("methods", "--model", folders["flux schnell"]).stdout.split())
    for name in (*ddim.SOLVERS, *ddim.INVERSIONS, *CONTROLS, "distilled"):
        assert name in text


def test_a_model_is_described_with_its_shift_guidance_and_sizes(folders: dict[str, str]):
    said = run_json("models", folders["sd3"])
    assert said["shift"] == {"rule": "static", "value": 3.0}
    assert said["guidance"] == {"weight": 7.0}
    assert said["prediction"] == "flow"
    assert "32x32 by default" in said["sizes"]
    assert "multiples of 4" in said["sizes"]
    assert "at most 96" in said["sizes"]
    assert said["works"]["solvers"] == "all"
    text = run("models", folders["sd3"]).stdout
    for part in ("rule = static, value = 3", "multiples of 4", "ddim methods --model"):
        assert part in text
    schnell = run_json("models", folders["flux schnell"])
    assert "guidance" not in schnell
    assert schnell["works"]["inversions"] == "all but null-text, negative-prompt"


def test_an_unconditional_model_has_no_guidance():
    said = run_json("models", "fashion")
    assert not {"shift", "guidance", "sizes"} & set(said)
    assert said["works"]["controls"].startswith("none, not prompt")
