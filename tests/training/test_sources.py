"""Several sets of images as one: which rows are taken, what they are called, and how often they are met."""

import dataclasses
import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused, unknown, warned
from training_helpers import make_images, make_parquet, make_words, png

from ddim._utils.errors import InputError
from ddim.training import load_config
from ddim.training.config import DataConfig, SourceConfig
from ddim.training.config_file import differing_keys
from ddim.training.data import LazyImages, MemoryImages, fingerprint, load_images

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def words(tmp_path):
    return make_words(tmp_path / "words.parquet")


def config(path, **options):
    return DataConfig(str(path), 16, **{"workers": 0, **options})


def everything(images):
    return next(images.stream([list(range(len(images)))]))


def prompts(path, **options):
    return list(everything(load_images(config(path, **{"prompt": "{vendor} {text}", **options}))).prompts)


def picture(seed):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png(seed, 16)))).transpose(2, 0, 1))


# --- several sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["memory", "lazy"])
def test_sets_follow_one_another_and_an_epoch_meets_each_as_often_as_it_says(words, tmp_path, memory_gib):
    more = make_parquet(tmp_path / "more.parquet", image=[png(50, 16), png(51, 16)], name=["tea", "pie"])
    source = SourceConfig(str(more), prompt="photo {name}", repeat=3)
    where = {"text": ("dog", "owl"), "vendor": ("blob",)}
    images = load_images(config(words, prompt="{text}", where=where, more=(source,), repeat=2, memory_gib=memory_gib))
    assert isinstance(images, LazyImages if memory_gib == 0 else MemoryImages)
    batch = everything(images)
    assert list(batch.prompts) == ["dog", "owl"] * 2 + ["photo tea", "photo pie"] * 3
    seeds = [4, 6] * 2 + [50, 51] * 3
    assert torch.equal(batch.pixels, torch.stack([picture(seed) for seed in seeds]))
    assert len(batch.labels) == 0


def test_a_broken_picture_of_a_repeated_set_is_named_once(tmp_path):
    file = make_parquet(tmp_path / "a.parquet", image=[png(0, 16), b"broken", png(2, 16)], text=["a", "b", "c"])
    images = load_images(config(file, prompt="{text}", repeat=2))
    assert list(everything(images).prompts) == ["a", "c", "a", "c"]
    assert images.skipped == ["row 1"]


def test_sets_of_other_kinds_mix(words, tmp_path):
    folder = make_images(tmp_path / "folder", 2, 16)
    images = load_images(config(folder, more=(SourceConfig(str(words), prompt="{text}"),)))
    assert len(images) == 14
    assert everything(images).prompts[:3] == ("", "", "dog")


# --- which rows -----------------------------------------------------------------------------------------------------


def test_where_takes_the_rows_with_one_of_the_values_in_every_column(words):
    assert prompts(words, where={"vendor": ("noto",)}) == ["noto dog", "noto cat", "noto owl", "noto red fox"]
    assert prompts(words, where={"label": ("1", "3"), "vendor": ("blob",)}) == ["blob cat", "blob red fox"]


