"""Pasting an edit into its photograph: bytes outside of the mask, and the soft edge inside it."""

import math

import pytest
import torch
from refusals import refused
from torch import Tensor

from ddim.editing.composite import (
    bounding_box,
    checked_feather,
    enlarged,
    feathered,
    on_crop,
    pasted,
    usual_feather,
)
from ddim.inversion.photograph import Photograph


def photograph(channels: int = 3, height: int = 20, width: int = 30, crop=None, seed: int = 0) -> Photograph:
    pixels = torch.randint(0, 256, (channels, height, width), generator=seeded(seed), dtype=torch.uint8)
    return Photograph(pixels, crop or (0, 0, width, height))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box_mask(height: int, width: int, left: int, top: int, right: int, bottom: int) -> Tensor:
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


# --- the soft edge ---------------------------------------------------------------------------------------------------


def test_the_edge_of_a_half_plane_is_a_ramp():
    mask = torch.zeros(5, 12)
    mask[:, 4:] = 1
    ramp = [0, 0, 0, 0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]
    assert torch.allclose(feathered(mask, 3), torch.tensor(ramp).expand(5, 12))
    assert torch.equal(feathered(mask, 0), mask)
    assert torch.allclose(feathered(mask.T, 3), torch.tensor(ramp)[:, None].expand(12, 5))


def by_hand(mask: Tensor, width: int, closed: tuple[bool, ...]) -> Tensor:
    """The definition, pixel by pixel: no line in common with the library."""
    height, wide = mask.shape
    left, top, right, bottom = closed
    zeros = [(y, x) for y in range(height) for x in range(wide) if mask[y, x] == 0]
    out = torch.zeros(height, wide)
    for y in range(height):
        for x in range(wide):
            apart = [math.hypot(y - b, x - a) for b, a in zeros]
            apart += [x + 1] * left + [y + 1] * top + [wide - x] * right + [height - y] * bottom
            out[y, x] = mask[y, x] * min(1.0, min(apart, default=math.inf) / (width + 1))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_the_soft_edge_is_the_distance_to_what_stays(seed: int):
    make = seeded(seed)
    height, width, feather = (int(torch.randint(1, 14, (), generator=make)) for _ in range(3))
    mask = torch.rand(height, width, generator=make)
    mask[torch.rand(height, width, generator=make) < (0.0, 0.02, 0.2, 0.6)[seed % 4]] = 0
    closed = tuple(bool(b) for b in torch.randint(0, 2, (4,), generator=make))
    assert torch.allclose(feathered(mask, feather, closed), by_hand(mask, feather, closed), atol=1e-6)  # type: ignore[arg-type]


def test_a_mask_without_an_edge_stays_as_it_is():
    assert torch.equal(feathered(torch.ones(4, 5), 9), torch.ones(4, 5))
    assert not feathered(torch.zeros(4, 5), 9).any()


@pytest.mark.parametrize("feather", [-1, 2.5, "wide", True])
def test_a_feather_is_a_number_of_pixels(feather: object):
    with refused("feather", repr(feather)):
        checked_feather(feather)  # type: ignore[arg-type]


def test_the_usual_feather_is_a_pixel_of_the_latent():
    mask = box_mask(320, 320, 0, 0, 320, 320)
    assert usual_feather(mask, (64, 64), 4) == 20  # 5 pixels a pixel, 4 of them a latent's
    assert usual_feather(mask, (64, 64), 0) == 5
    assert usual_feather(box_mask(320, 320, 10, 10, 50, 200), (64, 64), 4) == 5  # an eighth of 40
    assert usual_feather(torch.zeros(9, 9), (64, 64), 4) == 0


# --- masks on the crop -----------------------------------------------------------------------------------------------


def test_a_mask_of_each_size_is_brought_to_the_crop():
    one = photograph(crop=(10, 5, 22, 17))
    whole = torch.rand(20, 30)
    assert torch.equal(on_crop(whole, one, (4, 4)), whole[5:17, 10:22])
    assert torch.equal(on_crop(whole[:12, :12], one, (4, 4)), whole[:12, :12])
    small = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    assert torch.equal(on_crop(small, one, (2, 2)), small.repeat_interleave(6, 0).repeat_interleave(6, 1))
    with refused("mask", "7x8", "30x20", "12x12", "4x4"):
        on_crop(torch.ones(8, 7), one, (4, 4))


def test_the_box_of_a_mask():
    assert bounding_box(box_mask(9, 8, 2, 3, 5, 7)) == (2, 3, 5, 7)
    assert bounding_box(torch.zeros(3, 3)) is None


def test_a_zero_of_a_small_mask_is_zero_when_enlarged():
    mask = (torch.rand(5, 7, generator=seeded(1)) > 0.5).float()
    large = enlarged(mask, (53, 31))
    assert set(large.unique().tolist()) <= {0.0, 1.0}
    rows, columns = (torch.arange(n).add(0.5).mul(m / n).floor().long() for n, m in ((53, 5), (31, 7)))
    assert torch.equal(large, mask[rows][:, columns])


