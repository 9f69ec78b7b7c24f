"""The task ``flow``: what the network learns is what a plain StableDiffusion3Pipeline computes with its weights."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused, unknown
from safetensors.torch import load_file
from torch import Tensor, nn
from training_helpers import make_autoencoder, make_base, make_words, task_config

from ddim.data.images import sheet
from ddim.training import draws, train
from ddim.training.data import load_images
from ddim.training.tasks import make_task
from ddim.training.tasks.base import Draw
from ddim.training.tasks.flow import (
    SECOND_WIDTH,
    FlowNetwork,
    FlowTask,
    Statistics,
    fold_into_autoencoder,
    fold_statistics,
    sd3_text_encoders,
)
from ddim.training.tasks.text import SHEET_GUIDANCE

CPU = torch.device("cpu")
PROMPTS = ["noto dog", "blob red fox", ""]

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_autoencoder(tmp_path_factory.mktemp("autoencoder") / "model")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return make_words(tmp_path / "words.parquet")


def prepared(words: Path, folder: Path, autoencoder: Path, **changes: Any) -> tuple[FlowTask, Any]:
    task = make_task(task_config("flow", words, folder, autoencoder, **changes))
    assert isinstance(task, FlowTask)
    return task, task.prepare(load_images(task.config.data), CPU)


def shaken(network: nn.Module) -> nn.Module:
    """Gives weights to what begins at zero."""
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    return network.eval()


def exported(task: FlowTask, network: nn.Module, folder: Path) -> Any:
    from diffusers import StableDiffusion3Pipeline

    folder.mkdir()
    task.export(network, folder)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7])
def test_one_weighted_token_stands_for_all_zero_tokens(count: int):
    """Against diffusers' own attention, which gets every zero token."""
    from diffusers import SD3Transformer2DModel

    sizes = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    sizes |= {"joint_attention_dim": 12, "pooled_projection_dim": 5, "in_channels": 4, "out_channels": 4}
    plain: Any = SD3Transformer2DModel(sample_size=8, pos_embed_max_size=8, qk_norm="rms_norm", **sizes)
    ours: Any = SD3Transformer2DModel(sample_size=8, pos_embed_max_size=8, qk_norm="rms_norm", **sizes)
    ours.load_state_dict(shaken(plain).state_dict())
    zero = torch.randn(12)
    network = FlowNetwork(ours.eval(), zero).double()
    x, words, pooled = (torch.randn(2, *shape).double() for shape in ((4, 8, 8), (3, 12), (5,)))
    timestep = torch.tensor([250.0, 900.0]).double()
    with torch.no_grad():
        said = network(x, timestep, words, pooled, torch.full((2,), float(count)).double())
        every = torch.cat([words, zero.double().expand(2, count, 12)], 1)
        expected = plain.double()(x, every, pooled, timestep).sample
    torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)


def test_the_statistics_are_those_of_each_channel_and_count_rows():
    values = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[7.0, 7.0], [5.0, 5.0]]])
    mean, std = Statistics.of(values, torch.tensor([3, 1]))
    assert mean.tolist() == pytest.approx([(3 * 1 + 3 * 3 + 7 + 7) / 8, 5])
    assert std.tolist() == pytest.approx([float(np.std([1, 1, 1, 3, 3, 3, 7, 7])), 1])