def listed(tmp_path, text):
    file = tmp_path / "out.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_without_leaves_out_listed_rows_and_their_pictures_under_other_names(tmp_path):
    again = io.BytesIO()  # the same pixels in another file
    Image.open(io.BytesIO(png(1, 16))).convert("RGBA").save(again, "PNG", compress_level=0)
    cells = [png(0, 16), png(1, 16), png(2, 16), png(1, 16), again.getvalue()]
    file = make_parquet(tmp_path / "a.parquet", image=cells, style=["x"] * 5, name=["a", "b", "c", "d", "e"])
    out = listed(tmp_path, "# held out\nstyle,name\nx,b\ny,a\n\n")
    taken = prompts(file, prompt="{name}", without=out)
    assert taken == ["a", "c"]
    assert prompts(file, prompt="{name}", without=out, where={"name": ("b", "c", "e")}) == ["c"]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("vendor,txt\nnoto,dog\n", unknown("data.without", "txt", "out.csv", nearest="text")),
        ("vendor,text\nnoto,unicorn\n", refused("data.without", "out.csv", "words.parquet")),
        ("vendor,text\nnoto\n", refused("data.without", "out.csv")),
        ("vendor,text\n", refused("data.without", "out.csv")),
    ],
)
def test_a_list_that_does_not_fit_is_one_sentence(words, tmp_path, text, refusal):
    with refusal as caught:
        prompts(words, without=listed(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "parameter", "names"),
    [
        ({"without": "none.csv"}, "data.without", "none.csv"),
        ({"where": {"vendr": ("noto",)}}, "data.where", "'vendor'"),
        ({"where": {"vendor": ("noto", "nto")}}, "data.where", "Did you mean 'noto'"),
        ({"where": {"vendor": ("noto",), "label": ("7",)}}, "data.where", "'7'"),
        ({"prompt": "{vendor} {txt}"}, "data.prompt", "Did you mean 'text'"),
        ({"prompt": "{vendor"}, "data.prompt", "'{vendor'"),
        ({"prompt": "{text.first}"}, "data.prompt", "{text.first}"),
        ({"prompt": "{text:d}"}, "data.prompt", "{text:d}"),
        ({"prompt": "{text!x}"}, "data.prompt", "{text!x}"),
        ({"prompt": "{}"}, "data.prompt", "''"),
        ({"rewrite": (("(", "x"),)}, "data.rewrite", "'('"),
        ({"rewrite": (("dog", r"\2"),)}, "data.rewrite", "'dog'"),
        ({"rewrite": (("dog", r"\g<x>"),)}, "data.rewrite", "'dog'"),
        ({"rewrite": ((".*", ""),)}, "data.prompt", "empty prompt"),
        ({"label": "lable"}, "data.label", "Did you mean 'label'"),
        ({"label": "text"}, "data.label", "'dog'"),
        ({"column": "imag"}, "data.column", "Did you mean 'image'"),
        ({"split": "test"}, "data.split", "'test'"),
        ({"repeat": 10**9}, "data.repeat", "12,000,000,000"),
    ],
)
def test_what_does_not_fit_the_columns_is_one_sentence(words, options, parameter, names):
    with pytest.raises(InputError) as caught:
        prompts(words, **options)
    assert caught.value.parameter == parameter
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_occur_but_never_together_leave_nothing(words):
    with pytest.raises(InputError) as caught:
        prompts(words, where={"label": ("0",), "text": ("cat",)})
    assert caught.value.parameter == "data.where"


# --- words ----------------------------------------------------------------------------------------------------------


def test_prompts_are_put_together_and_rewritten_in_order(words):
    rewrite = (("^twemoji ", "flat "), ("^flat (.*)$", r"\1, flat"))
    taken = prompts(words, where={"text": ("red fox",)}, rewrite=rewrite)
    assert taken == ["noto red fox", "blob red fox", "red fox, flat"]


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_empty_cell_is_no_word_and_is_said(tmp_path, empty):
    file = make_parquet(tmp_path / "a.parquet", image=[png(0), png(1)], text=["a", empty])
    with warned(1, 2, "row 1"):
        assert [p.strip() for p in prompts(file, prompt="{text}")] == ["a", ""]
    with warned(1, 2, "row 1"):
        assert [p.strip() for p in prompts(file, prompt="a photo of {text}")] == ["a photo of a", "a photo of"]


@pytest.mark.parametrize("cells", [[None, None], ["", " "], [float("nan")] * 2])
def test_a_column_without_a_word_in_any_row_fills_no_template(tmp_path, cells):
    """It trained on empty prompts to the end, with a tokenizer of no merges."""
    file = make_parquet(tmp_path / "a.parquet", image=[png(0), png(1)], text=cells, vendor=["x", "y"])
    for template in ("{text}", "a photo of {text}", "{vendor} {text}"):
        with pytest.raises(InputError) as caught:
            prompts(file, prompt=template)
        assert caught.value.parameter == "data.prompt"
        assert "'text'" in str(caught.value)


def test_numbers_are_words_and_lists_are_not(tmp_path):
    columns = {"n": [3, 12], "x": [0.5, None], "several": [["a", "b"], ["c", "d"]]}
    file = make_parquet(tmp_path / "a.parquet", image=[png(0), png(1)], **columns)
    assert prompts(file, prompt="{n:03d} {several[1]}") == ["003 b", "012 d"]
    with warned(1, 2, "row 1"):
        assert prompts(file, prompt="{x:.2f}") == ["0.50", ""]  # the format of a number does not meet the empty cell
    with pytest.raises(InputError) as caught:
        prompts(file, prompt="{several}")
    assert caught.value.parameter == "data.prompt"


