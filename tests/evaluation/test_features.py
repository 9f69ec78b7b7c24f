"""The classifier of clean images: its training, its features, and the one that the package carries."""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import run_json
from tiny_features import features_folder
from training_helpers import make_words, task_config
from transformers import ResNetForImageClassification

import ddim
from ddim._utils.errors import DDIMError, InputError
from ddim.data.images import read_images
from ddim.evaluation.metrics.frechet import Statistics
from ddim.evaluation.reference import bundled_statistics, save_statistics
from ddim.models.features import bundled_features, load_features
from ddim.training import load_config, train
from ddim.training.data import load_images
from ddim.training.tasks import make_task
from ddim.training.tasks.base import Draw
from ddim.training.tasks.classifier import shifted

RECIPES = Path(__file__).parents[2] / "recipes"


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def words(tmp_path):
    return make_words(tmp_path / "words.parquet")


def clean(words: Path, folder: Path, **changes):
    return task_config("classifier", words, folder, classifier={"noise": False, **changes})


# --- training -------------------------------------------------------------------------------------------------------


def test_it_learns_from_the_images_themselves(words, tmp_path):
    config = clean(words, tmp_path / "run")
    task = make_task(config)
    images = task.prepare(load_images(config.data), torch.device("cpu"))
    (batch,) = images.stream([[0, 5, 11]])
    seen = []

    def forward(x):
        seen.append(x)
        return torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])

    loss = task.loss(forward, task.inputs(batch, Draw(seed=0, step=0, batch=3, positions=range(3))))  # type: ignore[arg-type]
    rows = [math.log(math.e + math.e**2 + 2) - 1, math.log(math.e**3 + 3) - 3, math.log(4)]  # labels 0, 1, 3
    assert float(loss) == pytest.approx(sum(rows) / 3, rel=1e-6)
    torch.testing.assert_close(seen[0], batch.pixels.float() / 127.5 - 1)


def test_every_offset_is_drawn_and_what_comes_in_is_the_background():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    places = torch.arange(9) / 9 + 0.01
    found = shifted(x.expand(9, -1, -1, -1), places, 1, -1.0)
    assert torch.equal(found[4], x[0])
    assert torch.equal(found[0, 0], torch.tensor([[-1.0, -1, -1, -1], [-1, 0, 1, 2], [-1, 4, 5, 6]]))
    assert torch.equal(found[8, 0], torch.tensor([[5.0, 6, 7, -1], [9, 10, 11, -1], [-1, -1, -1, -1]]))
    assert len({tuple(image.flatten().tolist()) for image in found}) == 9


def test_a_shift_is_of_the_step_and_the_place(words, tmp_path):
    config = clean(words, tmp_path / "run", shift=3)
    task = make_task(config)
    images = task.prepare(load_images(config.data), torch.device("cpu"))
    (batch,) = images.stream([[0] * 8])
    seen = []

    def forward(x):
        seen.append(x)
        return torch.zeros(len(x), 4)

    for step in (0, 0, 1):
        task.loss(forward, task.inputs(batch, Draw(seed=0, step=step, batch=8, positions=range(8))))  # type: ignore[arg-type]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert len({tuple(image.flatten().tolist()) for image in seen[0]}) > 4


def test_transformers_loads_the_result_and_its_features_are_what_the_last_layer_is_given(words, tmp_path):
    result = train(clean(words, tmp_path / "run", shift=1))
    assert {p.name for p in result.iterdir()} == {"config.json", "model.safetensors", "ddim_training.json"}
    assert json.loads((result / "ddim_training.json").read_text())["config"]["classifier"]["noise"] is False
    judge = load_features(result)
    assert (judge.name, judge.dim, judge.shape, judge.classes) == ("model", 16, (3, 16, 16), 4)
    network = ResNetForImageClassification.from_pretrained(result).eval()
    images = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        said = network(images * 2 - 1, output_hidden_states=True)
    found = judge.features(images, batch=2)
    torch.testing.assert_close(found, said.hidden_states[-1].mean((2, 3)))
    torch.testing.assert_close(judge.log_probs(images), said.logits.log_softmax(1))
    torch.testing.assert_close(network.classifier(found), said.logits)
    assert torch.equal(judge.predict(images), said.logits.argmax(1))
    with pytest.raises(InputError, match=r"not contain a classifier of noisy images"):
        ddim.load_classifier(result)


