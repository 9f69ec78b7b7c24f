"""Descriptions of pictures, by a tiny BLIP with random weights."""

import json
from pathlib import Path

import pytest
import tiny
import tiny_blip
import tiny_llava
import torch
from PIL import Image
from refusals import refused

from ddim.models.captioner import ASKED, LONGEST, Captioner


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip.folder(tmp_path_factory.mktemp("captioner") / "blip")


def picture(seed: int) -> Image.Image:
    values = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(seed)) * 255
    return Image.fromarray(values.byte().numpy(), "RGB").resize((48, 40))


def test_it_says_what_transformers_says(blip: Path):
    from transformers import BlipForConditionalGeneration, BlipProcessor

    captioner = Captioner(str(blip))
    assert not captioner.loaded
    said = [captioner.describe(picture(seed)) for seed in range(4)]
    assert captioner.loaded
    network, processor = BlipForConditionalGeneration.from_pretrained(blip), BlipProcessor.from_pretrained(blip)
    for seed, words in enumerate(said):
        inputs = processor(images=picture(seed), return_tensors="pt")
        tokens = network.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        assert words == processor.decode(tokens[0], skip_special_tokens=True).strip()
        assert words == captioner.describe(picture(seed))
    assert all(said)
    assert len(set(said)) > 1  # it looks at the picture
    assert "[" not in "".join(said)


def test_a_model_that_takes_instructions_is_asked_and_its_answer_alone_is_told(tmp_path: Path):
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = tiny_llava.folder(tmp_path / "llava")
    said = [Captioner(str(folder)).describe(picture(seed)) for seed in range(3)]
    network, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    for seed, words in enumerate(said):
        inputs = processor(images=picture(seed), text=f"<image> {ASKED} ", return_tensors="pt")
        tokens = network.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        assert words == processor.decode(answer, skip_special_tokens=True).strip()
    assert all(said)
    assert len(set(said)) > 1


def test_it_is_told_after_each_token_and_ends_where_that_raises(blip: Path):
    captioner, told = Captioner(str(blip)), []

    def stop() -> None:
        told.append(None)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        captioner.describe(picture(0), stop)
    assert len(told) == 3


def test_what_describes_no_pictures_is_refused(blip: Path, tmp_path: Path):
    with refused("captioner", "no/such/folder"):
        Captioner("no/such/folder")
    with refused("captioner", "blipp"):
        Captioner("blipp")
    with refused("captioner", tmp_path):
        Captioner(str(tmp_path))
    diffusion = tiny.pipeline_folder(tmp_path / "diffusion")
    with refused("captioner", diffusion):
        Captioner(str(diffusion))
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with refused("captioner", text, "'gpt2'"):
        Captioner(str(text))


def copied(blip: Path, to: Path) -> Path:
    to.mkdir()
    for file in blip.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_pickles_foreign_code_and_damaged_files_are_refused(blip: Path, tmp_path: Path):
    pickled = copied(blip, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with refused("captioner"):
        Captioner(str(pickled)).describe(picture(0))

    foreign = copied(blip, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Ours", "AutoModelForImageTextToText": "code.Ours"}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Ours: pass\n")
    Captioner(str(foreign)).describe(picture(0))
    assert not (tmp_path / "ran").exists()

    lacking = copied(blip, tmp_path / "lacking")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "processor_config.json"):
        (lacking / name).unlink(missing_ok=True)
    with refused("captioner", lacking):
        Captioner(str(lacking)).describe(picture(0))

    small = copied(blip, tmp_path / "small")
    config.pop("auto_map")
    config["text_config"]["hidden_size"] = 24
    (small / "config.json").write_text(json.dumps(config))
    with refused("captioner", small):
        Captioner(str(small)).describe(picture(0))
