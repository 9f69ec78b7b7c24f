"""Every part of a model is whole, of a known kind and fits the others, or loading it is one sentence that says why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from refusals import failed, refused
from safetensors.torch import load_file, save_file
from tiny_features import features_folder
from torch import Tensor
from training_helpers import make_autoencoder
from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetForImageClassification, ViTConfig, ViTModel

import ddim
from ddim._utils.errors import InputError, UnknownName
from ddim.evaluation.metrics.networks import Clip, Dino
from ddim.models import device_and_dtype
from ddim.models.features import load_features
from ddim.models.sd import StableDiffusion
from ddim.training.tasks.text import load_autoencoder

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def classifier_folder(folder: Path) -> Path:
    config = ResNetConfig(
        num_channels=2, num_labels=3, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic"
    )
    config.image_size = 8
    ResNetForImageClassification(config).save_pretrained(folder)
    (folder / "scheduler_config.json").write_text(json.dumps(dict(tiny.DDPM)))
    return folder


def clip_folder(folder: Path) -> Path:
    words = tiny_text.tokenizer()
    size = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": tiny_text.LENGTH}
    seen = {**size, "image_size": 24, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=6)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def dino_folder(folder: Path) -> Path:
    size: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    ViTModel(ViTConfig(**size, intermediate_size=20, image_size=16, patch_size=4)).save_pretrained(folder)
    return folder


def text_folder(folder: Path) -> Path:
    tiny_text.pipeline().save_pretrained(folder)
    return folder


def load_text(folder: Path) -> Any:
    return ddim.load(folder, device="cpu").pipeline  # type: ignore[attr-defined]


# folder that holds it, the part within, what loads the folder, what of it is the part, the parameter
PARTS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], Any], Callable[[Any], Any], str]] = {
    "pixel": (tiny.pipeline_folder, "unet", lambda f: ddim.load(f, device="cpu"), lambda m: m.network, "model"),
    "unet": (text_folder, "unet", load_text, lambda p: p.unet, "model"),
    "vae": (text_folder, "vae", load_text, lambda p: p.vae, "model"),
    "text_encoder": (text_folder, "text_encoder", load_text, lambda p: p.text_encoder, "model"),
    "classifier": (classifier_folder, ".", ddim.load_classifier, lambda c: c.network.resnet, "classifier"),
    "features": (features_folder, ".", load_features, lambda c: c.network.resnet, "features"),
    "clip": (clip_folder, ".", lambda f: Clip(str(f)), lambda c: c.model, "clip"),
    "dino": (dino_folder, ".", lambda f: Dino(str(f)), lambda d: d.model, "dino"),
    "autoencoder": (make_autoencoder, ".", lambda f: load_autoencoder(str(f), 3), lambda a: a, "text.autoencoder"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {name: tmp_path_factory.mktemp(name) / "whole" for name in PARTS}
    return {name: Path(PARTS[name][0](place) or place) for name, place in places.items()}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Any:
    """A copy that a test may damage: (folder, the part's folder, load, the part's tensors, parameter)."""
    _, sub, load, of, parameter = PARTS[request.param]
    folder = Path(shutil.copytree(made[request.param], tmp_path / request.param))
    return folder, folder / sub, load, lambda loaded: of(loaded).state_dict(), parameter


def weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def change(folder: Path, changed: Change) -> None:
    save_file(changed(load_file(weights(folder))), weights(folder), {"format": "pt"})


def some(tensors: dict[str, Tensor]) -> str:
    """A tensor in the middle, which every kind of part has."""
    return sorted(k for k, t in tensors.items() if t.dim() > 0 and "position_ids" not in k and "pooler" not in k)[1]


# --- whole weights ---------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(part: Any):
    folder, place, load, _, parameter = part
    name = some(load_file(weights(place)))
    change(place, lambda tensors: {k: t for k, t in tensors.items() if k != name})
    with refused(parameter, name.split(".")[-2]) as caught:
        load(folder)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_nothing_takes_is_named(part: Any):
    folder, place, load, _, parameter = part
    change(place, lambda tensors: {**tensors, "another.weight": torch.ones(3)})
    with refused(parameter, "'another.weight'"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(part: Any):
    folder, place, load, _, parameter = part
    name = some(load_file(weights(place)))
    change(place, lambda tensors: {**tensors, name: torch.ones(2, 97)})
    with refused(parameter, "2x97"):
        load(folder)


def test_quantised_weights_are_refused(part: Any):
    folder, place, load, _, parameter = part
    name = some(load_file(weights(place)))
    change(place, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    with refused(parameter, "int8"):
        load(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._fsdp_wrapped_module."])
def test_what_tools_leave_in_names_comes_off(part: Any, prefix: str):
    folder, place, load, tensors_of, _ = part
    whole = tensors_of(load(folder))
    change(place, lambda tensors: {prefix + k: t for k, t in tensors.items()})
    wrapped = tensors_of(load(folder))
    assert whole.keys() == wrapped.keys()
    assert all(torch.equal(t, wrapped[k]) for k, t in whole.items())


def test_a_compiled_block_within_comes_off(made: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(made["pixel"], tmp_path / "m"))
    change(folder / "unet", lambda ts: {k.replace("mid_block.", "mid_block._orig_mod."): t for k, t in ts.items()})
    one, other = (ddim.load(f, device="cpu") for f in (made["pixel"], folder))
    assert one.fingerprint == other.fingerprint


def test_a_config_of_far_more_than_the_file_holds_is_given_up_at_once(part: Any):
    folder, place, load, _, parameter = part
    config = json.loads((place / "config.json").read_text())
    if "text_config" in config:
        config["text_config"]["num_hidden_layers"] = 10**6
    for key in ("layers_per_block", "num_hidden_layers"):
        if key in config:
            config[key] = 10**6
    if "depths" in config:
        config["depths"] = [10**6 for _ in config["depths"]]
    (place / "config.json").write_text(json.dumps(config))
    with refused(parameter, place / "config.json"):
        load(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"block_out_channels": [10**9, 10**9]},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"layers_per_block": "many"},
        {"attention_head_dim": 0},
        {"in_channels": None},
        {"down_block_types": ["NoBlock2D", "DownBlock2D"]},
        {"sample_size": "big"},
        {"sample_size": [8, 8, 8]},
        {"sample_size": -8},
        {"sample_size": 0},
        {"sample_size": 7},
        {"sample_size": 10**6},
        {"num_class_embeds": 1e30},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_one_sentence(made: dict[str, Path], tmp_path: Path, changed: dict[str, Any]):
    folder = Path(shutil.copytree(made["pixel"], tmp_path / "m"))
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError) as caught:
        ddim.load(folder, device="cpu")
    assert caught.value.parameter == "model"
    assert "\n" not in str(caught.value)


def test_the_older_names_of_attention_are_read(tmp_path: Path):
    from ddim.models.weights import _RENAMED

    folder = tiny.pipeline_folder(tmp_path / "m")
    today = ddim.load(folder, device="cpu").fingerprint

    def older(name: str) -> str:
        for old, new in _RENAMED.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    change(folder / "unet", lambda tensors: {older(k): t for k, t in tensors.items()})
    assert any(".query." in name for name in load_file(weights(folder / "unet")))
    assert ddim.load(folder, device="cpu").fingerprint == today


@pytest.mark.parametrize("key", ["embeddings.position_ids", "text_model.embeddings.position_ids"])
def test_positions_that_older_files_hold_are_passed_by(made: dict[str, Path], tmp_path: Path, key: str):
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    before = "text_model." if key.startswith("text_model.") else ""
    positions = torch.arange(tiny_text.LENGTH)[None]
    change(folder / "text_encoder", lambda ts: {**{before + k: t for k, t in ts.items()}, key: positions})
    assert ddim.load(folder, device="cpu").fingerprint == ddim.load(made["unet"], device="cpu").fingerprint


def test_a_missing_shard_is_named_and_a_whole_variant_will_do(tmp_path: Path):
    folder = tiny.pipeline_folder(tmp_path / "m")
    shutil.rmtree(folder / "unet")
    tiny.unet().save_pretrained(folder / "unet", max_shard_size="40KB")
    gone = sorted((folder / "unet").glob("*.safetensors"))[1]
    gone.unlink()
    with refused("model", gone.name):
        ddim.load(folder, device="cpu")
    tiny.unet().half().save_pretrained(folder / "unet", variant="fp16", max_shard_size="40KB")
    assert next(ddim.load(folder, device="cpu").network.parameters()).dtype == torch.float32  # type: ignore[attr-defined]


def test_kernels_that_no_file_holds_are_made(tmp_path: Path):
    from diffusers import UNet2DConditionModel

    from ddim.models.weights import diffusers_part

    torch.manual_seed(0)
    made = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("KDownBlock2D", "KDownBlock2D"),
        up_block_types=("KUpBlock2D", "KUpBlock2D"),
        mid_block_type=None,
        cross_attention_dim=8,
        attention_head_dim=8,
    )
    made.save_pretrained(tmp_path)
    read = diffusers_part(UNet2DConditionModel, tmp_path)
    own = dict(made.named_buffers())
    assert own
    assert all(torch.equal(own[name], buffer) for name, buffer in read.named_buffers())


# --- which model it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *("LDMPipeline", "StableDiffusion3InpaintPipeline", "StableDiffusionInpaintPipeline", "Flux2Pipeline"),
        *("StableDiffusionControlNetPipeline", "AltDiffusionPipeline", "ConsistencyModelPipeline", "MyOwn"),
        *(None, "", 3, ["DDPMPipeline"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("of", ["pixel", "unet"])
@pytest.mark.parametrize("sub", [".", "unet"])
def test_a_pipeline_that_is_not_known_is_refused_by_name(
    made: dict[str, Path], tmp_path: Path, kind: Any, of: str, sub: str
):
    folder = Path(shutil.copytree(made[of], tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    with pytest.raises(InputError) as caught:
        ddim.load(folder / sub, device="cpu")
    assert caught.value.parameter == "model"
    if (of, sub) != ("unet", "unet"):  # a text model's U-Net alone is refused as such
        assert str(kind) in str(caught.value)
    if sub == "." and kind and isinstance(kind, str):
        assert "pixel models" in str(caught.value)


def test_a_class_that_is_not_named_is_refused(made: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(made["pixel"], tmp_path / "m"))
    for name in ("model_index.json", "unet/config.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "_class_name"}))
        with refused("model", folder, None):
            ddim.load(folder, device="cpu")
        (folder / name).write_text(before)


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionPanoramaPipeline"])
def test_pipelines_of_the_same_networks_are_taken(made: dict[str, Path], tmp_path: Path, kind: str):
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": kind}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert ddim.load(folder, device="cpu").fingerprint == ddim.load(made["unet"], device="cpu").fingerprint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("entry", [["diffusers", "NoSuchThing"], [None, None], None, "x", ["diffusers", 3]], ids=str)
def test_a_part_of_another_class_is_refused_by_name(made: dict[str, Path], tmp_path: Path, part: str, entry: Any):
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: entry}))
    unknown = "NoSuchThing" in str(entry)
    about = "scheduler" if unknown and part == "scheduler" else "model"
    with refused(about, "NoSuchThing" if unknown else part) as caught:
        ddim.load(folder, device="cpu")
    assert "NoSuchThing" in str(caught.value) or part in str(caught.value)


# --- text models: what does not fit ----------------------------------------------------------------------------------


def text_model(made: dict[str, Path], tmp_path: Path, part: str, **config: Any) -> Path:
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize("limit", [-1, 0, 2, "", "16", [1], 17, 1.5, True, None], ids=repr)
def test_a_tokenizer_whose_limit_makes_no_sense(made: dict[str, Path], tmp_path: Path, limit: Any):
    folder = text_model(made, tmp_path, "tokenizer/tokenizer_config.json", model_max_length=limit)
    if limit is None:  # as if it said nothing
        assert ddim.load(folder, device="cpu").prompt_length == tiny_text.LENGTH  # type: ignore[attr-defined]
        return
    with pytest.raises(InputError) as caught:
        ddim.load(folder, device="cpu")
    assert caught.value.parameter == "model"
    assert "Unexpected" not in str(caught.value)


@pytest.mark.parametrize("limit", [None, 10**30])
def test_a_tokenizer_without_a_limit_has_the_encoders(made: dict[str, Path], tmp_path: Path, limit: Any):
    folder = text_model(made, tmp_path, "tokenizer/tokenizer_config.json")
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "model_max_length"}
    file.write_text(json.dumps(config if limit is None else config | {"model_max_length": limit}))
    model, whole = ddim.load(folder, device="cpu"), ddim.load(made["unet"], device="cpu")
    assert model.describe()["prompt_tokens"] == tiny_text.LENGTH - 2
    assert torch.equal(words(model), words(whole))


@pytest.mark.parametrize("kept", [["tokenizer_config.json"], ["tokenizer_config.json", "vocab.json"], ["merges.txt"]])
def test_a_tokenizer_without_its_vocabulary_is_refused(made: dict[str, Path], tmp_path: Path, kept: list[str]):
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    tokens = folder / "tokenizer"
    whole = json.loads((tokens / "tokenizer.json").read_text())["model"]
    (tokens / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["merges"]]
    (tokens / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (tokens / "tokenizer.json").unlink()
    both = ddim.load(folder, device="cpu")
    assert torch.equal(words(both), words(ddim.load(made["unet"], device="cpu")))
    for file in tokens.iterdir():
        if file.name not in kept:
            file.unlink()
    with refused("model", tokens, "merges.txt" if "vocab.json" in kept else "vocab.json"):
        ddim.load(folder, device="cpu")


@pytest.mark.parametrize(
    "model",
    [
        {"merges": []},
        {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}, "merges": []},
        {"vocab": "words"},
    ],
    ids=["merges", "vocab", "broken"],
)
@pytest.mark.parametrize("of", ["unet", "clip"])
def test_a_tokenizer_that_makes_the_same_of_different_words(
    made: dict[str, Path], tmp_path: Path, of: str, model: dict[str, Any]
):
    folder = Path(shutil.copytree(made[of], tmp_path / "m"))
    file = next(folder.rglob("tokenizer.json"))
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"model": whole["model"] | model}))
    with refused(PARTS[of][4], file.parent):
        PARTS[of][2](folder)


def words(model: Any) -> Tensor:
    """An embedded prompt."""
    return model.condition(None, 1, "a cat").cond.tensors["text"]


def text_unet(**options: Any) -> Any:
    """A pipeline whose U-Net is made with other options."""
    from diffusers import UNet2DConditionModel

    pipeline = tiny_text.pipeline()
    config = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel(**{**config, **options})
    return pipeline


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_class_embeds": 5}, ["num_class_embeds", 5]),
        ({"class_embed_type": "timestep"}, ["class_embed_type", "'timestep'"]),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 20,
            },
            ["addition_embed_type", "'text_time'"],
        ),
        ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 12}, ["encoder_hid_dim_type", "'text_proj'"]),
        ({"cross_attention_dim": 20}, [(16, 12)]),
        ({"out_channels": 3}, [3, 4]),
        ({"sample_size": 0}, ["sample_size", 0]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_text_models_unet_that_wants_more_is_refused_at_load(
    tmp_path: Path, options: dict[str, Any], named: list[Any]
):
    pipeline = text_unet(**options)
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", *named):
        ddim.load(tmp_path / "m", device="cpu")


def test_a_text_models_learned_variance_is_left_aside(tmp_path: Path):
    pipeline = text_unet(out_channels=8)
    pipeline.save_pretrained(tmp_path / "m")
    model = ddim.load(tmp_path / "m", device="cpu")
    x, prompts = torch.randn(1, *model.shape), model.condition(None, 1, "a cat")
    path = model.schedule.path
    node = path.node(300)
    with torch.no_grad():
        told = pipeline.unet(x, torch.tensor([path.timestep(300)]), encoder_hidden_states=words(model)).sample
        own = tiny.unguided(model, prompts)(x, node).eps
        torch.testing.assert_close(own, told[:, :4], rtol=1e-4, atol=1e-5)


def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **shape)


def test_an_autoencoder_without_a_distribution_is_taken(tmp_path: Path):
    pipeline = tiny_text.pipeline()
    pipeline.vae = tiny_autoencoder()
    pipeline.save_pretrained(tmp_path / "m")
    model, pictures = ddim.load(tmp_path / "m", device="cpu"), tiny_text.pictures(2)
    with torch.no_grad():
        code = pipeline.vae.encode(pictures * 2 - 1).latents * pipeline.vae.config.scaling_factor
        image = (pipeline.vae.decode(code / pipeline.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.encode(pictures), code)
    torch.testing.assert_close(model.decode(code), image)


def test_training_takes_such_an_autoencoder_too(tmp_path: Path):
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    from ddim.models.latent import code_of

    network = load_autoencoder(str(tmp_path), 3)
    assert code_of(network, torch.zeros(1, 3, 16, 16)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("scaling_factor", value) for value in (None, "x", 0, float("nan"))),
        *(("shift_factor", value) for value in ("x", [1.0], float("inf"))),
    ],
)
def test_an_autoencoder_without_its_scale(made: dict[str, Path], tmp_path: Path, key: str, value: Any):
    folder = text_model(made, tmp_path, "vae/config.json", **{key: value})
    with refused("model", key, repr(value)):
        ddim.load(folder, device="cpu")


def test_an_autoencoder_that_shrinks_otherwise_is_refused(tmp_path: Path):
    from diffusers import AutoencoderKL

    pipeline = tiny_text.pipeline()
    pipeline.vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        in_channels=3,
        out_channels=1,
    )
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", (1, 32, 32), (3, 32, 32)):
        ddim.load(tmp_path / "m", device="cpu")


def test_tokens_that_the_encoder_does_not_know(made: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(made["unet"], tmp_path / "m"))
    words = tiny_text.tokenizer()
    words.add_tokens(["catish"])
    words.save_pretrained(folder / "tokenizer")
    with refused("model", len(words) - 1):
        ddim.load(folder, device="cpu")


# --- sizes -----------------------------------------------------------------------------------------------------------


def deep(size: int) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        attention_head_dim=8,
    )


def test_a_size_that_the_network_cannot_have_is_refused_at_load(tmp_path: Path):
    assert ddim.load(tiny.pipeline_folder(tmp_path / "32", deep(32)), device="cpu").shape == (1, 32, 32)
    with refused("model", (1, 28, 28)):
        ddim.load(tiny.pipeline_folder(tmp_path / "28", deep(28)), device="cpu")


# --- fingerprints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["pixel", "unet", "features"])
def test_a_fingerprint_is_of_the_weights_as_stored(
    made: dict[str, Path], tmp_path: Path, kind: str, stored: torch.dtype
):
    folder = Path(shutil.copytree(made[kind], tmp_path / "m"))
    for file in [*folder.rglob("*.safetensors")]:
        tensors = {k: t.to(stored) if t.is_floating_point() else t for k, t in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
        config = file.parent / "config.json"
        if "dtype" in (about := json.loads(config.read_text())):  # as transformers writes it, whatever is stored
            config.write_text(json.dumps(about | {"dtype": "bfloat16"}))
    if kind == "features":
        found = {load_features(folder).fingerprint}
        wide = {k: t.float() if t.is_floating_point() else t for k, t in load_file(weights(folder)).items()}
        save_file(wide, weights(folder), {"format": "pt"})
        assert {load_features(folder).fingerprint} == found
        return
    found = {
        ddim.load(folder, device="cpu", dtype=d).fingerprint for d in ("float32", "float64", "bfloat16", "float16")
    }
    assert len(found) == 1


# --- devices and dtypes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device", ["meta", "mps", "xpu", "vulkan", "hpu", "privateuseone", "cuda:99", "cpu0", "", 3.5, ["cpu"]], ids=repr
)
def test_a_device_that_is_not_here_is_one_sentence(device: Any, made: dict[str, Path]):
    loads = [
        lambda: device_and_dtype(device, "float32"),
        lambda: ddim.load(made["pixel"], device=device),
        lambda: ddim.load_classifier(made["classifier"], device=device),
        lambda: load_features(made["features"], device=device),
        lambda: Clip(str(made["clip"]), device),
        lambda: Dino(str(made["dino"]), device),
    ]
    for load in loads:
        with pytest.raises(InputError) as caught:
            load()
        assert caught.value.parameter == "device"
        assert str(device) in str(caught.value)


@pytest.mark.parametrize(
    "dtype", ["int8", "complex64", "", "torch.float32", torch.int8, torch.complex64, torch.float8_e4m3fn, None, 32]
)
def test_a_dtype_that_no_network_computes_in_is_one_sentence(dtype: Any, made: dict[str, Path]):
    loads = [lambda: ddim.load_classifier(made["classifier"], dtype=dtype), lambda: device_and_dtype("cpu", dtype)]
    if dtype is None:  # of a model, what is not said
        assert ddim.load(made["pixel"], device="cpu", dtype=dtype).dtype == torch.float32
    else:
        loads.append(lambda: ddim.load(made["pixel"], dtype=dtype))
    for load in loads:
        with pytest.raises(UnknownName) as caught:
            load()
        assert caught.value.parameter == "dtype"


def test_a_dtype_as_a_value_is_taken(made: dict[str, Path]):
    assert ddim.load(made["pixel"], device=torch.device("cpu"), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_live_pipeline_is_asked_the_same(made: dict[str, Path]):
    pipeline = text_unet(num_class_embeds=5)
    with refused("model", "num_class_embeds"):
        StableDiffusion("live", pipeline)


def test_broken_files_are_named(part: Any):
    folder, place, load, _, parameter = part
    file = weights(place)
    file.write_bytes(file.read_bytes()[:50])
    with failed(parameter, file):
        load(folder)
