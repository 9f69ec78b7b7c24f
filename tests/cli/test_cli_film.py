"""``ddim edit`` with editors, strengths, films and automatic masks, on a tiny Stable Diffusion in a folder."""

import json
import shlex
from pathlib import Path

import pytest
import tiny_text
import torch
from commands import about, fails, run, run_json
from PIL import Image

import ddim
from ddim.data.images import read_images

CAT, TIGER, DOG = "a cat on a mat", "a tiger on a mat", "a dog on a mat"
SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def words(model: str) -> list[object]:
    """A command line that edits a picture in four steps."""
    ddim.save_image(tiny_text.pictures(1, SIDE, SIDE)[0], "cat.png")
    return ["edit", "cat.png", "-m", model, "--from", CAT, "--to", TIGER, "-S", 4]


def edited(model: str, target: str | list[str] = TIGER, **settings: object) -> ddim.Edited:
    settings = {"source_prompt": CAT, "steps": 4, **settings}
    return ddim.edit(ddim.load(model), "cat.png", target, **settings)  # type: ignore[arg-type]


def tile(path: str | Path, column: int, row: int = 0) -> torch.Tensor:
    """A picture of a sheet, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        data = data.view(image.height, image.width, 3)
    left, top = (2 + k * (SIDE + 2) for k in (column, row))
    return data[top : top + SIDE, left : left + SIDE]


def bytes_of(image: torch.Tensor) -> torch.Tensor:
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return int((a.int() - b.int()).abs().max()) <= 1


def test_an_editor_edits_with_its_own_settings(model: str, words: list[object]):
    said = run_json(*words, "--method", "flow-edit", "-o", "draws_per_step=2", "--seed", 3)
    own = ddim.make_editor("flow-edit", {"draws_per_step": 2})
    assert own is not None
    usual = own.usual(ddim.load(model).info)
    assert said["method"] == "flow-edit"
    assert said["options"]["draws_per_step"] == 2
    assert said["strength"] == usual.strength
    assert said["guidance"]["weight"] == pytest.approx(usual.guidance)
    assert said["attention"]["kind"] == "none"
    assert "w" not in [part[:1] for part in Path(said["files"][0]).stem.split("_")[4:]]  # its own guidance is no change
    expected = edited(model, method="flow-edit", options={"draws_per_step": 2}, seed=3)
    assert near(tile(said["files"][0], 2), bytes_of(expected.edits[0, 0]))
    assert not list(Path().glob("*.code.safetensors*"))
    other = run_json(*words, "--method", "flow-edit", "-w", 2, "--strength", 0.5)
    assert (other["guidance"]["weight"], other["strength"]) == (2, 0.5)
    assert "_w2_" in other["files"][0]
    assert "strength0.5" in other["files"][0]


def test_what_an_editor_does_without_is_refused(words: list[object]):
    line = [*words, "--method", "flow-edit"]
    for more in (["--attention", "refine"], ["--cross", 0.5], ["--blend", "cat/tiger"], ["--weight", "tiger=2"]):
        assert f"{more[0]}: " in fails(*line, *more, code=2)
    assert run_json(*line, "--attention", "none")["attention"]["kind"] == "none"
    assert "'unknown'" in fails(*line, "-o", "unknown=1", code=2)
    assert "'flow-edit'" in fails("invert", "cat.png", "-m", words[3], "--method", "flow-edit", code=2)
    assert "'flow-edit'" in fails("interpolate", "cat.png", "cat.png", "-m", words[3], "--method", "flow-edit", code=2)


def test_methods_list_the_editors():
    said = run_json("methods")["editors"]
    assert [entry["name"] for entry in said] == list(ddim.EDITORS)
    for entry in said:
        editor = ddim.make_editor(entry["name"])
        assert editor is not None
        assert entry["options"] == editor.options
        assert (entry["draws"], entry["self_edit"], entry["paper"]) == (editor.draws, editor.self_edit, editor.paper)
    text, shown = run("methods").stdout, run("edit", "--help").stdout
    assert all(name in text for name in ddim.EDITORS)
    assert all(name in " ".join(shown.split()) for name in ddim.EDITORS)


def test_a_failed_edit_by_an_editor_offers_no_code(words: list[object], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("ddim.pipelines.edit_by.ByEditor.__call__", broken)
    assert "code" not in fails(*words, "--method", "flow-edit", code=1)
    assert not list(Path().glob("*.code.safetensors*"))


def test_codes_of_an_editor_are_edited_and_not_sampled(model: str, words: list[object]):
    kept: list[ddim.LatentCode] = []
    expected = edited(model, method="flow-edit", seed=3, on_code=kept.append)
    kept[0].save("x.code.safetensors")
    line = ["edit", "x.code.safetensors", "--to", TIGER]
    said = run_json(*line, "--seed", 3)
    assert near(tile(said["files"][0], 1), bytes_of(expected.edits[0, 0]))
    assert said["method"] == "flow-edit"
    more = run_json(*line, "--seed", 3, "--method", "flow-edit", "-o", "draws_per_step=2")
    assert more["options"]["draws_per_step"] == 2
    assert "--steps: " in fails(*line, "--steps", 3, code=2)
    for command in (["reconstruct", "x.code.safetensors"], ["interpolate", "x.code.safetensors", "x.code.safetensors"]):
        assert "'flow-edit'" in fails(*command, code=2)
    run("invert", "cat.png", "-m", model, "-p", CAT, "--method", "ddim", "-S", 4, "--out", "y.code.safetensors")
    plain = ["edit", "y.code.safetensors", "--to", TIGER]
    for more in (["--seed", 3], ["-o", "iterations=2"], ["--method", "ddim"]):
        assert {"-o": "--option"}.get(str(more[0]), str(more[0])) in fails(*plain, *more, code=2)
    assert "--method: 'flow-edit'" in fails(*plain, "--method", "flow-edit", code=2)


def test_a_strength_of_an_inversion_is_stored_and_told(model: str, words: list[object]):
    line = ["invert", "cat.png", "-m", model, "-p", CAT, "-S", 4, "--method", "direct", "--strength", 0.6]
    said = run_json(*line)
    assert said["strength"] == 0.6
    assert said["files"][0].endswith("_strength0.6.code.safetensors")
    code = ddim.LatentCode.load(said["files"][0])
    assert (code.grid.steps, code.settings["strength"]) == (3, 0.6)
    found = run_json("edit", said["files"][0], "--to", TIGER, "-w", 2)
    assert found["strength"] == 0.6
    assert near(tile(found["files"][0], 1), bytes_of(edited(model, strength=0.6, guidance=2.0).edits[0, 0]))
    assert "3 of 4 steps (strength 0.6)" in run(*words, "--strength", 0.6).stdout
    assert "--strength: 0.8 " in fails("edit", said["files"][0], "--to", TIGER, "--strength", 0.8, code=2)
    for wrong in (-1, 1.5):
        assert "--strength: " in fails(*words, "--strength", wrong, code=2)
        assert "--strength: " in fails(*line[:-1], wrong, code=2)


def test_a_trajectory_is_kept(model: str, words: list[object]):
    line = ["invert", "cat.png", "-m", model, "-p", CAT, "-S", 4, "--keep-trajectory", "--no-check"]
    code = ddim.LatentCode.load(run_json(*line)["files"][0])
    assert code.extras["trajectory"].shape[1] == 4
    assert "--keep-trajectory: " in fails(*line, "--method", "bdia", code=2)


def test_a_sweep_is_a_film(model: str, words: list[object]):
    said = run_json(*words, "--to", DOG, "-w", 2, "--attention", "none", "--sweep", 4, "--strength", 0.9, "--each")
    strengths = [0.0, 0.3, 0.6, 0.9]
    assert [frame["strength"] for frame in said["frames"]] == pytest.approx(strengths)
    assert [frame["column"] for frame in said["frames"]] == [1, 2, 3, 4]
    assert said["strength"] == 0.9
    film = edited(model, [TIGER, DOG], guidance=2.0, attention="none", strength=ddim.even_strengths(4, 0.9))
    page = said["files"][0]
    for k in range(2):
        assert near(tile(page, 0, k), bytes_of(read_images("cat.png", (3, SIDE, SIDE))[0]))
        for m in range(4):
            expected = bytes_of(film.edits[0, 4 * k + m])
            assert near(tile(page, 1 + m, k), expected)
            single = Path(said["frames"][m]["files"][k])
            with Image.open(single) as image:
                data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
            assert near(data, expected)
            settings = about(single)
            assert settings["shows"] == [TIGER, DOG][k]
            assert settings["strength"] == pytest.approx(strengths[m])
    with Image.open(said["film"]) as image:
        assert image.format == "PNG"
        assert getattr(image, "n_frames", 1) == 4
        assert image.size == (2 * (SIDE + 2) + 2, SIDE + 4)
        image.seek(3)
        last = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        last = last.view(image.height, image.width, 3)[2 : 2 + SIDE, 2 : 2 + SIDE]
        assert near(last, bytes_of(film.edits[0, 3]))
    assert {*said["files"]} == {str(path) for path in Path().rglob("*") if path.is_file() and path.name != "cat.png"}
    assert json.loads(Path(said["files"][-1]).read_text())["frames"] == said["frames"]
    assert f"4 frames from strength 0 to {strengths[-1]}" in run(*words, "--sweep", 4, "--strength", 0.9).stdout


@pytest.mark.parametrize("method", ["bdia", "flow-edit"])
def test_a_film_by_other_methods_and_from_codes(model: str, words: list[object], method: str):
    said = run_json(*words, "-w", 2, "--method", method, "--sweep", 3)
    most = 0.66 if method == "flow-edit" else 1.0  # the usual strength of the editor
    film = edited(model, guidance=2.0, method=method, strength=[0.0, most / 2, most])
    for m in range(3):
        assert near(tile(said["files"][0], 1 + m), bytes_of(film.edits[0, m]))
    run("invert", "cat.png", "-m", model, "-p", CAT, "--method", "direct", "-S", 4, "--out", "x.code.safetensors")
    code = run_json("edit", "x.code.safetensors", "--to", TIGER, "--sweep", 2, "-w", 2)
    assert code["strip"] == ["strength 0", "strength 1"]
    assert near(tile(code["files"][0], 1), bytes_of(edited(model, guidance=2.0).edits[0, 0]))
    assert all(Path(name).exists() for name in code["files"])


def test_a_sweep_needs_two_strengths(words: list[object]):
    assert "--sweep: 1 " in fails(*words, "--sweep", 1, code=2)
    assert "--strength: 0 " in fails(*words, "--sweep", 3, "--strength", 0, code=2)
    assert "--sweep: " in fails(*words, "--sweep", 10**6, code=2)  # too large a sheet, before any work


def test_an_interrupted_film_goes_on_from_its_code(words: list[object], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    line = [*words, "-w", 2, "--sweep", 3, "--strength", 0.6, "--auto-mask", "--seed", 4]
    expected = run_json(*line)
    with monkeypatch.context() as patch:
        patch.setattr("ddim.pipelines.beside.Beside.__call__", broken)
        said = fails(*line, code=1)
    again = said[said.index("ddim edit") : said.index(" goes on")]
    found = run_json(*shlex.split(again)[1:])
    for m in range(3):
        assert near(tile(found["files"][0], m), tile(expected["files"][0], 1 + m))
    assert found["mask_areas"] == expected["mask_areas"]


def test_an_automatic_mask_keeps_the_photographs_bytes(model: str, words: list[object]):
    said = run_json(*words, "--to", DOG, "--auto-mask", "--mask-draws", 3, "--mask-threshold", 0.4, "--feather", 0)
    assert said["auto_mask"] == {"level": 0.5, "draws": 3, "threshold": 0.4, "grow": 0}
    auto = ddim.AutoMask(draws=3, threshold=0.4)
    expected = edited(model, [TIGER, DOG], auto_mask=auto, feather=0)
    assert expected.blend_mask is not None
    assert said["mask_areas"][0] == pytest.approx(expected.blend_mask.mean((2, 3))[0].tolist(), abs=1e-3)
    original = bytes_of(read_images("cat.png", (3, SIDE, SIDE))[0])
    for k, file in enumerate(said["photographs"]):
        with Image.open(file) as image:
            data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
        outside = expected.blend_mask[0, k] == 0
        assert torch.equal(data[outside], original[outside])
        assert not torch.equal(data, original)
    assert "auto_mask" not in run_json(*words)


def test_wrong_masks_are_one_sentence(words: list[object]):
    for more in (["--mask-level", 2], ["--mask-draws", 0], ["--mask-threshold", 1], ["--mask-grow", -1]):
        assert f"{more[0]}: {more[1]}" in fails(*words, "--auto-mask", *more, code=2)
        assert f"{more[0]}: " in fails(*words, *more, code=2)
    Image.new("L", (SIDE, SIDE), 0).save("black.png")
    said = fails(*words, "--mask", "black.png", code=2)
    assert "--mask: " in said
    run_json(*words, "--method", "flow-edit", "--auto-mask")
