"""A pixel model that is told classes: which labels reach the network, and what its folder says of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from test_loss import SCHEDULE, Guess
from training_helpers import Stop, labelled, make_images, make_labels, make_parquet, png, stop_after, tables, tiny

from ddim._utils.errors import InputError
from ddim.training import config_from_dict, train
from ddim.training.config_file import differing_keys
from ddim.training.data import Batch, MemoryImages, load_images
from ddim.training.tasks.base import Draw
from ddim.training.tasks.pixel import PixelTask, class_rows

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def images(tmp_path):
    return make_labels(make_images(tmp_path / "images", 12), 3)


def draw(count, seed=0, step=0, positions=None):
    return Draw(seed, step, count, positions or range(count))


def prepared(images, folder, changes=None, **pixel):
    config = tiny(images, folder, **labelled(changes or {}, **pixel))
    task = PixelTask(config)
    return task, task.prepare(load_images(config.data), CPU)


def told_labels(task, batch, draws):
    """The labels that reach the network, and its noisy images."""
    seen = []

    def forward(x, timestep, class_labels=None):
        seen.append((class_labels, x))
        return SimpleNamespace(sample=torch.zeros_like(x))

    task.loss(forward, task.inputs(batch, draws))
    (asked,) = seen
    return asked


def many(count, classes=3):
    """Images whose classes take turns."""
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    return Batch(pixels, ("",) * count, tuple(k % classes for k in range(count)))


# --- which labels reach the network ---------------------------------------------------------------------------------


def test_with_all_labels_dropped_none_reaches_the_network(images, tmp_path):
    task, _ = prepared(images, tmp_path, label_dropout=1.0)
    labels, _ = told_labels(task, many(300), draw(300))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3] * 300


def test_without_dropping_every_label_reaches_the_network(images, tmp_path):
    task, _ = prepared(images, tmp_path, label_dropout=0.0)
    labels, _ = told_labels(task, many(300), draw(300))
    assert labels.tolist() == [k % 3 for k in range(300)]


def test_an_unconditional_network_is_told_nothing(images, tmp_path):
    config = tiny(images, tmp_path, data={"label": "label"})
    task = PixelTask(config)
    task.prepare(load_images(config.data), CPU)
    assert told_labels(task, many(3), draw(3))[0] is None


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_that_is_dropped_is_the_one_asked_for(images, tmp_path, share):
    count = 10_000
    task, _ = prepared(images, tmp_path, label_dropout=share)
    batch = many(count)
    labels, _ = told_labels(task, batch, draw(count))
    gone = labels == 3
    assert abs(int(gone.sum()) - share * count) < 4 * (count * share * (1 - share)) ** 0.5
    given = torch.tensor(batch.labels)
    assert torch.equal(labels[~gone], given[~gone])
    for label in range(3):  # each class alike
        own = gone[given == label]
        assert abs(int(own.sum()) - share * len(own)) < 4 * (len(own) * share * (1 - share)) ** 0.5


def test_the_seed_the_step_and_the_place_decide_what_is_dropped(images, tmp_path):
    task, _ = prepared(images, tmp_path)
    batch = many(200)

    def labels(draws):
        return told_labels(task, Batch(*(part[draws.positions.start : draws.positions.stop] for part in batch)), draws)[
            0
        ]

    whole = labels(draw(200))
    assert torch.equal(labels(draw(200)), whole)
    assert not torch.equal(labels(draw(200, seed=1)), whole)
    assert not torch.equal(labels(draw(200, step=1)), whole)
    parts = [labels(draw(200, positions=range(at, at + 50))) for at in range(0, 200, 50)]
    assert torch.equal(torch.cat(parts), whole)


def test_labels_alter_no_other_draw(images, tmp_path):
    noisy = []
    for share in (0.0, 0.5, 1.0):
        task, _ = prepared(images, tmp_path, label_dropout=share)
        noisy.append(told_labels(task, many(50), draw(50))[1])
    assert torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy[0], noisy[2])
    plain = PixelTask(tiny(images, tmp_path))
    assert torch.equal(told_labels(plain, many(50), draw(50))[1], noisy[0])


def test_the_loss_is_its_formula(images, tmp_path):
    """A network whose eps is off by a number for each label has the mean of their squares as its loss."""
    task, _ = prepared(images, tmp_path)
    batch, draws = many(64), draw(64)
    off = torch.tensor([1.0, 2.0, 4.0, 8.0])
    noise = draws.flips_and_noise(batch.pixels.shape[1:])[1]

    def forward(x, timestep, class_labels):
        return SimpleNamespace(sample=noise + off[class_labels].view(-1, 1, 1, 1))

    gone = draws.chances() < 0.5
    assert 0 < int(gone.sum()) < 64
    squares = [64.0 if dropped else float(4**label) for label, dropped in zip(batch.labels, gone.tolist(), strict=True)]
    assert float(task.loss(forward, task.inputs(batch, draws))) == pytest.approx(sum(squares) / 64, rel=1e-5)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "known"), [(0.0, 3), (0.1, 4), (1.0, 4)])
def test_the_network_knows_the_classes_and_with_dropping_the_null_class(images, tmp_path, share, known):
    task, _ = prepared(images, tmp_path, label_dropout=share)
    network = task.build()
    assert network.config["num_class_embeds"] == known
    assert network.class_embedding.weight.shape[0] == known
    task, _ = prepared(images, tmp_path, {"model": {"num_class_embeds": known}}, label_dropout=share)
    assert task.build().config["num_class_embeds"] == known


def test_a_network_learns_the_mean_of_each_class_and_of_all(tmp_path):
    """At zero SNR the best x0 is the mean of the class, -1 and 1 here, and for the null class that of all, 0."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(8):
        Image.new("L", (8, 8), 255 * (k % 2)).save(folder / f"{k}.png")
    changes = {
        "model": {"dropout": 0.0},
        "schedule": {"kind": "cosine", "zero_terminal_snr": True},
        "loss": {"prediction": "x0"},
        "train": {"steps": 200, "batch": 16, "lr": 5e-3, "ema": 0.9},
        "output": {"checkpoint_every": 200},
    }
    result = train(tiny(make_labels(folder, 2), tmp_path / "run", **labelled(changes)))
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(result, subfolder="unet")
    noise = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        means = [
            float(network(noise, torch.tensor(19), class_labels=torch.full((16,), label)).sample.mean())
            for label in (0, 1, 2)
        ]
    assert means[:2] == pytest.approx([-1, 1], abs=0.35)
    assert abs(means[2]) < 0.5


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel", "says"),
    [
        (
            {"classes": ["T-shirt/top", "Bag", "Sneaker"]},
            {"classes": ["T-shirt/top", "Bag", "Sneaker"], "null_class": 3},
        ),
        ({"classes": ["a", "b", "c"], "label_dropout": 0.0}, {"classes": ["a", "b", "c"]}),
        ({}, {"null_class": 3}),
        ({"label_dropout": 0.0}, {}),
    ],
)
def test_plain_diffusers_loads_the_result_and_ddim_json_tells_its_labels(images, tmp_path, pixel, says):
    from diffusers import DDIMPipeline, UNet2DModel

    result = train(tiny(images, tmp_path / "run", **labelled({}, **pixel)))
    files = {p.name for p in result.iterdir()}
    assert files == {"model_index.json", "unet", "scheduler", "ddim.json", "ddim_training.json"}
    assert json.loads((result / "ddim.json").read_text(encoding="utf-8")) == says
    network = DDIMPipeline.from_pretrained(result).unet
    assert isinstance(network, UNet2DModel)
    known = 3 + ("null_class" in says)
    assert network.config["num_class_embeds"] == known
    with torch.no_grad():
        shown = network(torch.zeros(known, 1, 8, 8), 3, class_labels=torch.arange(known)).sample
    assert shown.shape == (known, 1, 8, 8)
    assert bool(shown.isfinite().all())
    assert len({tuple(row.flatten().tolist()) for row in shown}) == known  # each label says something of its own
    average = load_file(tmp_path / "run/checkpoints/step-00000006/ema.safetensors")
    assert torch.equal(network.class_embedding.weight, average["class_embedding.weight"])


