"""The kernels of attention while a gradient is taken on a CPU."""

import threading

import pytest
import torch
from torch.backends.cuda import flash_sdp_enabled, math_sdp_enabled
from torch.nn.functional import scaled_dot_product_attention

from ddim.core.gradients import quick_gradients


def test_plain_attention_inside_and_what_was_before_outside():
    before = flash_sdp_enabled()
    with quick_gradients("cpu"):
        assert math_sdp_enabled()
        assert not flash_sdp_enabled()
        with quick_gradients(torch.device("cpu")):
            assert not flash_sdp_enabled()
        assert not flash_sdp_enabled()
    assert flash_sdp_enabled() == before


def test_elsewhere_nothing_changes():
    before = flash_sdp_enabled()
    with quick_gradients("cuda"):
        assert flash_sdp_enabled() == before


def test_an_error_inside_leaves_all_as_it_was():
    before = flash_sdp_enabled()
    with pytest.raises(ZeroDivisionError), quick_gradients("cpu"):
        raise ZeroDivisionError
    assert flash_sdp_enabled() == before


def test_threads_that_overlap():
    """The first one in leaves first: the second must keep plain attention, and the end must give it back."""
    before, first_in, second_in, first_out = flash_sdp_enabled(), *(threading.Event() for _ in range(3))
    seen = []

    def first() -> None:
        with quick_gradients("cpu"):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with quick_gradients("cpu"):
            second_in.set()
            first_out.wait(10)
            seen.append(flash_sdp_enabled())

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False]
    assert flash_sdp_enabled() == before


def test_the_same_numbers():
    q, k, v = (
        torch.randn(2, 2, 16, 8, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(3)
    )
    leaf = k.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scaled_dot_product_attention(q, leaf, v).square().sum(), leaf)
    with quick_gradients("cpu"):
        (gradient,) = torch.autograd.grad(scaled_dot_product_attention(q, leaf, v).square().sum(), leaf)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)
