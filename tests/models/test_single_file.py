"""Pipelines in one .safetensors file: the same model as the folder, or one sentence that says what is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_layout
import pytest
import tiny
import tiny_lora
import tiny_sdxl
import tiny_text
import torch
from refusals import failed, refused, unknown
from safetensors.torch import load_file, save_file
from test_hub_cache import NAME, Hub, keep
from test_hub_cache import cache as cache
from tiny_flow import FAMILIES

import ddim

pytest.importorskip("accelerate")

MAKE: dict[str, Callable[[], Any]] = {"sd": tiny_text.pipeline, "sdxl": tiny_sdxl.pipeline}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Per kind: the folder of a pipeline, the same without weights, and the same as one file."""
    place, known = tmp_path_factory.mktemp("single"), dict[str, dict[str, Path]]()
    for kind, make in MAKE.items():
        (place / kind).mkdir()
        make().save_pretrained(place / kind / "whole")
        known[kind] = {
            "whole": place / kind / "whole",
            "config": original_layout.configs(make(), place / kind / "config"),
            "file": original_layout.write(make(), place / kind / "model.safetensors"),
        }
    return known


def load(file: Path | str, **options: Any) -> Any:
    return ddim.load(file, device="cpu", **options)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("configs", ["config", "whole"])
def test_it_is_the_model_of_its_folder(kind: str, configs: str, made: dict[str, dict[str, Path]]):
    folder, model = load(made[kind]["whole"]), load(made[kind]["file"], config=made[kind][configs])
    assert model.fingerprint == folder.fingerprint
    assert model.name == str(made[kind]["file"])
    assert not any(weight.is_meta for part in model.networks().values() for weight in part.parameters())
    drawn = [ddim.sample(each, 2, steps=3, prompt="a cat", guidance=3.0) for each in (model, folder)]
    assert torch.equal(*drawn)
    code = ddim.invert(model, tiny_text.pictures(1), steps=3, prompt="a cat", method="bdia")
    assert torch.equal(ddim.reconstruct(folder, code), ddim.reconstruct(model, code, strict=True))


@pytest.mark.parametrize("kind", MAKE)
def test_it_is_what_diffusers_reads(kind: str, made: dict[str, dict[str, Path]]):
    own = type(MAKE[kind]())
    pipeline = own.from_single_file(str(made[kind]["file"]), config=str(made[kind]["config"]), local_files_only=True)
    assert ddim.load(pipeline).fingerprint == load(made[kind]["file"], config=made[kind]["config"]).fingerprint


def test_half_precision_and_a_lora(made: dict[str, dict[str, Path]], tmp_path: Path):
    pytest.importorskip("peft")
    file = original_layout.write(tiny_text.pipeline(), tmp_path / "half.safetensors", torch.float16)
    tiny_text.pipeline().to(torch.float16).save_pretrained(tmp_path / "half")
    model = load(file, config=made["sd"]["config"], dtype="bfloat16")
    assert model.fingerprint == load(tmp_path / "half").fingerprint
    assert model.dtype == torch.bfloat16
    lora = tiny_lora.lora(tiny_text.pipeline(), tmp_path / "style.safetensors")
    styled = load(made["sd"]["file"], config=made["sd"]["config"], lora=lora)
    assert styled.fingerprint == load(made["sd"]["whole"], lora=lora).fingerprint


def test_parts_that_the_file_lacks_come_from_the_folder(made: dict[str, dict[str, Path]], tmp_path: Path):
    other = original_layout.tensors(tiny_text.pipeline(seed=1))
    only = {name: tensor.contiguous() for name, tensor in other.items() if name.startswith("model.")}
    save_file(only, tmp_path / "unet.safetensors")
    mixed = tiny_text.pipeline()
    mixed.unet = tiny_text.pipeline(seed=1).unet
    mixed.save_pretrained(tmp_path / "mixed")
    model = load(tmp_path / "unet.safetensors", config=made["sd"]["whole"])
    assert model.fingerprint == load(tmp_path / "mixed").fingerprint
    with refused("model", made["sd"]["config"] / "text_encoder"):
        load(tmp_path / "unet.safetensors", config=made["sd"]["config"])


