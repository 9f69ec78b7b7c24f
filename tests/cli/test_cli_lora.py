"""``--lora``, ``--textual-inversion``, ``--variant`` and ``--config`` in commands that load a model."""

from pathlib import Path

import original_layout
import pytest
import tiny_lora
import tiny_text
from commands import fails, run, run_json

import ddim
from ddim.cli.options import Files, lora_from

pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")

PROMPT = "a <toy> cat"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder of a tiny model; a LoRA and a word lie here."""
    tiny_lora.lora(tiny_text.pipeline(), Path("style.safetensors"))
    tiny_lora.embedding(Path("word.safetensors"), 12)
    tiny_text.pipeline().save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def test_all_commands_load_them_and_codes_keep_them(model: str):
    more = ["--lora", "style.safetensors:0.5", "--textual-inversion", "word.safetensors"]
    steps = ["-S", 2, "--prompt", PROMPT]
    plain = run_json("sample", "-m", model, *steps, "-n", 1)
    sampled = run_json("sample", "-m", model, *steps, "-n", 1, *more)
    assert sampled["fingerprint"] != plain["fingerprint"]
    assert sampled["lora"] == ["style.safetensors:0.5"]
    loaded = ddim.load(model, lora={"style.safetensors": 0.5}, textual_inversion="word.safetensors")
    assert sampled["fingerprint"] == loaded.fingerprint
    assert run_json("models", model, *more)["fingerprint"] == loaded.fingerprint
    assert run_json("methods", "--model", model, *more)["model"] == model
    ddim.save_image(tiny_text.pictures(1)[0], "cat.png")
    code = run_json("invert", "cat.png", "-m", model, *steps, *more, "--method", "bdia", "--no-check")["files"][0]
    assert ddim.LatentCode.load(code).settings["adapters"] == "style 0.5, <toy>"
    said = run("reconstruct", code, *more)
    assert "adapters" not in said.output
    said = run("reconstruct", code)
    assert "style 0.5, <toy>" in " ".join(said.output.split())
    edited = run_json("edit", "cat.png", "-m", model, "-S", 2, "--from", PROMPT, "--to", "a <toy> dog", *more)
    assert edited["fingerprint"] == loaded.fingerprint


def test_what_is_wrong_is_one_line_that_names_the_option(model: str):
    words = ["sample", "-m", model, "-n", 1]
    assert "Did you mean 'style.safetensors'?" in fails(*words, "--lora", "stile.safetensors", code=2)
    assert "--textual-inversion: " in fails(*words, "--textual-inversion", "style.safetensors", code=2)
    assert "--lora: " in fails(*words, "--lora", "word.safetensors", code=2)


def test_a_variant_and_a_single_file(model: str):
    tiny_text.pipeline(seed=1).unet.save_pretrained(Path(model) / "unet", variant="fp16")
    assert run_json("models", model, "--variant", "fp16")["fingerprint"] == ddim.load(model, variant="fp16").fingerprint
    original_layout.write(tiny_text.pipeline(), Path("single.safetensors"))
    said = run_json("sample", "-m", "single.safetensors", "--config", model, "-S", 2, "-n", 1, "-p", "a cat")
    assert said["fingerprint"] == ddim.load(model).fingerprint
    assert "--config: " in fails("sample", "-m", model, "--config", model, "-n", 1, code=2)
    assert "--variant: " in fails("sample", "-m", model, "--variant", "x", "-n", 1, code=2)


def test_a_scale_stands_behind_the_last_colon():
    assert lora_from("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert lora_from("owner/name:-1e-1") == ("owner/name", -0.1)
    assert lora_from("C:\\a.safetensors") == ("C:\\a.safetensors", 1.0)
    Path("a:2").touch()
    assert lora_from("a:2") == ("a:2", 1.0)


def test_the_name_of_a_file_tells_the_scale_from_the_hash():
    plain = Files(lora=("style.safetensors",)).tags["lora-"]
    assert Files(lora=("style.safetensors:0.5",)).tags == {"lora-": f"{plain}-x0.5"}
    both = Files(lora=("style.safetensors:0.5", "other.safetensors:-2")).tags["lora-"]
    assert both.startswith(f"{plain}-x0.5-other-")
    assert both.endswith("-x-2")
