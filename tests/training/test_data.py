"""Images from every kind of source."""

import gzip
import io
import itertools
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused, unknown
from training_helpers import make_images

from ddim.data.folders import FolderTable
from ddim.data.sources import TablePart, square
from ddim.training.config import DataConfig
from ddim.training.data import LazyImages, MemoryImages, Rows, _decode_all, fingerprint, load_images

pytestmark = pytest.mark.usefixtures("datasets_cache")


def pixels_of(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


def pixels_of_file(file):
    return np.asarray(Image.open(file))[None]


def read(images, indices):
    return next(images.stream([indices])).pixels[:, 0].numpy()


def test_image_folder(tmp_path):
    folder = make_images(tmp_path / "images")
    images = load_images(DataConfig(str(folder), 8, channels=1))
    assert isinstance(images, MemoryImages)
    assert len(images) == 10
    np.testing.assert_array_equal(read(images, [3, 0]), pixels_of(folder)[[3, 0]])


def test_image_folder_with_a_folder_for_each_split(tmp_path):
    make_images(tmp_path / "train", 4)
    make_images(tmp_path / "test", 2)
    assert len(load_images(DataConfig(str(tmp_path), 8))) == 4
    assert len(load_images(DataConfig(str(tmp_path), 8, split="test"))) == 2


@pytest.mark.parametrize("typed", [True, False], ids=["Image feature", "bytes"])
def test_parquet(tmp_path, typed):
    import datasets

    folder = make_images(tmp_path / "images", 5)
    cells = [{"bytes": p.read_bytes(), "path": None} for p in sorted(folder.glob("*.png"))]
    features = {"text": datasets.Value("string")}
    features["image"] = (
        datasets.Image() if typed else {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    )
    table = {"text": ["a"] * 5, "image": cells}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(tmp_path / "set.parquet")
    images = load_images(DataConfig(str(tmp_path / "set.parquet"), 8, channels=1))
    np.testing.assert_array_equal(read(images, list(range(5))), pixels_of(folder))
    with unknown("data.column", "imag", nearest="image"):
        load_images(DataConfig(str(tmp_path / "set.parquet"), 8, column="imag"))


def write_idx(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    head = struct.pack(">IIII", 2051, *pixels.shape)
    (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))


def test_idx_files_are_padded_in_the_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 6), dtype=np.uint8)
    write_idx(tmp_path, "train", pixels)
    write_idx(tmp_path, "t10k", pixels[:2])
    images = load_images(DataConfig(str(tmp_path), 8, channels=1, fit="pad", background=9))
    np.testing.assert_array_equal(
        read(images, list(range(7))), np.pad(pixels, ((0, 0), (1, 1), (1, 1)), constant_values=9)
    )
    assert len(load_images(DataConfig(str(tmp_path), 8, split="test"))) == 2
    with unknown("data.split", "tset", nearest="test"):
        load_images(DataConfig(str(tmp_path), 8, split="tset"))


def test_a_cut_off_idx_file_is_one_sentence(tmp_path):
    head = struct.pack(">IIII", 2051, 9, 6, 6)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(head + b"x" * 100)
    with refused("data.path", tmp_path / "train-images-idx3-ubyte"):
        load_images(DataConfig(str(tmp_path), 8))


def test_a_corrupt_gz_file_is_one_sentence(tmp_path):
    write_idx(tmp_path, "train", np.zeros((7, 6, 6), dtype=np.uint8))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:12] + bytes(b ^ 255 for b in whole[12:24]) + whole[24:])
    with refused("data.path", file, "Error -3"):
        load_images(DataConfig(str(tmp_path), 8))