def test_configs_from_the_hubs_cache(
    cache: Path, made: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    usual = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with refused("model", made["sd"]["file"], usual, "config") as caught:
        load(made["sd"]["file"])
    assert "\n" not in str(caught.value)
    with failed("config", f"{NAME!r}", "HF_HUB_OFFLINE"):
        load(made["sd"]["file"], config=NAME)
    keep(cache, made["sd"]["config"])
    fingerprint = load(made["sd"]["whole"]).fingerprint
    assert load(made["sd"]["file"], config=NAME).fingerprint == fingerprint
    keep(cache, made["sd"]["config"], name=usual)
    assert load(made["sd"]["file"]).fingerprint == fingerprint


def test_a_hub_id_as_config_brings_the_parts_that_the_file_lacks(
    made: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = made["sd"]["whole"]
    tensors = original_layout.tensors(tiny_text.pipeline())
    save_file({k: v.contiguous() for k, v in tensors.items() if k.startswith("model.")}, tmp_path / "unet.safetensors")
    hub = Hub(whole, monkeypatch)
    assert load(made["sd"]["file"], config=NAME).fingerprint == load(whole).fingerprint
    assert not hub.weights
    assert load(tmp_path / "unet.safetensors", config=NAME).fingerprint == load(whole).fingerprint
    assert hub.weights == {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}


def test_a_cached_config_without_the_weights_says_that_the_hub_was_not_asked(
    cache: Path, made: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tensors = original_layout.tensors(tiny_text.pipeline())
    save_file({k: v.contiguous() for k, v in tensors.items() if k.startswith("model.")}, tmp_path / "unet.safetensors")
    keep(cache, made["sd"]["config"])
    with failed("config", repr(NAME), "vae"):
        load(tmp_path / "unet.safetensors", config=NAME)


# --- what is refused ------------------------------------------------------------------------------------------------


def changed(file: Path, place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, place)
    return place


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("part", ["model.diffusion_model.", "first_stage_model.", "text"])
@pytest.mark.parametrize("how", ["missing", "more", "misshapen"])
def test_weights_that_do_not_fit_are_refused(
    kind: str, part: str, how: str, made: dict[str, dict[str, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    begin = part if part != "text" else {"sd": "cond_stage_model.", "sdxl": "conditioner.embedders.1."}[kind]
    if (part, how) == ("text", "more"):  # files hold layers of text encoders that are not used
        return

    def change(tensors: dict[str, Any]) -> None:
        names = [name for name in tensors if (name.startswith(begin) and "norm" in name.lower()) or "ln_1.w" in name]
        name = next(name for name in names if name.startswith(begin))
        if how == "more":
            tensors[f"{begin}another.weight"] = torch.ones(3)
        elif how == "missing":
            del tensors[name]
        else:
            tensors[name] = torch.ones(3)

    file = changed(made[kind]["file"], tmp_path / "x.safetensors", change)
    capfd.readouterr()
    with refused("model", file) as caught:
        load(file, config=made[kind]["config"])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_configs_of_another_pipeline_are_refused(made: dict[str, dict[str, Path]], tmp_path: Path):
    for kind, other in (("sd", "sdxl"), ("sdxl", "sd")):
        with refused("model"):
            load(made[kind]["file"], config=made[other]["config"])
    tiny.pipeline_folder(tmp_path / "pixels")
    with refused("config", tmp_path / "pixels"):
        load(made["sd"]["file"], config=tmp_path / "pixels")
    for name in (5, ""):
        with refused("config", repr(name)):
            load(made["sd"]["file"], config=name)
    with refused("config", tmp_path, "model_index.json"):
        load(made["sd"]["file"], config=tmp_path)
    with refused("config", f"{str(tmp_path / 'none')!r}"):
        load(made["sd"]["file"], config=tmp_path / "none")


def test_options_that_do_not_go_with_it(made: dict[str, dict[str, Path]]):
    with refused("variant"):
        load(made["sd"]["file"], config=made["sd"]["config"], variant="fp16")
    with refused("config"):
        load(made["sd"]["whole"], config=made["sd"]["config"])
    missing = made["sd"]["file"].with_name("modle.safetensors")
    for name in (str(missing), "nofile.safetensors", "sub/nofile.safetensors"):
        near = str(made["sd"]["file"]) if name == str(missing) else None
        for more in ({"config": made["sd"]["config"]}, {}):
            with unknown("model", name, nearest=near, hint=True):
                load(name, **more)
    with refused("config"):
        ddim.load(tiny_text.pipeline(), config=made["sd"]["config"])


def test_what_is_no_pipeline_is_named(made: dict[str, dict[str, Path]], tmp_path: Path):
    config = made["sd"]["config"]
    for name in ("a.ckpt", "a.pt", "a.bin"):
        (tmp_path / name).write_bytes(b"")
        with refused("model", tmp_path / name, "pickle"):
            load(tmp_path / name, config=config)
    (tmp_path / "a.txt").write_text("")
    with refused("model", tmp_path / "a.txt", ".safetensors"):
        load(tmp_path / "a.txt", config=config)
    (tmp_path / "broken.safetensors").write_bytes(made["sd"]["file"].read_bytes()[:100])
    with failed("model", tmp_path / "broken.safetensors"):
        load(tmp_path / "broken.safetensors", config=config)
    whole = made["sd"]["whole"]
    files = {
        "a U-Net": whole / "unet" / "diffusion_pytorch_model.safetensors",
        "an autoencoder": whole / "vae" / "diffusion_pytorch_model.safetensors",
    }
    FAMILIES["flux dev"].pipeline().transformer.save_pretrained(tmp_path / "flux")
    files["a transformer"] = tmp_path / "flux" / "diffusion_pytorch_model.safetensors"
    vae = {k: t.contiguous() for k, t in original_layout.autoencoder(tiny_text.pipeline().vae).items()}
    save_file(vae, tmp_path / "vae.safetensors")
    text = {k: t.contiguous() for k, t in original_layout.clip(tiny_text.pipeline().text_encoder).items()}
    save_file(text, tmp_path / "text.safetensors")
    save_file({"<toy>": torch.ones(12)}, tmp_path / "word.safetensors")
    save_file({"something": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with refused("model", tmp_path / "empty.safetensors", "no tensors") as caught:
        load(tmp_path / "empty.safetensors", config=config)
    assert "textual" not in str(caught.value)
    rows = [*files.items(), ("an autoencoder", tmp_path / "vae.safetensors")]
    rows += [("a text encoder", tmp_path / "text.safetensors"), ("--textual-inversion", tmp_path / "word.safetensors")]
    for what, file in [*rows, ("diffusers", tmp_path / "other.safetensors")]:
        with refused("model", file, what):
            load(file, config=config)


def test_a_lora_is_named(made: dict[str, dict[str, Path]], tmp_path: Path):
    pytest.importorskip("peft")
    lora = tiny_lora.lora(tiny_text.pipeline(), tmp_path / "style.safetensors")
    with refused("model", lora, "--lora"):
        load(lora, config=made["sd"]["config"])


def test_quantised_weights_are_refused(made: dict[str, dict[str, Path]], tmp_path: Path):
    key = next(iter(load_file(made["sd"]["file"])))
    rows: dict[str, Any] = {key: torch.ones(3, 3, dtype=torch.int8), f"{key}.scale_weight": torch.ones(1)}
    for name, tensor in rows.items():
        file = changed(made["sd"]["file"], tmp_path / "x.safetensors", lambda t, n=name, v=tensor: t.update({n: v}))
        with refused("model", file, f"{name!r}"):
            load(file, config=made["sd"]["config"])


def test_without_accelerate_it_says_what_to_install(made: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.models.single_file.find_spec", lambda _: None)
    with refused("model", "pip install accelerate"):
        load(made["sd"]["file"], config=made["sd"]["config"])
