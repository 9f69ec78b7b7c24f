"""The Fréchet distance: closed forms, torchmetrics' formula, statistics in parts, and how often the interval holds."""

import math

import numpy as np
import pytest
import torch

from ddim._utils.errors import InputError
from ddim.evaluation.metrics.frechet import (
    Statistics,
    bootstrap_interval,
    frechet_distance,
    title,
)
from ddim.evaluation.reference import read_statistics, save_statistics


def gaussian(mean: object, covariance: object, count: int = 100) -> Statistics:
    to = {"dtype": torch.float64}
    return Statistics(torch.as_tensor(mean, **to), torch.as_tensor(covariance, **to), count)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(randn(dim, dim, seed=seed)).Q


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_on_a_line_it_is_the_distance_of_means_and_deviations():
    a, b = gaussian([2.0], [[9.0]]), gaussian([-1.0], [[0.25]])
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (3.0 - 0.5) ** 2, rel=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_covariances_that_commute_differ_by_their_deviations(turned):
    first, second = torch.tensor([4.0, 1.0, 0.0, 9.0]).double(), torch.tensor([1.0, 1.0, 2.0, 0.25]).double()
    q = rotation(4) if turned else torch.eye(4, dtype=torch.float64)
    a = gaussian(q @ torch.tensor([1.0, 0, 0, 2]).double(), q @ first.diag() @ q.T)
    b = gaussian(torch.zeros(4), q @ second.diag() @ q.T)
    expected = 5.0 + float((first.sqrt() - second.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_covariances_of_two_that_do_not_commute():
    # for 2x2, tr (A B)^(1/2) = (tr A B + 2 sqrt(det A B))^(1/2)
    a, b = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double(), torch.tensor([[5.0, -2.0], [-2.0, 1.0]]).double()
    assert not torch.allclose(a @ b, b @ a)
    shared = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.det(a @ b))))
    expected = float(a.trace() + b.trace()) - 2 * shared
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-12)


def test_sets_that_fill_one_direction_each():
    # v v^T and w w^T: tr (v v^T w w^T)^(1/2) = |v.w|
    v, w = randn(50, seed=1), randn(50, seed=2)
    a, b = gaussian(torch.zeros(50), torch.outer(v, v)), gaussian(torch.zeros(50), torch.outer(w, w))
    expected = float(v @ v + w @ w - 2 * (v @ w).abs())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_fewer_images_than_features_are_as_far_from_themselves_as_nothing():
    for seed in range(10):  # rounding falls to either side
        some = Statistics.of(100 * randn(30, 60, seed=seed))
        assert 0 <= frechet_distance(some, some) < 1e-8  # of a trace of 600,000


def test_turning_both_sets_changes_nothing_and_moving_one_adds_its_length():
    x, y, q = randn(40, 6, seed=1), 2 * randn(50, 6, seed=2) + 1, rotation(6)
    a, b = Statistics.of(x), Statistics.of(y)
    whole = frechet_distance(a, b)
    assert frechet_distance(Statistics.of(x @ q), Statistics.of(y @ q)) == pytest.approx(whole, rel=1e-10)
    moved = frechet_distance(Statistics.of(x + y.mean(0) - x.mean(0)), b)
    assert whole - moved == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()), rel=1e-9)


def test_torchmetrics_agrees():
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = Statistics.of(randn(300, 24, seed=1) @ randn(24, 24, seed=3)), Statistics.of(randn(200, 24, seed=2) + 0.5)
    theirs = fid._compute_fid(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-9)


# --- statistics -----------------------------------------------------------------------------------------------------


def test_numpy_finds_the_same_mean_and_covariance():
    x = randn(70, 5) * 3 + 2
    found = Statistics.of(x.float())
    np.testing.assert_allclose(found.mean, x.float().double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)
    assert (found.count, found.dim, found.covariance.dtype) == (70, 5, torch.float64)


@pytest.mark.parametrize("sizes", [(1,) * 20, (7, 13), (19, 1), (2, 0, 18)])
def test_parts_in_any_order_give_the_whole(sizes):
    x = randn(20, 4) + 1e6  # where sums of squares would lose the covariance
    whole, parts = Statistics.of(x), x.split(list(sizes))
    for several in (parts, parts[::-1]):
        found = Statistics.of(iter(several))
        assert found.count == 20
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-8, atol=1e-9)


def test_what_is_saved_comes_back_with_what_it_is_of(tmp_path):
    found = Statistics.of(randn(9, 3))
    file = save_statistics(found, tmp_path / "a.safetensors", {"data": "some", "size": 32})
    again, about = read_statistics(file)
    assert about == {"data": "some", "size": 32}
    assert again.count == 9
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.covariance, found.covariance)


