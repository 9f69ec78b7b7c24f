"""Folders of pictures as people have them."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from refusals import refused, warned
from training_helpers import make_images, make_parquet, png, tiny

from ddim._utils.errors import InputError
from ddim.data.folders import has_split, listing
from ddim.training import train
from ddim.training.config import DataConfig
from ddim.training.data import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "set", 3)


def load(folder, **options):
    return load_images(DataConfig(str(folder), 8, **{"channels": 1, "workers": 0, **options}))


def everything(images):
    return next(images.stream([list(range(len(images)))]))


def prompts(folder, prompt="{text}", **options):
    return list(everything(load(folder, prompt=prompt, **options)).prompts)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- which files ----------------------------------------------------------------------------------------------------


def test_what_is_hidden_is_left_out(folder):
    for name in (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "#recycle"):
        make_images(folder / name, 2)
    shutil.copy(folder / "000.png", folder / "._000.png")
    shutil.copy(folder / "000.png", folder / ".000.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "desktop.ini").write_bytes(b"x")
    assert [file.name for file in listing(folder).pictures] == ["000.png", "001.png", "002.png"]
    assert len(load(folder)) == 3


def test_links_to_folders_are_followed_and_no_folder_is_taken_twice(tmp_path, folder):
    elsewhere = make_images(tmp_path / "elsewhere/deep", 2)
    (folder / "link").symlink_to(elsewhere.parent)
    (folder / "again").symlink_to(elsewhere.parent)
    (folder / "round").symlink_to(folder)
    (elsewhere / "up").symlink_to(tmp_path)
    assert len(load(folder)) == 5


def test_pictures_that_pillow_does_not_read_are_said(folder):
    (folder / "a.svg").write_text("<svg/>")
    with warned(1, "a.svg"):
        assert len(load(folder)) == 3
    only = folder / "only"
    only.mkdir()
    (only / "a.svg").write_text("<svg/>")
    with refused("data.path", ".svg"):
        load(only)


def test_a_name_that_is_not_utf_8_is_a_picture_like_others(folder, tmp_path):
    """One of them refused the whole set."""
    strange = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    shutil.copy(folder / "000.png", strange)
    broken = os.fsdecode(os.fsencode(folder) + b"/caf\xe8.png")
    with open(broken, "wb") as file:
        file.write(b"text")
    images = load(folder)
    assert len(images) == 4
    assert [name.rpartition("/")[2] for name in images.skipped] == [r"caf\xe8.png"]
    model = train(tiny(folder, tmp_path / "run", train={"steps": 1}), on_event=lambda event: event.message.encode())
    about = json.loads((model / "ddim_training.json").read_text(encoding="utf-8"))
    assert about["skipped"] == images.skipped


def test_stray_parquet_files_among_pictures_are_said(folder):
    make_parquet(folder / "features.parquet", image=[png(0)], text=["a"])
    with refused("data.path", 3, "features.parquet"):
        load(folder)


def test_a_photo_whose_exif_pillow_cannot_write_ends_no_training(folder, tmp_path):
    from exif import exif_of

    for k, strange in enumerate([{0x0128: (5, (2, 1))}, {0x011A: (2, "72 dpi")}]):
        pixels = np.zeros((8, 8), dtype=np.uint8)
        pixels[0] = 255
        Image.fromarray(pixels).save(folder / f"{900 + k}.png", exif=exif_of({0x0112: (3, 6), **strange}))
    images = load(folder)
    assert len(images) == 5
    assert everything(images).pixels[3:, 0, :, -1].eq(255).all()  # a quarter turn: the top is on the right
    train(tiny(folder, tmp_path / "run", train={"steps": 1}))


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["memory", "lazy"])
def test_whatever_a_decoder_raises_leaves_out_one_picture(folder, monkeypatch, memory_gib):
    from PIL.PngImagePlugin import PngImageFile

    load_one = PngImageFile.load

    def broken(self):
        if str(self.filename).endswith("001.png"):
            raise NotImplementedError("no such pixel format")
        return load_one(self)

    monkeypatch.setattr(PngImageFile, "load", broken)
    images = load(folder, memory_gib=memory_gib)
    everything(images)
    assert [name.rpartition("/")[2] for name in images.skipped] == ["001.png"]


# --- splits ---------------------------------------------------------------------------------------------------------


def test_a_class_called_train_beside_others_is_no_split(tmp_path):
    for name, count in (("car", 1), ("plane", 2), ("train", 4)):
        make_images(tmp_path / name, count)
    with warned(tmp_path / "train"):
        assert len(load(tmp_path)) == 7
    assert not has_split(tmp_path, "train")
    assert len(load(tmp_path / "train")) == 4


def test_splits_are_known_by_each_other(tmp_path):
    for name, count in (("train", 4), ("val", 2), (".cache", 1), ("extra", 1)):
        make_images(tmp_path / name, count)
    (tmp_path / "notes").mkdir()
    assert len(load(tmp_path)) == 4
    assert len(load(tmp_path, split="val")) == 2
    assert len(load(tmp_path, split="extra")) == 1
    assert has_split(tmp_path, "val")
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "extra")
    with pytest.raises(InputError) as caught:  # all of it would be the validation pictures
        load(tmp_path)
    assert caught.value.parameter == "data.split"


@pytest.mark.parametrize("inside", [(), ("train", "val"), ("dog", "cat")])
def test_a_split_that_is_not_there_is_said(tmp_path, inside):
    """All the pictures were taken in its place."""
    for name in inside or ("",):
        make_images(tmp_path / "set" / name, 2)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "set", split="test")
    assert caught.value.parameter == "data.split"
    assert "'test'" in str(caught.value)


def test_a_split_that_parquet_files_lack_is_said(tmp_path):
    for name in ("train", "validation"):
        make_parquet(tmp_path / f"{name}-00000-of-00001.parquet", image=[png(0)], text=["a"])
    assert len(load(tmp_path, split="validation")) == 1
    assert len(load(tmp_path, split="train[:1]+validation")) == 2
    for split in ("test", "vlidation", "tra[:1]"):
        with pytest.raises(InputError) as caught:
            load(tmp_path, split=split)
        assert caught.value.parameter == "data.split"
    assert len(load(tmp_path / "validation-00000-of-00001.parquet", split="validation")) == 1


# --- words ----------------------------------------------------------------------------------------------------------


def test_a_list_of_metadata_gives_columns(folder):
    """Hugging Face's image folder: https://huggingface.co/docs/datasets/image_dataset"""
    rows = [{"file_name": f"00{k}.png", "text": f"word {k}", "label": k} for k in (2, 0, 1)]
    (folder / "metadata.jsonl").write_text(lines(*rows), encoding="utf-8")
    assert prompts(folder) == ["word 0", "word 1", "word 2"]
    assert everything(load(folder, label="label")).labels == (0, 1, 2)
    assert prompts(folder, where={"label": ("1",)}) == ["word 1"]