def test_clean_or_noisy_says_nothing_to_other_tasks(words, tmp_path):
    with pytest.raises(InputError, match=r"classifier: task = 'autoencoder' does not use"):
        task_config("autoencoder", words, tmp_path, classifier={"noise": False})
    with pytest.raises(InputError, match=r"classifier\.shift: it must be at least 0 pixels, not -1"):
        clean(words, tmp_path, shift=-1)
    with pytest.raises(InputError, match=r"Unknown key in \[classifier\] 'nois'. Did you mean 'noise'"):
        clean(words, tmp_path, nois=True)


# --- loading --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_weights(tmp_path):
    folders = [features_folder(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    a, b, c = (load_features(folder).fingerprint for folder in folders)
    assert a == b != c


def test_what_is_no_feature_classifier_is_refused(words, tmp_path):
    with pytest.raises(InputError, match=r"Unknown feature classifier 'fashon-features'. Did you mean 'fashion-feat"):
        load_features("fashon-features")
    with pytest.raises(InputError, match="not contain a feature classifier"):
        load_features(tmp_path)
    noisy = train(task_config("classifier", words, tmp_path / "noisy"))
    with pytest.raises(InputError, match="contains a classifier of noisy images"):
        load_features(noisy)
    folder = features_folder(tmp_path / "tiny")
    with pytest.raises(InputError, match="tiny takes images of 1x8x8, not of 3x8x8"):
        load_features(folder).features(torch.zeros(1, 3, 8, 8))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DDIMError, match="cannot be loaded"):
        load_features(folder)
    weights.unlink()
    with pytest.raises(InputError, match="contains no weights"):
        load_features(folder)


# --- the one in the package -----------------------------------------------------------------------------------------


def test_the_carried_one_knows_the_test_pictures_and_is_no_model():
    judge = load_features("fashion-features")
    assert (judge.name, judge.dim, judge.shape, judge.classes) == ("fashion-features", 128, (1, 32, 32), 10)
    names = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
    files = ddim.bundled_test_images("fashion")
    said = judge.predict(torch.cat([read_images(file, (1, 32, 32)) for file in files])).tolist()
    assert sum(names[k] == file.stem.partition("_")[2] for k, file in zip(said, files, strict=True)) >= 15
    assert "fashion-features" not in ddim.bundled_models()
    assert list(bundled_features()) == ["fashion-features"]
    assert "fashion-features" not in [m["name"] for m in run_json("models")["models"]]


def test_the_carried_statistics_are_of_the_carried_weights():
    judge = load_features("fashion-features")
    found, about = bundled_statistics(judge)
    assert (found.count, found.dim) == (10_000, judge.dim)
    assert about["fingerprint"] == judge.fingerprint
    assert (about["data"]["split"], about["data"]["fit"], about["data"]["size"]) == ("test", "pad", 32)
    assert float(torch.linalg.eigvalsh(found.covariance).min()) > -1e-9
    pictures = [read_images(file, (1, 32, 32)) for file in ddim.bundled_test_images("fashion")]
    near = Statistics.of(judge.features(torch.cat(pictures))).mean - found.mean
    # sixteen pictures of those ten thousand
    assert float(near.norm()) < 3 * math.sqrt(float(found.covariance.trace()) / 16)
    folder = bundled_features()["fashion-features"]
    assert (folder / "model.safetensors").stat().st_size < 2.5e6
    assert (folder / "test_statistics.safetensors").stat().st_size < 200_000


def test_statistics_of_other_weights_and_none_are_refused(tmp_path):
    judge = load_features(features_folder(tmp_path / "tiny"))
    with pytest.raises(InputError) as caught:
        bundled_statistics(judge)
    assert caught.value.parameter == "data"
    file = judge.folder / "test_statistics.safetensors"
    save_statistics(Statistics.of(torch.rand(9, 6)), file, {"fingerprint": "another"})
    with pytest.raises(InputError, match="belongs to other weights"):
        bundled_statistics(judge)


def test_the_recipe_is_what_trained_the_carried_one():
    config = load_config(RECIPES / "fashion-features.toml").as_dict()
    kept = json.loads((bundled_features()["fashion-features"] / "ddim_training.json").read_text())["config"]
    for section in ("model", "train", "classifier", "data", "schedule"):
        # options that were added since then have their defaults, which change nothing
        assert kept[section] == {k: v for k, v in config[section].items() if k in kept[section]}
