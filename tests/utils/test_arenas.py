"""The bound of malloc's arenas, counted by malloc itself."""

import ctypes
import os
import re
from pathlib import Path

import pytest
from commands import python

from ddim._utils.arenas import CHOSEN_BY, bound_arenas

CODE = """
import ctypes, sys, threading
if sys.argv[2] == "bounded":
    from ddim._utils.arenas import bound_arenas
    assert bound_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_there = threading.Barrier(6)
def allocate():
    all_there.wait()
    libc.malloc(1000)
    all_there.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def arenas(folder: Path, how: str) -> int:
    file = folder / f"{how}.xml"
    done = python("-c", CODE, str(file), how)
    assert done.returncode == 0, done.stderr
    return len(re.findall("<heap nr=", file.read_text()))


def test_threads_share_few_arenas(tmp_path: Path):
    if os.name != "posix" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("there is no glibc")
    assert arenas(tmp_path, "bounded") <= 2 < arenas(tmp_path, "free")


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_what_a_user_chose_stays(name: str):
    assert not bound_arenas(environment={name: "1"})
