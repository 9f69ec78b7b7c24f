"""Local blend: masks of words and of users."""

from pathlib import Path

import pytest
import torch
from exif import exif_of
from PIL import Image
from refusals import refused

from ddim._utils.errors import InputError
from ddim.editing.blend import blended, from_maps, read_masks, to_latent

SIZE = (6, 4)


def read(mask: object, images: int = 1) -> torch.Tensor:
    """Masks of one size, [N, H, W]."""
    return torch.stack(read_masks(mask, images))


def square(height: int = 6, width: int = 4) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[:3, :2] = 1
    return mask


@pytest.mark.parametrize("kind", ["float", "bool", "uint8", "[1,H,W]", "[1,1,H,W]", "PIL", "RGB", "path"])
def test_a_mask_in_every_form(kind: str, tmp_path: Path):
    mask = square()
    picture = Image.fromarray((mask * 255).byte().numpy())
    picture.convert("RGB").save(tmp_path / "mask.png")
    form = {
        "float": mask,
        "bool": mask.bool(),
        "uint8": (mask * 255).byte(),
        "[1,H,W]": mask[None],
        "[1,1,H,W]": mask[None, None],
        "PIL": picture,
        "RGB": picture.convert("RGB"),
        "path": str(tmp_path / "mask.png"),
    }[kind]
    assert torch.equal(read(form, 3), mask.expand(3, 6, 4))


def painted(mode: str, values: torch.Tensor) -> Image.Image:
    """A mask [H, W] of 0 and 1 as a picture whose white is the largest value of its mode."""
    grey = (values * 255).byte().numpy()
    if mode == "I;16":
        return Image.fromarray((values * 65535).numpy().astype("uint16"))
    if mode == "I":
        return Image.fromarray((values * 65535).numpy().astype("int32"))
    return Image.fromarray(values.numpy()) if mode == "F" else Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "F"])
def test_a_mask_in_every_mode_of_pictures(mode: str):
    assert torch.equal(read(painted(mode, square())), square()[None])


def test_a_mask_of_32_bits_has_no_agreed_white():
    with pytest.raises(InputError) as caught:
        read(painted("I", square()))
    assert caught.value.parameter == "mask"


@pytest.mark.parametrize("kind", ["uint8", "int64", "int16", "L", "P", "RGB", "I", "I;16", "png"])
@pytest.mark.parametrize("mask", [square(), torch.zeros(SIZE), torch.ones(SIZE)], ids=["square", "empty", "full"])
def test_a_mask_of_0_and_1_is_one_whatever_its_type(kind: str, mask: torch.Tensor, tmp_path: Path):
    bits = Image.fromarray(mask.byte().numpy())
    palette = Image.new("P", bits.size)
    palette.putpalette([v for v in range(256) for _ in range(3)])
    palette.paste(bits)
    bits.save(tmp_path / "mask.png")
    form = {
        "uint8": mask.byte(),
        "int64": mask.long(),
        "int16": mask.short(),
        "L": bits,
        "P": palette,
        "RGB": bits.convert("RGB"),
        "I": Image.fromarray(mask.numpy().astype("int32")),
        "I;16": Image.fromarray(mask.numpy().astype("uint16")),
        "png": tmp_path / "mask.png",
    }[kind]
    assert torch.equal(read(form), mask[None])


def test_eight_bits_that_are_more_than_two_values_run_to_255():
    mask = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    for form in (mask, Image.fromarray(mask.numpy())):
        assert torch.equal(read(form)[0], mask / 255)


def test_what_is_transparent_stays():
    white = Image.new("RGBA", (4, 6), (255, 255, 255, 0))
    white.paste((255, 255, 255, 255), (0, 0, 2, 3))
    assert torch.equal(read(white), square()[None])


def black_on_nothing() -> Image.Image:
    image = Image.new("RGBA", (4, 6), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 3))
    return image