def test_a_template_without_braces_is_every_pictures_prompt(words, tmp_path):
    assert set(prompts(words, prompt="a photo of sks dog")) == {"a photo of sks dog"}
    assert set(prompts(make_images(tmp_path / "f", 2, 16), prompt="sks")) == {"sks"}
    assert set(prompts(write_idx(tmp_path / "idx"), prompt="digit", rewrite=(("d", "D"),))) == {"Digit"}


@pytest.mark.parametrize("kind", ["bytes", "path", "struct"])
def test_pictures_as_bytes_or_paths_beside_the_parquet_file(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.png").write_bytes(png(0, 16))
    cell = {"bytes": png(0, 16), "path": "sub/a.png", "struct": {"bytes": None, "path": "sub/a.png"}}[kind]
    name = "photo" if kind == "struct" else "image"
    pq.write_table(pa.table({name: [cell, cell]}), tmp_path / "a.parquet")
    pixels = everything(load_images(config(tmp_path / "a.parquet"))).pixels
    assert torch.equal(pixels, torch.stack([picture(0)] * 2))


# --- classes --------------------------------------------------------------------------------------------------------


def write_idx(folder, count=5, labels=None, name="train"):
    folder.mkdir(exist_ok=True)
    head = struct.pack(">IIII", 2051, count, 8, 8)
    pixels = np.random.default_rng(0).integers(0, 256, count * 64, dtype=np.uint8).tobytes()
    (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels))
    if labels is not None:
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))
    return folder


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["memory", "lazy"])
def test_labels_go_with_their_pictures(words, tmp_path, memory_gib):
    with warned(2, 4):
        images = load_images(config(words, label="label", where={"label": ("1", "3")}, memory_gib=memory_gib))
    assert next(images.stream([[5, 0]])).labels == (3, 1)
    assert images.classes == 4
    idx = load_images(config(write_idx(tmp_path / "idx", labels=[3, 0, 2, 2, 1]), label="label", memory_gib=memory_gib))
    assert everything(idx).labels == (3, 0, 2, 2, 1)
    assert load_images(config(tmp_path / "idx", memory_gib=memory_gib)).classes == 0


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0], [False, True], [0, None], [0, -1], ["0", "1"], [float("nan"), 1.0], [0, 10**7]],
    ids=["floats", "bools", "none", "negative", "texts", "nan", "numbers that are no classes"],
)
def test_labels_are_whole_numbers_from_0(tmp_path, labels):
    """0.0 and False in the first row passed for the class 0."""
    file = make_parquet(tmp_path / "a.parquet", image=[png(0), png(1)], label=labels)
    with pytest.raises(InputError) as caught:
        load_images(config(file, label="label"))
    assert caught.value.parameter == "data.label"


def test_one_set_without_labels_is_no_labels(words, tmp_path):
    images = load_images(config(words, label="label", more=(SourceConfig(str(words)),)))
    assert images.classes == 0


@pytest.mark.parametrize(
    ("labels", "options", "refusal"),
    [
        (None, {"label": "label"}, refused("data.label", "train-labels-idx1-ubyte.gz")),
        ([1, 2], {"label": "label"}, refused("data.label", "train-labels-idx1-ubyte", 2, 5)),
        ([0] * 5, {"label": "class"}, unknown("data.label", "class")),
        ([0] * 5, {"prompt": "{text}"}, refused("data.prompt", "data.prompt")),
        ([0] * 5, {"where": {"label": ("0",)}}, refused("data.where", "data.where")),
    ],
)
def test_idx_files_that_do_not_fit_are_one_sentence(tmp_path, labels, options, refusal):
    folder = write_idx(tmp_path / "idx", labels=labels)
    with refusal:
        load_images(config(folder, **options))


def test_a_broken_file_of_labels_is_one_sentence(tmp_path):
    folder = write_idx(tmp_path / "idx", labels=[0] * 5)
    file = folder / "train-labels-idx1-ubyte"
    for broken in (file.read_bytes()[:-1], file.read_bytes()[:6], b""):
        file.write_bytes(broken)
        with refused("data.path", file):
            load_images(config(folder, label="label"))


# --- knowing them again ---------------------------------------------------------------------------------------------