def test_an_unconditional_model_has_no_ddim_json(images, tmp_path):
    assert not (train(tiny(images, tmp_path / "run", data={"label": "label"})) / "ddim.json").exists()


def named_parquet(file, labels=(0, 1, 2, 0)):
    """Labels as HF datasets keep them, with names."""
    import datasets

    make_parquet(file, image=[png(k) for k in range(len(labels))], label=list(labels))
    data = datasets.load_dataset("parquet", data_files=str(file), split="train")
    names = datasets.ClassLabel(names=["Trouser", "Coat", "Bag", "Boot"])
    data.cast_column("label", names).to_parquet(file.with_name(f"named-{file.name}"))
    return file.with_name(f"named-{file.name}")


@pytest.mark.parametrize("memory_gib", [0.0, 4.0])
def test_names_come_from_the_data_set_where_it_has_them(tmp_path, memory_gib):
    file = named_parquet(tmp_path / "a.parquet")
    changes = {"data": {"memory_gib": memory_gib, "workers": 0}}
    task, images = prepared(file, tmp_path / "run", changes)
    assert isinstance(images, MemoryImages) == (memory_gib > 0)
    assert tuple(task.names) == ("Trouser", "Coat", "Bag")
    named, _ = prepared(file, tmp_path / "run", changes, classes=["Hose", "Mantel", "Tasche"])
    assert named.names == ("Hose", "Mantel", "Tasche")
    plain = {"path": str(tmp_path / "a.parquet"), "label": "label"}
    both, _ = prepared(file, tmp_path / "run", {"data": {**changes["data"], "more": [plain]}})
    assert tuple(both.names) == ()  # the other set does not say what its labels are called


