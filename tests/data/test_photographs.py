"""Photographs of any size: their bytes, the crop of them, and how it is scaled to a model."""

import numpy as np
import pytest
import torch
from exif import exif_of
from PIL import Image
from refusals import refused

from ddim.data.images import read_images, save_image
from ddim.data.photographs import checked_crops, read_photographs, scaled_crops, scaled_size, takes, window
from ddim.inversion.photograph import MOST_PIXELS, Photograph

SHAPE = (3, 32, 32)


def drawn(mode: str, width: int = 7, height: int = 5) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def planes(image: Image.Image) -> torch.Tensor:
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(values.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_byte_of_a_file_is_read_and_written(mode: str, tmp_path):
    image = drawn(mode)
    image.save(tmp_path / "a.png")
    [(pixels, icc)] = read_photographs(tmp_path / "a.png")
    assert torch.equal(pixels, planes(image))
    assert icc == b""
    save_image(pixels, tmp_path / "b.png")
    again = Image.open(tmp_path / "b.png")
    assert (again.mode, again.tobytes()) == (mode, image.tobytes())


def test_a_profile_is_kept_unless_the_colours_are_converted(tmp_path):
    drawn("RGB").save(tmp_path / "a.png", icc_profile=b"profile")
    [(pixels, icc)] = read_photographs(tmp_path / "a.png")
    assert icc == b"profile"
    save_image(pixels, tmp_path / "b.png", icc=icc)
    assert Image.open(tmp_path / "b.png").info["icc_profile"] == b"profile"
    drawn("RGB").convert("CMYK").save(tmp_path / "a.tif", icc_profile=b"profile")
    assert read_photographs(tmp_path / "a.tif")[0][1] == b""


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_upright(turn: int, tmp_path):
    image = drawn("RGB")
    image.save(tmp_path / "a.png", exif=exif_of({0x0112: (3, turn)}))
    own = planes(image)
    ways = [own, own.flip(2), own.flip(1, 2), own.flip(1), own.mT, own.mT.flip(2), own.mT.flip(1, 2), own.mT.flip(1)]
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png"), Image.open(tmp_path / "a.png").convert("RGBA")):
        [(pixels, _)] = read_photographs(form)
        assert torch.equal(pixels[:3], ways[turn - 1])
    assert planes(form).shape == (4, *own.shape[1:])  # the caller's own image stays as it is


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "CMYK"])
def test_other_modes_become_grey_or_colour(mode: str):
    image = drawn("L").convert("I;16") if mode == "I;16" else drawn("RGB").convert(mode)
    [(pixels, _)] = read_photographs(image)
    assert pixels.shape == (3 if mode in ("P", "CMYK") else 1, 5, 7)


def test_a_palette_with_transparency_keeps_it(tmp_path):
    image = drawn("RGB").convert("P")
    image.save(tmp_path / "a.png", transparency=int(np.asarray(image)[0, 0]))
    [(pixels, _)] = read_photographs(tmp_path / "a.png")
    assert (len(pixels), int(pixels[3, 0, 0])) == (4, 0)


def test_tensors_and_lists_are_photographs_too():
    bytes_ = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    read = read_photographs([bytes_, bytes_[0].float() / 255, drawn("L")])
    assert torch.equal(torch.stack([pixels for pixels, _ in read[:2]]), bytes_)
    assert torch.equal(read[2][0], bytes_[0])
    assert len(read) == 4


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ([], refused("images")),
        (torch.rand(3, 4, 5) * 2, refused("images", [0, 1])),
        (torch.rand(2, 4, 5), refused("images", (2, 4, 5))),
        (torch.rand(4, 5), refused("images", (4, 5))),
        ("missing.png", refused("images", "missing.png")),
        (3, refused("images", "int")),
        (Image.new("F", (4, 4)), refused("images", "mode F")),
    ],
)
def test_what_is_no_photograph(source: object, refusal: refused):
    with refusal:
        read_photographs(source)