def test_other_files_are_no_statistics(tmp_path):
    from safetensors.torch import save_file

    whole = save_statistics(Statistics.of(randn(9, 3)), tmp_path / "a.safetensors", {}).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"cut\.safetensors cannot be read"):
        read_statistics(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_statistics(tmp_path / "none.safetensors")
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors does not contain statistics"):
        read_statistics(tmp_path / "other.safetensors")


def test_what_has_no_distance_is_refused():
    some = Statistics.of(randn(5, 3))
    with pytest.raises(InputError, match="at least two images in each set, not 1"):
        frechet_distance(some, Statistics.of(randn(1, 3)))
    with pytest.raises(InputError, match="3 and of 4 numbers cannot be compared"):
        frechet_distance(some, Statistics.of(randn(5, 4)))
    with pytest.raises(InputError) as caught:
        Statistics.of(iter([]))
    assert caught.value.parameter == "images"
    with pytest.raises(InputError, match="not finite"):
        Statistics.of(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(InputError, match=r"\[N, D\], not \[4\]"):
        Statistics.of(torch.zeros(4))
    for wrong in ({"resamples": 5}, {"level": 1.0}, {"level": "x"}):
        with pytest.raises(InputError) as caught:
            bootstrap_interval(randn(5, 3), some, **wrong)  # type: ignore[arg-type]
        assert caught.value.parameter == next(iter(wrong))


def test_in_other_features_it_goes_by_their_name():
    assert title("fashion-features") == "Fréchet distance in the features of fashion-features"


# --- the interval ---------------------------------------------------------------------------------------------------


def test_the_interval_is_its_seed_s_and_lies_about_the_value():
    x, reference = randn(80, 5, seed=1) + 0.3, Statistics.of(randn(500, 5, seed=2))
    one, same, other = (bootstrap_interval(x, reference, resamples=60, seed=s) for s in (3, 3, 4))
    assert one == same != other
    assert one.value == other.value == frechet_distance(Statistics.of(x), reference)
    assert one.low < one.value < one.high
    assert one.bias > 0
    narrow = bootstrap_interval(x, reference, resamples=60, seed=3, level=0.5)
    assert one.low < narrow.low < narrow.high < one.high
    assert (one.level, one.resamples) == (0.95, 60)


def test_no_interval_reaches_below_nothing():
    x = randn(60, 4)
    found = bootstrap_interval(x, Statistics.of(x), resamples=60)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == 0 < found.high


def test_a_resample_s_covariance_is_that_of_the_images_it_took():
    x, reference = randn(40, 3, seed=1) + 5, Statistics.of(randn(90, 3, seed=2))
    draws = generator(7)
    taken = [x[torch.randint(40, (40,), generator=draws)] for _ in range(70)]
    several = torch.tensor([frechet_distance(Statistics.of(y), reference) for y in taken], dtype=torch.float64)
    found = bootstrap_interval(x, reference, resamples=70, seed=7)
    assert found.bias == pytest.approx(float(several.mean()) - found.value, rel=1e-9)
    assert found.high == pytest.approx(float(several.quantile(0.975)) - found.bias, rel=1e-9)


@pytest.mark.parametrize(("mean", "deviation"), [(0.6, 1.3), (0.0, 1.0)])
def test_on_a_line_the_interval_holds_the_mean_distance_of_such_sets(mean, deviation):
    # E (m^2 + (s - 1)^2) over sets of n from N(mean, deviation^2), against N(0, 1)
    n, rounds = 200, 150
    c4 = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    expected = mean**2 + deviation**2 / n + deviation**2 - 2 * c4 * deviation + 1
    reference, held = gaussian([0.0], [[1.0]]), 0
    for k in range(rounds):
        x = mean + deviation * randn(n, 1, seed=k)
        found = bootstrap_interval(x, reference, resamples=100, seed=10_000 + k)
        held += found.low <= expected <= found.high
    assert held / rounds >= 0.91  # of a nominal 0.95, whose deviation is 0.018 here


def test_without_the_bias_it_is_one_for_infinitely_many_images():
    scales, n, rounds = torch.tensor([1.5, 1.2, 1.0, 0.8, 0.7, 1.0, 1.0, 1.0]).double(), 150, 100
    reference = gaussian(torch.zeros(8), torch.eye(8))
    expected = 0.4**2 + float((scales - 1).square().sum())
    held = plain = 0
    for k in range(rounds):
        x = randn(n, 8, seed=k) * scales
        x[:, 0] += 0.4
        found = bootstrap_interval(x, reference, resamples=100, seed=10_000 + k)
        held += found.low - found.bias <= expected <= found.high - found.bias
        plain += found.low + found.bias <= expected <= found.high + found.bias
    assert held / rounds >= 0.9
    assert plain / rounds < 0.6  # the percentiles themselves, a bias further from the truth than the value
