"""LoRA and textual inversion, in a live pipeline and by ``ddim.load``: our pictures are those of diffusers' pipeline.

Each comparison stands beside the change that the addition makes, which must be 1,000 times the tolerance.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_sdxl
import tiny_text
import torch
from oracles import noise_like
from refusals import failed, refused, warned
from safetensors.torch import load_file, save_file
from test_hub_cache import NAME, keep
from test_hub_cache import cache as cache
from tiny_flow import FAMILIES, STEPS
from tiny_lora import embedding, lora
from torch import Tensor
from unchanged import unchanged

import ddim
from ddim import Guidance
from ddim.models.base import Model
from ddim.models.fingerprint import fingerprint, words_fingerprint
from ddim.models.live import safe_name, shown_name
from ddim.pipelines.common import grid_for

pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")

CLOSE = 1e-5
FAR = 1000 * CLOSE
PROMPT = "a cat"


def fine(pipeline: Any) -> Any:
    """A pipeline whose scheduler has its table in float64, as ours is; float32 alone is 1e-5 off."""
    scheduler = pipeline.scheduler
    kept = {"beta_start": scheduler.config.beta_start, "beta_end": scheduler.config.beta_end}
    betas = torch.linspace(kept["beta_start"] ** 0.5, kept["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return pipeline


def calm(pipeline: Any) -> Any:
    """Attention so sharp as that of the tiny models makes a chaos of the last bits."""
    for name, weight in pipeline.unet.named_parameters():
        if ".to_q." in name or ".to_k." in name:
            weight.data /= 6
    return fine(pipeline)


MAKE: dict[str, Callable[[], Any]] = {
    "sd": lambda: calm(tiny_text.pipeline()),
    "sdxl": lambda: calm(tiny_sdxl.pipeline()),
    **{name: FAMILIES[name].pipeline for name in ("sd3", "flux dev", "qwen-image", "z-image")},
}
WITH_TEXT = ("sd", "sdxl", "sd3", "flux dev")
"""Families into whose text encoder diffusers loads a LoRA."""
kinds = pytest.mark.parametrize("kind", MAKE)


def noise() -> Tensor:
    return noise_like((1, 4, 16, 16)).float()


def theirs(kind: str, pipeline: Any, prompt: str = PROMPT) -> Tensor:
    """Pictures of diffusers' pipeline."""
    if kind not in FAMILIES:
        said: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "pt"}
        return pipeline(prompt, negative_prompt="", latents=noise(), **said).images
    getattr(pipeline.vae, "clear_cache", tuple)()
    _, options = next(iter(FAMILIES[kind].guidances.values()))
    return FAMILIES[kind].draw(pipeline, noise(), [prompt], None, output_type="pt", **options)


