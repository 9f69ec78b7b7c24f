"""What a run works on: the items of folders, parquet and tar files, and their stamps."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from commands import picture
from PIL import Image
from refusals import refused, unknown

from ddim.batch.items import Columns, open_items


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "deep").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.png", "deep/c.png")):
        picture(place / name, k)
        (place / name).with_suffix(".txt").write_text(f"words {k}")
    return place


def test_items_of_a_folder_have_relative_names_and_words(folder: Path):
    items = open_items("edit", Columns(str(folder), prompt="{text}", target="{text} and hat", label="3"), None)
    found = [items.item(k) for k in range(len(items))]
    assert [item.key for item in found] == ["a.png", "b.png", os.path.join("deep", "c.png")]
    assert [item.prompt for item in found] == ["words 0", "words 1", "words 2"]
    assert found[2].target == "words 2 and hat"
    assert {(item.label, item.target_label) for item in found} == {(3, None)}
    assert items.open(2).size == (8, 8)
    assert len(open_items("edit", Columns(str(folder)), 2)) == 2


def test_a_stamp_is_that_of_the_file_and_of_its_words_wherever_the_folder_lies(folder: Path, tmp_path: Path):
    def stamps(place: Path, prompt: str = "{text}") -> list[str]:
        items = open_items("invert", Columns(str(place), prompt=prompt), None)
        return [items.item(k).stamp for k in range(len(items))]

    before = stamps(folder)
    assert len(set(before)) == 3
    assert stamps(folder) == before
    folder.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert stamps(moved) == before
    (moved / "b.txt").write_text("other words")
    picture(moved / "deep/c.png", 7)
    os.utime(moved / "deep/c.png", (1, 1))
    assert [one == other for one, other in zip(stamps(moved), before, strict=True)] == [True, False, False]


def test_wrong_columns_are_refused(folder: Path):
    for columns, error in (
        (Columns(str(folder), prompt="{style}"), unknown("data.prompt", "style", "text")),
        (Columns(str(folder), target="{style}"), refused("target", "'style'")),
        (Columns(str(folder), label="style"), unknown("label", "style", "text")),
        (Columns(str(folder), label="text"), refused("label", "'words 0'")),
    ):
        with error:
            open_items("edit", columns, None)


def png(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.usefixtures("datasets_cache")
def test_a_parquet_file_and_tar_files_have_the_same_items(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "tars").mkdir()
    for k in range(2):
        with tarfile.open(tmp_path / f"tars/{k}.tar", "w") as tar:
            for name, data in (("png", b"broken" if k else png(50 * k)), ("txt", f"words {k}".encode())):
                info = tarfile.TarInfo(f"{k:04d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    rows = {"image": [png(0), b"broken"], "txt": ["words 0", "words 1"], "class": [4, 5]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    for data in (tmp_path / "tars", tmp_path / "tars/0.tar", tmp_path / "rows.parquet"):
        columns = Columns(str(data), column="image" if data.suffix == ".parquet" else "", prompt="{txt}")
        items = open_items("invert", columns, None)
        assert [items.item(k).prompt for k in range(len(items))] == ["words 0", "words 1"][: len(items)]
        assert items.open(0).getpixel((0, 0)) == 0
        if len(items) == 2:
            with refused("data.path"):
                items.open(1)
    labelled = open_items("edit", Columns(str(tmp_path / "rows.parquet"), "image", label="class"), None)
    assert [labelled.item(k).label for k in range(2)] == [4, 5]


@pytest.mark.usefixtures("datasets_cache")
def test_what_begins_with_hf_is_never_a_folder_here(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    with refused("data.path", "'hf:pictures'"):
        open_items("invert", Columns("hf:pictures"), None)
