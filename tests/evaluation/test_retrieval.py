"""Which image of a gallery is nearest."""

import pytest
import tiny_text
import torch

import ddim
from ddim.evaluation.metrics import retrieval
from ddim.evaluation.metrics.retrieval import Gallery


def test_a_gallery_finds_a_disturbed_picture_again():
    pictures = tiny_text.pictures(30, 64, 64)
    gallery = Gallery(pictures, [f"p{k}" for k in range(30)])
    noise = 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    disturbed = (pictures.roll((2, -2), (2, 3)) * 0.9 + 0.05 + noise).clamp(0, 1)
    assert gallery.rank(disturbed, gallery.names) == [1] * 30
    assert gallery.rank(pictures[:1], ["p3"])[0] > 1
    with pytest.raises(ddim.InputError, match="at least two images"):
        Gallery(pictures[:1], ["alone"])


def test_pictures_of_the_same_colours_are_told_apart_by_their_edges():
    bars = (torch.arange(64) // 4 % 2).float()
    across, down = bars[:, None].expand(64, 64), bars[None, :].expand(64, 64)
    pictures = torch.stack([across, down])[:, None].expand(2, 3, 64, 64)
    assert torch.allclose(*retrieval.colours(pictures))  # each cell as grey as the other picture's
    gallery = Gallery(pictures, ["across", "down"])
    assert gallery.rank(0.2 + 0.6 * pictures, ["across", "down"]) == [1, 1]
    assert gallery.rank(0.2 + 0.6 * pictures, ["down", "across"]) == [2, 2]
