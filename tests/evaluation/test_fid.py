"""``ddim evaluate fid``: torchmetrics' own metric on a tiny network, rows that survive, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch
from commands import fails
from PIL import Image
from tiny_features import features_folder
from torch import Tensor, nn
from training_helpers import make_images, make_words
from typer.testing import CliRunner

import ddim
from ddim._utils.errors import InputError
from ddim.cli.app import app
from ddim.evaluation import inception
from ddim.evaluation.fid import COLUMNS, Walk, draw_features, items_of, whole_data, words_of
from ddim.evaluation.frechet import Statistics, frechet_distance
from ddim.evaluation.inception import WEIGHTS, Inception, open_inception
from ddim.evaluation.reference import as_saved, data_statistics
from ddim.evaluation.store import open_rows
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


def test_images_are_drawn_once_and_are_the_verb_s(eye, tmp_path):
    model, walk = tiny.model(), Walk(steps=3)
    items = items_of(model, eye, walk, 5, [None] * 10)
    with open_rows(tmp_path / "out", COLUMNS) as rows:
        draw_features(model, eye, walk, items[3:5], rows)
    with open_rows(tmp_path / "out", COLUMNS) as rows:
        todo = [item["seed"] for item in rows.missing(items)]
        assert todo == [5, 6, 7, 10, 11, 12, 13, 14]
        found = draw_features(model, eye, walk, items, rows, batch=4)
        assert len(rows) == 10
    images = ddim.sample(model, 10, steps=3, seed=5)
    torch.testing.assert_close(found, eye.features(as_saved(images)), rtol=1e-4, atol=1e-5)


def test_a_run_that_dies_goes_on_with_what_is_missing(eye, tmp_path):
    model, walk, drawn = tiny.model(), Walk(steps=2), []

    class Dying(Small):
        def features(self, images: Tensor, batch: int = 32) -> Tensor:
            if len(drawn) == 2:
                raise KeyboardInterrupt
            drawn.append(len(images))
            return super().features(images, batch)

    items = items_of(model, eye, walk, 0, [None] * 9)
    with pytest.raises(KeyboardInterrupt), open_rows(tmp_path / "a", COLUMNS) as rows:
        draw_features(model, Dying(eye.network, ORIGINAL), walk, items, rows, batch=3)
    with open_rows(tmp_path / "a", COLUMNS) as rows:
        assert len(rows) == 6
        resumed = draw_features(model, eye, walk, items, rows, batch=3)
    with open_rows(tmp_path / "b", COLUMNS) as rows:
        assert torch.equal(draw_features(model, eye, walk, items, rows, batch=3), resumed)


def test_every_setting_model_and_network_has_its_own_rows(eye):
    model, walk = tiny.model(), Walk(steps=3)

    def identity(model: Any = model, network: Any = eye, walk: Walk = walk, seed: int = 0) -> tuple[Any, ...]:
        return COLUMNS.key(items_of(model, network, walk, seed, [None])[0])

    walks = [Walk(steps=3, eta=0.5), Walk(steps=4), Walk(3, "heun"), Walk(3, spacing="trailing"), Walk(3, "bdia")]
    several = {identity(), *(identity(walk=w) for w in walks), identity(seed=1), identity(network=Small(Eye(), "b"))}
    several.add(identity(walk=Walk(3, "bdia", options={"gamma": 0.9})))
    several.add(identity(model=tiny.model(prediction_type="v_prediction")))
    several |= {identity(model=tiny_text.model(), walk=Walk(steps=3, guidance=w)) for w in (1.0, 2.0)}
    assert len(several) == 12


@pytest.mark.parametrize(("count", "shared"), [(10, 1), (12, 3), (10, 3), (3, 4)])
def test_each_process_has_seeds_that_follow_each_other(eye, count, shared):
    items = items_of(tiny.model(), eye, Walk(steps=3), 100, [None] * count, shared)
    assert sorted(item["seed"] for item in items) == list(range(100, 100 + count))
    breaks = 0
    for rank in range(shared):
        seeds = [item["seed"] for item in items[rank::shared]]
        breaks += sum(b - a != 1 for a, b in pairwise(seeds))
    assert breaks <= shared - 1  # where the last process has fewer


def test_classes_come_in_turn_and_prompts_from_the_data(eye, tmp_path):
    labelled = tiny.model(classes=3)
    images = load_images(grey(tmp_path / "data"))
    assert words_of(labelled, images, 5) == [0, 1, 2, 0, 1]
    assert words_of(tiny.model(), images, 2) == [None, None]
    tiny_text.pipeline().save_pretrained(tmp_path / "sd")
    text = ddim.load(tmp_path / "sd")
    config = DataConfig(str(make_words(tmp_path / "words.parquet")), 32, prompt="{vendor} {text}")
    words = words_of(text, load_images(config), 14)
    assert words[:2] == ["noto dog", "noto cat"]
    assert words[12:] == words[:2]
    with pytest.raises(InputError, match="draws prompts, and the data has none"):
        words_of(text, images, 3)
    for model, given, expected in (
        (labelled, [0, 1, 2, 0], {"labels": [0, 1, 2, 0]}),
        (text, words[:3], {"prompt": words[:3], "guidance": 3.0}),
    ):
        walk = Walk(steps=2, guidance=3.0)
        with open_rows(tmp_path / "rows" / model.name.replace("/", "-"), COLUMNS) as rows:
            found = draw_features(model, eye, walk, items_of(model, eye, walk, 0, given), rows)
        drawn = ddim.sample(model, len(given), steps=2, **expected)
        torch.testing.assert_close(found, eye.features(as_saved(drawn)), rtol=1e-4, atol=1e-5)


# --- the command ----------------------------------------------------------------------------------------------------


def evaluate(*words: object) -> dict[str, Any]:
    command = ["evaluate", "fid", *map(str, words), "--steps", "2", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_measures_writes_and_goes_on(eye, tmp_path, monkeypatch):
    monkeypatch.setattr("ddim.evaluation.inception.open_inception", lambda weights, device: eye)
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
    monkeypatch.setattr("ddim.evaluation.fid.sample", lambda *a, **k: pytest.fail("drawn again"))
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
    assert "6 drawn pictures are fewer than 6 features need (7)" in found["warnings"][0]
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
    assert "the data: 1 pictures" in fails(*model, *judge, "--data", "one", code=2)
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
    assert "other knows images of 3x8x8, not of 1x8x8" in sentence
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
    with pytest.raises(InputError, match=r"evil\.pth does not hold Inception's weights"):
        open_inception(tmp_path / "evil.pth")
    assert not Path("touched").exists()
    with pytest.raises(InputError, match=rf"weights: there is no file .*none\.pth; give {WEIGHTS}"):
        open_inception(tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"cannot be fetched \(no route to host\); put https://.* into .*hub/check"):
        open_inception()
    kept = tmp_path / "hub/checkpoints" / WEIGHTS
    kept.parent.mkdir(parents=True)
    kept.write_bytes((tmp_path / "good.pth").read_bytes())
    assert open_inception().fingerprint == good.fingerprint
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in inception.os.environ
