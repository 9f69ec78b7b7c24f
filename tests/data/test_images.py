import os
from pathlib import Path

import numpy as np
import pytest
import torch
from exif import exif_of
from PIL import Image, ImageOps
from refusals import failed, refused

import ddim
from ddim.data.images import open_image, read_images, to_uint8

GREY, COLOUR = (1, 4, 6), (3, 4, 6)  # [C, H, W]


def pixels(shape=COLOUR, seed: int = 0) -> np.ndarray:
    """Random 8-bit values, [H, W, C] or [H, W]."""
    c, h, w = shape
    values = np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)
    return values[..., 0] if c == 1 else values


def tensor_of(values: np.ndarray) -> torch.Tensor:
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(values.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels()).save(path)
    return path


@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_a_file_an_image_and_a_tensor_are_the_same(tmp_path, shape):
    values = pixels(shape)
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image, tensor_of(values), tensor_of(values)[0]):
        assert torch.equal(read_images(source, shape), tensor_of(values))


def test_a_list_mixes_kinds(picture):
    batch = read_images([picture, Image.open(picture), torch.rand(2, *COLOUR)], COLOUR)
    assert batch.shape == (4, *COLOUR)
    assert torch.equal(batch[0], batch[1])


def test_bytes_are_scaled_to_one():
    assert read_images(torch.full(GREY, 255, dtype=torch.uint8), GREY).max() == 1


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float64, torch.float64), (torch.float16, torch.float32)])
def test_tensors_are_float32_or_wider(dtype, kept):
    assert read_images(torch.rand(GREY).to(dtype), GREY).dtype == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_saving_and_reading_eight_bits_is_lossless(tmp_path, dtype):
    values = tensor_of(pixels())
    path = ddim.save_image(values, tmp_path / "a.png", "what it is")
    assert torch.equal(read_images(path, COLOUR), values)
    assert Image.open(path).text == {"Description": "what it is"}


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ("missing.png", refused("images", "missing.png")),
        ([], refused("images")),
        (3.0, refused("images", "float")),
        (None, refused("images", "NoneType")),
        (torch.rand(4, 6), refused("images", (4, 6))),
        (torch.rand(0, *COLOUR), refused("images", (0, *COLOUR))),
        (torch.rand(COLOUR) * 2, refused("images", [0, 1])),
        (torch.rand(COLOUR) - 1, refused("images", [0, 1])),
        (torch.full(COLOUR, float("nan")), refused("images", "nan", [0, 1])),
        (torch.ones(COLOUR, dtype=torch.int64), refused("images", torch.int64, "uint8")),
        (torch.rand(GREY), refused("images", GREY, COLOUR, "resize")),
        (torch.rand(3, 9, 9), refused("images", (3, 9, 9), COLOUR)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, torch.Tensor) else repr(v),
)
def test_what_is_no_image(source, refusal):
    with refusal:
        read_images(source, COLOUR)


def test_a_truncated_file(picture):
    picture.write_bytes(picture.read_bytes()[:-30])
    with refused("images", picture, "truncated"):
        read_images(picture, COLOUR)


@pytest.mark.parametrize("content", [b"", b"this is text"])
def test_a_file_that_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with refused("images", tmp_path / "a.png"):
        read_images(tmp_path / "a.png", COLOUR)


def test_a_folder_is_no_image(tmp_path):
    with refused("images", tmp_path):
        read_images(tmp_path, COLOUR)


def test_wrong_channels_say_what_would_fit():
    with refused("images", 1, 3):
        read_images(Image.fromarray(pixels(GREY)), COLOUR)
    with refused("images", 3, 1):
        read_images(Image.fromarray(pixels()), GREY)


def test_a_wrong_size_says_what_would_fit():
    with refused("images", "9x5", "6x4"):
        read_images(Image.new("RGB", (9, 5)), COLOUR)


def test_a_model_of_two_channels_has_no_pictures():
    with refused(None, 2):
        read_images(Image.new("RGB", (6, 4)), (2, 4, 6), resize=True)


