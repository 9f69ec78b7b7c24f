"""A folder names the usual guidance of its model in ``ddim.json``."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from refusals import refused
from tiny_flow import FAMILIES

import ddim
from ddim.models.about_file import ABOUT, usual_guidance


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return folder


def test_a_folders_own_guidance_is_the_default_and_no_part_of_the_fingerprint(words: Path):
    plain = ddim.load(words)
    assert plain.info.guidance == 7.5
    (words / ABOUT).write_text(json.dumps({"guidance": 3}))
    try:
        own = ddim.load(words)
    finally:
        (words / ABOUT).unlink()
    assert own.info.guidance == 3.0
    assert own.fingerprint == plain.fingerprint
    assert own.describe()["guidance"] == {"weight": 3.0}
    drawn = ddim.sample(own, 1, steps=2, prompt="a cat")
    assert torch.equal(drawn, ddim.sample(plain, 1, steps=2, prompt="a cat", guidance=3.0))
    assert not torch.equal(drawn, ddim.sample(plain, 1, steps=2, prompt="a cat"))


@pytest.mark.parametrize("value", ["three", True, [3], {"weight": 3}], ids=str)
def test_a_guidance_that_is_no_number_is_refused_by_name(value: Any, words: Path, tmp_path: Path):
    (tmp_path / ABOUT).write_text(json.dumps({"guidance": value}))
    with refused("model", repr(value), str(tmp_path / ABOUT)):
        usual_guidance(tmp_path)
    (words / ABOUT).write_text(json.dumps({"guidance": value}))
    try:
        with refused("model", repr(value)):
            ddim.load(words)
    finally:
        (words / ABOUT).unlink()


def test_a_file_that_says_nothing_of_guidance(tmp_path: Path):
    assert usual_guidance(tmp_path) is None
    (tmp_path / ABOUT).write_text('{"classes": ["a"]}')
    assert usual_guidance(tmp_path) is None


def test_models_that_take_no_guidance_refuse_it(tmp_path: Path):
    pixel = tiny.pipeline_folder(tmp_path / "pixel")
    FAMILIES["flux schnell"].pipeline().save_pretrained(tmp_path / "schnell")
    for folder in (pixel, tmp_path / "schnell"):
        (folder / ABOUT).write_text('{"guidance": 3}')
        with refused("model", str(folder / ABOUT)):
            ddim.load(folder)


@pytest.mark.parametrize(
    ("name", "begins"),
    [("emoji", "f00fe24675b4d31f838b513e126fc6ba"), ("emoji-flow", "bfed61b14b1c06359171e09c068ebd67")],
)
def test_the_bundled_models_have_the_guidance_that_suits_them(name: str, begins: str):
    model = ddim.load(name)
    assert model.info.guidance == 3.0
    assert model.fingerprint.startswith(begins)  # as before the folder named its guidance
