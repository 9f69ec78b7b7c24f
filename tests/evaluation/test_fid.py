"""``ddim evaluate fid``: torchmetrics' own metric on a tiny network, rows that survive, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch
from commands import fails
from measuring import measured, opened
from PIL import Image
from tiny_features import features_folder
from torch import Tensor, nn
from training_helpers import make_images, make_words
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import InputError
from ddim.cli.app import app
from ddim.evaluation.benchmarks import fid
from ddim.evaluation.benchmarks.fid import Fid, Sampler, conditions_of, vectors_of, whole_data
from ddim.evaluation.metrics import inception
from ddim.evaluation.metrics.feature_extractor import as_saved
from ddim.evaluation.metrics.frechet import Statistics, frechet_distance
from ddim.evaluation.metrics.inception import WEIGHTS, Inception, open_inception
from ddim.evaluation.reference import data_statistics
from ddim.evaluation.rows import Processes, RowColumns
from ddim.models.features import load_features
from ddim.training.config import DataConfig, SourceConfig
from ddim.training.data import load_images

ORIGINAL = "6726825d" + 56 * "0"


class Eye(nn.Module):
    """uint8 [N, 3, H, W] -> [N, 7]: random, and not linear."""

    num_features = 7

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Conv2d(3, 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        return self.layer(x.float() / 128 - 1).relu().mean((2, 3))


class Small(Inception):
    dim = 7


@pytest.fixture
def eye() -> Inception:
    return Small(Eye(), ORIGINAL)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets_cache: None):
    monkeypatch.chdir(tmp_path)


def grey(folder: Path, count: int = 12) -> DataConfig:
    return DataConfig(str(make_images(folder, count)), 8, channels=1)


# --- the number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_torchmetrics_finds_the_same_fid(eye, channels):
    metric = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=eye.network)
    real, drawn = torch.rand(40, channels, 9, 9), torch.rand(30, channels, 9, 9) ** 2
    for images, is_real in ((real, True), (drawn, False)):
        metric.update((images * 255).round().byte().expand(-1, 3, -1, -1), real=is_real)
    ours = frechet_distance(*(Statistics.of(eye.features(images, batch=8)) for images in (real, drawn)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-4)  # theirs is rounded to float32


def test_only_the_original_s_weights_give_an_fid(eye):
    assert (eye.original, eye.name) == (True, "Inception")
    other = Small(Eye(), "12345678" + 56 * "0")
    assert (other.original, other.name) == (False, "Inception with weights 12345678")


def test_drawn_images_are_rounded_as_files_are():
    found = as_saved(torch.tensor([-1.0, 0.0, 0.1, 0.5, 1.0, 2.0]))
    torch.testing.assert_close(found * 255, torch.tensor([0.0, 0, 26, 128, 255, 255]), rtol=0, atol=1e-3)


# --- the data -------------------------------------------------------------------------------------------------------


def test_statistics_are_kept_under_every_pixel_and_the_network(eye, tmp_path):
    config, cache, asked = grey(tmp_path / "data"), tmp_path / "kept", []

    class Watched(Small):
        def features(self, images: Tensor, batch: int = 32) -> Tensor:
            asked.append(len(images))
            return super().features(images, batch)

    def taken(config: DataConfig, fingerprint: str = ORIGINAL) -> Statistics:
        network = Watched(eye.network, fingerprint)
        return data_statistics(network, load_images(config), config, cache=cache, batch=5)[0]

    first = taken(config)
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "data").iterdir())])
    whole = Statistics.of(eye.features(torch.from_numpy(pixels).unsqueeze(1) / 255))
    torch.testing.assert_close(first.covariance, whole.covariance, rtol=1e-5, atol=1e-8)
    assert (first.count, sum(asked)) == (12, 12)
    again = taken(config)
    assert torch.equal(again.covariance, first.covariance)
    assert sum(asked) == 12
    taken(config, "a" * 64)
    assert sum(asked) == 24
    changed = tmp_path / "data/004.png"
    pixels[4, 0, 0] ^= 1
    Image.fromarray(pixels[4]).save(changed)
    assert not torch.equal(taken(config).mean, first.mean)
    assert sum(asked) == 36


def test_a_recipe_s_pictures_count_once_unmirrored():
    source = SourceConfig("b", repeat=3)
    found = whole_data(DataConfig("a", 8, flip=True, repeat=2, split="train", more=(source,)))
    assert (found.flip, found.repeat, found.more[0].repeat, found.split) == (False, 1, 1, "train")
    assert whole_data(DataConfig("a", 8), "validation").split == "validation"


def test_of_idx_files_the_test_split_is_the_reference(tmp_path):
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(b"")
    assert whole_data(DataConfig(str(tmp_path), 8)).split == "test"
    assert whole_data(DataConfig(str(tmp_path), 8), "train").split == "train"


# --- drawing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(eye: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark with a model, in the features of the tiny network; ``network`` stands in for it."""

    def open_with(model: Any = None, network: Any = eye, data: Path | None = None, **options: Any) -> Fid:
        monkeypatch.setattr(fid, "open_network", lambda *_: network)
        folder = data or tmp_path / "data"
        if not folder.exists():
            make_images(folder, 12)
        model = tiny.model() if model is None else model
        return opened(
            "fid", model, tmp_path / "out", **{"data": folder, "steps": 3, "seed": 5, "images": 10, **options}
        )

    return open_with