def ours(kind: str, model: Model, prompt: str = PROMPT) -> Tensor:
    """The same pictures of our loop."""
    if kind in FAMILIES:
        guidance, _ = next(iter(FAMILIES[kind].guidances.values()))
        grid = model.schedule.grid(STEPS, image_size=(16, 16))
        denoise = model.guided(guidance.on(grid), model.condition(None, 1, [prompt], None, (32, 32)))
    else:
        grid = grid_for(model, STEPS, None)
        denoise = model.guided(Guidance(3.0), model.condition(None, 1, [prompt], "", (32, 32)))
    return model.decode(ddim.solve(denoise, ddim.make_solver("ddim"), {"x": noise()}, grid)["x"])


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Per kind: the folder of the pipeline, LoRAs of two seeds, one for both parts and one for the text encoder."""
    place, known = tmp_path_factory.mktemp("loras"), dict[str, dict[str, Path]]()

    def of(kind: str) -> dict[str, Path]:
        if kind not in known:
            here = place / kind
            MAKE[kind]().save_pretrained(here / "model")
            files = {"model": here / "model"}
            rows: dict[str, Any] = {"one": {"seed": 3}, "two": {"seed": 4}}
            if kind in WITH_TEXT:
                rows |= {"both": {"parts": ("network", "text_encoder")}, "text": {"parts": ("text_encoder",)}}
            for name, options in rows.items():
                strength = 3.0 if kind in FAMILIES else 1.0
                files[name] = lora(MAKE[kind](), here / f"{name}.safetensors", strength=strength, **options)
            known[kind] = files
        return known[kind]

    return of


def loaded(kind: str, file: Path, name: str = "toy") -> Any:
    """A live pipeline with a LoRA."""
    pipeline = MAKE[kind]()
    pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    return pipeline


# --- pictures -------------------------------------------------------------------------------------------------------


@kinds
def test_in_memory_fused_saved_and_scaled_pictures_are_those_of_diffusers(
    kind: str, made: Callable[[str], dict[str, Path]], tmp_path: Path
):
    files, bare = made(kind), MAKE[kind]()
    plain, prints = theirs(kind, bare), [ddim.load(bare).fingerprint]

    pipeline = loaded(kind, files["both" if kind in WITH_TEXT else "one"])
    whole = theirs(kind, pipeline)
    assert apart(whole, plain) >= FAR
    model = ddim.load(pipeline)
    assert model.adapters == "toy 1"
    with unchanged(pipeline):
        assert apart(ours(kind, model), whole) <= CLOSE
    prints.append(model.fingerprint)

    pipeline.set_adapters(["toy"], [0.25])
    less = theirs(kind, pipeline)
    assert min(apart(less, plain), apart(less, whole)) >= FAR
    assert apart(ours(kind, model), less) <= CLOSE
    assert model.adapters == "toy 0.25"
    prints.append(model.fingerprint)

    pipeline.disable_lora()
    assert model.fingerprint == prints[0]
    assert apart(ours(kind, model), plain) <= CLOSE
    pipeline.enable_lora()
    assert model.fingerprint == prints[2]

    pipeline.set_adapters(["toy"], [1.0])
    pipeline.fuse_lora(components=[part for part, names in pipeline.get_list_adapters().items() if names])
    assert apart(ours(kind, model), theirs(kind, pipeline)) <= CLOSE
    assert apart(ours(kind, model), whole) <= CLOSE
    fused = model.fingerprint
    pipeline.unload_lora_weights()
    assert model.adapters == ""
    assert model.fingerprint == fused
    pipeline.save_pretrained(tmp_path / "fused")
    saved = ddim.load(tmp_path / "fused", device="cpu")
    assert apart(ours(kind, saved), theirs(kind, pipeline)) <= CLOSE
    assert saved.fingerprint == fused
    prints.append(fused)
    assert len(set(prints)) == 4


@kinds
def test_load_adds_what_a_live_pipeline_has(kind: str, made: Callable[[str], dict[str, Path]]):
    files = made(kind)
    which = ["one", "both", "text"] if kind in WITH_TEXT else ["one"]
    plain, prints = theirs(kind, MAKE[kind]()), set[str]()
    for name, scale in [*((name, 1.0) for name in which), ("one", 0.25), ("two", 1.0)]:
        pipeline = loaded(kind, files[name], "another-name")
        pipeline.set_adapters(["another-name"], [scale])
        drawn = theirs(kind, pipeline)
        assert apart(drawn, plain) >= FAR
        model = ddim.load(files["model"], device="cpu", lora={files[name]: scale})
        assert apart(ours(kind, model), drawn) <= CLOSE
        assert model.adapters == f"{name} {scale:g}"
        assert model.fingerprint == ddim.load(pipeline).fingerprint
        prints.add(model.fingerprint)
    assert len(prints) == len(which) + 2


@kinds
def test_two_at_once_with_scales_of_their_own(kind: str, made: Callable[[str], dict[str, Path]]):
    files = made(kind)
    pipeline = loaded(kind, files["one"], "a")
    pipeline.load_lora_weights(files["two"].parent, weight_name=files["two"].name, adapter_name="b")
    pipeline.set_adapters(["a", "b"], [0.5, -0.75])
    drawn, live = theirs(kind, pipeline), ddim.load(pipeline)
    assert live.adapters == "a 0.5, b -0.75"
    assert apart(ours(kind, live), drawn) <= CLOSE
    model = ddim.load(files["model"], device="cpu", lora=[(files["one"], 0.5), (str(files["two"]), -0.75)])
    assert model.adapters == "one 0.5, two -0.75"
    assert apart(ours(kind, model), drawn) <= CLOSE
    assert model.fingerprint == live.fingerprint
    pipeline.set_adapters(["b"], [1.0])  # the first is there, and does nothing
    assert live.fingerprint == ddim.load(loaded(kind, files["two"])).fingerprint
    swapped = ddim.load(files["model"], device="cpu", lora={files["one"]: -0.75, files["two"]: 0.5})
    assert swapped.fingerprint != model.fingerprint


def test_another_file_of_the_same_adapter_name_is_another_model(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    files, prints = made("sd"), []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        file = shutil.copy(files[name], tmp_path / name / "style.safetensors")
        model = ddim.load(files["model"], device="cpu", lora=file)
        assert model.adapters == "style 1"
        prints.append(model.fingerprint)
    assert prints[0] != prints[1]
    both = ddim.load(files["model"], device="cpu", lora=[tmp_path / n / "style.safetensors" for n in ("one", "two")])
    assert both.adapters == "style 1, style__2 1"


def test_an_exact_code_keeps_its_adapters(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    files = made("sd")
    model = ddim.load(files["model"], device="cpu", lora={files["one"]: 0.5})
    code = ddim.invert(model, tiny_text.pictures(1), steps=3, prompt=PROMPT, method="bdia")
    code.save(tmp_path / "x.code.safetensors")
    code = ddim.LatentCode.load(tmp_path / "x.code.safetensors")
    assert code.settings["adapters"] == "one 0.5"
    again = ddim.load(files["model"], device="cpu", lora={files["one"]: 0.5})
    assert torch.equal(ddim.reconstruct(again, code, strict=True), ddim.reconstruct(model, code, strict=True))
    with warned("one 0.5", "none"):
        ddim.reconstruct(ddim.load(files["model"], device="cpu"), code)


@pytest.mark.parametrize("stem", ["train", "values", "parameters", "half", "type", "weight", "lora_A"])
def test_a_file_may_have_any_name(stem: str, made: Callable[[str], dict[str, Path]], tmp_path: Path):
    """peft keeps adapters in tables by their names, which must be none of the tables' own attributes."""
    files = made("sd")
    file = shutil.copy(files["one"], tmp_path / f"{stem}.safetensors")
    model = ddim.load(files["model"], device="cpu", lora={file: 0.5, files["two"]: 2.0})
    assert model.adapters == ", ".join(sorted([f"{stem} 0.5", "two 2"]))
    usual = ddim.load(files["model"], device="cpu", lora={files["one"]: 0.5, files["two"]: 2.0})
    assert model.fingerprint == usual.fingerprint