@pytest.mark.parametrize("cell", [None, 7], ids=["null", "number"])
def test_a_cell_without_an_image_is_left_out_and_named(tmp_path, cell):
    image = (make_images(tmp_path / "images", 1) / "000.png").read_bytes()
    rows = Rows([TablePart(FolderTable([image, cell, {"bytes": None, "path": cell}], {}))], [1])
    config = DataConfig("-", 8, channels=1, workers=0)
    images = _decode_all(rows, config)
    assert len(images) == 1
    assert len(images.skipped) == 2
    assert images.skipped[0] == "row 1"
    lazy = LazyImages(rows, config)
    assert torch.equal(next(lazy.stream([[1]])).pixels, images.pixels)
    assert lazy.skipped == images.skipped


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["memory", "lazy"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_left_out_and_named(tmp_path, memory_gib, workers):
    folder = make_images(tmp_path / "images")
    whole = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(whole[: len(whole) // 2])
    (folder / "007.png").write_bytes(b"not an image")
    config = DataConfig(str(folder), 8, channels=1, memory_gib=memory_gib, workers=workers)
    images = load_images(config)
    batches = [[3, 5], [4, 6]] if memory_gib == 0 else [[3, 4]]
    served = list(images.stream(iter(batches)))
    assert sum(len(s.pixels) for s in served) == sum(map(len, batches))
    if memory_gib == 0:
        assert isinstance(images, LazyImages)
        assert torch.equal(served[1].pixels[0], served[0].pixels[1])  # the next whole one in its place
        assert [n.rpartition("/")[2] for n in images.skipped] == ["004.png"]
    else:
        assert len(images) == 8
        assert [n.rpartition("/")[2] for n in images.skipped] == ["004.png", "007.png"]


def test_lazy_images_are_the_same_as_those_in_memory(tmp_path):
    folder = make_images(tmp_path / "images")
    lazy = load_images(DataConfig(str(folder), 8, channels=1, memory_gib=0.0, workers=1))
    memory = load_images(DataConfig(str(folder), 8, channels=1))
    np.testing.assert_array_equal(read(lazy, [9, 0, 4]), read(memory, [9, 0, 4]))
    assert fingerprint(lazy) == fingerprint(memory)
    make_images(folder, 11)
    assert fingerprint(load_images(DataConfig(str(folder), 8, channels=1))) != fingerprint(memory)


def test_one_whole_image_is_enough(tmp_path):
    folder = make_images(tmp_path / "images", 3)
    for name in ("001.png", "002.png"):
        (folder / name).write_bytes(b"broken")
    lazy = load_images(DataConfig(str(folder), 8, channels=1, memory_gib=0.0, workers=0))
    np.testing.assert_array_equal(read(lazy, [0, 1, 2]), np.repeat(pixels_of_file(folder / "000.png"), 3, 0))
    assert len(lazy.skipped) == 2


def test_a_lazy_set_is_not_read_ahead_of_its_use(tmp_path):
    folder = make_images(tmp_path / "images")
    lazy = load_images(DataConfig(str(folder), 8, memory_gib=0.0, workers=0))
    assert len(list(itertools.islice(lazy.stream([i] for i in itertools.count()), 3))) == 3


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["memory", "lazy"])
def test_nothing_to_train_on_is_one_sentence(tmp_path, memory_gib):
    with refused("data.path", tmp_path):
        load_images(DataConfig(str(tmp_path), 8, memory_gib=memory_gib))
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"broken")
    with refused("data.path", 3, tmp_path) as caught:
        next(load_images(DataConfig(str(tmp_path), 8, memory_gib=memory_gib, workers=1)).stream([[0]]))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_one_sentence_and_not_a_download(tmp_path):
    for path in (str(tmp_path / "none"), "./none", "none.parquet"):
        with refused("data.path", path.removeprefix("./")):
            load_images(DataConfig(path, 8))


def test_square():
    wide = Image.new("RGB", (20, 10), (255, 0, 0))
    wide.paste((0, 0, 255), (15, 0, 20, 10))
    crop = square(wide, DataConfig("-", 10, fit="crop"))
    assert crop.shape == (3, 10, 10)
    assert not crop[2].any()  # the blue end is cut away
    assert square(wide, DataConfig("-", 10, fit="resize"))[2].any()
    pad = square(wide, DataConfig("-", 10, fit="pad", background=7))
    assert (pad[:, 0] == 7).all()
    assert (pad[:, 5, 0] == (255, 0, 0)).all()
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert (square(clear, DataConfig("-", 4, background=30)) == 30).all()


def test_sixteen_bits_become_eight():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 257
    pixels = square(Image.fromarray(values), DataConfig("-", 8, channels=1))
    np.testing.assert_array_equal(pixels[0], np.arange(64).reshape(8, 8))
    clear = Image.fromarray(values)
    clear.info["transparency"] = 257
    assert square(clear, DataConfig("-", 8, background=9))[:, 0, :3].tolist() == [[0, 9, 2]] * 3
    for mode in ("F", "I"):
        with refused("data.path", f"mode {mode}"):
            square(Image.new(mode, (8, 8)), DataConfig("-", 8))


def test_a_photograph_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    buffer = io.BytesIO()
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))
    image.save(buffer, "PNG", exif=exif)
    part = TablePart(FolderTable([buffer.getvalue()], {}))
    upright = square(part.open(0), DataConfig("-", 8, channels=1))[0]
    assert (upright[:, 4:] == 255).all()
    assert (upright[:, :4] == 0).all()
