"""``ddim methods --model`` and ``ddim models`` tell what works on a model."""

from pathlib import Path

import pytest
import tiny_flux
import torch
from commands import fails, run, run_json
from refusals import refused
from tiny_flow import FAMILIES

import ddim
from ddim.data.images import read_images
from ddim.pipelines.capabilities import CONTROLS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    made = {family: place / family.replace(" ", "-") for family in ("sd3", "flux schnell", "flux kontext")}
    for family, folder in made.items():
        FAMILIES[family].pipeline().save_pretrained(folder)
    return {family: str(folder) for family, folder in made.items()}


def test_methods_of_a_model_say_why_one_does_not_work(folders: dict[str, str]):
    said = run_json("methods", "--model", folders["flux schnell"])
    expected = ddim.capabilities(ddim.load(folders["flux schnell"]))
    for kind in ("solvers", "inversions", "editors", "controls"):
        assert {entry["name"]: entry["why_not"] for entry in said[kind]} == expected[kind]
        assert all(entry["works"] is (entry["why_not"] is None) for entry in said[kind])
    assert {entry["name"] for entry in said["controls"]} == set(CONTROLS)
    text = " ".join(run("methods", "--model", folders["flux schnell"]).stdout.split())
    for name in (*ddim.SOLVERS, *ddim.INVERSIONS, *ddim.EDITORS, *CONTROLS, "distilled"):
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
    assert schnell["works"]["inversions"] == "all but null-text, negative-prompt, prox-npi, spd"


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
    said = fails(*words, "--guidance-scale", 3, "--guidance", 2, code=2)
    assert "--guidance-scale: " in said
    assert "--guidance;" in said
    assert "--guidance-scale" in fails("sample", "-m", "fashion", "-n", 1, "-S", 2, "--guidance-scale", 3, code=2)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return ddim.save_image(tiny_flux.picture()[0], tmp_path / "cat.png")


def test_a_reference_is_typed(
    folders: dict[str, str], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = ["-m", folders["flux kontext"], "--dtype", "float32", "--prompt", "a cat", "-S", 2]
    with_one = run_json("sample", *model, "-n", 1, "--reference", reference)
    without = run_json("sample", *model, "-n", 1)
    assert with_one["reference"] == str(reference)
    assert "reference" not in without
    assert "reference-cat" in Path(with_one["files"][0]).name
    own = ddim.load(folders["flux kontext"])
    own.reference = reference
    expected = ddim.sample(own, 1, prompt="a cat", steps=2)
    drawn = [read_images(said["files"][0], own.picture, multiple=own.multiple) for said in (with_one, without)]
    assert (drawn[0] - expected).abs().max() <= 0.51 / 255  # eight bits
    assert (drawn[1] - expected).abs().max() > 2 / 255

    code = run_json("invert", reference, *model, "--method", "bdia", "--reference", reference, "--out", "out")
    kept = ddim.LatentCode.load(code["files"][0])
    assert torch.equal(kept.conditions.cond.tensors["reference"], own.reference)
    words = ["--from", "a cat", "--to", "a dog", "-S", 2, "-m", folders["flux kontext"]]
    assert run_json("edit", reference, *words, "--reference", reference)["reference"] == str(reference)
    said = run_json("interpolate", reference, reference, *model, "--reference", reference, "--frames", 3)
    assert "reference-cat" in Path(said["files"][0]).name


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample", "-m", "sd3", "--prompt", "a cat", "--reference", "cat.png"], "takes no reference picture"),
        (["sample", "-m", "flux kontext", "--prompt", "a cat", "--reference", "dog.png"], "dog.png"),
        (["sample", "-m", "flux kontext", "--prompt", "a cat", "--reference", "odd.png"], "multiples of 4"),
        (["edit", "code.safetensors", "--to", "a dog", "--reference", "cat.png"], "a code is inverted already"),
        (["sample", "-m", "flux kontext", "--reference", "cat.png", "--out", "cat.png"], "cat.png"),
    ],
    ids=["another family", "missing", "size", "code", "overwritten"],
)
def test_references_that_do_not_do(
    words: list[str], named: str, folders: dict[str, str], reference: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(reference.parent)
    ddim.save_image(torch.rand(3, 31, 32), "odd.png")
    Path("code.safetensors").write_bytes(b"")
    before = reference.read_bytes()
    failed = " ".join(fails(*(folders.get(word, word) for word in words), code=2).split())
    assert "--reference" in failed or "--out" in failed
    assert named in failed
    assert reference.read_bytes() == before


@pytest.mark.parametrize("option", [["--guidance-scale", 3], ["--skip-layers", "0"], ["--reference", "cat.png"]])
def test_an_interpolation_of_codes_takes_no_guidance(option: list[object]):
    assert str(option[0]) in fails("interpolate", "a.safetensors", "b.safetensors", *option, code=2)


@pytest.mark.parametrize("command", ["edit", "reconstruct", "interpolate"])
def test_a_code_of_another_family_says_whose_it_is(
    command: str, folders: dict[str, str], reference: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(reference.parent)
    words = ["-m", folders["flux kontext"], "--prompt", "a cat", "--guidance-scale", 1.5, "-S", 2, "--resize"]
    run("invert", reference, *words, "--method", "bdia", "--no-check", "--out", "code.code.safetensors")
    more = {"edit": ["--to", "a dog"], "interpolate": ["code.code.safetensors"]}.get(command, [])
    said = fails(command, "code.code.safetensors", *more, "--model", folders["sd3"], code=2)
    assert repr(folders["flux kontext"]) in said
    assert repr(folders["sd3"]) in said
    assert "embedded" not in said
    assert "pooled" not in said


def test_a_code_of_another_family_is_the_first_thing_refused(folders: dict[str, str]):
    maker, other = (ddim.load(folders[family]) for family in ("flux kontext", "sd3"))
    code = ddim.invert(maker, tiny_flux.picture(), steps=2, prompt="a cat", guidance_scale=1.5, method="bdia")
    said = refused("code", repr(maker.name), repr(other.name))
    with said:
        ddim.edit(other, code, prompt="a dog", guidance=ddim.Guidance(embedded=2.0))
    with said:
        ddim.edit(other, code, prompt=["no", "such"], feather=-3, labels=[1])
    with said:
        ddim.reconstruct(other, code)
    with said:
        ddim.interpolate(other, code, code)


def test_the_list_of_models_says_what_the_models_say():
    listed = run_json("models")["models"]
    assert len(listed) >= 4
    for row in listed:
        facts = ddim.load(row["name"]).describe()
        channels, height, width = facts.get("picture", facts["shape"])
        assert row["pictures"] == f"{width}x{height} {'grey' if channels == 1 else 'colour'}"
        assert [row[key] for key in ("prediction", "spacing")] == [facts[key] for key in ("prediction", "spacing")]
        assert row["prompts"] is ("prompt_tokens" in facts)


def test_a_model_is_described_without_what_does_not_apply(folders: dict[str, str]):
    assert not {"classes", "hold", "alpha_bar"} & set(run_json("models", folders["sd3"]))
    assert "alpha_bar" in run_json("models", "fashion")
    assert run_json("models", "fashion-classes")["classes"] == 10