# --- pasting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_no_byte_changes_where_the_mask_is_zero(seed: int):
    make = seeded(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=make))

    height, width, channels = draw(1, 60), draw(1, 60), draw(1, 4)
    left, top = draw(0, width - 1), draw(0, height - 1)
    right, bottom = draw(left + 1, width), draw(top + 1, height)
    source = photograph(channels, height, width, (left, top, right, bottom), seed)
    mask = torch.rand(bottom - top, right - left, generator=make)
    if draw(0, 2):  # most masks have zeros, and half of these only 0 and 1
        mask = torch.where(mask < draw(0, 10) / 10, torch.zeros(()), mask if draw(0, 1) else torch.ones(()))
    edited = torch.rand(draw(0, 1) * 2 + 1, draw(2, 40), draw(2, 40), generator=make) * 2 - 0.5  # also out of range
    before = source.pixels.clone()
    after = pasted(source, edited, mask, draw(0, 12))
    assert torch.equal(source.pixels, before)
    assert (after.dtype, after.shape) == (torch.uint8, before.shape)
    may_change = torch.zeros(height, width, dtype=torch.bool)
    may_change[top:bottom, left:right] = mask > 0
    assert int((after != before)[:, ~may_change].sum()) == 0
    if int(may_change.sum()) > 30 and channels in (1, 3) and bool((mask == 1).any()):
        assert int((after != before).sum()) > 0


def test_a_full_mask_takes_the_edit_to_the_byte():
    source, edited = photograph(3, 8, 9), torch.rand(3, 8, 9, generator=seeded(1))
    assert torch.equal(pasted(source, edited, torch.ones(8, 9)), (edited * 255).round().to(torch.uint8))


def test_a_soft_mask_mixes():
    source = Photograph(torch.full((3, 4, 4), 200, dtype=torch.uint8), (0, 0, 4, 4))
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(4, 4)
    after = pasted(source, torch.full((3, 4, 4), 100 / 255), mask)
    assert after[0, 0].tolist() == [200, 175, 150, 100]


def test_an_edit_is_scaled_to_its_crop_and_lies_in_its_place():
    source = photograph(3, 40, 50, (10, 6, 42, 38))
    edited = torch.zeros(3, 8, 8)
    edited[0, :, 4:] = 1  # the right half is red
    after = pasted(source, edited, torch.ones(32, 32))
    assert torch.equal(after[:, :6], source.pixels[:, :6])
    assert after[:, 20, 12].tolist() == [0, 0, 0]
    assert after[:, 20, 40].tolist() == [255, 0, 0]


@pytest.mark.parametrize("turn", range(4))
def test_the_edge_is_soft_where_the_crop_ends_inside_the_photograph_only(turn: int):
    crop = ((0, 0, 10, 20), (0, 10, 20, 20), (10, 0, 20, 20), (0, 0, 20, 10))[turn]
    source = Photograph(torch.zeros(1, 20, 20, dtype=torch.uint8), crop)
    after = pasted(source, torch.ones(1, 8, 8), torch.ones(source.crop_size), 4)[0]
    turned = torch.rot90(after, -turn)  # the crop is the left half again
    assert turned[10].tolist() == [255] * 6 + [204, 153, 102, 51] + [0] * 10
    assert turned[0].tolist() == turned[19].tolist() == turned[10].tolist()


def test_a_grey_photograph_stays_grey_and_a_coloured_one_takes_grey():
    red = torch.zeros(3, 4, 4)
    red[0] = 1
    grey = pasted(photograph(1, 4, 4), red, torch.ones(4, 4))
    assert torch.equal(grey, torch.full((1, 4, 4), 76, dtype=torch.uint8))  # 0.299 * 255
    colour = pasted(photograph(3, 4, 4), torch.full((1, 4, 4), 0.2), torch.ones(4, 4))
    assert torch.equal(colour, torch.full((3, 4, 4), 51, dtype=torch.uint8))


def test_transparency_is_the_photographs_and_the_edit_shows_on_white():
    source = photograph(4, 12, 12, seed=3)
    source.pixels[3, :4], source.pixels[3, 4:8], source.pixels[3, 8:] = 255, 160, 0
    edited = torch.rand(3, 12, 12, generator=seeded(5)) * 0.5 + 0.5  # as bright as can show at 160 of 255
    after = pasted(source, edited, torch.ones(12, 12))
    assert torch.equal(after[3], source.pixels[3])
    part = after[3:].float() / 255
    on_white = (after[:3].float() * part + 255 * (1 - part)) / 255
    assert float((on_white - edited)[:, :8].abs().max()) < 1 / 255
    assert torch.equal(after[:, 8:], source.pixels[:, 8:])  # what nobody sees stays


def test_an_empty_mask_is_the_photograph():
    source = photograph()
    after = pasted(source, torch.ones(3, 8, 8), torch.zeros(20, 30), 5)
    assert torch.equal(after, source.pixels)
    assert after.data_ptr() != source.pixels.data_ptr()
