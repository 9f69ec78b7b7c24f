"""The settings of CUDA's kernels that hold during a network call; they can be set and read without a GPU."""

import pytest
import torch

from ddim.models.engine.kernels import kernels, precision

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
