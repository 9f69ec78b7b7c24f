"""``ddim edit`` and ``ddim invert`` on photographs of any size: what is written, and how many bytes of it differ."""

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from commands import about, fails, run, run_json
from PIL import Image
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import DDIMError
from ddim.cli.app import app
from ddim.inversion.null_text import NullText

CAT, TIGER, DOG = "a cat on a mat", "a tiger on a mat", "a dog on a mat"
WIDTH, HEIGHT = 131, 90


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tiny pipeline."""
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo() -> Path:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png", icc_profile=b"profile")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:60, 30:80] = 255
    Image.fromarray(mask).save("mask.png")
    return Path("photo.png")


def differing(path: str | Path) -> tuple[int, int]:
    """How many bytes of a file differ from the photograph's: outside of the mask, and inside it."""
    made, own, mask = (np.asarray(Image.open(p)) for p in (path, "photo.png", "mask.png"))
    assert made.shape == own.shape
    return int((made != own)[mask == 0].sum()), int((made != own)[mask > 0].sum())


def test_edit_writes_the_photograph_with_the_edit_in_it(model: str, photo: Path):
    words = ["-m", model, "--from", CAT, "--to", TIGER, "--to", DOG, "-S", 2, "--mask", "mask.png", "--feather", 3]
    said = run_json("edit", photo, *words)
    first, second = said["photographs"]
    assert set(said["photographs"]) < set(said["files"])
    assert sorted(p for p in os.listdir() if "_to_" in p) == sorted(said["files"])
    for path in (first, second):
        assert differing(path)[0] == 0
        assert differing(path)[1] > 0.9 * 40 * 50 * 3
        assert Image.open(path).info["icc_profile"] == b"profile"
    assert (about(first)["shows"], about(second)["shows"]) == (TIGER, DOG)
    assert about(first)["size"] == [WIDTH, HEIGHT]
    assert said["crops"] == [[17, 2, 92, 77]]
    assert "feather3" in first
    edited = ddim.edit(
        ddim.load(model), "photo.png", [TIGER, DOG], source_prompt=CAT, steps=2, mask="mask.png", feather=3
    )
    assert edited.composites is not None
    assert torch.equal(torch.from_numpy(np.asarray(Image.open(first)).copy()).permute(2, 0, 1), edited.composites[0][0])
    shown = run("edit", photo, *words)
    assert first in shown.output


def test_a_code_that_keeps_its_source_needs_no_photograph(model: str, photo: Path):
    common = ["-m", model, "-p", CAT, "-S", 2, "--method", "direct", "-w", 7.5]
    crop = ["--crop", "20,10,90,80"]
    bare = run_json("invert", photo, *common, *crop)["files"][0]
    kept = run_json("invert", photo, *common, *crop, "--keep-source", "--out", "kept.code.safetensors")
    assert kept["keep_source"]
    assert kept["images"][0]["crop"] == [20, 10, 90, 80]
    assert "crop20-10-90-80" in bare or "crop20,10,90,80" in bare
    said = run_json("edit", "kept.code.safetensors", "--to", TIGER, "--mask", "mask.png")
    assert differing(said["photographs"][0])[0] == 0
    assert differing(said["photographs"][0])[1] > 0
    again = run_json("edit", photo, "-m", model, "--from", CAT, "--to", TIGER, "-S", 2, *crop, "--mask", "mask.png")
    assert Image.open(again["photographs"][0]).tobytes() == Image.open(said["photographs"][0]).tobytes()
    sentence = fails("edit", bare, "--to", TIGER, "--mask", "mask.png", code=2)
    assert "131x90" in sentence
    assert "32x32" in sentence


@pytest.mark.parametrize("resize", [False, True])
def test_what_stops_an_edit_leaves_a_code_with_the_photograph(
    model: str, photo: Path, resize: bool, monkeypatch: pytest.MonkeyPatch
):
    def stopping(*_: object, **__: object) -> None:
        raise DDIMError("stop")

    words = ["edit", "photo.png", "--model", model, "--from", CAT, "--to", TIGER, "-S", "2", "--mask", "mask.png"]
    words += ["--resize"] if resize else []
    whole = run_json(*words)["photographs"][0]
    with monkeypatch.context() as patch:
        patch.setattr("ddim.pipelines.beside.solve", stopping)
        sentence = fails(*words, code=1)
    line = next(part for part in sentence.split(": ") if part.startswith("ddim edit")).partition(" goes on.")[0]
    os.rename(whole, "whole.png")
    photo.rename("away.png")
    run(*shlex.split(line)[1:])
    made = next(p for p in os.listdir() if p.endswith("_photo.png"))
    assert Image.open(made).tobytes() == Image.open("whole.png").tobytes()


