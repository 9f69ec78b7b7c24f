"""The adapter of Stable Diffusion: what ``ddim.load`` takes and refuses, prompts, sizes, dtypes."""

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from refusals import failed, names, not_finite, refused, warned
from safetensors.torch import load_file, save_file

import ddim
from ddim._utils.errors import DDIMError, DDIMWarning
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.guidance import Guidance
from ddim.models.sd import StableDiffusion
from ddim.pipelines.common import half_precision_hint

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return tiny_text.model()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A pipeline's folder that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "words"))


def load(where: Any, **options: Any) -> StableDiffusion:
    loaded = ddim.load(where, device="cpu", **options)
    assert isinstance(loaded, StableDiffusion)
    return loaded


def drawn(model: StableDiffusion, **options: Any) -> torch.Tensor:
    return ddim.sample(model, 1, steps=3, prompt="noto dog face", **options)


def same_weights(a: StableDiffusion, b: StableDiffusion, halved: Sequence[str] = ()) -> bool:
    """Whether a has the weights of b, those of some parts rounded to float16."""
    pairs = [
        (a_weight, b_weight.half().float() if part in halved else b_weight)
        for part in PARTS
        for a_weight, b_weight in zip(
            getattr(a.pipeline, part).parameters(), getattr(b.pipeline, part).parameters(), strict=True
        )
    ]
    return all(torch.equal(one, two) for one, two in pairs)


def words(model: StableDiffusion, count: int, *prompts: Any) -> torch.Tensor:
    """The embedded prompts, [count, L, D]."""
    return model.condition(None, count, *prompts).cond.tensors["text"]


def null(model: StableDiffusion, count: int, *prompts: Any) -> torch.Tensor:
    """What guidance leads away from, [count, L, D]."""
    uncond = model.condition(None, count, *prompts).uncond
    assert uncond is not None
    return uncond.tensors["text"]


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_the_pipeline_that_was_saved(folder: Path, model: StableDiffusion):
    loaded = load(folder)
    assert torch.equal(drawn(loaded), drawn(model))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.text
    assert loaded.classes == 0


def test_a_folder_of_fp16_files(folder: Path, model: StableDiffusion):
    half = tiny_text.pipeline().to(torch.float16)
    shutil.rmtree(folder)
    half.save_pretrained(folder, variant="fp16")
    assert all(".fp16" in p.name for part in PARTS for p in (folder / part).glob("*.safetensors"))
    loaded = load(folder)
    assert loaded.dtype == torch.float32
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    assert same_weights(loaded, model, PARTS)
    assert not same_weights(loaded, model)


@pytest.mark.parametrize("part", PARTS)
def test_a_mixed_folder_loads(folder: Path, part: str, model: StableDiffusion):
    """One part only as fp16, the others in full: both conventions in one folder."""
    file = weights(folder, part)
    save_file(
        {k: v.half() for k, v in load_file(file).items()}, file.with_suffix(".fp16.safetensors"), {"format": "pt"}
    )
    file.unlink()
    assert same_weights(load(folder), model, [part])