def test_no_name_of_an_adapter_is_an_attribute_of_a_table():
    for table in (torch.nn.ModuleDict(), torch.nn.ParameterDict()):
        for name in dir(table):
            assert not hasattr(table, safe_name(name))
            assert shown_name(safe_name(name)) == name
    assert shown_name("file_style") == "file_style"


def test_the_fingerprint_follows_what_the_adapters_of_a_loaded_model_do(made: Callable[[str], dict[str, Path]]):
    files = made("sd")

    def at(scale: float) -> Model:
        return ddim.load(files["model"], device="cpu", lora={files["one"]: scale})

    model = at(1.0)
    first, pipeline = model.fingerprint, model.pipeline
    code = ddim.invert(model, tiny_text.pictures(1), steps=3, prompt=PROMPT, method="bdia")
    pipeline.set_adapters(["one"], [0.25])
    assert model.fingerprint == at(0.25).fingerprint != first
    with warned("one 1", "one 0.25"):
        ddim.reconstruct(model, code)
    pipeline.disable_lora()
    assert model.fingerprint == ddim.load(files["model"], device="cpu").fingerprint
    pipeline.enable_lora()
    pipeline.set_adapters(["one"], [1.0])
    assert model.fingerprint == first
    pipeline.fuse_lora(components=["unet"])
    fused = loaded("sd", files["one"])
    fused.fuse_lora(components=["unet"])
    assert model.fingerprint == ddim.load(fused).fingerprint != first
    pipeline.unload_lora_weights()
    assert model.fingerprint == ddim.load(fused).fingerprint


def test_a_lora_that_is_fused_into_a_loaded_model_and_unloaded_counts(made: Callable[[str], dict[str, Path]]):
    files = made("sd")
    model = ddim.load(files["model"], device="cpu")
    first, fused = model.fingerprint, loaded("sd", files["one"])
    for pipeline in (model.pipeline, fused):
        if pipeline is not fused:
            pipeline.load_lora_weights(files["one"].parent, weight_name=files["one"].name)
        pipeline.fuse_lora(components=["unet"])
        pipeline.unload_lora_weights()
    assert model.adapters == ""
    assert model.fingerprint == ddim.load(fused).fingerprint != first


