"""The same runs on Ray Data; skipped without it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import picture
from refusals import failed, refused

from ddim.batch import Columns, Output, Spread, Work, run_batch

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read when ray is imported; on_ray sets it too
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'ddim[batch]'")

STEPS = {"method": "bdia", "steps": 3}
TIMEOUT = 900.0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("data")
    for k in range(9):
        picture(folder / f"{k}.png", k)
    (folder / "4.png").write_bytes(b"broken")
    model = str(tiny.pipeline_folder(tmp_path_factory.mktemp("models") / "small"))
    return Work("invert", Columns(str(folder)), model, {"device": "cpu"}, STEPS, batch=2)


def is_below(pid: int) -> bool:
    """Whether this process started a process, or one that did."""
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def test_two_workers_make_the_rows_that_one_process_makes(work: Work, tmp_path: Path):
    run_batch(work, tmp_path / "here")
    summary = run_batch(work, tmp_path / "ray", Spread("local", workers=2, timeout=TIMEOUT))
    assert [key for key, _ in summary.errors] == ["4.png"]
    assert list(Output(tmp_path / "ray").rows()) == list(Output(tmp_path / "here").rows())


def test_a_worker_that_is_killed_is_begun_again(work: Work, tmp_path: Path):
    run_batch(work, tmp_path / "here")
    killed: list[int] = []

    def kill(at: Any) -> None:
        """Kills a process of a worker, after the first batch."""
        if at.done is None or killed:
            return
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cmdline").read_bytes().startswith(b"ray::MapWorker") and is_below(int(process.name)):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
                    return

    run_batch(work, tmp_path / "ray", Spread("local", workers=1, timeout=TIMEOUT), on_event=kill)
    assert killed
    assert list(Output(tmp_path / "ray").rows()) == list(Output(tmp_path / "here").rows())


def test_an_option_that_the_model_does_not_take_is_one_sentence(work: Work, tmp_path: Path):
    wrong = replace(work, arguments={**STEPS, "prompt": "a cat"})
    with refused("prompt"):
        run_batch(wrong, tmp_path / "ray", Spread("local", timeout=TIMEOUT))
    with refused("ray", "127.0.0.1:1"):
        run_batch(work, tmp_path / "none", Spread("127.0.0.1:1"))
    with refused("ray", "'nowhere'"):
        run_batch(work, tmp_path / "none", Spread("nowhere"))


def test_an_address_at_which_something_else_listens_is_refused():
    """In a process of its own, in which Ray may go on trying."""
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        address = f"127.0.0.1:{dumb.getsockname()[1]}"
        lines = f"from ddim.batch import on_ray; on_ray.CONNECT = 1.0; on_ray._started({address!r})"
        ended = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=TIMEOUT)
    assert f"InputError: ray: what listens at {address!r} does not answer" in ended.stderr


def test_more_workers_than_processors_end_the_same_run(work: Work, tmp_path: Path):
    work = replace(work, batch=1)
    run_batch(work, tmp_path / "here")
    run_batch(work, tmp_path / "ray", Spread("local", workers=(os.cpu_count() or 1) + 3, timeout=TIMEOUT))
    assert list(Output(tmp_path / "ray").rows()) == list(Output(tmp_path / "here").rows())


def test_a_run_in_which_nothing_happens_ends_with_a_sentence(work: Work, tmp_path: Path):
    """The timeout is shorter than a worker needs to start, as if the cluster had no room for it."""
    before = threading.active_count()
    began = time.monotonic()
    with failed(None, "0.05"):
        run_batch(work, tmp_path / "ray", Spread("local", timeout=0.05))
    assert time.monotonic() - began < TIMEOUT
    assert threading.active_count() <= before + 5
    assert run_batch(work, tmp_path / "ray", Spread("local", timeout=TIMEOUT)).computed == 5
