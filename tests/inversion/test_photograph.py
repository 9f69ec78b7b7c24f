"""The photograph that a code keeps: its compression, and what a damaged one says."""

import pytest
import torch
from refusals import refused

from ddim.inversion.photograph import MOST_ICC, MOST_PIXELS, Photograph, is_packed, packed, unpacked


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 4), (2, 5, 3), (3, 7, 11), (4, 6, 1)])
def test_what_is_packed_comes_back_to_the_byte(shape: tuple[int, ...]):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    before = pixels.clone()
    about, data = packed(Photograph(pixels, (0, 0, 1, 1)))
    after = unpacked(about, data, b"profile")
    assert after is not None
    assert torch.equal(pixels, before)
    assert torch.equal(after.pixels, before)
    assert (after.crop, after.icc) == ((0, 0, 1, 1), b"profile")
    assert is_packed(about)


def test_a_smooth_picture_is_small():
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 200, 256)
    _, data = packed(Photograph(ramp, (0, 0, 256, 200)))
    assert len(data) < ramp.numel() / 100


@pytest.mark.parametrize("kind", ["cut", "longer", "flipped", "another", "empty"])
def test_damaged_bytes_are_no_photograph(kind: str):
    about, data = packed(Photograph(torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), (0, 0, 8, 8)))
    small, _ = packed(Photograph(torch.zeros(3, 8, 7, dtype=torch.uint8), (0, 0, 7, 8)))
    flipped = data.clone()
    flipped[40] ^= 16
    damaged = {"cut": data[:-3], "longer": torch.cat([data, data]), "flipped": flipped, "empty": data[:0]}
    assert unpacked(small if kind == "another" else about, damaged.get(kind, data)) is None


def test_no_more_is_unpacked_than_its_size_says():
    about, data = packed(Photograph(torch.zeros(1, 4000, 4000, dtype=torch.uint8), (0, 0, 4000, 4000)))
    assert len(data) < 100_000
    assert unpacked({**about, "shape": [1, 2, 2], "crop": [0, 0, 2, 2]}, data) is None


@pytest.mark.parametrize(
    "about",
    [
        None,
        {},
        {"shape": [3, 4, 5]},
        {"shape": [3, 4, 5], "crop": [0, 0, 6, 4]},
        {"shape": [3, 4, 5], "crop": [0, 0, 5]},
        {"shape": [3, 4, 5], "crop": [2, 0, 2, 4]},
        {"shape": [5, 4, 5], "crop": [0, 0, 5, 4]},
        {"shape": [0, 4, 5], "crop": [0, 0, 5, 4]},
        {"shape": [3, 4.0, 5], "crop": [0, 0, 5, 4]},
        {"shape": [3, MOST_PIXELS, 2], "crop": [0, 0, 2, 4]},
        {"shape": "345", "crop": [0, 0, 5, 4]},
        {"shape": [3, 4, 5], "crop": [0, 0, 5, 4], "more": 1},
    ],
    ids=str,
)
def test_other_descriptions_are_refused(about: object):
    assert not is_packed(about)
    assert is_packed({"shape": [3, 4, 5], "crop": [0, 0, 5, 4]})


def test_what_is_no_photograph():
    with refused("pixels", (3, 4, 5), torch.float32):
        Photograph(torch.zeros(3, 4, 5), (0, 0, 5, 4))
    with refused("crop", (0, 0, 6, 4), "5x4"):
        Photograph(torch.zeros(3, 4, 5, dtype=torch.uint8), (0, 0, 6, 4))


def test_what_no_file_could_hold_is_refused():
    side = 20_000  # 4e8 pixels, in one byte of memory
    with refused("pixels", f"{side:,}", f"{MOST_PIXELS:,}"):
        Photograph(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, side, side), (0, 0, 9, 9))
    largest = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 1, MOST_PIXELS)
    assert Photograph(largest, (0, 0, 9, 1)).size == (1, MOST_PIXELS)
    assert is_packed({"shape": list(largest.shape), "crop": [0, 0, 9, 1]})
    pixels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert Photograph(pixels, (0, 0, 4, 4), bytes(MOST_ICC)).mode == "L"
    with refused("icc", f"{MOST_ICC + 1:,}"):
        Photograph(pixels, (0, 0, 4, 4), bytes(MOST_ICC + 1))


def test_what_it_says_of_itself():
    assert (
        repr(Photograph(torch.zeros(2, 4, 5, dtype=torch.uint8), (0, 1, 5, 4)))
        == "Photograph(5x4, LA, crop=(0, 1, 5, 4))"
    )