def test_more_pixels_than_a_code_file_holds(monkeypatch: pytest.MonkeyPatch, tmp_path):
    with refused("images", "20,000", f"{MOST_PIXELS:,}"):
        read_photographs(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 20_000, 20_000))
    drawn("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr("ddim.inversion.photograph.MOST_PIXELS", 7 * 5 - 1)
    for form in (drawn("RGB"), tmp_path / "a.png"):
        with refused("images", 7, 5, 34):
            read_photographs(form)


# --- the crop --------------------------------------------------------------------------------------------------------


def test_without_a_mask_the_crop_is_the_largest_at_the_centre():
    assert window((2000, 3000), SHAPE) == (500, 0, 2500, 2000)
    assert window((301, 200), SHAPE) == (0, 50, 200, 250)
    assert window((300, 300), (3, 32, 64)) == (0, 75, 300, 225)


def test_the_crop_of_a_mask_is_around_it_and_no_smaller_than_the_model():
    assert window((2000, 3000), SHAPE, (1000, 500, 1200, 700)) == (950, 450, 1250, 750)  # a quarter of 200 each side
    assert window((2000, 3000), SHAPE, (0, 0, 200, 200)) == (0, 0, 300, 300)  # moved into the photograph
    assert window((2000, 3000), SHAPE, (2999, 1999, 3000, 2000)) == (2968, 1968, 3000, 2000)
    assert window((2000, 3000), SHAPE, (100, 0, 2900, 100)) == (100, 0, 2900, 2000)  # wider than any square


@pytest.mark.parametrize("seed", range(50))
def test_a_crop_lies_in_the_photograph_and_holds_its_mask(seed: int):
    make = np.random.default_rng(seed)
    height, width = (int(n) for n in make.integers(1, 400, 2))
    shape = (3, *(int(n) for n in make.integers(1, 100, 2)))
    left, top = int(make.integers(0, width)), int(make.integers(0, height))
    around = (left, top, int(make.integers(left + 1, width + 1)), int(make.integers(top + 1, height + 1)))
    for box in (None, around):
        a, b, c, d = window((height, width), shape, box)
        assert 0 <= a < c <= width
        assert 0 <= b < d <= height
        if box is not None:
            assert a <= left < around[2] <= c
            assert b <= top < around[3] <= d


def test_crops_that_are_given():
    sizes = [(20, 30), (40, 50)]
    assert checked_crops("whole", sizes) == [(0, 0, 30, 20), (0, 0, 50, 40)]
    assert checked_crops([1, 2, 11, 12], sizes) == [(1, 2, 11, 12)] * 2
    assert checked_crops([(0, 0, 5, 5), "whole"], sizes) == [(0, 0, 5, 5), (0, 0, 50, 40)]
    wrong_ones = [(0, 0, 31, 20), (5, 0, 5, 9), "all", 3, [(0.0, 0, 9, 9), "whole"], [(0, 0, 31, 20), "whole"]]
    wrong_ones += [(0.0, 0, 9, 9), (0, 0, 9), (0, 0, 9, None), [3, "whole"], []]
    for wrong in wrong_ones:
        with refused("crop", "30x20"):
            checked_crops(wrong, sizes)
    with refused("crop", 3, 2):
        checked_crops(["whole"] * 3, sizes)


def test_the_size_of_a_crop_in_the_model():
    def size(width: int, height: int, crop=None, multiple: int = 8, side: int = 64) -> tuple[int, int]:
        pixels = torch.zeros(3, height, width, dtype=torch.uint8)
        return scaled_size(Photograph(pixels, crop or (0, 0, width, height)), (3, side, side), multiple)

    assert size(300, 200, multiple=0) == (64, 64)
    assert size(96, 64) == (56, 80)  # 3 : 2, about 64 * 64 pixels
    assert size(3000, 2000) == (56, 80)
    assert size(3000, 2000, (500, 0, 2500, 2000)) == (64, 64)
    assert size(3000, 2000, (0, 0, 2000, 1950)) == (64, 64)
    assert size(3000, 2000, (0, 0, 96, 64)) == (56, 80)
    assert takes((128, 128), (3, 64, 64), 8)
    assert not takes((136, 128), (3, 64, 64), 8)
    assert not takes((128, 128), (3, 64, 64), 0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_whole_photograph_is_read_as_an_image(mode: str):
    image = drawn(mode, 32, 32)
    one = Photograph(planes(image), (0, 0, 32, 32))
    assert torch.equal(scaled_crops([one], SHAPE, 0), read_images(image, SHAPE, resize=True))
    part = Photograph(planes(image), (3, 5, 20, 22))
    assert torch.equal(scaled_crops([part], SHAPE, 0), read_images(image.crop(part.crop), SHAPE, resize=True))


def test_photographs_that_the_model_takes_are_not_scaled():
    one, two = (Photograph(planes(drawn("RGB", *size)), (0, 0, *size)) for size in ((40, 24), (96, 64)))
    assert scaled_crops([one, one], SHAPE, 8).shape == (2, 3, 24, 40)
    assert torch.equal(scaled_crops([one], SHAPE, 8)[0], one.pixels / 255)
    assert scaled_crops([two], SHAPE, 8).shape == (1, 3, 24, 40)  # 6 times the model's pixels
    assert scaled_crops([one, two], SHAPE, 8).shape == (2, 3, 24, 40)


def test_crops_of_other_aspect_ratios_are_refused_together():
    one, two = (Photograph(torch.zeros(3, h, 40, dtype=torch.uint8), (0, 0, 40, h)) for h in (40, 20))
    with refused("crop", "32x32", "48x24"):
        scaled_crops([one, two], SHAPE, 8)