def test_a_fingerprint_knows_words_and_labels_and_is_what_it_was_without_them(words):
    plain = load_images(config(words))
    pixels = zlib.crc32(everything(plain).pixels.numpy().tobytes())
    assert fingerprint(plain) == {"count": 12, "crc32": pixels}  # as runs before words and labels wrote it
    others = [{"prompt": "{text}"}, {"prompt": "{vendor} {text}"}, {"label": "label"}]
    found = {fingerprint(load_images(config(words, **options)))["crc32"] for options in others} | {pixels}
    assert len(found) == 4


# --- in a file ------------------------------------------------------------------------------------------------------

TOML = """
task = "text"

[data]
path = "emoji.parquet"
size = 64
prompt = "{vendor} {text}"
rewrite = [["^fluent-3d ", "fluent "]]
repeat = 12

[data.where]
group = ["Smileys & Emotion", "Food & Drink"]

[[data.more]]
path = "clothing.parquet"
prompt = "{text}"

[data.more.where]
split = ["train"]

[[data.more]]
path = "folder"
repeat = 2

[text]
autoencoder = "ae"

[train]
steps = 1

[output]
folder = "run"
"""


def read(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def test_a_toml_file_says_all_of_it(tmp_path):
    first, second, third = read(tmp_path, TOML).data.sources
    assert first == SourceConfig(
        "emoji.parquet",
        prompt="{vendor} {text}",
        rewrite=(("^fluent-3d ", "fluent "),),
        where={"group": ("Smileys & Emotion", "Food & Drink")},
        repeat=12,
    )
    assert second == SourceConfig("clothing.parquet", prompt="{text}", where={"split": ("train",)})
    assert third == SourceConfig("folder", repeat=2)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (
            '[[data.more]]\npath = "folder"',
            '[[data.more]]\npth = "folder"',
            unknown("data.more.pth", "pth", "[data.more]", nearest="path"),
        ),
        ('[[data.more]]\npath = "folder"', "[[data.more]]", refused("data.more.path")),
        ("repeat = 2", "repeat = 0", refused("data.more.repeat", 1, 0)),
        ("repeat = 12", "repeat = -1", refused("data.repeat", 1, -1)),
        ('path = "emoji.parquet"', 'path = ""', refused("data.path", "''")),
        ('["^fluent-3d ", "fluent "]', '["fluent"]', refused("data.rewrite", ["fluent"])),
        ('["^fluent-3d ", "fluent "]', '"fluent"', refused("data.rewrite", "'fluent'")),
        ('split = ["train"]', 'split = "train"', refused("data.more.where.split", "'train'")),
        ("[data.where]\ngroup = [", "where = [", refused("data.where", "table")),
        ('task = "text"', 'task = "txt"', unknown("task", "txt", nearest="text")),
        ('task = "text"', "", refused("text", "task = 'pixel'", "task = 'text'")),
        ("[text]", "[autoencoder]\nkl = 1.0\n[text]", refused("autoencoder", "task = 'text'")),
        ("[text]", "[text]\nempty = 1.5", refused("text.empty", 0, 1, 1.5)),
        ("[text]", "[text]\nvocabulary = 200", refused("text.vocabulary", 300, 200)),
    ],
)
def test_a_wrong_value_in_the_file_is_one_sentence(tmp_path, old, new, refusal):
    assert old in TOML
    with refusal as caught:
        read(tmp_path, TOML.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_one_table_in_place_of_a_list_of_them_is_one_sentence(tmp_path):
    text = TOML[: TOML.index("[[data.more]]")] + '[data.more]\npath = "x"\n' + TOML[TOML.index("[text]") :]
    with refused("data.more", {"path": "x"}):
        read(tmp_path, text)


def test_a_run_of_before_there_were_labels_is_known_again(tmp_path):
    config = read(tmp_path, TOML)
    old = config.as_dict()
    assert all("label" in source for source in (old["data"], *old["data"]["more"]))
    del old["data"]["label"]
    for source in old["data"]["more"]:
        del source["label"]
        source["path"] = "elsewhere"
    assert differing_keys(old, config.as_dict(), 1) == []
    old["data"]["more"][1]["repeat"] = 3
    assert differing_keys(old, config.as_dict(), 1) == ["data.more"]
    shorter = dataclasses.replace(config, data=dataclasses.replace(config.data, more=config.data.more[:1]))
    assert differing_keys(shorter.as_dict(), config.as_dict(), 1) == ["data.more"]