def test_images_are_generated_once_and_are_the_verb_s(bench: Any, eye: Inception, monkeypatch: pytest.MonkeyPatch):
    made = bench(batch=4)
    (setting,) = made.settings()
    items = made.items(setting)
    measured(made, setting, items[4:6])
    seeds = []
    generate = fid.generate
    monkeypatch.setattr(fid, "generate", lambda *a: seeds.extend(i["seed"] for i in a[2]) or generate(*a))
    found = vectors_of(measured(made, setting))
    assert seeds == [5, 6, 7, 8, 11, 12, 13, 14]
    images = ddim.sample(tiny.model(), 10, steps=3, seed=5)
    torch.testing.assert_close(found, eye.features(as_saved(images)), rtol=1e-4, atol=1e-5)


def test_a_run_that_dies_goes_on_with_what_is_missing(bench: Any, eye: Inception, tmp_path: Path):
    done = []

    class Dying(Small):
        def features(self, images: Tensor, batch: int = 32) -> Tensor:
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(len(images))
            return super().features(images, batch)

    dying = bench(network=Dying(eye.network, ORIGINAL), images=9, batch=3)
    with pytest.raises(KeyboardInterrupt):
        measured(dying, *dying.settings())
    made = bench(images=9, batch=3)
    (setting,) = made.settings()
    assert len(measured(made, setting, made.items(setting)[:6])) == 6
    resumed = vectors_of(measured(made, setting))
    other = bench(images=9, batch=3)
    other.session.out = tmp_path / "other"
    assert torch.equal(vectors_of(measured(other, setting)), resumed)


def test_every_setting_model_and_network_has_its_own_rows(eye: Inception):
    model, sampler = tiny.model(), Sampler(steps=3)

    def identity(model: Any = model, network: Any = eye, sampler: Sampler = sampler, seed: int = 0) -> tuple[Any, ...]:
        return RowColumns.of(Fid.columns).key(fid.items(model, network, sampler, seed, [None])[0])

    samplers = [Sampler(3, eta=0.5), Sampler(4), Sampler(3, "heun"), Sampler(3, spacing="trailing"), Sampler(3, "bdia")]
    found = {identity(), *(identity(sampler=s) for s in samplers), identity(seed=1)}
    found.add(identity(network=Small(Eye(), "b")))
    found.add(identity(sampler=Sampler(3, "bdia", options={"gamma": 0.9})))
    found.add(identity(model=tiny.model(prediction_type="v_prediction")))
    found |= {identity(model=tiny_text.model(), sampler=Sampler(3, guidance=w)) for w in (1.0, 2.0)}
    assert len(found) == 12


