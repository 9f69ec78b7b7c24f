"""``task = "classifier"``: what it learns from, what it exports, and that a folder guides."""

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from training_helpers import make_parquet, make_words, png, task_config

import ddim
from ddim.training import draws, train
from ddim.training.data import load_images
from ddim.training.tasks import make_task
from ddim.training.tasks.base import Draw

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def words(tmp_path):
    return make_words(tmp_path / "words.parquet")


def draw(count):
    return Draw(seed=0, step=0, batch=count, positions=range(count))


def prepared(words, folder, **changes):
    config = task_config("classifier", words, folder, **changes)
    task = make_task(config)
    return task, task.prepare(load_images(config.data), CPU)


def test_the_loss_is_the_cross_entropy_of_noised_pictures_and_their_level(words, tmp_path):
    task, images = prepared(words, tmp_path / "run")
    (batch,) = images.stream([[0, 5, 11]])
    seen = []

    def forward(x, log_snr):
        seen.append((x, log_snr))
        return torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])

    # labels 0, 1, 3; log-sum-exp of each row less its own logit
    rows = [math.log(math.e + math.e**2 + 2) - 1, math.log(math.e**3 + 3) - 3, math.log(4)]
    assert float(task.loss(forward, task.inputs(batch, draw(3)))) == pytest.approx(sum(rows) / 3, rel=1e-6)
    t = draw(3).times(20, "uniform")
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 20, dtype=torch.float64), 0)[t - 1].view(-1, 1, 1, 1)
    noise = draw(3).flips_and_noise(torch.Size((3, 16, 16)))[1]
    x0 = batch.pixels.double() / 127.5 - 1
    expected = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(seen[0][0].double(), expected, atol=1e-5, rtol=1e-5)
    snr = (alpha_bar / (1 - alpha_bar)).log().flatten()
    torch.testing.assert_close(seen[0][1].double(), snr, atol=1e-5, rtol=1e-5)


def test_transformers_loads_the_result_and_so_does_the_library(words, tmp_path):
    from transformers import ResNetForImageClassification

    changes = {"output": {"export_dtype": "float16"}, "schedule": {"kind": "cosine"}}
    result = train(task_config("classifier", words, tmp_path / "run", **changes))
    names = {"config.json", "model.safetensors", "scheduler_config.json", "ddim_training.json"}
    assert {p.name for p in result.iterdir()} == names
    stored = load_file(result / "model.safetensors")
    assert {w.dtype for w in stored.values() if w.is_floating_point()} == {torch.float16}
    trained = load_file(tmp_path / "run/checkpoints/step-00000006/weights.safetensors")
    means = "resnet.embedder.embedder.normalization.running_mean"
    assert not torch.allclose(stored[means].float(), trained[f"resnet.{means}"], atol=1e-3)  # it has settled
    network = ResNetForImageClassification.from_pretrained(result)
    assert network(torch.zeros(2, 4, 16, 16)).logits.shape == (2, 4)
    assert json.loads((result / "scheduler_config.json").read_text())["beta_schedule"] == "squaredcos_cap_v2"
    judge = ddim.load_classifier(result)
    assert (judge.shape, judge.classes, judge.path.levels) == ((3, 16, 16), 4, 20)
    x, node = torch.randn(2, 3, 16, 16), judge.path.node(7)
    level = torch.full((2, 1, 16, 16), float(judge.path.log_snr(torch.tensor(7.0))) / 10)
    with torch.no_grad():
        expected = network.eval()(torch.cat([x, level], 1)).logits.log_softmax(1)
    torch.testing.assert_close(judge.log_probs(x / math.hypot(node.alpha, node.sigma), node), expected)


def test_batch_norm_settles_on_the_exported_weights_and_training_keeps_its_own(words, tmp_path):
    task, images = prepared(words, tmp_path / "run")
    network = task.build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settled = task.recompute_batch_norm(network)
    assert not settled.training
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    (batch,) = images.stream([draws.order(0, 0, 12).tolist()])
    fresh = Draw(seed=0, step=6, batch=12, positions=range(12))  # the step after the last
    _, noise = fresh.flips_and_noise(batch.pixels.shape[1:])
    x, log_snr = task._noised(batch.pixels.float() / 127.5 - 1, fresh.times(20, "uniform"), noise)
    stem = settled.resnet.resnet.embedder.embedder
    with torch.no_grad():
        said = stem.convolution(torch.cat([x, (log_snr / 10).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)], 1))
    torch.testing.assert_close(stem.normalization.running_mean, said.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem.normalization.running_var, said.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_it_learns_what_the_pictures_say_and_less_under_noise(tmp_path):
    # two kinds of pictures: dark and light ones
    cells = []
    for k in range(40):
        pixels = np.random.default_rng(k).integers(0, 100, (16, 16, 3)) + 155 * (k % 2)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    file = make_parquet(tmp_path / "kinds.parquet", image=cells, label=[k % 2 for k in range(40)])
    changes = {
        "train": {"steps": 120, "batch": 20, "lr": 1e-2, "ema": 0.9},
        "output": {"checkpoint_every": 120},
        "schedule": {"steps": 100, "kind": "cosine"},
    }
    config = task_config("classifier", file, tmp_path / "run", **changes)
    judge = ddim.load_classifier(train(config))
    (batch,) = load_images(config.data).stream([list(range(40))])
    x0, labels = batch.pixels.float() / 127.5 - 1, torch.tensor(batch.labels)
    sure = []
    with torch.no_grad():
        for t in (1, 100):
            node = judge.path.node(t)
            x = node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))
            sure.append(float(judge(x, node, labels).mean()))
    assert sure[0] > math.log(0.9)
    assert sure[1] == pytest.approx(math.log(0.5), abs=0.15)  # nothing is left to tell them by


def test_other_labels_are_other_data_on_resume(tmp_path):
    cells = [png(k, 16) for k in range(8)]
    file = make_parquet(tmp_path / "a.parquet", image=cells, label=[0, 1] * 4)
    config = task_config("classifier", file, tmp_path / "run")
    train(config)
    make_parquet(file, image=cells, label=[1, 0] * 4)
    with refused(None, file):
        train(config, resume=True)