# --- resize, alpha, depth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 4), (12, 8), (30, 4), (5, 40), (1, 1)])
@pytest.mark.parametrize("kind", ["pil", "tensor"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_fits_anything(size, kind, channels):
    source = torch.rand(channels, size[1], size[0])
    image = source if kind == "tensor" else ddim.to_pil(source)
    for shape in (GREY, COLOUR):
        out = read_images(image, shape, resize=True)
        assert out.shape == (1, *shape)
        assert out.min() >= 0
        assert out.max() <= 1


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_resize_crops_to_the_middle_and_keeps_a_flat_colour(kind):
    wide = torch.zeros(3, 4, 30)
    wide[:, :, 10:20] = 0.6  # all that a 6x4 model sees of it lies in here
    out = read_images(wide if kind == "tensor" else ddim.to_pil(wide), COLOUR, resize=True)
    assert torch.allclose(out, torch.full_like(out, 0.6), atol=1 / 255)


def test_resize_leaves_what_fits_alone(picture):
    assert torch.equal(read_images(picture, COLOUR, resize=True), read_images(picture, COLOUR))


def test_grey_from_colour_is_the_usual_luma():
    image = torch.rand(COLOUR)
    expected = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    assert torch.allclose(read_images(image, GREY, resize=True)[0, 0], expected, atol=1e-6)
    from_file = read_images(ddim.to_pil(image), GREY, resize=True)[0, 0]
    assert torch.allclose(from_file, expected, atol=1.5 / 255)


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    out = read_images(image, COLOUR)[0]
    assert out[:, 3, 3].tolist() == [1, 1, 1]
    assert out[:, 0, 0].tolist() == [1, 0, 0]
    assert out[0, 0, 1] == pytest.approx(127 / 255, abs=1 / 255)


def test_transparent_grey_and_palettes_lie_on_white(tmp_path):
    assert read_images(Image.new("LA", (6, 4), (0, 0)), GREY).min() == 1
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert read_images(tmp_path / "p.png", COLOUR).min() == 1


@pytest.mark.parametrize("dtype", [np.uint16, ">u2"])
def test_sixteen_bits_become_eight(tmp_path, dtype):
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 257
    path = tmp_path / ("a.png" if dtype is np.uint16 else "a.tif")  # TIFF keeps the byte order, and PIL's mode tells
    Image.fromarray(values.astype(dtype)).save(path)
    assert torch.equal(read_images(path, GREY)[0, 0], torch.arange(24).view(4, 6) / 255)


def test_the_full_sixteen_bit_range_is_white():
    image = Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16))
    assert read_images(image, GREY).min() == 1


def test_transparent_sixteen_bits_lie_on_white(tmp_path):
    values = np.full((4, 6), 257, dtype=np.uint16)
    values[0, 0] = 300
    Image.fromarray(values).save(tmp_path / "a.png", transparency=300)
    out = read_images(tmp_path / "a.png", GREY)[0, 0]
    assert out[0, 0] == 1
    assert out[1, 1] == pytest.approx(1 / 255)


def test_an_image_of_floats_is_refused():
    with refused("images", "mode F"):
        read_images(Image.new("F", (6, 4), 0.5), GREY)


def test_a_turned_photo_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(pixels((3, 6, 4))).save(tmp_path / "a.png", exif=exif)
    assert read_images(tmp_path / "a.png", COLOUR).shape == (1, *COLOUR)
    assert torch.equal(read_images(Image.open(tmp_path / "a.png"), COLOUR), read_images(tmp_path / "a.png", COLOUR))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("strange", [{}, {0x0128: (5, (2, 1))}, {0x011A: (2, "72 dpi")}], ids=["plain", "unit", "text"])
def test_every_turn_is_known_without_writing_the_exif_anew(tmp_path, orientation, strange):
    """ResolutionUnit as RATIONAL and XResolution as ASCII, as some cameras write them, are no reason to fail."""
    values = pixels((3, 5, 7))
    as_pillow = Image.Exif()
    as_pillow[0x0112] = orientation
    plain = tmp_path / "plain.png"
    Image.fromarray(values).save(plain, exif=as_pillow)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(plain)))
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif_of({0x0112: (3, orientation), **strange}))
    found = open_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(found), upright)
    assert found.getexif().get(0x0112, 1) == 1 or orientation == 1  # who turns it again turns nothing


