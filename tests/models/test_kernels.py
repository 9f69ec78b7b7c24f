"""The settings of CUDA's kernels that hold during a network call; they can be set and read without a GPU."""

import pytest
import torch

from ddim.models.engine.kernels import deterministic, kernels, precision

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