def test_a_layer_takes_the_statistics_of_its_inputs():
    layer = nn.Linear(3, 2)
    statistics = Statistics(torch.tensor([1.0, -2.0, 30.0]), torch.tensor([0.5, 3.0, 80.0]))
    x = torch.randn(5, 3)
    expected = layer((x - statistics.mean) / statistics.std)
    fold_statistics(layer, statistics)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_autoencoder_takes_the_statistics_of_its_latents(tmp_path: Path):
    from diffusers import AutoencoderKL

    folder = make_autoencoder(tmp_path / "model")
    before, after = (AutoencoderKL.from_pretrained(folder).eval() for _ in range(2))
    mean, std = torch.tensor([1.0, -2.0, 0.3, 0.0]), torch.tensor([3.0, 0.2, 1.0, 2.0])
    fold_into_autoencoder(after, Statistics(mean, std))
    assert (after.config.scaling_factor, after.config.shift_factor) == (1, 0)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        old, new = before.encode(images).latent_dist, after.encode(images).latent_dist
        wide = (part.view(4, 1, 1) for part in (mean, std))
        torch.testing.assert_close(new.mean, (old.mean - next(wide)) / (spread := next(wide)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(new.std, old.std / spread, rtol=1e-5, atol=1e-5)
        decoded = after.decode(new.mean).sample
        torch.testing.assert_close(decoded, before.decode(old.mean).sample, rtol=1e-5, atol=1e-5)


def test_the_first_encoder_says_what_it_said_and_the_second_nothing():
    import tiny_text

    pipeline = tiny_text.pipeline()
    first, second = sd3_text_encoders(pipeline.text_encoder, 10)
    ids = tiny_text.tokenizer(10)(["a red cat", "", "a cat on a mat next to a dog"], padding="max_length").input_ids
    ids = torch.tensor([row[:10] for row in ids])
    with torch.no_grad():
        own = pipeline.text_encoder(ids, output_hidden_states=True)
        said, nothing = first(ids, output_hidden_states=True), second(ids, output_hidden_states=True)
    last = pipeline.text_encoder.final_layer_norm(said.hidden_states[-2])
    assert torch.equal(last, own.last_hidden_state)
    assert torch.equal(said.text_embeds, own.pooler_output)
    assert nothing.hidden_states[-2].shape == (3, 10, SECOND_WIDTH)
    assert not nothing.hidden_states[-2].any()
    assert not nothing.text_embeds.any()


# --- training --------------------------------------------------------------------------------------------------------


def test_latents_and_words_have_unit_statistics(words: Path, tmp_path: Path, autoencoder: Path):
    task, codes = prepared(words, tmp_path / "run", autoencoder)
    by_channel = codes.codes.transpose(0, 2).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_channel.std(1), torch.ones(4), rtol=1e-2, atol=0)
    said = task.words[..., :-SECOND_WIDTH].flatten(0, 1)
    torch.testing.assert_close(said.std(0), torch.ones(said.shape[1]), rtol=1e-2, atol=0)
    assert not task.words[..., -SECOND_WIDTH:].any()


def test_a_new_network_predicts_zero(words: Path, tmp_path: Path, autoencoder: Path):
    task, codes = prepared(words, tmp_path / "run", autoencoder)
    (batch,) = codes.stream([[0, 1, 2, 3]])
    inputs = task.inputs(batch, Draw(seed=0, step=0, batch=4, positions=range(4)))
    target = (inputs["noise"] - inputs["x0"]).square().mean()
    assert task.loss(task.build(), inputs).item() == pytest.approx(float(target), rel=1e-6)


def test_inputs_are_functions_of_the_place(words: Path, tmp_path: Path, autoencoder: Path):
    task, codes = prepared(words, tmp_path / "run", autoencoder, flow={"zeros": [0, 12, 256], "empty": 0.5})
    (batch,) = codes.stream([list(range(8))])
    whole = task.inputs(batch, Draw(seed=0, step=4, batch=8, positions=range(8)))
    (part,) = codes.stream([[4, 5, 6, 7]])
    half = task.inputs(part, Draw(seed=0, step=4, batch=8, positions=range(4, 8)))
    assert all(torch.equal(value[4:], half[name]) for name, value in whole.items())
    assert whole["zeros"].tolist() == [12, 256, 0, 12, 256, 0, 12, 256]
    drops = Draw(seed=0, step=4, batch=8, positions=range(8)).dropped(0.5).tolist()
    assert 0 < sum(drops) < 8
    for k, (gone, prompt) in enumerate(zip(drops, batch.prompts, strict=True)):
        number = task.numbers["" if gone else prompt]
        assert torch.equal(whole["words"][k], task.words[number])
        assert torch.equal(whole["pooled"][k], task.pooled[number])


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"model": {"num_layer": 1}}, unknown("model.num_layer", "num_layer", "[model]", nearest="num_layers")),
        ({"model": {"in_channels": 4}}, refused("model.in_channels", "flow.base")),
        ({"model": {"sample_size": 16}}, refused("model.sample_size", 8, 16)),
        ({"model": {"patch_size": 3}}, refused("model", "(4, 8, 8)")),
        ({"model": {"qk_norm": "none"}}, refused("model", "diffusers", "[model]")),
        ({"data": {"prompt": ""}}, refused("data.prompt", "'{text}'")),
        ({"data": {"channels": 1}}, refused("flow.base", 3, "data.channels", 1)),
        ({"flow": {"base": ""}}, refused("flow.base", "''")),
        ({"flow": {"base": "/none"}}, refused("flow.base", "'/none'")),
        ({"flow": {"base": "fashion"}}, refused("flow.base", "'fashion'", "vae")),
        ({"flow": {"length": 17}}, refused("flow.length", 16, 17)),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: Path, tmp_path: Path, autoencoder: Path, changes: dict[str, Any], refusal: Any
):
    with refusal as caught:
        train(task_config("flow", words, tmp_path / "run", autoencoder, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_without_the_convolutions_is_refused(words: Path, tmp_path: Path):
    from diffusers import AutoencoderKL

    coder = make_autoencoder(tmp_path / "model")
    options = {**AutoencoderKL.from_pretrained(coder).config, "use_quant_conv": False, "use_post_quant_conv": False}
    AutoencoderKL.from_config(options).save_pretrained(coder)
    with refused("flow.base", "quant_conv"):
        make_task(task_config("flow", words, tmp_path / "run", coder))


def test_another_base_in_the_same_folder_is_refused_on_resume(words: Path, tmp_path: Path):
    coder = make_autoencoder(tmp_path / "ae")
    config = task_config("flow", words, tmp_path / "run", coder, train={"steps": 2})
    train(config, on_event=lambda event: None)
    make_autoencoder(make_base(coder) / "vae", seed=1)
    with refused(None, make_base(coder)):
        train(config, resume=True)


# --- the result ------------------------------------------------------------------------------------------------------


def test_training_sees_what_the_pipeline_encodes(words: Path, tmp_path: Path, autoencoder: Path):
    task, _ = prepared(words, tmp_path / "run", autoencoder)
    pipeline = exported(task, task.build(), tmp_path / "model")
    assert pipeline.tokenizer.model_max_length == pipeline.tokenizer_2.model_max_length == 12
    rows = [task.numbers[prompt] for prompt in PROMPTS]
    own = task.words[rows] * task.words_statistics.std + task.words_statistics.mean
    with torch.no_grad():
        said, empty, pooled, nothing = pipeline.encode_prompt(PROMPTS, None, None)
    assert said.shape == (3, 12 + 256, 12 + SECOND_WIDTH)
    torch.testing.assert_close(said[:, :12], own, rtol=1e-6, atol=1e-6)
    assert not said[:, 12:].any()
    assert torch.equal(pooled, task.pooled[rows])
    torch.testing.assert_close(empty[:, :12], own[2:].expand(3, -1, -1), rtol=1e-6, atol=1e-6)
    assert torch.equal(nothing, task.pooled[rows[2:]].expand(3, -1))


@pytest.mark.parametrize("zeros", [0, 12, 256])
def test_the_pipeline_draws_the_sheet(words: Path, tmp_path: Path, autoencoder: Path, zeros: int):
    """The same steps from the same noise, with the same number of zero tokens."""
    changes = {"flow": {"zeros": [0, zeros]}, "output": {"samples": 3, "sample_steps": 4}}
    task, _ = prepared(words, tmp_path / "run", autoencoder, **changes)
    task.shown = PROMPTS
    network = shaken(task.build())
    pipeline = exported(task, network, tmp_path / "model")
    noise = draws.sheet_noise(0, 3, task.code_shape)
    steps = {"sigmas": [1.0, 0.75, 0.5, 0.25], "num_inference_steps": 4, "guidance_scale": SHEET_GUIDANCE}
    drawn = pipeline(PROMPTS, latents=noise, max_sequence_length=zeros, output_type="np", **steps).images
    expected = np.asarray(sheet(torch.from_numpy(drawn).permute(0, 3, 1, 2))).astype(int)
    own = np.asarray(task.sheet(network)).astype(int)
    assert expected.std() > 10
    assert np.abs(own - expected).max() <= 1


def test_the_export_has_the_dtype_and_the_scheduler_that_the_config_says(
    words: Path, tmp_path: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
):
    from diffusers import StableDiffusion3Pipeline

    changes = {"output": {"export_dtype": "float16"}, "flow": {"shift": 3.0, "guidance": 3}, "train": {"steps": 2}}
    config = task_config("flow", words, tmp_path / "run", autoencoder, **changes)
    capsys.readouterr()  # what the fixtures printed
    result = train(config, on_event=lambda event: None)
    assert capsys.readouterr().err == ""
    files = list(result.rglob("*.safetensors"))
    assert len(files) == 4
    assert json.loads((result / "ddim.json").read_text()) == {"guidance": 3.0}
    for file in files:
        assert {w.dtype for w in load_file(file).values() if w.is_floating_point()} == {torch.float16}, file
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(result, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.shift == 3
    images: Tensor = pipeline(["noto dog"], num_inference_steps=2, output_type="pt", height=32, width=16).images
    assert images.shape == (1, 3, 32, 16)
    assert bool(images.isfinite().all())