@pytest.mark.parametrize("part", PARTS)
def test_pickles_are_never_loaded(folder: Path, part: str):
    file = weights(folder, part)
    file.rename(file.with_suffix(".bin"))
    with refused("model", part, f"{file.stem}.bin", "pickle"):
        load(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(folder: Path, part: str):
    shutil.rmtree(folder / part)
    with refused("model", folder, repr(part)):
        load(folder)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler"])
def test_a_missing_part_without_weights_is_one_sentence(folder: Path, part: str):
    shutil.rmtree(folder / part)
    with refused("model", folder, repr(part)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_sentence(folder: Path):
    file = weights(folder, "unet")
    file.write_bytes(file.read_bytes()[:1000])
    with failed("model", file) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_inpainting_model_is_refused(folder: Path):
    config = json.loads((folder / "vae/config.json").read_text())
    pipeline = tiny_text.pipeline()
    pipeline.vae.register_to_config(latent_channels=config["latent_channels"] + 5)
    with refused("model", "'inpaint'", 4, 9):
        StableDiffusion("inpaint", pipeline)


@pytest.mark.parametrize(("dtype", "state"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_the_state_is_float32_or_wider(folder: Path, dtype: str, state: torch.dtype):
    loaded = load(folder, dtype=dtype)
    assert {p.dtype for p in loaded.network.parameters()} == {getattr(torch, dtype)}
    assert {v.dtype for v in loaded.condition(None, 1, "x").cond.tensors.values()} == {state}
    images = drawn(loaded)
    assert images.dtype == state
    code = ddim.invert(loaded, images.float(), steps=2, prompt="noto dog face")
    assert code.x.dtype == state


def test_describe_tells_what_the_command_shows(model: StableDiffusion):
    facts = model.describe()
    assert facts["picture"] == list(model.picture)
    assert facts["shape"] == list(model.shape)
    assert facts["prompt_tokens"] == model.tokenizer.model_max_length - 2
    assert facts["parameters"] == sum(p.numel() for part in PARTS for p in getattr(model.pipeline, part).parameters())
    assert [s // model.multiple for s in model.picture[1:]] == list(model.shape[1:])


def test_a_latent_model_of_one_size_tells_its_pictures_too():
    model = tiny_text.model()
    model.info = replace(model.info, multiple=0)
    assert model.describe()["picture"] == list(model.picture)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_says_where_it_was_cut(model: StableDiffusion):
    word = "dog "
    short = model.tokenizer.model_max_length
    tokens = len(model.tokenizer(word * short, truncation=False, verbose=False).input_ids) - 2
    with pytest.warns(DDIMWarning) as caught:
        long = model.condition(None, 1, word * short)
    (warned,) = [str(w.message) for w in caught if w.category is DDIMWarning]
    assert f"The prompt has {tokens} tokens" in warned
    assert f"takes {short - 2}" in warned
    assert "it was cut after '" in warned
    assert "dog" in warned.partition("cut after")[2]
    with pytest.warns(DDIMWarning):
        longer = model.condition(None, 1, word * (short + 5))
    assert torch.equal(long.cond.tensors["text"], longer.cond.tensors["text"])


def test_a_prompt_that_just_fits_is_not_cut(model: StableDiffusion):
    ids = model.tokenizer("dog", truncation=False, verbose=False).input_ids
    words = (model.tokenizer.model_max_length - 2) // (len(ids) - 2)
    model.condition(None, 1, " ".join(["dog"] * words))  # a warning would be an error here


def test_prompts_one_for_all_or_one_an_image(model: StableDiffusion):
    one = words(model, 3, "noto dog face")
    assert one.shape == null(model, 3, "noto dog face").shape
    assert torch.equal(one[0], one[2])
    assert torch.equal(words(model, 3, ["noto dog face"]), one)
    several = words(model, 2, ["noto dog face", "twemoji cat face"])
    assert torch.equal(several[0], one[0])
    assert not torch.equal(several[1], one[0])
    assert torch.equal(words(model, 1), null(model, 1))


def test_a_wrong_count_of_prompts_is_named(model: StableDiffusion):
    with refused("prompt", 2, 3):
        ddim.sample(model, 3, steps=2, prompt=["a", "b"])


@pytest.mark.parametrize("bad", [3, 0, b"a dog", ["a dog", 3]], ids=repr)
def test_a_prompt_that_is_no_text(model: StableDiffusion, bad: Any):
    with refused("prompt", bad):
        ddim.sample(model, 2, steps=2, prompt=bad)


@pytest.mark.parametrize("bad", [b"ugly", 3], ids=repr)
def test_a_negative_prompt_that_is_no_text(model: StableDiffusion, bad: Any):
    with refused("negative", bad):
        ddim.invert(model, tiny_text.pictures(1), steps=2, prompt="a dog", negative=bad)


def test_labels_are_refused(model: StableDiffusion):
    with refused("labels", "'tiny-text'"):
        ddim.sample(model, 1, steps=2, labels=1)


def test_a_model_without_text_refuses_a_prompt():
    pixel = tiny.model()
    with refused("prompt", "'tiny'"):
        ddim.sample(pixel, 1, steps=2, prompt="a dog")
    with refused("prompt", "'tiny'"):
        ddim.invert(pixel, torch.zeros(1, 8, 8), steps=2, prompt="a dog")


def test_a_bare_denoiser_asks_for_a_prompt(model: StableDiffusion):
    with refused("prompt", "'tiny-text'"):
        model.ask(torch.zeros(1, *model.shape), model.schedule.path.node(100), Conditioning())
    bare = model.guided(Guidance(), PromptConditioning())
    with refused("prompt", "'tiny-text'"):
        bare(torch.zeros(1, *model.shape), model.schedule.path.node(100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "7"])
def test_a_weight_that_is_no_number(model: StableDiffusion, bad: Any):
    with refused("guidance", bad):
        ddim.sample(model, 1, steps=2, prompt="a dog", guidance=bad)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes_are_height_and_width_in_pixels(model: StableDiffusion):
    size = (model.picture[1] * 2, model.picture[2])
    images = drawn(model, size=size)
    assert tuple(images.shape[2:]) == size
    code = ddim.invert(model, images, steps=3, prompt="noto dog face")
    assert tuple(ddim.reconstruct(model, code).shape) == tuple(images.shape)


def test_a_size_that_does_not_fit_offers_the_nearest(model: StableDiffusion):
    m, (_, height, width) = model.multiple, model.picture
    assert m > 1
    with refused("size", f"height {height} and width {width + 1}", m, f"{height} and {width}"):
        drawn(model, size=(height, width + 1))
    with refused("images", f"{width + 1}x{height}", m, f"{width}x{height}"):
        ddim.invert(model, torch.zeros(3, height, width + 1), steps=2)


def test_a_code_of_another_size_comes_back(model: StableDiffusion):
    code = ddim.invert(model, torch.rand(3, model.picture[1], 2 * model.picture[2]), steps=2, prompt="x")
    assert code.x.shape[3] == 2 * model.shape[2]
    assert ddim.reconstruct(model, code).shape[3] == 2 * model.picture[2]


# --- numbers that run away -------------------------------------------------------------------------------------------


def test_an_overflow_of_float16_names_the_step_and_the_way_out():
    sick = tiny_text.pipeline()
    sick.unet.conv_out.weight.data *= 1e6
    with not_finite(1, 3, hint=True) as caught:
        drawn(StableDiffusion("sick", sick, dtype=torch.float16))
    assert all(names(caught.value.hint, value) for value in ("float16", 65504, "bfloat16", "float32"))


def test_nan_in_float32_has_no_such_way_out():
    sick = tiny_text.pipeline()
    sick.unet.conv_out.bias.data.fill_(float("nan"))
    with not_finite(1, 3, hint=False) as caught:
        drawn(StableDiffusion("sick", sick))
    assert "float16" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_hint_is_for_overflows_of_float16_only(dtype: torch.dtype):
    sick = tiny_text.model(dtype=dtype)
    with failed(None, "another matter", hint=False), half_precision_hint(sick):
        raise DDIMError("another matter")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_autoencoder_that_overflows_is_named(dtype: torch.dtype):
    sick = tiny_text.model(dtype=dtype)
    for network in (sick.vae.quant_conv, sick.vae.decoder.conv_out):
        network.weight.data.fill_(torch.inf)
    for work, did in (
        (lambda: sick.encode(tiny_text.pictures(1)), "encoded"),
        (lambda: sick.decode(torch.ones(1, *sick.shape)), "decoded"),
    ):
        with failed(None, "'tiny-text'", did) as e:
            work()
        assert names(str(e.value), "bfloat16") == (dtype == torch.float16)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)
    assert capfd.readouterr() == ("", "")


def test_blocks_without_advice_may_overlap_and_leave_all_as_it_was():
    from diffusers.utils import logging
    from huggingface_hub.utils import logging as of_the_hub
    from transformers.utils import logging as theirs

    from ddim._utils.silence import quiet

    def state() -> list[Any]:
        drawn = [log.is_progress_bar_enabled() for log in (logging, theirs)]
        return [log.get_verbosity() for log in (logging, theirs, of_the_hub)] + drawn

    before, silent = state(), [logging.ERROR] * 3 + [False] * 2
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as another thread's block would end
    assert state() == silent
    second.__exit__(None, None, None)
    assert state() == before


def test_only_the_libraries_lose_their_logs(caplog: pytest.LogCaptureFixture):
    """A host may log from any of its threads while a model is loaded."""
    import logging

    from ddim._utils.silence import without_logs

    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft", "huggingface_hub")]
    before = [logger.level for logger in libraries]
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        first, second = without_logs(), without_logs()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        for logger in (*libraries, logging.getLogger("diffusers.loaders.peft")):
            assert not logger.isEnabledFor(logging.CRITICAL)
        thread = Thread(target=lambda: logging.getLogger("host").info("of another thread"))
        thread.start()
        thread.join()
        logging.getLogger("host").info("of this thread")
        second.__exit__(None, None, None)
    assert caplog.messages == ["of another thread", "of this thread"]
    assert [logger.level for logger in libraries] == before


# --- one reading of a text -------------------------------------------------------------------------------------------


def plain(pipeline: Any) -> None:
    """As it comes."""


def with_a_learnt_word(pipeline: Any) -> None:
    """A word of two vectors, as ``load_textual_inversion`` leaves it."""
    pipeline.tokenizer.add_tokens(["<toy>", "<toy>_1"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))


def with_an_attention_mask(pipeline: Any) -> None:
    pipeline.text_encoder.config.use_attention_mask = True


def with_another_padding(pipeline: Any) -> None:
    """As Stable Diffusion 2's."""
    pipeline.tokenizer.pad_token = "!"


def padded_and_cut_on_the_left(pipeline: Any) -> None:
    pipeline.tokenizer.padding_side = pipeline.tokenizer.truncation_side = "left"


READ = ["", "a Cat!  NEXT to a\ncat", "a <toy> on a <toy>", "a <|endoftext|> cat", "a zebra and a zebra and a zebra"]


@pytest.mark.parametrize(
    "change", [plain, with_a_learnt_word, with_an_attention_mask, with_another_padding, padded_and_cut_on_the_left]
)
@pytest.mark.filterwarnings("ignore:The prompt has:ddim.DDIMWarning")
def test_what_is_embedded_is_what_is_read(change: Callable[[Any], None]):
    pipeline = tiny_text.pipeline()
    change(pipeline)
    model, handed = StableDiffusion("tiny-text", pipeline), []
    pipeline.text_encoder.register_forward_pre_hook(lambda _, ids: handed.extend(ids[0].tolist()))
    embedded = model.encode_prompt(READ).tensors["text"]
    assert handed == [list(model.tokens(prompt).row) for prompt in READ]
    theirs, _ = pipeline.encode_prompt(READ, "cpu", 1, False)
    assert torch.equal(embedded, theirs)
    assert handed[len(READ) :] == handed[: len(READ)]  # theirs


def test_a_learnt_word_has_the_places_of_all_its_vectors():
    pipeline = tiny_text.pipeline()
    with_a_learnt_word(pipeline)
    tokens = StableDiffusion("tiny-text", pipeline).tokens("a <toy> on a mat")
    assert tokens.words == ("a", "<toy>", "on", "a", "mat")
    assert tokens.spans == ((1, 2), (2, 4), (4, 5), (5, 6), (6, 7))
    assert tokens.places("toy") == [2, 3]


def test_a_learnt_word_counts_its_vectors_when_a_prompt_is_cut():
    pipeline = tiny_text.pipeline()
    with_a_learnt_word(pipeline)
    model = StableDiffusion("tiny-text", pipeline)
    with warned(16, 14):
        model.encode_prompt(["<toy> " * 8])
