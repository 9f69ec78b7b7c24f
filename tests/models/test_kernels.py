"""The settings of CUDA's kernels that hold during a network call; they can be set and read without a GPU."""

import subprocess
import sys
import threading

import pytest
import torch

from ddim.core.tf32 import precision
from ddim.models.engine.kernels import deterministic, kernels

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def settings():
    """Torch's settings before each test, restored afterwards."""
    before = torch.backends.cudnn.benchmark, *precision()
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_cudnn_does_not_choose_by_a_stopwatch():
    with kernels(CUDA):
        assert not torch.backends.cudnn.benchmark
        assert precision() == (True, False)
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_the_users_and_is_restored_after_an_error(tf32):
    def fail() -> None:
        with kernels(CUDA, tf32):
            assert precision() == (tf32, tf32)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert precision() == (True, False)


SWITCHES = """
import torch
from ddim.core.denoiser import Layout
from ddim.inversion.calls import machine_now
from ddim.models.engine.kernels import kernels

backends = torch.backends

def settings():
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        lambda: backends.cuda.matmul.fp32_precision,
        lambda: backends.cudnn.conv.fp32_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:  # torch refuses the older switches after the newer ones were set
            found.append("refused")
    return found

{setting}
before = settings()
for tf32 in (None, True, False):
    with kernels(torch.device("cuda"), tf32):
        pass
    assert settings() == before, (tf32, before, settings())
    machine_now(torch.device("cpu"), "", Layout(1), True, tf32)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has the older switches only")
@pytest.mark.parametrize(
    "setting",
    [
        *(f"torch.set_float32_matmul_precision({how!r})" for how in ("medium", "high", "highest")),
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
        "backends.fp32_precision = 'tf32'",
        "backends.cudnn.allow_tf32 = False",
    ],
)
def test_every_switch_of_torch_is_left_as_it_was(setting: str):
    """In a process of its own, because torch cannot undo some of these settings."""
    done = subprocess.run([sys.executable, "-c", SWITCHES.format(setting=setting)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_switch_that_is_as_wanted_still_follows_the_general_one():
    code = """
import torch
from ddim.models.engine.kernels import kernels
with kernels(torch.device("cuda"), tf32=True):
    pass
torch.backends.fp32_precision = "ieee"
assert torch.backends.cudnn.conv.fp32_precision == "ieee"
"""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch before 2.9 has no general switch")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_do_not_compute_with_each_others_settings():
    inside, go_on, seen = threading.Event(), threading.Event(), list[tuple[bool, bool]]()

    def first() -> None:
        with kernels(CUDA, tf32=True):
            inside.set()
            go_on.wait(10)
            seen.append(precision())

    def second() -> None:
        with kernels(CUDA, tf32=False):
            seen.append(precision())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert seen == [(True, True), (False, False)]
    assert precision() == (True, False)
    assert torch.backends.cudnn.benchmark


def test_nothing_changes_on_a_cpu():
    with kernels(torch.device("cpu"), tf32=True):
        assert torch.backends.cudnn.benchmark
        assert precision() == (True, False)


def test_gradients_repeat_with_cudnn_and_the_callers_settings_come_back():
    """Torch's own context for these flags switches cuDNN off, unless it is told not to."""

    def settings() -> tuple[bool, ...]:
        cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
        every, warn = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, every, warn, memory.fill_uninitialized_memory

    def fail() -> None:
        with deterministic(CUDA):
            assert settings() == (True, False, True, True, True, False)
            assert precision() == (True, False)
            raise KeyError

    before = settings()
    assert before == (True, True, False, False, False, True)
    with pytest.raises(KeyError):
        fail()
    with deterministic(torch.device("cpu")):
        assert settings() == before
    assert settings() == before
