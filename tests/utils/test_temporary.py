"""What a killed process left under a temporary name goes with the next run that writes there, and nothing else."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from killing import dead_file

import ddim
from ddim._utils import temporary
from ddim._utils.files import write_whole
from ddim._utils.temporary import DAY, remove_stale, temporary_beside


def test_the_next_file_removes_what_a_killed_process_left(tmp_path):
    stale = dead_file(tmp_path)
    assert stale.is_file()
    ddim.save_image(torch.zeros(1, 4, 4), tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]


def test_a_process_killed_inside_write_whole_leaves_what_the_next_one_removes(tmp_path, monkeypatch):
    def killed() -> None:
        monkeypatch.setattr("os.fsync", lambda _: os._exit(9))
        write_whole(tmp_path / "a", b"data")

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 1
    remove_stale(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_live_process_keeps_its_file(tmp_path):
    mine = temporary_beside(tmp_path / "a")
    mine.touch()
    os.utime(mine, (0, 0))
    of_another = Path(str(mine).replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    of_another.touch()
    remove_stale(tmp_path)
    assert mine.is_file()
    assert of_another.is_file()


@pytest.mark.parametrize(("age", "kept"), [(DAY - 60, True), (DAY + 60, False)])
def test_of_another_machine_only_the_age_is_known(tmp_path, monkeypatch, age, kept):
    with monkeypatch.context() as patch:
        patch.setattr(temporary, "_machine_id", lambda: "0123456789ab")
        file = dead_file(tmp_path)
    os.utime(file, (time.time() - age,) * 2)
    remove_stale(tmp_path)
    assert file.is_file() == kept


def test_files_of_the_users_own_are_left_alone(tmp_path):
    stale = dead_file(tmp_path)
    own = [tmp_path / name for name in (".a.png.123.tmp", ".ddim-notes.tmp", f"{stale.name}.bak", stale.name[1:])]
    for path in own:
        path.touch()
    (tmp_path / "real").touch()
    folder = Path(f"{stale}".replace(stale.name[-12:-4], "00000000"))
    folder.mkdir()
    link = Path(f"{stale}".replace(stale.name[-12:-4], "11111111"))
    link.symlink_to(tmp_path / "real")
    remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {*own, folder, link, tmp_path / "real"}
    remove_stale(tmp_path / "none")


def test_the_longest_name_can_be_written(tmp_path):
    """The temporary name held the whole name and a number, which was more than a name may be."""
    target = tmp_path / ("a" * 251 + ".png")
    assert write_whole(target, b"data").read_bytes() == b"data"


def test_two_threads_do_not_share_a_temporary_name(tmp_path):
    assert temporary_beside(tmp_path / "a") != temporary_beside(tmp_path / "a")