@pytest.mark.parametrize(("count", "shared"), [(10, 1), (12, 3), (10, 3), (3, 4)])
def test_the_seeds_of_a_block_follow_each_other(bench: Any, count: int, shared: int):
    made = bench(images=count, seed=100)
    made.session.processes = Processes(0, shared)
    (setting,) = made.settings()
    blocks = [[item["seed"] for item in block] for block in made.blocks(setting, made.items(setting))]
    assert [seed for block in blocks for seed in block] == list(range(100, 100 + count))
    assert max(map(len, blocks)) == -(-count // shared)


def test_classes_come_in_turn_and_prompts_from_the_data(bench: Any, eye: Inception, tmp_path: Path):
    labelled = tiny.model(classes=3)
    images = load_images(grey(tmp_path / "data"))
    assert conditions_of(labelled, images, 5) == [0, 1, 2, 0, 1]
    assert conditions_of(tiny.model(), images, 2) == [None, None]
    tiny_text.pipeline().save_pretrained(tmp_path / "sd")
    text = ddim.load(tmp_path / "sd")
    config = DataConfig(str(make_words(tmp_path / "words.parquet")), 32, prompt="{vendor} {text}")
    prompts = conditions_of(text, load_images(config), 14)
    assert prompts[:2] == ["noto dog", "noto cat"]
    assert prompts[12:] == prompts[:2]
    with pytest.raises(InputError) as caught:
        conditions_of(text, images, 3)
    assert caught.value.parameter == "recipe"
    for model, given, expected in (
        (labelled, [0, 1, 2, 0], {"labels": [0, 1, 2, 0]}),
        (text, prompts[:3], {"prompt": prompts[:3], "guidance": 3.0}),
    ):
        found = fid.generate(model, Sampler(2, guidance=3.0), fid.items(model, eye, Sampler(2), 0, given))
        assert torch.equal(found, ddim.sample(model, len(given), steps=2, **expected))


# --- the command ----------------------------------------------------------------------------------------------------


def evaluate(*words: object) -> dict[str, Any]:
    command = ["evaluate", "fid", *map(str, words), "--steps", "2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_measures_writes_and_goes_on(eye, tmp_path, monkeypatch):
    monkeypatch.setattr("ddim.evaluation.metrics.inception.open_inception", lambda weights, device: eye)
    model = tiny.pipeline_folder(tmp_path / "small")
    make_images(tmp_path / "data", 12)
    words = ("--model", model, "--data", "data", "--images", 9)
    first = evaluate(*words)
    (row,) = first["rows"]
    assert (row["distance"], row["images"]) == ("FID", 9)
    drawn = Statistics.of(eye.features(as_saved(ddim.sample(ddim.load(model), 9, steps=2))))
    data, _ = data_statistics(eye, load_images(grey(tmp_path / "data")), grey(tmp_path / "data"))
    assert row["value"] == pytest.approx(frechet_distance(drawn, data), rel=1e-4)
    assert row["low"] < row["value"] < row["high"]
    assert first["warnings"] == []
    assert (first["reference"]["images"], first["reference"]["fingerprint"]) == (12, ORIGINAL)
    (page,) = Path("evaluation/fid").glob("fid-*small.md")
    assert page.read_text().startswith("| distance | images | value |")
    monkeypatch.setattr(fid, "generate", lambda *a, **k: pytest.fail("generated again"))
    assert evaluate(*words)["rows"] == [row]
    assert evaluate(*words, "--resamples", 0)["rows"] == [{**row, "low": None, "high": None, "bias": None}]
    again = CliRunner().invoke(app, [*first["command"].split()[1:], "--json"])
    assert json.loads(again.stdout)["rows"] == [row]


def test_in_other_features_it_is_never_called_fid(tmp_path):
    model, judge = tiny.pipeline_folder(tmp_path / "small"), features_folder(tmp_path / "judge")
    make_images(tmp_path / "data", 12)
    found = evaluate("--model", model, "--data", "data", "--images", 6, "--features", judge)
    (row,) = found["rows"]
    assert row["distance"] == "Fréchet distance in the features of judge"
    assert "6 generated images are fewer than 6 features need (7)" in found["warnings"][0]
    names = [Path(file).name for file in found["files"]]
    assert [name.rpartition(".")[2] for name in names] == ["md", "csv", "json"]
    assert all(name.startswith("frechet-") for name in names)
    assert load_features(judge).fingerprint == found["reference"]["fingerprint"]


def test_what_cannot_be_measured_is_one_sentence(tmp_path, monkeypatch):
    model = ("evaluate", "fid", "--model", tiny.pipeline_folder(tmp_path / "small"))
    judge = ("--features", features_folder(tmp_path / "judge"))
    make_images(tmp_path / "data", 3)
    assert "--data FOLDER and --recipe" in fails(*model, *judge, code=2)
    assert "--data FOLDER and --recipe" in fails(*model, *judge, "--data", "data", "--recipe", "r.toml", code=2)
    assert "two or more" in fails(*model, *judge, "--data", "data", "--images", "1", code=2)
    make_images(tmp_path / "one", 1)
    assert "the data: 1 images" in fails(*model, *judge, "--data", "one", code=2)
    assert "'padd'" in fails(*model, *judge, "--data", "data", "--fit", "padd", code=2)
    assert "--fit: pad goes with --data" in fails(*model, *judge, "--recipe", "r.toml", "--fit", "pad", code=2)
    assert "has no text encoder" in fails(*model, *judge, "--data", "data", "--guidance", "2", code=2)
    assert "nowhere" in fails(*model, *judge, "--data", "nowhere", code=2)
    assert "--steps: 0" in fails(*model, *judge, "--data", "data", "--steps", "0", code=2)
    assert "give one of the two" in fails(*model, *judge, "--data", "data", "--weights", "w.pth", code=2)
    (tmp_path / "file").touch()
    assert "file is not a folder" in fails(*model, *judge, "--data", "data", "--out", "file/there", code=2)
    # before anything is loaded
    assert "no file w.pth" in fails("evaluate", "fid", "--model", "nowhere", "--weights", "w.pth", code=2)
    other = features_folder(tmp_path / "other", channels=3)
    sentence = fails(*model, "--data", "data", "--images", "20", "--features", other, code=2)
    assert "3x8x8" in sentence
    assert not list(Path().rglob("*.parquet"))


def test_inception_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    model = tiny.pipeline_folder(tmp_path / "small")
    make_images(tmp_path / "data", 3)
    monkeypatch.setattr("torchmetrics.utilities.imports._TORCH_FIDELITY_AVAILABLE", False)
    assert "pip install 'ddim[fid]'" in fails("evaluate", "fid", "--model", model, "--data", "data", code=2)


class Fetched(nn.Module):
    """In place of torchmetrics' metric: what it does with the weights, no more."""

    def __init__(self, feature: int, feature_extractor_weights_path: str | None) -> None:
        super().__init__()
        if feature_extractor_weights_path is None:
            raise OSError("no route to host")
        self.inception = Eye()
        self.inception.use_antialias = True
        self.inception.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_weights_are_read_as_tensors_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("torchmetrics.utilities.imports._TORCH_FIDELITY_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", Fetched)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.save(Eye().state_dict(), tmp_path / "good.pth")
    good = open_inception(tmp_path / "good.pth")
    assert (good.original, len(good.fingerprint), good.network.use_antialias) == (False, 64, False)
    torch.save({"layer.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth"):
        open_inception(tmp_path / "evil.pth")
    assert not Path("touched").exists()
    with pytest.raises(InputError) as caught:
        open_inception(tmp_path / "none.pth")
    assert caught.value.parameter == "weights"
    assert WEIGHTS in caught.value.message
    with pytest.raises(InputError, match="no route to host") as caught:
        open_inception()
    assert caught.value.parameter == "weights"
    assert "hub/checkpoints" in str(caught.value.hint)
    kept = tmp_path / "hub/checkpoints" / WEIGHTS
    kept.parent.mkdir(parents=True)
    kept.write_bytes((tmp_path / "good.pth").read_bytes())
    assert open_inception().fingerprint == good.fingerprint
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in inception.os.environ
