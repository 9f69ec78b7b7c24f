"""``ddim methods --model`` and ``ddim models`` tell what works on a model."""

from pathlib import Path

import pytest
from commands import fails, run, run_json
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


def test_skip_layer_guidance_is_typed_named_and_listed(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "-m", folders["sd3"], "--prompt", "a cat", "-n", 1, "-S", 4]
    said = run_json(*words, "--skip-layers", "0,1", "--skip-scale", 2, "--skip-steps", "0,0.7")
    skip = said["guidance"]["skip"]
    assert (skip["layers"], skip["scale"], skip["interval"]) == ([0, 1], 2.0, [0.0, 0.7])
    assert "skip0-1-x2-0-0.7" in Path(said["files"][0]).name
    assert "--skip-layers" in fails(*words, "--skip-layers", "x", code=2)
    assert "--skip-scale" in fails(*words, "--skip-scale", 2, code=2)
    assert "--skip-steps" in fails(*words, "--skip-layers", "0", code=2)  # none of four steps lies in it
    assert "--skip-layers" in fails(*words, "--skip-layers", "99", "--skip-steps", "0,1", code=2)
    assert "--skip-layers" in fails("sample", "-m", "fashion", "-n", 1, "-S", 2, "--skip-layers", "0", code=2)


def test_the_pipelines_own_number_is_typed(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "-m", folders["sd3"], "--prompt", "a cat", "-n", 1, "-S", 2]
    assert run_json(*words, "--guidance-scale", 3)["guidance"]["weight"] == 3
    assert "--guidance-scale" in fails(*words, "--guidance-scale", 3, "--guidance", 2, code=2)
    assert "--guidance-scale" in fails("sample", "-m", "fashion", "-n", 1, "-S", 2, "--guidance-scale", 3, code=2)