def test_damaged_exif_says_nothing_against_the_pixels(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert torch.equal(read_images(tmp_path / "a.png", COLOUR), tensor_of(pixels()))


@pytest.mark.parametrize(
    "failure",
    [RuntimeError, ZeroDivisionError, NotImplementedError, AttributeError, KeyError, Warning, MemoryError],
)
def test_whatever_a_decoder_raises_is_one_sentence_that_names_the_file(picture, monkeypatch, failure):
    def broken(_self):
        raise failure("no codec\nand more")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
    for source in (picture, Image.open(picture)):
        with pytest.raises(ddim.InputError) as caught:
            read_images(source, COLOUR)
        assert caught.value.parameter == "images"
        assert "\n" not in str(caught.value)
        assert str(picture) in str(caught.value) or source is not picture


def test_what_is_not_the_files_fault_passes(picture, monkeypatch):
    def broken(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
    with pytest.raises(KeyboardInterrupt):
        read_images(picture, COLOUR)


def test_a_panorama_beyond_pillows_limit_is_too_large_and_not_broken(picture, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with refused("images", picture, 24, 20, hint=True) as caught:
        read_images(picture, COLOUR)
    assert "broken" not in str(caught.value)
    assert caught.value.hint is not None
    assert "MAX_IMAGE_PIXELS" in caught.value.hint


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_numbers_without_an_agreed_white_are_refused(tmp_path, mode):
    """Integers of 32 bits came out black below 257 and white above 65535."""
    image = Image.new(mode, (6, 4))
    image.save(tmp_path / "a.tif")
    for source in (image, tmp_path / "a.tif"):
        with refused("images", f"mode {mode}"):
            read_images(source, GREY, resize=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool])
def test_tensors_of_other_integers_are_refused(dtype):
    with pytest.raises(ddim.InputError) as caught:
        read_images(torch.ones(COLOUR, dtype=torch.int64).to(dtype), COLOUR)
    assert caught.value.parameter == "images"


def test_sixteen_bits_of_a_pgm_become_eight(tmp_path):
    """Pillow hands them out as mode I, which has 32."""
    values = (np.arange(24, dtype=">u2") * 257).reshape(4, 6)
    (tmp_path / "a.pgm").write_bytes(b"P5 6 4 65535 " + values.tobytes())
    assert Image.open(tmp_path / "a.pgm").mode == "I"
    assert torch.equal(read_images(tmp_path / "a.pgm", GREY)[0, 0], torch.arange(24).view(4, 6) / 255)


def test_a_name_that_is_not_utf_8_is_read_and_said(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.fromarray(pixels()).save(name)
    assert torch.equal(read_images(name, COLOUR), tensor_of(pixels()))
    Path(name).write_bytes(b"text")
    with refused("images", r"caf\xe9.png") as caught:
        read_images(name, COLOUR)
    str(caught.value).encode("utf-8")
    out = ddim.save_image(torch.rand(COLOUR), tmp_path / "a.png", f"of {name}")
    assert r"caf\xe9.png" in Image.open(out).text["Description"]


# --- out ------------------------------------------------------------------------------------------------------------


def test_to_uint8_rounds_to_the_nearest():
    assert to_uint8(torch.tensor([-1.0, 0.0, 0.5 / 255 + 1e-4, 0.999, 1.0, 2.0])).tolist() == [0, 0, 1, 255, 255, 255]


def test_to_pil_takes_one_image_only():
    assert ddim.to_pil(torch.rand(1, *COLOUR)).size == (6, 4)
    assert ddim.to_pil(torch.rand(GREY)).mode == "L"
    with refused(None, (2, *COLOUR)):
        ddim.to_pil(torch.rand(2, *COLOUR))
    with refused(None, 2):
        ddim.to_pil(torch.rand(2, 4, 6))


def test_a_sheet_lays_images_out_row_by_row():
    images = torch.stack([torch.full(GREY, k / 255) for k in (10, 20, 30, 40, 50)])
    page = ddim.sheet(images, columns=3, scale=2, gap=1)
    assert page.size == (3 * (12 + 1) + 1, 2 * (8 + 1) + 1)
    assert [page.getpixel((1 + 13 * c, 1)) for c in range(3)] == [10, 20, 30]
    assert page.getpixel((1, 10)) == 40
    assert page.getpixel((0, 0)) == page.getpixel((39, 18)) == 255


def test_a_sheet_is_square_by_default():
    assert ddim.sheet(torch.rand(9, *COLOUR), gap=0).size == (18, 12)


def test_pictures_are_png_only(tmp_path):
    with refused("path", tmp_path / "a.jpg", ".png"):
        ddim.save_image(torch.rand(COLOUR), tmp_path / "a.jpg")


def test_a_picture_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", broken)
    with failed(None, tmp_path / "a.png"):
        ddim.save_image(torch.rand(COLOUR), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
