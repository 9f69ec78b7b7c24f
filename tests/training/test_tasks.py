"""What is trained beside pixel models: an autoencoder, a text-to-image model on its codes; both load in diffusers."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused, unknown
from safetensors.torch import load_file
from training_helpers import Stop, make_autoencoder, make_images, make_words, state, stop_after, task_config

from ddim._utils.errors import InputError
from ddim.training import train
from ddim.training.config import TextConfig
from ddim.training.data import Batch, load_images
from ddim.training.tasks import TASKS, make_task, text
from ddim.training.tasks.base import Draw
from ddim.training.tasks.text import Codes, train_tokenizer

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("autoencoder") / "model")


@pytest.fixture
def words(tmp_path):
    return make_words(tmp_path / "words.parquet")


def draw(count, step=0):
    return Draw(seed=0, step=step, batch=count, positions=range(count))


# --- every task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [name for name in TASKS if name != "pixel"])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(task, words, tmp_path, autoencoder):
    def config(name):
        changes = {"train": {"precision": "bfloat16", "accumulate": 2}, "output": {"sample_every": 3}}
        return task_config(task, words, tmp_path / name, autoencoder, **changes)

    train(config("whole"))
    with pytest.raises(Stop):
        train(config("broken"), on_event=stop_after(5))
    torch.manual_seed(5)
    events = []
    result = train(config("broken"), resume=True, on_event=events.append)
    assert events[0].step == 4
    assert state(tmp_path / "broken", 6) == state(tmp_path / "whole", 6)
    files = sorted(p.relative_to(result) for p in result.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (result / file).read_bytes() == (tmp_path / "whole/model" / file).read_bytes()
    assert len(list((tmp_path / "whole/samples").iterdir())) == 2


@pytest.mark.parametrize(
    ("task", "changes", "refusal"),
    [
        (
            "autoencoder",
            {"model": {"latent_chanels": 4}},
            unknown("model.latent_chanels", "latent_chanels", "[model]", nearest="latent_channels"),
        ),
        ("autoencoder", {"data": {"size": 15}}, refused("data.size", 15, 2)),
        ("autoencoder", {"model": {"norm_num_groups": 3}}, refused("model", "diffusers", "[model]", 3)),
        ("autoencoder", {"model": {"in_channels": 1}}, refused("model.in_channels", 1, "[data]", 3)),
        ("autoencoder", {"autoencoder": {"kl": -1.0}}, refused("autoencoder.kl", 0, -1.0)),
        ("text", {"data": {"prompt": ""}}, refused("data.prompt", "'{text}'")),
        ("text", {"text": {"autoencoder": ""}}, refused("text.autoencoder", "''")),
        ("text", {"text": {"autoencoder": "/none"}}, refused("text.autoencoder", "'/none'")),
        ("text", {"data": {"channels": 1}}, refused("text.autoencoder", 3, "data.channels", 1)),
        (
            "text",
            {"text": {"encoder": {"hiden_size": 4}}},
            unknown("text.encoder.hiden_size", "hiden_size", "[text.encoder]", nearest="hidden_size"),
        ),
        (
            "text",
            {"text": {"encoder": {"hidden_size": 15}}},
            refused("text.encoder", "transformers", "[text.encoder]", 15),
        ),
        ("text", {"model": {"down_block_types": ["DownBlock2D"]}}, refused("model", "diffusers", "[model]")),
        ("classifier", {"data": {"label": ""}}, refused("data.label")),
        ("classifier", {"model": {"depth": [1]}}, unknown("model.depth", "depth", "[model]", nearest="depths")),
        (
            "classifier",
            {"model": {"hidden_sizes": "wide"}},
            refused("model", "transformers", "[model]", "hidden_sizes"),
        ),
        ("classifier", {"data": {"where": {"text": ["dog"]}}}, refused("data.label", 1)),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(task, changes, refusal, words, tmp_path, autoencoder):
    with refusal as caught:
        train(task_config(task, words, tmp_path / "run", autoencoder, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_of_a_model_can_be_read_by_whoever_may_read_the_folder(words, tmp_path):
    result = train(task_config("classifier", words, tmp_path / "run"))
    assert {p.stat().st_mode & 0o777 for p in result.iterdir()} == {result.stat().st_mode & 0o666}


# --- the autoencoder ------------------------------------------------------------------------------------------------


def test_the_autoencoders_loss_is_its_formula(words, tmp_path):
    weights = {"kl": 0.5, "gradient": 2.0}
    changes = {"data": {"size": 2, "channels": 1}, "autoencoder": weights}
    task = make_task(task_config("autoencoder", words, tmp_path / "run", **changes))
    batch = Batch(torch.tensor([[[[0, 255], [255, 0]]]], dtype=torch.uint8), ("",))
    error = torch.tensor([[[[0.1, 0.3], [0.0, 0.0]]]])
    asked = []

    def forward(x, noise):
        asked.append((x, noise))
        return x + error, torch.full((1, 4, 1, 1), 2.0), torch.full((1, 4, 1, 1), 0.5)

    # |e| = 0.4 / 4; along a row |0.2|, |0|; along a column |-0.1|, |-0.3|; KL of N(2, e^0.5) from N(0, 1)
    divergence = 0.5 * (4 + np.exp(0.5) - 1 - 0.5)
    expected = 0.1 + 2.0 * (0.1 + 0.2) + 0.5 * divergence
    assert float(task.loss(forward, task.inputs(batch, draw(1)))) == pytest.approx(expected, rel=1e-6)
    assert asked[0][0].tolist() == [[[[-1, 1], [1, -1]]]]
    assert torch.equal(asked[0][1], draw(1).flips_and_noise(torch.Size((4, 1, 1)))[1])


def test_the_autoencoder_decodes_its_mean_and_the_noise_that_it_asks_for(words, tmp_path):
    task = make_task(task_config("autoencoder", words, tmp_path / "run"))
    network = task.build().eval()
    x, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        image, mean, logvar = network(x, noise)
        expected = network.autoencoder.decode(mean + (0.5 * logvar).exp() * noise).sample
    torch.testing.assert_close(image, expected)


def test_the_autoencoder_loads_in_diffusers_and_its_codes_have_a_deviation_of_one(words, tmp_path):
    from diffusers import AutoencoderKL

    config = task_config("autoencoder", words, tmp_path / "run", output={"export_dtype": "float16"})
    result = train(config)
    assert {p.name for p in result.iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "ddim_training.json",
    }
    stored = load_file(result / "diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float16}
    network = AutoencoderKL.from_pretrained(result)
    (batch,) = load_images(config.data).stream([list(range(12))])
    with torch.no_grad():
        codes = network.encode(batch.pixels.float() / 127.5 - 1).latent_dist.mean * network.config.scaling_factor
    assert float(codes.std()) == pytest.approx(1, abs=5e-3)


def test_the_autoencoder_learns(words, tmp_path):
    losses = []
    changes = {"train": {"steps": 60, "batch": 12, "lr": 1e-2}, "output": {"checkpoint_every": 60}}
    config = task_config("autoencoder", words, tmp_path / "run", **changes)
    train(config, on_event=lambda e: e.kind == "step" and losses.append(e.loss))
    assert losses[-1] < 0.9 * losses[0]


# --- the words ------------------------------------------------------------------------------------------------------


def test_the_tokenizer_knows_its_words_and_spells_the_others(tmp_path):
    from transformers import CLIPTokenizer

    prompts = ["noto dog face", "noto cat face", "photo dress"] * 3
    tokenizer = train_tokenizer(prompts, TextConfig(vocabulary=700, length=12))
    assert 258 < len(tokenizer) <= 700
    ids = tokenizer("photo dog face").input_ids
    assert len(ids) == 5  # start, a token a word, end
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "photo dog face"
    assert tokenizer.tokenize("xylo") == [*"xyl", "o</w>"]
    assert tokenizer.tokenize("quiz") == [*"qui", tokenizer.unk_token]  # no word of the prompts ends in z
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 12
    assert again("photo dog xylo").input_ids == tokenizer("photo dog xylo").input_ids
    assert (
        len(train_tokenizer([f"{a}{b}{a}" for a in "abcdefgh" for b in "ijklmno"], TextConfig(vocabulary=300))) == 300
    )


def test_the_same_prompts_give_the_same_tokenizer():
    """Also for words of one letter, whose tokens the trainer numbers in another order each time."""
    prompts, config = ["a picture of 0", "b picture of 1", "c d e f g h i"], TextConfig(vocabulary=400, length=12)
    first = train_tokenizer(prompts, config)
    for _ in range(4):
        again = train_tokenizer(prompts[::-1] * 2, config)
        assert again.get_vocab() == first.get_vocab()
        assert again("a picture of 0 g").input_ids == first("a picture of 0 g").input_ids
    assert len(set(first("a b c d e f g h i 0 1").input_ids)) == 13  # start, eleven words, end


class Counting:
    """An encoder that shrinks by two, and counts what it was given."""

    def __init__(self):
        self.seen = 0

    def __call__(self, pixels):
        self.seen += len(pixels)
        return pixels[:, :, ::2, ::2].float()


@pytest.mark.parametrize("flip", [False, True])
def test_codes_are_made_once_however_often_a_picture_comes(words, tmp_path, flip):
    other = {"path": str(words), "prompt": "again {text}", "where": {"vendor": ["noto"]}, "repeat": 2}
    config = task_config("text", words, tmp_path / "run", "-", data={"repeat": 3, "more": [other]})
    images, encode = load_images(config.data), Counting()
    codes = Codes(images, encode, flip)
    assert encode.seen == 12 * (1 + flip)
    assert len(codes) == len(images) == 12 * 3 + 4 * 2
    wanted = [13, 0, 40, 43]  # a second visit, a first, two of the other set's
    (plain,), (coded,) = images.stream([wanted]), codes.stream([wanted])
    assert coded.prompts == plain.prompts
    assert coded.prompts[2:] == ("again dog", "again red fox")
    assert coded.pixels.shape == (4, 1 + flip, 3, 8, 8)
    assert torch.equal(coded.pixels[:, 0], encode(plain.pixels))
    if flip:
        assert torch.equal(coded.pixels[:, 1], encode(plain.pixels.flip(-1)))


def prepared(words, folder, autoencoder, **changes):
    config = task_config("text", words, folder, autoencoder, **changes)
    task = make_task(config)
    return task, task.prepare(load_images(config.data), CPU)


@pytest.mark.parametrize("template", ["{text}", "a photo of {text}", " "])
def test_pictures_without_words_are_refused_before_any_work(tmp_path, autoencoder, template):
    """They trained on empty prompts to the end, with a tokenizer of no merges."""
    folder = make_images(tmp_path / "images", 3, 16)
    with pytest.raises(InputError) as caught:
        train(task_config("text", folder, tmp_path / "run", autoencoder, data={"prompt": template}))
    assert caught.value.parameter == "data.prompt"
    assert not (tmp_path / "run").exists()


def test_codes_are_the_autoencoders_mean_times_its_factor(words, tmp_path, autoencoder):
    from diffusers import AutoencoderKL

    _, codes = prepared(words, tmp_path / "run", autoencoder)
    (plain,) = load_images(task_config("text", words, tmp_path, autoencoder).data).stream([[4]])
    (coded,) = codes.stream([[4]])
    network = AutoencoderKL.from_pretrained(autoencoder)
    with torch.no_grad():
        mirrored = network.encode(plain.pixels.flip(-1).float() / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(coded.pixels[:, 1], 0.5 * mirrored)


@pytest.mark.parametrize(("empty", "low", "high"), [(0.0, 0, 0), (0.25, 70, 130), (1.0, 400, 400)])
def test_a_share_of_the_prompts_is_left_empty(words, tmp_path, autoencoder, empty, low, high):
    task, codes = prepared(words, tmp_path / "run", autoencoder, text={"empty": empty})
    (batch,) = codes.stream([[k % 12 for k in range(400)]])
    given = []

    def forward(x, label, tokens):
        given.append(tokens)
        return torch.zeros_like(x)

    task.loss(forward, task.inputs(batch, draw(400)))
    gone = (given[0] == task.tokens[""]).all(1)
    assert low <= int(gone.sum()) <= high
    for k in (~gone).nonzero().flatten().tolist():
        assert torch.equal(given[0][k], task.tokens[batch.prompts[k]])


def test_a_flip_takes_the_mirrored_pictures_code(words, tmp_path, autoencoder, monkeypatch):
    task, codes = prepared(words, tmp_path / "run", autoencoder)
    (batch,) = codes.stream([list(range(12))])
    given = []
    monkeypatch.setattr(text, "diffusion_loss", lambda network, x0, *rest: given.append(x0))
    task.loss(None, task.inputs(batch, draw(12)))
    flips = draw(12).flips_and_noise(batch.pixels.shape[2:])[0]
    assert 0 < int(flips.sum()) < 12
    for k, flipped in enumerate(flips.tolist()):
        assert torch.equal(given[0][k], batch.pixels[k, int(flipped)])


def test_stable_diffusions_pipeline_loads_and_draws_the_result(words, tmp_path, autoencoder, capsys):
    from diffusers import StableDiffusionPipeline

    changes = {"loss": {"prediction": "v"}, "schedule": {"kind": "scaled_linear"}}
    config = task_config("text", words, tmp_path / "run", autoencoder, output={"export_dtype": "float16"}, **changes)
    result = train(config, on_event=lambda event: None)
    assert capsys.readouterr().err == ""  # no bars of other libraries' own
    parts = {p.name for p in result.iterdir() if p.is_dir()}
    assert parts == {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}
    assert not (result / "ddim.json").exists()  # no usual guidance was named
    for file in result.rglob("*.safetensors"):
        assert {w.dtype for w in load_file(file).values() if w.is_floating_point()} == {torch.float16}, file
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = StableDiffusionPipeline.from_pretrained(result)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.tokenizer.model_max_length == 12
    assert pipeline.vae.config.scaling_factor == 0.5
    images = pipeline(["noto dog", ""], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
    assert np.isfinite(images).all()


def test_the_library_draws_the_result(words, tmp_path, autoencoder):
    import ddim

    result = train(task_config("text", words, tmp_path / "run", autoencoder, text={"guidance": 2}))
    model = ddim.load(result)
    assert model.info.guidance == 2
    images = ddim.sample(model, 1, prompt="noto dog", steps=2)
    assert images.shape == (1, 3, 16, 16)


def test_both_the_words_and_the_network_learn(words, tmp_path, autoencoder):
    result = train(task_config("text", words, tmp_path / "run", autoencoder))
    weights = load_file(tmp_path / "run/checkpoints/step-00000006/weights.safetensors")
    start = load_file(tmp_path / "run/checkpoints/step-00000004/weights.safetensors")
    moved = {name.split(".")[0] for name, value in weights.items() if not torch.equal(value, start[name])}
    assert moved == {"text_encoder", "unet"}
    about = json.loads((result / "ddim_training.json").read_text())
    assert isinstance(about["autoencoder"], int)


def test_another_autoencoder_in_the_same_folder_is_refused_on_resume(words, tmp_path):
    folder = make_autoencoder(tmp_path / "ae")
    config = task_config("text", words, tmp_path / "run", folder)
    with pytest.raises(Stop):
        train(config, on_event=stop_after(3))
    moved = task_config("text", words, tmp_path / "run", folder.rename(tmp_path / "moved"))
    make_autoencoder(folder, seed=1)
    with refused(None, folder):
        train(config, resume=True)
    train(moved, resume=True)  # the same one from elsewhere
    assert Path(tmp_path / "run/model/model_index.json").is_file()