def test_a_mask_an_image():
    masks = [square(), 1 - square()]
    assert torch.equal(read(masks, 2), torch.stack(masks))
    assert torch.equal(read(torch.stack(masks), 2), torch.stack(masks))


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_is_upright(turn: int, tmp_path: Path):
    mask = torch.arange(24).view(6, 4) / 255
    Image.fromarray((mask * 255).byte().numpy()).save(tmp_path / "a.png", exif=exif_of({0x0112: (3, turn)}))
    ways = [mask, mask.flip(1), mask.flip(0, 1), mask.flip(0)]
    ways += [mask.mT, mask.mT.flip(1), mask.mT.flip(0, 1), mask.mT.flip(0)]
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert torch.equal(read(form)[0], ways[turn - 1])


@pytest.mark.parametrize(
    ("mask", "refusal"),
    [
        (torch.zeros(2, 6, 4), refused("mask", (2, 6, 4), 3)),
        (torch.full((6, 4), 1.5), refused("mask", 1.5)),
        (torch.full((6, 4), torch.nan), refused("mask", "nan")),
        ([square()] * 2, refused("mask", 2, 3)),
        (7, refused("mask", "int")),
        (torch.zeros(6, 4, dtype=torch.complex64), refused("mask", torch.complex64)),
        (torch.full((6, 4), 255), refused("mask", 255)),
        (Image.new("RGB", (4, 6), "red"), refused("mask", "colours")),
        (Image.fromarray(torch.full((6, 4), 255).numpy().astype("uint16")), refused("mask", 255, 65535)),
        (Image.fromarray(torch.full((6, 4), 2.0).numpy()), refused("mask", 2)),
        (black_on_nothing(), refused("mask", "black", "transparent")),
        (Image.new("L", (0, 6)), refused("mask", "0x6")),
        ("nowhere.png", refused("mask", "nowhere.png")),
    ],
)
def test_masks_that_do_not_fit(mask, refusal: refused):
    with refusal:
        read_masks(mask, 3)


def test_a_mask_on_the_latent_is_the_part_that_may_change():
    assert torch.equal(to_latent(square()[None, None], (3, 2))[0, 0], torch.tensor([[1, 0], [0.5, 0], [0, 0]]))


def test_the_place_of_words_by_hand():
    maps = torch.zeros(1, 3, 2, 4, 4)
    maps[0, 0, 0, 0, 0] = 2.0  # 3x3 max-pool: [0:2, 0:2]
    maps[0, 0, 1, 3, 3] = 1.0  # union with [2:4, 2:4]
    maps[0, 1, 0, 1, 1], maps[0, 1, 0, 3, 3] = 1.0, 0.3  # 0.3 of the maximum is not above the threshold
    place = from_maps(maps, (4, 4), 0.3)
    expected = torch.zeros(3, 4, 4)
    expected[0, :2, :2] = expected[0, 2:, 2:] = 1
    expected[1, :3, :3] = 1
    assert torch.equal(place[0], expected)  # and no map at all is nowhere
    assert torch.equal(from_maps(maps, (8, 8), 0.3)[0], expected.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_blending_by_hand():
    x = torch.randn(6, 2, 4, 4)  # s1 t11 t12 s2 t21 t22
    mask = torch.rand(2, 2, 4, 4)
    mask[0, 0], mask[1, 1] = 0, 1
    out = blended(x, mask)
    assert torch.equal(out[[0, 3]], x[[0, 3]])
    assert torch.equal(out[1], x[0])
    assert torch.equal(out[5], x[5])
    assert torch.allclose(out[2], x[0] + mask[0, 1] * (x[2] - x[0]), atol=1e-6)
    assert torch.allclose(out[4], x[3] + mask[1, 0] * (x[4] - x[3]), atol=1e-6)
    one = blended(x, mask[:, :1])  # one mask for all targets of an image
    assert torch.equal(one[[1, 2]], x[[0, 0]])