@pytest.mark.parametrize("words", [[], ["--resize"], ["--crop", "20,10,90,80"]], ids=str)
def test_ctrl_c_in_the_inversion_of_an_edit_keeps_the_crop(model: str, photo: Path, words: list[str]):
    common = ["edit", "photo.png", "--model", model, "--from", CAT, "--to", TIGER, "-S", "2", "--mask", "mask.png"]
    common += ["--method", "null-text", "-o", "inner=2", *words]
    whole = run_json(*common, "--out", "whole.png")
    tune, seen = NullText._tune, []

    def stopping(self: NullText, *a: Any, **k: Any) -> Any:
        seen.append(a)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return tune(self, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NullText, "_tune", stopping)
        sentence = fails(*common, code=130)
    line = sentence[sentence.index("ddim invert ") : sentence.index(" goes on.")]
    said = run_json(*shlex.split(line)[1:])
    assert said["images"][0]["crop"] == whole["crops"][0]
    edited = run_json("edit", said["files"][0], "--to", TIGER, "--mask", "mask.png")
    assert differing(edited["photographs"][0])[0] == 0
    assert Image.open(edited["photographs"][0]).tobytes() == Image.open(whole["photographs"][0]).tobytes()


BAD = [
    (["--crop", "1,2,3"], ["--crop: '1,2,3'", "100,200,900,1000"]),
    (["--crop", "all"], ["--crop: 'all'"]),
    (["--crop", "0,0,132,90"], ["--crop: (0, 0, 132, 90)", "131x90"]),
    (["--crop", "whole", "--resize"], ["--crop"]),
    (["--mask", "mask.png", "--feather", "-1"], ["--feather: -1"]),
    (["--mask", "small.png"], ["--mask: it is 16x16", "131x90"]),
    ([], ["131x90"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda v: " ".join(v))
def test_bad_photographs_are_one_sentence(words: list[str], said: list[str], model: str, photo: Path):
    Image.new("L", (16, 16), 255).save("small.png")
    before = sorted(os.listdir())
    sentence = fails("edit", photo, "-m", model, "--from", CAT, "--to", TIGER, "-S", 2, *words, code=2)
    for part in said:
        assert part in sentence
    assert sorted(os.listdir()) == before


def test_crop_is_no_option_for_a_code(model: str, photo: Path):
    run(
        "invert", photo, "-m", model, "-p", CAT, "-S", 2, "--no-check", "--crop", "whole", "--out", "x.code.safetensors"
    )
    assert "--crop" in fails("edit", "x.code.safetensors", "--to", TIGER, "--crop", "whole", code=2)
    assert "--feather" in fails("edit", "x.code.safetensors", "--to", TIGER, "--feather", 2, code=2)


def test_the_result_is_no_jpeg(model: str, photo: Path):
    result = CliRunner().invoke(app, ["edit", "photo.png", "-m", model, "--from", CAT, "--to", TIGER, "--out", "a.jpg"])
    assert result.exit_code == 2


def test_a_code_that_keeps_its_photograph_is_measured_on_its_crop(model: str, photo: Path):
    words = ["-m", model, "--prompt", CAT, "-S", 3, "--method", "bdia", "--crop", "30,10,94,74", "--keep-source"]
    made = run_json("invert", photo, *words, "--out", "kept.code.safetensors")
    said = run_json("reconstruct", made["files"][0], "--original", photo)
    assert ddim.LatentCode.load(made["files"][0]).crops == ((30, 10, 94, 74),)
    assert said["images"][0]["psnr"] == pytest.approx(made["images"][0]["psnr"])
    whole = run_json("reconstruct", made["files"][0], "--original", "mask.png", "--resize")
    assert whole["images"][0]["psnr"] != pytest.approx(made["images"][0]["psnr"])