def test_a_csv_list_gives_columns_and_its_digits_are_numbers(folder):
    text = 'file_name,text,label,code\n000.png,"a, b",0,007\n001.png,c,1,008\n002.png,d,2,009\n'
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig")
    assert prompts(folder, "{text} {code}") == ["a, b 007", "c 008", "d 009"]
    assert everything(load(folder, label="label")).labels == (0, 1, 2)


def test_lists_in_subfolders_and_above_splits(tmp_path):
    for name in ("train/a", "train/b", "test"):
        make_images(tmp_path / name, 1)
    for name in "ab":
        (tmp_path / "train" / name / "metadata.jsonl").write_text(lines({"file_name": "000.png", "text": name}))
    assert prompts(tmp_path) == ["a", "b"]
    for name in "ab":
        (tmp_path / "train" / name / "metadata.jsonl").unlink()
    names = ("train/a/000.png", "train/b/000.png", "test/000.png")
    (tmp_path / "metadata.jsonl").write_text(lines(*({"file_name": name, "text": name[:7]} for name in names)))
    assert prompts(tmp_path) == ["train/a", "train/b"]
    assert prompts(tmp_path, split="test") == ["test/00"]


def test_a_list_as_parquet_is_no_stray_file(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file_name": f"00{k}.png", "text": f"word {k}"} for k in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    assert prompts(folder) == ["word 0", "word 1", "word 2"]


def test_a_picture_may_have_several_captions_and_one_without_is_said(folder):
    rows = [{"file_name": "000.png", "text": "a"}, {"file_name": "000.png", "text": "b"}]
    (folder / "metadata.jsonl").write_text(lines(*rows, {"file_name": "002.png", "text": "c"}))
    with warned(1, 4, "001.png"):
        assert prompts(folder) == ["a", "b", "", "c"]


def test_a_text_file_beside_each_picture_is_the_column_text(folder):
    for k in range(3):
        (folder / f"00{k}.txt").write_text(f" word\n{k} \n", encoding="utf-8")
    (folder / "README.txt").write_text("not beside a picture")
    assert prompts(folder) == ["word 0", "word 1", "word 2"]
    assert prompts(folder, where={"text": ("word 1",)}) == ["word 1"]
    (folder / "metadata.jsonl").write_text(lines(*({"file_name": f"00{k}.png", "text": "list"} for k in range(3))))
    assert prompts(folder) == ["list"] * 3


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("metadata.jsonl", b'{"file_name": "000.png"', "metadata.jsonl"),
        ("metadata.jsonl", b"[1]\n", "[1]"),
        ("metadata.jsonl", b"null\n", "None"),
        ("metadata.jsonl", b"[" * 100_000, "metadata.jsonl"),
        ("metadata.jsonl", b'{"text": "a"}\n', "file_name"),
        ("metadata.jsonl", b'{"file_name": 3}\n', "file_name"),
        ("metadata.jsonl", b'{"file_name": "none.png"}\n', "none.png"),
        ("metadata.csv", b"file_name,text\n000.png\n", "metadata.csv"),
        ("metadata.csv", b"", "metadata.csv"),
        ("metadata.csv", b"file_name,text\n000.png,\xff\n", "metadata.csv"),
        ("metadata.parquet", b"PAR1", "metadata.parquet"),
        ("001.txt", b"\xff\xfe\xff", "001.txt"),
    ],
)
def test_a_list_that_is_broken_is_one_sentence_that_names_it(folder, name, content, names):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        prompts(folder)
    assert caught.value.parameter == "data.path"
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_lists_in_one_folder_are_refused(folder):
    (folder / "metadata.jsonl").write_text(lines({"file_name": "000.png", "text": "a"}))
    (folder / "metadata.csv").write_text("file_name,text\n000.png,b\n")
    with refused("data.path", "metadata.csv"):
        load(folder)


def test_a_folder_without_words_fills_no_template(folder):
    for template in ("{text}", "a photo of {text}"):
        with pytest.raises(InputError) as caught:
            load(folder, prompt=template)
        assert caught.value.parameter == "data.prompt"


def test_half_of_a_character_is_no_word(folder):
    rows = [{"file_name": f"00{k}.png", "text": "a\ud800"} for k in range(3)]
    (folder / "metadata.jsonl").write_text(lines(*rows))
    with pytest.raises(InputError) as caught:
        load(folder, prompt="{text}")
    assert caught.value.parameter == "data.prompt"
    str(caught.value).encode()


def test_a_lone_folder_named_like_a_split_is_a_class_and_no_split(tmp_path):
    """It cannot be both: what is trained on would be measured on."""
    for name in ("cats", "dogs", "test"):
        make_images(tmp_path / name, 2)
    assert not has_split(tmp_path, "test")
    with pytest.raises(InputError) as caught:
        load(tmp_path, split="test")
    assert caught.value.parameter == "data.split"
    with warned(tmp_path / "test"):
        assert len(load(tmp_path)) == 6
