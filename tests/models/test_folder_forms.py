"""Folders as they are found on the hub and after training: variants, shards, checkpoints, subfolders, no index."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flux
import tiny_flux2
import tiny_lora
import tiny_sdxl
import tiny_text
import torch
from refusals import refused, unknown, warned
from safetensors.torch import load_file, save_file
from test_hub_cache import NAME, keep
from test_hub_cache import cache as cache
from tiny_flow import FAMILIES

import ddim

INDEX = "model_index.json"
ASSUMED = {"sdxl": ["force_zeros_for_empty_prompt", "true"], "flux dev": ["FluxPipeline"]}
"""What the warning names where an index would say more than the parts."""
MAKE: dict[str, Callable[[], Any]] = {
    "sd": tiny_text.pipeline,
    "sdxl": tiny_sdxl.pipeline,
    **{name: FAMILIES[name].pipeline for name in ("sd3", "sd3 without t5", "flux dev", "qwen-image", "z-image")},
}


def load(folder: Path | str, **options: Any) -> Any:
    return ddim.load(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folders") / "whole"
    tiny_text.pipeline().save_pretrained(place)
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a pipeline's folder."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def add_variant(folder: Path, name: str, seed: int, *parts: str) -> None:
    """Adds a variant of some parts, with the weights of another seed."""
    other = tiny_text.pipeline(seed=seed)
    other.vae = other.vae if "vae" in parts else tiny_text.pipeline().vae
    for part in parts:
        getattr(other, part).save_pretrained(folder / part, variant=name)


# --- variants -------------------------------------------------------------------------------------------------------


def test_a_variant_is_chosen_by_its_name(folder: Path, whole: Path):
    plain = load(whole).fingerprint
    add_variant(folder, "fp16", 1, "unet", "text_encoder", "vae")
    add_variant(folder, "non_ema", 2, "unet")
    assert load(folder).fingerprint == plain
    full = load(folder, variant="fp16")
    assert full.fingerprint == load_saved(folder.parent / "one", tiny_text.pipeline(seed=1))
    mixed = tiny_text.pipeline()
    mixed.unet = tiny_text.pipeline(seed=2).unet  # of the parts that lack the variant, full precision
    assert load(folder, variant="non_ema").fingerprint == load_saved(folder.parent / "two", mixed)
    with refused("variant", "'bf16'", "'fp16'", "'non_ema'"):
        load(folder, variant="bf16")
    with refused("variant", "'fp16'"):
        load(whole, variant="fp16")
    with refused("variant", "'../x'"):
        load(whole, variant="../x")
    with refused("variant"):
        ddim.load(tiny_text.pipeline(), variant="fp16")


def load_saved(place: Path, pipeline: Any) -> str:
    pipeline.save_pretrained(place)
    return load(place).fingerprint


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema", "fp32-ema"])
@pytest.mark.parametrize("shards", ["10GB", "30KB"])
def test_the_only_variant_is_found(variant: str, shards: str, whole: Path, tmp_path: Path):
    tiny_text.pipeline().save_pretrained(tmp_path / "model", variant=variant, max_shard_size=shards)
    assert (len([*(tmp_path / "model" / "unet").glob("*.safetensors")]) > 1) == (shards == "30KB")
    assert load(tmp_path / "model").fingerprint == load(whole).fingerprint
    assert load(tmp_path / "model", variant=variant).fingerprint == load(whole).fingerprint


def test_an_incomplete_full_precision_gives_way(whole: Path, tmp_path: Path):
    model = tmp_path / "model"
    tiny_text.pipeline().save_pretrained(model, max_shard_size="30KB")
    tiny_text.pipeline(seed=1).unet.save_pretrained(model / "unet", variant="fp16")
    assert load(model).fingerprint == load(whole).fingerprint
    next(iter(sorted((model / "unet").glob("*-00001-of-*.safetensors")))).unlink()
    other = tiny_text.pipeline()
    other.unet = tiny_text.pipeline(seed=1).unet
    assert load(model).fingerprint == load_saved(tmp_path / "other", other)


def test_a_pixel_model_has_variants_too(tmp_path: Path):
    tiny.pipeline_folder(tmp_path / "pixel")
    place = tmp_path / "pixel" / "unet"
    tensors = load_file(place / "diffusion_pytorch_model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, place / "diffusion_pytorch_model.ema.safetensors")
    assert load(tmp_path / "pixel").fingerprint != load(tmp_path / "pixel", variant="ema").fingerprint
    with refused("variant", "'ema'", "'fp16'"):
        load(tmp_path / "pixel", variant="fp16")


def test_a_cached_variant_is_enough(cache: Path, whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    add_variant(folder, "fp16", 1, "unet", "text_encoder", "vae")
    full = [path for path in folder.rglob("*.safetensors") if ".fp16" not in path.name]
    keep(cache, folder, without=[path.relative_to(folder).as_posix() for path in full])
    fingerprint = load_saved(folder.parent / "one", tiny_text.pipeline(seed=1))
    assert load(NAME).fingerprint == load(NAME, variant="fp16").fingerprint == fingerprint
    with refused("variant", "'bf16'", "'fp16'"):
        load(NAME, variant="bf16")


def test_with_a_network_the_variant_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch):
    add_variant(folder, "fp16", 1, "unet")
    asked: list[list[str]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: files)
    load(NAME, variant="fp16")
    assert {f for f in asked[-1] if "safetensors" in f} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "flux dev"])
def test_a_checkpoint_takes_the_rest_from_its_run(kind: str, tmp_path: Path):
    run, trained = tmp_path / "run", MAKE[kind]()
    MAKE[kind]().save_pretrained(run)
    name, network = tiny_lora.network_of(trained)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.01
    network.save_pretrained(run / "checkpoint-500" / name)
    (run / "checkpoint-500" / "optimizer.bin").write_bytes(b"")  # what accelerate keeps is not read
    model = load(run / "checkpoint-500")
    assert model.fingerprint == load_saved(tmp_path / "whole", trained) != load(run).fingerprint
    assert model.name == str(run / "checkpoint-500")
    (run / INDEX).unlink()
    with refused("model", type(network).__name__, INDEX):
        load(run / "checkpoint-500")


def test_a_checkpoint_has_the_facts_of_its_run(tmp_path: Path):
    run, place = tmp_path / "run", tmp_path / "run" / "checkpoint-500"
    tiny_text.pipeline().save_pretrained(run)
    tiny_text.pipeline().unet.save_pretrained(place / "unet")
    (run / "ddim.json").write_text('{"guidance": 3}')
    assert load(place).info.guidance == load(run).info.guidance == 3
    (place / "ddim.json").write_text('{"guidance": 4}')
    assert load(place).info.guidance == 4
    (place / "ddim.json").unlink()
    (run / "ddim.json").write_text('{"guidance": "three"}')
    with refused("model", run / "ddim.json", "'three'"):
        load(place)


def test_a_checkpoint_of_a_pixel_model_has_the_null_class_of_its_run(tmp_path: Path):
    run, place = tmp_path / "run", tmp_path / "run" / "checkpoint-500"
    tiny.pipeline_folder(run, tiny.unet(classes=3))
    shutil.copytree(run / "unet", place / "unet")
    (run / "ddim.json").write_text('{"null_class": null}')
    assert load(run).info.null_class is load(place).info.null_class is None


def test_a_checkpoint_of_a_lora_says_what_to_do(whole: Path, tmp_path: Path):
    pytest.importorskip("peft")
    place = tmp_path / "run" / "checkpoint-20"
    tiny_lora.lora(tiny_text.pipeline(), place / "pytorch_lora_weights.safetensors")
    with refused("model", place, "--lora"):
        load(place)
    assert load(whole, lora=place).adapters == "checkpoint-20 1"


# --- subfolders -----------------------------------------------------------------------------------------------------


def test_a_folder_inside_a_repository(cache: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny.pipeline_folder(tmp_path / "repository" / "pixel")
    shutil.copytree(whole, tmp_path / "repository" / "a" / "text")
    keep(cache, tmp_path / "repository")
    assert load(f"{NAME}/a/text").fingerprint == load(whole).fingerprint
    assert load(f"{NAME}/a/text").name == f"{NAME}/a/text"
    assert load(f"{NAME}/pixel").fingerprint == load(tmp_path / "repository" / "pixel").fingerprint
    with refused("model", f"{NAME!r}", "'b'"):
        load(f"{NAME}/b")


def test_a_mistyped_path_is_no_repository(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddim.models.hub.from_hub", lambda *_: pytest.fail("the hub was asked"))
    Path("runs").mkdir()
    for name in ("runs/a/model", "./a/b/c", "../a/b", "/a/b/c", "a//b"):
        with unknown("model", name, hint=True):
            load(name)


# --- without an index -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKE)
def test_a_pipeline_is_told_by_its_parts(kind: str, tmp_path: Path):
    pipeline = MAKE[kind]()
    fingerprint = load_saved(tmp_path / "model", pipeline)
    (tmp_path / "model" / INDEX).unlink()
    with warned(tmp_path / "model", INDEX, *ASSUMED[kind]) if kind in ASSUMED else nullcontext():
        model = load(tmp_path / "model")
    assert model.fingerprint == fingerprint
    if kind != "z-image":  # their configs name the class that the index names
        assert type(model.pipeline) is type(pipeline)


@pytest.mark.parametrize("distilled", [True, False])
def test_what_only_the_index_says_is_not_guessed(distilled: bool, tmp_path: Path):
    tiny_flux2.pipeline(distilled=distilled).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / INDEX).unlink()
    for part in ("transformer", "vae", "text_encoder"):  # refused before any weights are read
        next((tmp_path / "model" / part).glob("*.safetensors")).unlink()
    with refused("model", tmp_path / "model", INDEX, "distilled"):
        load(tmp_path / "model")


def test_a_kontext_without_an_index_is_read_with_a_warning(tmp_path: Path):
    tiny_flux.pipeline("FluxKontextPipeline").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / INDEX).unlink()
    with warned(tmp_path / "model", INDEX, "Kontext"):
        load(tmp_path / "model")


def test_a_language_model_saved_with_its_head_is_read_without(tmp_path: Path):
    FAMILIES["z-image"].pipeline().save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["Qwen3ForCausalLM"]}))
    fingerprint = load(tmp_path / "model").fingerprint
    (tmp_path / "model" / INDEX).unlink()
    assert load(tmp_path / "model").fingerprint == fingerprint


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
def test_it_says_which_part_is_missing(part: str, folder: Path):
    (folder / INDEX).unlink()
    shutil.rmtree(folder / part)
    with refused("model", folder, part, "StableDiffusionPipeline", INDEX):
        load(folder)


def test_parts_of_no_supported_pipeline_are_refused(folder: Path):
    (folder / INDEX).unlink()
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet3DConditionModel"}))
    with refused("model", folder, INDEX):
        load(folder)


def test_a_cached_repository_without_an_index(cache: Path, folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (folder / INDEX).unlink()
    keep(cache, folder)
    assert load(NAME).fingerprint == load(whole).fingerprint