# --- the sheet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "classes", "columns", "labels"),
    [
        (6, 3, 2, [0, 0, 1, 1, 2, 2]),
        (7, 3, 2, [0, 0, 1, 1, 2, 2, 0]),
        (3, 3, 1, [0, 1, 2]),
        (2, 3, None, [0, 1]),
        (5, 0, None, []),
    ],
)
def test_a_row_of_a_sheet_shows_one_class(samples, classes, columns, labels):
    assert class_rows(samples, classes) == (columns, labels)


def test_a_sheet_shows_what_the_network_knows_of_each_class(images, tmp_path):
    changes = {"schedule": {"steps": SCHEDULE.steps}, "output": {"samples": 12, "sample_steps": 10}}
    task, _ = prepared(images, tmp_path, changes)
    grey = torch.tensor([-0.5, 0.0, 0.5])

    def network(x, timestep, class_labels):
        return Guess(grey[class_labels].view(-1, 1, 1, 1).expand_as(x), "eps", 0.0)(x, timestep)

    shown = np.array(task.sheet(network), dtype=float)
    assert shown.shape == (3 * 8 + 4 * 2, 4 * 8 + 5 * 2)
    for row, value in enumerate(grey.tolist()):
        for column in range(4):
            tile = shown[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column]
            np.testing.assert_allclose(tile / 127.5 - 1, value, atol=0.015)


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parameter", "says"),
    [
        ({"pixel": {"condition": "label"}}, "pixel.condition", "Did you mean 'labels'"),
        ({"pixel": {"label_dropuot": 0.1}}, "pixel.label_dropuot", "Did you mean 'label_dropout'"),
        ({"pixel": {"label_dropout": 1.5}}, "pixel.label_dropout", "from 0 to 1, not 1.5"),
        ({"pixel": {"label_dropout": float("nan")}}, "pixel.label_dropout", "from 0 to 1, not nan"),
        ({"pixel": {"condition": "none"}}, "pixel.label_dropout", "0.5 needs a network with labels"),
        ({"pixel": {"condition": "none", "label_dropout": 0, "classes": ["a"]}}, "pixel.classes", "['a'] needs"),
        ({"pixel": {"classes": ["a", "b", "a"]}}, "pixel.classes", "'a' is empty or occurs twice"),
        ({"pixel": {"classes": ["a", "b", " "]}}, "pixel.classes", "' ' is empty or occurs twice"),
        ({"pixel": {"classes": ["a", "b"]}}, "pixel.classes", "names 2 classes, but the images have 3"),
        ({"data": {"label": ""}}, "data.label", "needs the column of the classes"),
        ({"data": {"where": {"label": ["0"]}}}, "data.label", "two classes or more, not 1"),
        ({"model": {"num_class_embeds": 3}}, "model.num_class_embeds", "3 classes and the null class need 4"),
        (
            {"model": {"num_class_embeds": 4}, "pixel": {"label_dropout": 0.0}},
            "model.num_class_embeds",
            "3 classes need 3",
        ),
        ({"model": {"class_embed_type": "timestep"}}, "model.class_embed_type", "'timestep' is not supported"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(images, tmp_path, changes, parameter, says):
    config = tables(images, tmp_path / "run", **labelled({}))
    for section, values in changes.items():
        config[section] |= values
    with pytest.raises(InputError) as caught:
        train(config_from_dict(config))
    assert caught.value.parameter == parameter
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["autoencoder", "text", "classifier"])
def test_other_tasks_have_no_labels_to_drop(images, tmp_path, task):
    with pytest.raises(InputError) as caught:
        config_from_dict({"task": task, **tables(images, tmp_path, **labelled({}))})
    assert caught.value.parameter == "pixel"


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_same_labels_and_may_name_them(images, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        train(tiny(images, run, **labelled({})), on_event=stop_after(3))
    for pixel in ({"label_dropout": 0.25}, {"condition": "none", "label_dropout": 0.0}):
        with refused("output.folder", *(f"pixel.{key}" for key in pixel)):
            train(tiny(images, run, **labelled({}, **pixel)), resume=True)
    listed = (images / "metadata.jsonl").read_text()
    make_labels(images, 4)
    with refused(None, images):
        train(tiny(images, run, **labelled({})), resume=True)
    (images / "metadata.jsonl").write_text(listed)
    result = train(tiny(images, run, **labelled({}, classes=["a", "b", "c"])), resume=True)
    assert json.loads((result / "ddim.json").read_text())["classes"] == ["a", "b", "c"]


def test_a_run_of_before_there_were_labels_is_unconditional(images, tmp_path):
    old = tiny(images, tmp_path).as_dict()
    del old["pixel"]
    assert differing_keys(old, tiny(images, tmp_path).as_dict(), 2) == []
    assert differing_keys(old, tiny(images, tmp_path, **labelled({})).as_dict(), 2) == ["data.label", "pixel.condition"]
