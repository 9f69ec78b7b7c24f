import pytest
import torch
from refusals import refused

from ddim.core.noise import SeededNoise


def test_each_sample_has_its_own_seed():
    like = torch.empty(3, 2, 4)
    batch = SeededNoise([5, 6, 7])(like)
    assert torch.equal(SeededNoise([6])(like[:1])[0], batch[1])
    assert not torch.equal(batch[0], batch[1])


def test_a_second_call_draws_new_numbers():
    noise = SeededNoise([0])
    assert not torch.equal(noise(torch.empty(1, 3)), noise(torch.empty(1, 3)))


def test_the_numbers_do_not_depend_on_the_dtype():
    wide = SeededNoise([1])(torch.empty(1, 5, dtype=torch.float64))
    assert wide.dtype == torch.float64
    assert torch.equal(wide.float(), SeededNoise([1])(torch.empty(1, 5)))


def test_it_is_standard_normal():
    draws = SeededNoise(range(10))(torch.empty(10, 10_000))
    assert abs(float(draws.mean())) < 5 / 100_000**0.5
    assert float(draws.std()) == pytest.approx(1, abs=0.01)


def test_it_is_torchs_generator():
    assert torch.equal(
        SeededNoise([3])(torch.empty(1, 4))[0], torch.randn(4, generator=torch.Generator().manual_seed(3))
    )


def test_seeds_and_samples_must_be_as_many():
    with refused("seed", 2, 3):
        SeededNoise([0, 1])(torch.empty(3, 2))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, 1.0, True, float("nan")])
def test_a_seed_that_is_none(seed):
    with refused("seed", seed):
        SeededNoise([seed])
