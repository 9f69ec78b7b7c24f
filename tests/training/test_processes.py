"""Runs whose main process starts the others itself."""

import os
import re
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import failed, refused
from safetensors.torch import load_file
from training_helpers import Stop, make_images, state, stop_after, tiny

from ddim.training import Event, processes, train
from ddim.training.processes import _Other, other_processes

CHANGES = {"train": {"batch": 8, "steps": 4, "threads": 1, "processes": 2}, "model": {"dropout": 0.0}}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")


def distributed() -> dict[str, str]:
    """The environment variables that say that a process is one of several."""
    return {name: value for name, value in os.environ.items() if re.search("RANK|WORLD_SIZE|MASTER", name)}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that the test has started."""
    started = list[Any]()

    class Noted(_Other):
        def __enter__(self) -> _Other:
            started.append(self.process)
            return super().__enter__()

    monkeypatch.setattr(processes, "_Other", Noted)
    return started


def test_two_processes_share_a_batch_and_a_resumed_run_is_the_unbroken_one_bit_for_bit(
    images: Path, tmp_path: Path, others: list[Any]
):
    before = distributed()
    kinds = list[str]()
    train(tiny(images, tmp_path / "whole", **CHANGES), on_event=lambda event: kinds.append(event.message))
    assert "2 x cpu" in kinds[0]
    with pytest.raises(Stop):
        train(tiny(images, tmp_path / "broken", **CHANGES), on_event=stop_after(3))
    assert [process.poll() is not None for process in others] == [True, True]
    assert distributed() == before
    assert not torch.distributed.is_initialized()
    train(tiny(images, tmp_path / "broken", **CHANGES), resume=True, on_event=lambda event: None)
    assert state(tmp_path / "broken", 4) == state(tmp_path / "whole", 4)
    alone = {**CHANGES, "train": {**CHANGES["train"], "processes": 1}}
    train(tiny(images, tmp_path / "alone", **alone), on_event=lambda event: None)
    assert len(others) == 3
    one, two = (load_file(tmp_path / n / "checkpoints/step-00000004/weights.safetensors") for n in ("alone", "whole"))
    # Rounding that Adam blows up where a gradient is nearly zero moves a weight by a few rates (1e-3) at most.
    gap = torch.cat([(one[key] - two[key]).flatten() for key in one]).abs()
    assert float(gap.median()) < 1e-6
    assert float(gap.max()) < 5e-3


def test_a_process_that_is_gone_ends_the_run_with_one_sentence(images: Path, tmp_path: Path, others: list[Any]):
    def kill(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            others[0].send_signal(signal.SIGKILL)

    with failed(None, "Process 2 of 2", -9) as caught:
        train(tiny(images, tmp_path / "run", **CHANGES), on_event=kill)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/.ddim-lock").exists()


def test_ctrl_c_ends_all_processes(images: Path, tmp_path: Path, others: list[Any]):
    def interrupt(event: Event) -> None:
        if event.kind == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(images, tmp_path / "run", **CHANGES), on_event=interrupt)
    assert others[0].poll() is not None
    assert os.getsid(0) != others[0].pid


def test_the_error_of_another_process_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[Any]
):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'a warning' >&2\necho 'There is not enough memory.' >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(program))
    with failed(None, "Process 2 of 2", "There is not enough memory.") as caught:
        train(tiny(images, tmp_path / "run", **CHANGES))
    assert "warning" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(images: Path, tmp_path: Path, others: list[Any]):
    odd = {**CHANGES, "train": {**CHANGES["train"], "batch": 5}}
    with refused("train.batch", 5, 2):
        train(tiny(images, tmp_path / "run", **odd))
    assert others[0].poll() is not None
    assert not (tmp_path / "run").exists()


def test_a_process_ends_with_the_main_one(images: Path, tmp_path: Path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    config = tiny(images, tmp_path / "run", **CHANGES)
    asked = processes.json.dumps({"config": config.as_dict(), "resume": False}).encode() + b"\n"
    with _Other(1, 2, shared, asked) as other:
        other.wait_until_ready()
        other.process.stdin.close()  # as when the main process is killed  # type: ignore[union-attr]
        assert other.process.wait(60) == 1


def test_a_launchers_processes_start_no_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[Any]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with other_processes(tiny(images, tmp_path / "run", **CHANGES), resume=False):
        pass
    assert others == []
