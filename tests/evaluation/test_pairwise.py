"""Distances between two images."""

import pytest
import tiny_text
import torch

from ddim.evaluation.metrics import errors, mse, psnr, ssim
from ddim.evaluation.metrics.pairwise import agreement, decibels, digest, mse_where


def test_distances_by_hand():
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[0] += 0.1
    b[1, :, 0, 0] += 1.0
    assert mse(a, b).tolist() == pytest.approx([0.01, 1 / 16])
    assert psnr(a, b).tolist() == pytest.approx([20.0, 12.0412], abs=1e-4)
    assert float(psnr(a[:1], a[:1])) == float("inf")


def test_ssim_is_one_for_the_same_picture_and_less_for_others():
    a = tiny_text.pictures(2)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert (ssim(a, 1 - a) < 0.9).all()


def test_agreement_leaves_out_what_differs_and_a_margin():
    a = torch.zeros(1, 3, 8, 8)
    b = a.clone()
    b[0, 1, 4, 4] = 0.5
    mask = agreement(a, b, tolerance=0.1, margin=1)
    assert mask.shape == (1, 1, 8, 8)
    assert int((~mask).sum()) == 9
    assert not bool(mask[0, 0, 3:6, 3:6].any())


def test_distance_over_a_mask():
    a, b = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    b[0, :, 0, 0], b[0, :, 1, 1] = 0.2, 1.0
    mask = torch.tensor([[True, True], [False, False]]).view(1, 1, 2, 2)
    assert float(mse_where(a, b, mask)) == pytest.approx(0.02)
    assert bool(mse_where(a, b, torch.zeros_like(mask)).isnan())


def test_a_digest_tells_pictures_by_what_they_show():
    a = tiny_text.pictures(2)
    assert digest(a) == digest(a + 1e-6)  # the same in 8 bits
    assert len({digest(a), digest(a[:1]), digest(a[1:]), digest(1 - a), digest(a.transpose(2, 3))}) == 5


def test_errors_are_plain_numbers_and_equal_images_have_no_psnr():
    a, b = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    b[0] += 0.1
    first, second = errors(a, b)
    assert first == pytest.approx({"mse": 0.01, "psnr": 20.0, "max": 0.1}, abs=1e-5)
    assert second == {"mse": 0.0, "psnr": None, "max": 0.0}
    assert decibels(0.01) == pytest.approx(20.0)
    assert decibels(0.0) is decibels(None) is None