def test_the_fingerprint_of_a_loaded_model_follows_its_words(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    file = embedding(tmp_path / "toy.safetensors", 12)
    model, told = ddim.load(made("sd")["model"], device="cpu"), load_file(file)
    first = model.fingerprint
    model.pipeline.load_textual_inversion(told, token="<toy>")
    assert model.fingerprint == ddim.load(made("sd")["model"], device="cpu", textual_inversion=file).fingerprint
    assert model.fingerprint != first


@pytest.mark.parametrize("name", ["a folder", NAME, f"{NAME}/style.safetensors"])
def test_it_may_lie_in_a_folder_or_in_the_hubs_cache(
    name: str, cache: Path, made: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files, folder = made("sd"), tmp_path / "mine"
    folder.mkdir()
    shutil.copy(files["one"], folder / "style.safetensors")
    keep(cache, folder)
    model = ddim.load(files["model"], device="cpu", lora=folder if name == "a folder" else name)
    assert model.adapters == "style 1"
    assert model.fingerprint == ddim.load(files["model"], device="cpu", lora=files["one"]).fingerprint


# --- words ----------------------------------------------------------------------------------------------------------

TOY = "a <toy> cat"


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_word_draws_what_it_draws_in_diffusers(vectors: int, made: Callable[[str], dict[str, Path]], tmp_path: Path):
    file = embedding(tmp_path / "toy.safetensors", 12, vectors=vectors)
    pipeline = MAKE["sd"]()
    plain, bare = theirs("sd", pipeline, TOY), ddim.load(MAKE["sd"]()).fingerprint
    pipeline.load_textual_inversion(load_file(file), token="<toy>")
    drawn, live = theirs("sd", pipeline, TOY), ddim.load(pipeline)
    assert apart(drawn, plain) >= FAR
    assert apart(ours("sd", live, TOY), drawn) <= CLOSE
    model = ddim.load(made("sd")["model"], device="cpu", textual_inversion=file)
    assert apart(ours("sd", model, TOY), drawn) <= CLOSE
    assert model.adapters == live.adapters == "<toy>"
    assert model.fingerprint == live.fingerprint != bare
    pipeline.save_pretrained(tmp_path / "saved")
    assert ddim.load(tmp_path / "saved", device="cpu").fingerprint == model.fingerprint
    other = embedding(tmp_path / "other.safetensors", 12, vectors=vectors, seed=6)
    prints = {model.fingerprint, bare}
    prints |= {ddim.load(made("sd")["model"], device="cpu", textual_inversion=f).fingerprint for f in (other,)}
    named = ddim.load(made("sd")["model"], device="cpu", textual_inversion={file: "<mine>"})
    assert named.adapters == "<mine>"
    assert len({*prints, named.fingerprint}) == 4


def test_both_encoders_of_sdxl_learn_a_word(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    file = embedding(tmp_path / "toy.safetensors", 12, 16)
    pipeline = MAKE["sdxl"]()
    prompt, words = "a toy cat", load_file(file)
    plain = theirs("sdxl", pipeline, prompt)
    one, two = (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
    for key, (tokenizer, encoder) in (("clip_l", one), ("clip_g", two)):
        pipeline.load_textual_inversion({"toy": words[key]}, token="toy", tokenizer=tokenizer, text_encoder=encoder)
    drawn = theirs("sdxl", pipeline, prompt)
    assert apart(drawn, plain) >= FAR
    model = ddim.load(made("sdxl")["model"], device="cpu", textual_inversion=file)
    assert model.adapters == "toy"
    assert apart(ours("sdxl", model, prompt), drawn) <= CLOSE
    assert model.fingerprint == ddim.load(pipeline).fingerprint


def test_words_that_begin_with_another_word_are_named(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    files = {embedding(tmp_path / f"{i}.safetensors", 12, vectors=2): word for i, word in enumerate(("hot", "hot_dog"))}
    model = ddim.load(made("sd")["model"], device="cpu", textual_inversion=files)
    assert model.adapters == "hot, hot_dog"


def test_an_offloaded_word_counts(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    prints: dict[bool, list[str]] = {False: [], True: []}
    for value in (0.5, 0.75):
        pipeline = tiny_text.pipeline()
        pipeline.load_textual_inversion({"<toy>": torch.full((12,), value)}, token="<toy>")
        for away in prints:
            if away:
                accelerate.cpu_offload(pipeline.text_encoder, execution_device=torch.device("cpu"))
            embeddings = pipeline.text_encoder.get_input_embeddings()
            assert embeddings.weight.is_meta == away
            prints[away].append(words_fingerprint(pipeline.tokenizer, embeddings))
    assert prints[True] == prints[False]
    assert len({*prints[True]}) == 2


def test_a_word_that_the_fingerprint_of_a_large_embedding_would_miss():
    """The fingerprint reads every n-th element of a large weight; a word's vector may lie between two."""
    prints, networks = [], []
    for value in (0.5, 0.75):
        pipeline = tiny_text.pipeline()
        pipeline.load_textual_inversion({"<toy>": torch.full((12,), value)}, token="<toy>")
        rows = pipeline.text_encoder.get_input_embeddings().weight.detach()
        pipeline.text_encoder.resize_token_embeddings(30_000)
        weight = pipeline.text_encoder.get_input_embeddings().weight
        weight.data = torch.cat([rows, torch.zeros(30_000 - len(rows), 12)])
        networks.append(fingerprint(pipeline.text_encoder, None, ""))
        prints.append(ddim.load(pipeline).fingerprint)
    assert networks[0] == networks[1]
    assert prints[0] != prints[1]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(made: Callable[[str], dict[str, Path]]) -> Path:
    return made("sd")["model"]


@pytest.mark.parametrize(
    ("of", "to"), [("sdxl", "sd"), ("flux dev", "sd"), ("sd", "sdxl"), ("z-image", "sdxl"), ("sd", "flux dev"),
                   ("qwen-image", "flux dev"), ("sd", "z-image"), ("flux dev", "qwen-image"), ("z-image", "sd3")]
)  # fmt: skip
def test_a_lora_of_another_family_is_refused(
    of: str, to: str, made: Callable[[str], dict[str, Path]], capfd: pytest.CaptureFixture[str]
):
    for name in ("both", "one") if of in WITH_TEXT else ("one",):
        file, folder = made(of)[name], made(to)["model"]
        capfd.readouterr()
        with refused("lora", file) as caught:
            ddim.load(folder, device="cpu", lora=file)
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")


def test_tensors_without_a_layer_are_a_warning(model: Path, made: Callable[[str], dict[str, Path]], tmp_path: Path):
    more = {
        "text_encoder_9.q_proj.lora_A.weight": torch.ones(2, 4),
        "text_encoder_9.q_proj.lora_B.weight": torch.ones(4, 2),
    }
    save_file({**load_file(made("sd")["one"]), **more}, tmp_path / "more.safetensors")
    with warned(tmp_path / "more.safetensors"):
        assert ddim.load(model, device="cpu", lora=tmp_path / "more.safetensors").adapters == "more 1"


def test_what_is_no_lora_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.models.sd.StableDiffusion.from_folder", lambda *_, **__: pytest.fail("work was done"))
    place = tmp_path / "files"
    place.mkdir()
    for name in ("a.pt", "a.bin", "a.ckpt"):
        (place / name).write_bytes(b"")
        with refused("lora", place / name, "pickle"):
            ddim.load(model, device="cpu", lora=place / name)
        with refused("textual_inversion", place / name, "pickle"):
            ddim.load(model, device="cpu", textual_inversion=place / name)
    with refused("lora", place, "pickle", "a.bin"):
        ddim.load(model, device="cpu", lora=place)
    save_file({"a": torch.ones(1)}, place / "style.safetensors")
    with refused("lora", place / "stile.safetensors", place / "style.safetensors", hint=True):
        ddim.load(model, device="cpu", lora=place / "stile.safetensors")
    with refused("lora", "no-such-file", hint=True):
        ddim.load(model, device="cpu", lora="no-such-file")
    (place / "broken.safetensors").write_bytes((place / "style.safetensors").read_bytes()[:20])
    with failed("lora", place / "broken.safetensors"):
        ddim.load(model, device="cpu", lora=place / "broken.safetensors")
    with refused("lora", place, "broken.safetensors", "style.safetensors"):
        ddim.load(model, device="cpu", lora=place)
    (place / "words.txt").write_text("")
    with refused("lora", place / "words.txt", ".safetensors"):
        ddim.load(model, device="cpu", lora=place / "words.txt")
    for scale in ("loud", None, True, float("nan")):
        with refused("lora", place / "style.safetensors", repr(scale)):
            ddim.load(model, device="cpu", lora={place / "style.safetensors": scale})
    for name in ("lora", "textual_inversion"):
        for given in ({5: 1.0}, [(5, 1.0)], [5], 5):
            with refused(name, 5):
                ddim.load(model, device="cpu", **{name: given})
        with refused(name, "''"):
            ddim.load(model, device="cpu", **{name: ""})
    with refused("lora", 3):
        ddim.load(model, device="cpu", lora=[3])
    with refused("textual_inversion", "'a cat'"):
        ddim.load(model, device="cpu", textual_inversion={place / "style.safetensors": "a cat"})


@pytest.mark.usefixtures("cache")
def test_what_the_cache_lacks_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (NAME, f"{NAME}/style.safetensors"):
        with failed("lora", name, "HF_HUB_OFFLINE"):
            ddim.load(model, device="cpu", lora=name)


def test_files_that_do_not_fit_are_refused(model: Path, made: Callable[[str], dict[str, Path]], tmp_path: Path):
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.ones(2)}, plain)
    with refused("lora", plain, "weight"):
        ddim.load(model, device="cpu", lora=plain)
    wide = embedding(tmp_path / "wide.safetensors", 13)
    with refused("textual_inversion", wide, 13, 12):
        ddim.load(model, device="cpu", textual_inversion=wide)
    save_file({"<toy>": torch.tensor(1.0)}, tmp_path / "scalar.safetensors")
    with refused("textual_inversion", "one number", 12):
        ddim.load(model, device="cpu", textual_inversion=tmp_path / "scalar.safetensors")
    tensors = {key: torch.cat([tensor, tensor]) for key, tensor in load_file(made("sd")["one"]).items()}
    save_file(tensors, tmp_path / "double.safetensors")
    with refused(
        "lora", tmp_path / "double.safetensors", min(tensors), "x".join(map(str, tensors[min(tensors)].shape))
    ):
        ddim.load(model, device="cpu", lora=tmp_path / "double.safetensors")
    two = embedding(tmp_path / "two.safetensors", 12, 16)
    with refused("textual_inversion", two, 2, 1):
        ddim.load(model, device="cpu", textual_inversion=two)
    one = embedding(tmp_path / "one.safetensors", 12)
    with refused("textual_inversion", one, "clip_l", "clip_g"):
        ddim.load(made("sdxl")["model"], device="cpu", textual_inversion=one)
    with refused("textual_inversion", "FluxPipeline"):
        ddim.load(made("flux dev")["model"], device="cpu", textual_inversion=one)
    bare = Path(shutil.copytree(made("flux dev")["model"], tmp_path / "bare"))
    for weights in bare.rglob("*.safetensors"):  # refused before any weights are read
        weights.unlink()
    with refused("textual_inversion", "FluxPipeline"):
        ddim.load(bare, device="cpu", textual_inversion=one)
    copy = shutil.copy(one, tmp_path / "copy.safetensors")
    with refused("textual_inversion", "<toy>", copy):
        ddim.load(model, device="cpu", textual_inversion=[one, copy])


def test_other_models_take_none(made: Callable[[str], dict[str, Path]], tmp_path: Path):
    file = made("sd")["one"]
    tiny.pipeline_folder(tmp_path / "pixels")
    word = embedding(tmp_path / "one.safetensors", 12)
    with refused("lora", str(tmp_path / "pixels")):
        ddim.load(tmp_path / "pixels", device="cpu", lora=file)
    with refused("textual_inversion", str(tmp_path / "pixels")):
        ddim.load(tmp_path / "pixels", device="cpu", textual_inversion=word)
    with refused("lora", "pipeline.load_lora_weights()"):
        ddim.load(tiny_text.pipeline(), lora=file)
    with refused("textual_inversion", "pipeline.load_textual_inversion()"):
        ddim.load(tiny_text.pipeline(), textual_inversion=word)


def test_without_peft_it_says_what_to_install(
    model: Path, made: Callable[[str], dict[str, Path]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ddim.models.additions.find_spec", lambda _: None)
    with refused("lora", "pip install peft"):
        ddim.load(model, device="cpu", lora=made("sd")["one"])
