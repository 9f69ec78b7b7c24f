"""The command's bad days: one sentence, the right exit code, no traceback, nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import fails, picture, python
from PIL import Image
from refusals import refused
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import NetworkMemory
from ddim.cli.app import app

BAD_VALUES = [
    (["sample", "--steps", "0"], ["--steps: 0", "1 to 1000"]),
    (["sample", "--steps", "1.5"], ["--steps: '1.5'"]),
    (["sample", "-S=", "--steps=many"], ["--steps: 'many'"]),
    (["sample", "-w", "much"], ["--guidance: 'much'"]),
    (["sample", "-nabc"], ["--count: 'abc'"]),
    (["sample", "--scale", "0"], ["--scale: 0", "1"]),
    (["evaluate", "table1", "--samples", "0"], ["--samples: 0", "1"]),
    (["sample", "--steps", "1001"], ["--steps: 1001", "1 to 1000"]),
    (["sample", "--eta", "1.5"], ["--eta: 1.5", "[0, 1]"]),
    (["sample", "--eta", "-0.1"], ["--eta: -0.1"]),
    (["sample", "--eta", "nan"], ["--eta: nan"]),
    (["sample", "--solver", "bdai"], ["'bdai'", "Did you mean 'bdia'?"]),
    (["sample", "--solver", "bdia", "--eta", "0.5"], ["--eta: 0.5", "'bdia' is deterministic"]),
    (["sample", "--spacing", "trialing"], ["'trialing'", "Did you mean 'trailing'?"]),
    (["sample", "--spacing", "900,x"], ["'x'", "900,500,100"]),
    (["sample", "--spacing", "2000,1"], ["2000"]),
    (["sample", "-o", "gama=1", "--solver", "bdia"], ["'gama'", "gamma"]),
    (["sample", "-o", "gamma", "--solver", "bdia"], ["KEY=VALUE"]),
    (["sample", "-o", "gamma=big", "--solver", "bdia"], ["gamma", "'big'", "number"]),
    (["sample", "-o", "gamma=1", "-o", "gamma=2", "--solver", "bdia"], ["twice"]),
    (["sample", "--clip", "1", "--threshold", "0.9"], ["--threshold"]),
    (["sample", "--count", "0"], ["--count: 0"]),
    (["sample", "--batch", "0"], ["--batch: 0"]),
    (["sample", "--seed", "-1"], ["--seed: -1"]),
    (["sample", "--label", "1"], ["unconditional"]),
    (["sample", "--device", "gpu"], ["'gpu'", "cpu"]),
    (["sample", "--dtype", "float8"], ["'float8'", "float32"]),
    (["sample", "--out", "page.jpg"], ["page.jpg", ".png"]),
    (["invert", "missing.png"], ["missing.png"]),
    (["invert", "shirt.png", "--method", "dimm"], ["'dimm'", "Did you mean 'ddim'?"]),
    (["invert", "shirt.png", "--method", "ddpm"], ["cannot be inverted", "bdia"]),
    (["invert", "broken.png"], ["broken.png", "truncated"]),
    (["invert", "text.png"], ["text.png", "not an image"]),
    (["invert", "colour.png"], ["colour.png", "3 colour", "resize"]),
    (["invert", "large.png"], ["large.png", "16x16", "8x8", "resize"]),
    (["invert", "shirt.png", "--out", "shirt.png"], ["shirt.png"]),
    (["invert", "shirt.png", "large.png", "--out", "a.code.safetensors"], ["more than one"]),
    (["interpolate", "shirt.png"], ["two images", "not 1"]),
    (["interpolate", "shirt.png", "shirt.png", "--grid", "7"], ["--grid: '7'", "7x7"]),
    (["interpolate", "shirt.png", "shirt.png", "--grid", "3x3"], ["four", "not 2"]),
    (["interpolate", "shirt.png", "shirt.png", "--frames", "1", "--steps", "2"], ["--frames: 1"]),
]


@pytest.mark.parametrize(("words", "said"), BAD_VALUES, ids=lambda v: " ".join(v) if isinstance(v[0], str) else "")
def test_bad_values_name_themselves_and_a_way_out(words: list[str], said: list[str], model: str):
    picture(Path("shirt.png"))
    picture(Path("large.png"), size=16)
    Image.new("RGB", (8, 8)).save("colour.png")
    Path("text.png").write_text("no picture")
    noisy = picture(Path("broken.png"), size=64)
    noisy.write_bytes(noisy.read_bytes()[:-2000])
    before = sorted(os.listdir())
    sentence = fails(*words, "--model", model, code=2)
    for part in said:
        assert part in sentence
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fashoin", ["'fashoin'", "folder", "hub"]),
        ("./no/such/folder", ["./no/such/folder"]),
        ("weights.ckpt", ["weights.ckpt", "pickle"]),
        ("empty", ["empty", "diffusers format"]),
        ("pickled", ["pickle", "safetensors"]),
    ],
)
def test_models_that_are_none(name: str, said: list[str], model: str):
    Path("weights.ckpt").write_bytes(b"\x80\x04.")
    Path("empty").mkdir()
    tiny.pipeline_folder(Path("pickled"))
    weights = next(Path("pickled").rglob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    sentence = fails("sample", "--model", name, code=2)
    for part in said:
        assert part in sentence


def test_a_conditional_model_asks_for_its_label():
    folder = tiny.pipeline_folder(Path("conditional"), tiny.unet(classes=3))
    assert "a class from 0 to 2" in fails("sample", "--model", folder, code=2)
    assert "--label: 3 is not" in fails("sample", "--model", folder, "--label", 3, code=2)


def a_code(model: str) -> str:
    result = CliRunner().invoke(app, ["invert", str(picture(Path("shirt.png"))), "-m", model, "-S", "2", "--no-check"])
    assert result.exit_code == 0, result.output
    return next(str(path) for path in Path().glob("shirt_ddim_S2*.code.safetensors"))


def test_codes_that_are_none(model: str):
    code = Path(a_code(model))
    Path("corrupt.safetensors").write_bytes(code.read_bytes()[:100])
    save_file({"x": torch.zeros(3)}, "foreign.safetensors")
    assert "corrupt.safetensors" in fails("reconstruct", "corrupt.safetensors", code=2)
    assert "not a latent code" in fails("reconstruct", "foreign.safetensors", code=2)
    assert "missing.safetensors" in fails("reconstruct", "missing.safetensors", code=2)
    assert "is not a latent code" in fails("reconstruct", "shirt.png", code=2)
    assert "--original: 2 for 1" in fails("reconstruct", code, *["--original", "shirt.png"] * 2, code=2)


def test_inputs_are_never_written_over(model: str):
    code = a_code(model)
    before = Path("shirt.png").read_bytes()
    sentence = fails("reconstruct", code, "--original", "shirt.png", "--out", "shirt.png", code=2)
    assert "shirt.png is an input" in sentence
    assert "is an input" in fails("interpolate", "shirt.png", "shirt.png", "-m", model, "--out", "shirt.png", code=2)
    assert Path("shirt.png").read_bytes() == before
    Path("other").mkdir()
    picture(Path("other/shirt.png"), 1)
    assert "both" in fails("invert", "shirt.png", "other/shirt.png", "-m", model, code=2)


def test_a_code_of_another_model_warns_by_name(model: str):
    code = a_code(model)
    other = tiny.pipeline_folder(Path("other"), beta_end=0.01)
    result = CliRunner().invoke(app, ["reconstruct", code, "--model", str(other), "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: ")
    assert model in result.stderr
    assert "'other'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert '"warnings": ["This code' in result.stdout


def test_a_code_whose_model_has_gone_says_so():
    folder = tiny.pipeline_folder(Path("passing"))
    code = a_code(str(folder))
    folder.rename("gone")
    sentence = fails("reconstruct", code, code=2)
    assert "'passing'" in sentence
    assert "--model" in sentence


def test_nan_from_the_network_names_the_step():
    folder = tiny.pipeline_folder(Path("sick"))
    weights = next(folder.rglob("*.safetensors"))
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights)
    sentence = fails("sample", "--model", folder, "--steps", 5, code=1)
    assert "step 1 of 5" in sentence
    assert sorted(os.listdir()) == ["sick"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_behind(function: str, model: str, monkeypatch: pytest.MonkeyPatch):
    picture(Path("shirt.png"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    assert "No space left" in fails("sample", "-m", model, "-n", 1, "-S", 2, "--out", "x.png", code=1)
    assert "No space left" in fails("invert", "shirt.png", "-m", model, "-S", 2, code=1)
    assert os.listdir() == ["shirt.png"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (RuntimeError("the sky fell\nsecond line"), 1, "RuntimeError: the sky fell (--debug"),
        (NetworkMemory(64), 1, "--batch"),
        (MemoryError(), 1, "not enough memory"),
        (OSError(errno.EACCES, "Permission denied", "there"), 1, "there: Permission denied."),
    ],
)
def test_whatever_else_happens_is_one_sentence(
    error: BaseException, code: int, said: str, model: str, monkeypatch: pytest.MonkeyPatch
):
    def break_down(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ddim.pipelines.sample.sample", break_down)
    assert said in fails("sample", "-m", model, code=code)


def test_debug_lets_the_error_through(model: str, monkeypatch: pytest.MonkeyPatch):
    words = ["sample", "-m", model, "--steps", "0"]
    for command in ([*words, "--debug"], ["--debug", *words]):
        assert isinstance(CliRunner().invoke(app, command).exception, ValueError)
    monkeypatch.setenv("DDIM_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, words).exception, ValueError)


def test_an_interruption_keeps_its_sentence_under_debug(model: str, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt("Interrupted; the rest is in a file.")

    monkeypatch.setattr("ddim.pipelines.sample.sample", stop)
    result = CliRunner().invoke(app, ["sample", "-m", model, "--debug"])
    assert result.exit_code == 130
    assert result.stderr.endswith("Error: Interrupted; the rest is in a file.\n")
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("words", "near"),
    [(["smaple"], "sample"), (["sample", "--stepps", "3"], "--steps"), (["sample", "--steps", "many"], "--steps")],
)
def test_usage_errors_name_the_nearest(words: list[str], near: str):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert near in result.stderr
    assert "Traceback" not in result.stderr


def test_a_true_process_exits_with_the_code_and_no_traceback(model: str):
    result = python("-m", "ddim.cli.app", "sample", "-m", model, "--steps", "0")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: --steps: 0")
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_reader_that_leaves_is_no_drama():
    process = subprocess.Popen(
        [sys.executable, "-m", "ddim.cli.app", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) in (1, 141)
    process.stderr.close()
    assert said == ""


RANGES = [
    *(["--layers", "1,0.5"], ["--layers", "0,2"], ["--cross", "0.5,0.2"], ["--interval", "0.8,0.2"]),
    ["--self", "2"],
]


@pytest.mark.parametrize("words", RANGES, ids=" ".join)
def test_a_range_is_refused_as_it_was_typed(words: list[str]):
    said = fails("edit", "a.png", "--from", "a cat", "--to", "a dog", *words, code=2)
    assert f"{words[0]}: {words[1]} " in said
    assert "(" not in said


def test_errors_name_the_options_of_the_command(model: str):
    words = ["edit", "a.png", "--from", "a cat", "--to", "a dog"]
    said = fails(*words, "--layers", "0,0.5", "--layer-indices", "0", code=2)
    assert "--layers: " in said
    assert "--layer-indices" in said
    large = picture(Path("large.png"), size=9)
    assert "--resize" in fails("invert", large, "-m", model, code=2)
    with refused("images", "resize"):
        ddim.invert(ddim.load(model), large)


def test_a_file_that_is_no_code_says_what_makes_one():
    shirt = picture(Path("shirt.png"))
    said = fails("reconstruct", shirt, code=2)
    assert "shirt.png is not a latent code" in said
    assert "ddim invert" in said
    assert "header" not in said
