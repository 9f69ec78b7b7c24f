"""Photographs of any size in ``invert`` and ``edit``: outside of the mask every byte is the photograph's."""

import ast
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_text
import torch
from exif import exif_of
from PIL import Image
from refusals import refused, warned
from torch import Tensor

import ddim
from ddim import Edited, Interrupted, LatentCode, StepEvent
from ddim.data.photographs import read_photographs
from ddim.models.sd import StableDiffusion
from ddim.pipelines.interpolate import combine, join
from ddim.pipelines.pictures import Pictures, read_pictures

SOURCE, TARGET = "a cat next to a mirror", "a tiger next to a mirror"
SETTINGS = {"source_prompt": SOURCE, "steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return tiny_text.model(dtype=torch.float64)


def bytes_of(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def own(image: Image.Image) -> Tensor:
    return read_photographs(image)[0][0]


def disc(width: int, height: int, x: float, y: float, radius: float, soft: float = 0.0) -> Tensor:
    """A mask [H, W] of a disc, with a soft edge of this width."""
    rows, columns = torch.arange(height)[:, None] - y, torch.arange(width)[None] - x
    apart = radius - (rows.square() + columns.square()).sqrt()
    return (apart / soft).clamp(0, 1) if soft else (apart > 0).float()


def changed(edited: Edited, photograph: Tensor, mask: Tensor, n: int = 0, k: int = 0) -> tuple[int, int]:
    """How many bytes of a result differ from the photograph [C, H, W]: outside of the mask [H, W], and inside it."""
    assert edited.composites is not None
    made = edited.composites[n][k]
    assert (made.dtype, made.shape) == (torch.uint8, photograph.shape)
    differ = made != photograph
    return int(differ[:, mask == 0].sum()), int(differ[:, mask > 0].sum())


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "width", "height", "soft", "feather"),
    [
        ("RGB", 301, 203, 0, 0),
        ("RGB", 301, 203, 0, 40),
        ("RGB", 203, 301, 9.0, None),
        ("L", 97, 133, 0, None),
        ("LA", 150, 99, 5.0, 3),
        ("RGBA", 211, 157, 0, None),
        ("RGB", 23, 17, 0, 1),  # smaller than the model's images
        ("RGB", 32, 32, 0, None),  # just their size
        ("RGB", 31, 1, 0, 0),
    ],
)
def test_outside_of_the_mask_every_byte_is_the_photographs(model, mode, width, height, soft, feather, tmp_path: Path):
    image = bytes_of(mode, width, height)
    image.save(tmp_path / "photo.png")
    mask = disc(width, height, 0.3 * width, 0.6 * height, 0.2 * max(width, height), soft)
    edited = ddim.edit(model, tmp_path / "photo.png", TARGET, mask=mask, feather=feather, **SETTINGS)
    outside, inside = changed(edited, own(image), mask)
    assert outside == 0
    assert inside > 0.5 * int((mask > 0).sum())
    assert edited.edits.shape[:3] == (1, 1, 3)
    assert edited.code.sources[0].size == (height, width)


@pytest.mark.parametrize("kind", ["full", "corner"])
def test_masks_at_their_ends(model, kind: str):
    image, mask = bytes_of("RGB", 90, 70), torch.zeros(70, 90)
    mask = torch.ones(70, 90) if kind == "full" else mask
    mask[60:, 80:] = 1  # at the border of the photograph, and so of the crop
    edited = ddim.edit(model, image, TARGET, mask=mask, feather=0, **SETTINGS)
    outside, inside = changed(edited, own(image), mask)
    assert outside == 0
    assert inside > 0
    assert edited.code.crops == ((0, 0, 90, 70) if kind == "full" else (58, 38, 90, 70),)


def test_a_mask_that_misses_the_crop_is_refused(model):
    image, mask = bytes_of("RGB", 90, 70), torch.zeros(70, 90)
    with refused("mask", 0):
        ddim.edit(model, image, TARGET, mask=mask, **SETTINGS)
    mask[60:] = 1
    with warned((0, 0), (40, 40)), refused("mask", 0):
        ddim.edit(model, image, TARGET, mask=mask, crop=(0, 0, 40, 40), **SETTINGS)


def test_a_turned_photograph_is_edited_upright(model, tmp_path: Path):
    image = bytes_of("RGB", 80, 60)
    image.save(tmp_path / "turned.png", exif=exif_of({0x0112: (3, 6)}))
    upright = own(image).mT.flip(2)
    mask = disc(60, 80, 20, 30, 12)
    for form in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        edited = ddim.edit(model, form, TARGET, mask=mask, **SETTINGS)
        assert changed(edited, upright, mask)[0] == 0
        assert changed(edited, upright, mask)[1] > 0


def test_the_crop_that_is_given_is_the_one_that_changes(model):
    image = bytes_of("RGB", 120, 80)
    edited = ddim.edit(model, image, TARGET, crop=(10, 20, 60, 70), feather=0, **SETTINGS)
    inside = torch.zeros(80, 120)
    inside[20:70, 10:60] = 1
    assert changed(edited, own(image), inside) == (0, changed(edited, own(image), inside)[1])
    assert changed(edited, own(image), inside)[1] > 0.9 * 3 * 50 * 50
    assert edited.source is not None
    assert edited.source.shape == (1, 3, 32, 32)


def test_a_mask_beyond_the_crop_warns_and_changes_nothing_there(model):
    image, mask = bytes_of("RGB", 120, 80), torch.ones(80, 120)
    with warned("(0, 0)", "(120, 80)", "(10, 20)", "(60, 70)"):
        edited = ddim.edit(model, image, TARGET, mask=mask, crop=(10, 20, 60, 70), **SETTINGS)
    mask[:20] = mask[70:] = mask[:, :10] = mask[:, 60:] = 0
    assert changed(edited, own(image), mask)[0] == 0


def test_words_that_blend_are_the_mask(model):
    how = ddim.AttentionEdit("refine", blend_threshold=0.93)
    image = bytes_of("RGB", 301, 203)
    edited = ddim.edit(model, image, TARGET, blend="cat/tiger", attention=how, feather=0, **SETTINGS)
    assert edited.blend_mask is not None
    assert 0 < edited.blend_mask.mean() < 1
    left, top, right, bottom = edited.code.crops[0]
    assert (left, top, right, bottom) == (49, 0, 252, 203)
    mask = torch.zeros(203, 301)
    pixels = torch.arange(203).add(0.5).mul(32 / 203).floor().long()
    mask[top:bottom, left:right] = edited.blend_mask[0, 0][pixels][:, pixels].float()
    outside, inside = changed(edited, own(image), mask)
    assert outside == 0
    assert inside > int(mask.sum())


def test_words_and_a_mask_change_where_both_allow_it(model):
    how = ddim.AttentionEdit("refine", blend_threshold=0.93)
    image, mask = bytes_of("RGB", 96, 96), disc(96, 96, 40, 50, 30, 6.0)
    settings = {"blend": "cat/tiger", "attention": how, "crop": "whole", "feather": 0, **SETTINGS}
    both = ddim.edit(model, image, TARGET, mask=mask, **settings)
    assert both.blend_mask is not None
    allowed = both.blend_mask[0, 0].float().repeat_interleave(3, 0).repeat_interleave(3, 1) > 0
    assert changed(both, own(image), mask)[0] == 0
    assert changed(both, own(image), allowed * mask)[0] == 0
    assert changed(both, own(image), allowed * mask)[1] > 0
    assert bool(((mask > 0) & ~allowed).any())  # the words leave a part of the mask as it is


# --- several photographs and targets ---------------------------------------------------------------------------------


def test_photographs_of_other_sizes_are_edited_together(model):
    images = [bytes_of("RGB", 101, 60, 1), bytes_of("L", 50, 77, 2)]
    masks = [disc(101, 60, 40, 30, 15), disc(50, 77, 25, 50, 10)]
    together = ddim.edit(model, images, [TARGET, "a dog next to a mirror"], mask=masks, **SETTINGS)
    assert together.composites is not None
    assert [len(row) for row in together.composites] == [2, 2]
    for n, (image, mask) in enumerate(zip(images, masks, strict=True)):
        alone = ddim.edit(model, image, [TARGET, "a dog next to a mirror"], mask=mask, **SETTINGS)
        assert alone.composites is not None
        for k in range(2):
            assert changed(together, own(image), mask, n, k)[0] == 0
            assert changed(together, own(image), mask, n, k)[1] > 0
            difference = together.composites[n][k].int() - alone.composites[0][k].int()
            assert int(difference.abs().max()) <= 1  # of the last bits of a batch
        assert not torch.equal(together.composites[n][0], together.composites[n][1])


# --- codes that keep their source ------------------------------------------------------------------------------------


def test_a_code_that_keeps_its_source_edits_without_the_photograph(model, tmp_path: Path):
    image, mask = bytes_of("RGB", 301, 203), disc(301, 203, 100, 90, 40)
    image.save(tmp_path / "photo.png", icc_profile=b"profile")
    settings = {"prompt": SOURCE, "steps": 3, "guidance": 3.0, "method": "direct"}
    bare = ddim.invert(model, tmp_path / "photo.png", crop=(40, 30, 160, 150), **settings)
    kept = ddim.invert(model, tmp_path / "photo.png", crop=(40, 30, 160, 150), keep_source=True, **settings)
    assert (bare.sources, bare.crops) == ((), ())
    assert torch.equal(bare.x, kept.x)
    assert "sources" not in repr(bare)
    assert "301x203" in repr(kept)
    (tmp_path / "photo.png").unlink()
    loaded = LatentCode.load(kept.save(tmp_path / "a.code"))
    assert torch.equal(loaded.sources[0].pixels, own(image))
    assert (loaded.crops, loaded.sources[0].icc) == (((40, 30, 160, 150),), b"profile")
    edited = ddim.edit(model, loaded, TARGET, mask=mask)
    assert changed(edited, own(image), mask)[0] == 0
    assert changed(edited, own(image), mask)[1] > 0
    without = ddim.edit(model, loaded, TARGET, feather=2)  # nothing else says where: the crop
    inside = torch.zeros(203, 301)
    inside[30:150, 40:160] = 1
    assert changed(without, own(image), inside)[0] == 0
    assert changed(without, own(image), inside)[1] > 0
    assert torch.equal(ddim.reconstruct(model, loaded), ddim.reconstruct(model, bare))
    with warned("(0, 0)", "(301, 203)", "(40, 30)", "(160, 150)"):
        ddim.edit(model, loaded, TARGET, mask=torch.ones(203, 301))


def test_parts_of_a_code_keep_their_sources(model, tmp_path: Path):
    images = [bytes_of("RGB", 40 + n, 50, n) for n in range(3)]
    code = ddim.invert(model, images, prompt=SOURCE, steps=2, keep_source=True, batch=2)
    assert [source.size for source in code[1:].sources] == [(50, 41), (50, 42)]
    assert [source.size for source in code.take([2, 0]).sources] == [(50, 42), (50, 40)]
    one = LatentCode.load(code[2].save(tmp_path / "one"))
    assert torch.equal(one.sources[0].pixels, own(images[2]))
    edited = ddim.edit(model, one, TARGET, mask=disc(42, 50, 20, 20, 9))
    assert changed(edited, own(images[2]), disc(42, 50, 20, 20, 9))[0] == 0
    assert ddim.interpolate(model, code[0], code[1], frames=3).shape == (3, 3, 32, 32)


def test_an_interrupted_inversion_keeps_its_sources(model):
    images = [bytes_of("RGB", 40 + n, 50, n) for n in range(3)]
    settings = {"prompt": SOURCE, "steps": 2, "keep_source": True, "batch": 1}
    whole, seen = ddim.invert(model, images, **settings), []

    def stop(event: object) -> None:
        seen.append(event)
        if isinstance(event, StepEvent) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        ddim.invert(model, images, on_event=stop, **settings)
    partial = caught.value.partial
    assert [source.size for source in partial.sources] == [(50, 40)]
    resumed = ddim.invert(model, images, resume=partial, **settings)
    assert torch.equal(resumed.x, whole.x)
    assert [source.size for source in resumed.sources] == [(50, 40), (50, 41), (50, 42)]
    with refused("resume", (0, 0, 30, 30)):
        ddim.invert(model, images, resume=partial, crop=(0, 0, 30, 30), **settings)
    with refused("resume", 1):
        ddim.invert(model, [bytes_of("RGB", 40, 50, 7), *images[1:]], resume=partial, **settings)
    with refused("resume", 1):  # with transparency
        ddim.invert(model, [images[0].convert("RGBA"), *images[1:]], resume=partial, **settings)
    parts = [event.code for event in seen if isinstance(event, ddim.CodeEvent)]
    assert [part.crops for part in parts] == [whole.crops[:1]]


def test_keeping_the_source_of_an_image_that_fits_changes_no_number(model):
    pictures = tiny_text.pictures(2)
    bare = ddim.invert(model, pictures, prompt=SOURCE, steps=2)
    kept = ddim.invert(model, pictures, prompt=SOURCE, steps=2, keep_source=True)
    assert torch.equal(bare.x, kept.x)
    assert kept.crops == ((0, 0, 32, 32),) * 2
    assert torch.equal(kept.sources[1].pixels, (pictures[1] * 255).round().to(torch.uint8))


def test_a_large_photograph_is_cropped_though_the_model_takes_its_size(model):
    image = bytes_of("RGB", 130, 96)
    assert ddim.invert(model, image, prompt=SOURCE, steps=2, keep_source=True).crops == ((17, 0, 113, 96),)
    assert ddim.invert(model, image, prompt=SOURCE, steps=2, keep_source=True).x.shape == (1, 4, 16, 16)
    assert ddim.invert(model, image, prompt=SOURCE, steps=2).x.shape == (1, 4, 48, 65)


def test_resize_keeps_the_photograph_too(model):
    image = bytes_of("RGB", 101, 60)
    bare = ddim.invert(model, image, prompt=SOURCE, steps=2, resize=True)
    kept = ddim.invert(model, image, prompt=SOURCE, steps=2, resize=True, keep_source=True)
    assert torch.equal(bare.x, kept.x)
    assert kept.crops == ((20, 0, 80, 60),)


def test_a_class_edits_a_photograph():
    classed = tiny.model(classes=4)
    image, mask = bytes_of("RGB", 61, 43), disc(61, 43, 30, 20, 12)
    edited = ddim.edit(classed, image, labels=1, source_labels=0, steps=3, guidance=2.0, mask=mask)
    outside, inside = changed(edited, own(image), mask)
    assert outside == 0
    assert inside > 0


# --- what is not pasted ----------------------------------------------------------------------------------------------


def test_pictures_and_reconstruction_are_decoded_and_never_pasted(model):
    image, mask = bytes_of("RGB", 32, 32), disc(32, 32, 16, 16, 8)
    code = ddim.invert(model, image, prompt=SOURCE, steps=3, guidance=3.0)
    kept = ddim.invert(model, image, prompt=SOURCE, steps=3, guidance=3.0, keep_source=True)
    bare, pasted = ddim.edit(model, code, TARGET, mask=mask), ddim.edit(model, kept, TARGET, mask=mask)
    assert bare.composites is None
    assert pasted.composites is not None
    assert torch.equal(bare.reconstruction, pasted.reconstruction)
    assert torch.equal(bare.edits, pasted.edits)
    outside = mask == 0
    shown = (pasted.edits[0, 0] * 255).round().to(torch.uint8)
    assert int((shown != own(image))[:, outside].sum()) > 0  # decoded, and so not the photograph's


def test_no_benchmark_looks_at_what_was_pasted():
    root = Path(ddim.__file__).parent
    seen: set[str] = set()
    for file in (root / "evaluation").rglob("*.py"):
        names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(file.read_text()))}
        seen |= names & {"edits", "reconstruction"}
        assert not names & {"composites", "keep_source", "pasted"}, file
    assert seen == {"edits", "reconstruction"}  # the search finds attributes


def test_without_mask_and_crop_nothing_is_pasted(model):
    edited = ddim.edit(model, tiny_text.pictures(1), TARGET, **SETTINGS)
    assert (edited.composites, edited.code.sources) == (None, ())


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"crop": (0, 0, 102, 60)}, refused("crop", (0, 0, 102, 60), "101x60")),
        ({"crop": "all"}, refused("crop", "'all'")),
        ({"crop": (0, 0, 9, 9), "resize": True}, refused("crop")),
        ({"mask": torch.ones(30, 30)}, refused("mask", "30x30", "101x60", "60x60", "32x32")),
        ({"mask": torch.ones(60, 101), "feather": -1}, refused("feather", -1)),
        ({"mask": torch.ones(60, 101), "feather": 1.5}, refused("feather", 1.5)),
        ({}, refused("images", "101x60")),
    ],
)
def test_bad_photographs(model, options, refusal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.pipelines.edit_source.invert", None)  # before any work
    with refusal:
        ddim.edit(model, bytes_of("RGB", 101, 60), TARGET, **SETTINGS, **options)


@pytest.mark.parametrize("options", [{"crop": "whole"}, {"resize": True}, {"mask": torch.ones(32, 32)}], ids=list)
@pytest.mark.parametrize("keep", [False, True])
def test_images_that_were_read_take_no_further_word(model, options, keep: bool, monkeypatch: pytest.MonkeyPatch):
    pictures = read_pictures(model, tiny_text.pictures(1), keep=keep)
    monkeypatch.setattr("ddim.pipelines.edit_source.invert", None)  # before any work
    monkeypatch.setattr("ddim.pipelines.invert.invert_batches", None)
    name = next(iter(options))
    with refused(name):
        ddim.edit(model, pictures, TARGET, **SETTINGS, **options)
    if name != "mask":
        with refused(name):
            ddim.invert(model, pictures, prompt=SOURCE, steps=2, **options)


def test_images_that_were_read_keep_the_photographs_they_hold(model, monkeypatch: pytest.MonkeyPatch):
    image, mask = bytes_of("RGB", 101, 60), disc(101, 60, 40, 30, 15)
    pictures = read_pictures(model, image, crop=(10, 5, 58, 53), keep=True)
    code = ddim.invert(model, pictures, prompt=SOURCE, steps=2, keep_source=True)
    assert torch.equal(code.sources[0].pixels, own(image))
    assert ddim.invert(model, pictures, prompt=SOURCE, steps=2).sources == ()
    edited = ddim.edit(model, read_pictures(model, image, mask=mask), TARGET, **SETTINGS)
    assert changed(edited, own(image), mask)[0] == 0
    assert changed(edited, own(image), mask)[1] > 0
    monkeypatch.setattr("ddim.pipelines.invert.invert_batches", None)
    with refused("keep_source"):
        ddim.invert(model, Pictures(pictures.pixels), prompt=SOURCE, steps=2, keep_source=True)


def test_a_photograph_that_no_code_file_holds_is_refused_before_any_work(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddim.pipelines.invert.invert_batches", None)
    huge = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 20_000, 20_000)
    with refused("images", "20,000"):
        ddim.invert(model, huge, prompt=SOURCE, steps=2, keep_source=True)
    with refused("images", "20,000"):
        ddim.edit(model, huge, TARGET, mask=torch.ones(32, 32), **SETTINGS)


def test_a_mixed_code_keeps_no_source(model, tmp_path: Path):
    code = ddim.invert(model, tiny_text.pictures(2), prompt=SOURCE, steps=2, keep_source=True)
    mixed = combine([code], lambda rows: torch.cat([rows[0], rows[0], rows[1]]))
    assert (len(code.sources), mixed.sources) == (2, ())
    assert len(LatentCode.load(mixed.save(tmp_path / "mixed"))) == 3


def test_joined_codes_keep_their_sources_only_if_each_has_its_own(model, tmp_path: Path):
    kept = ddim.invert(model, tiny_text.pictures(2), prompt=SOURCE, steps=2, keep_source=True)
    bare = ddim.invert(model, tiny_text.pictures(1), prompt=SOURCE, steps=2)
    assert join([kept, kept[0]]).sources == (*kept.sources, kept.sources[0])
    assert LatentCode.load(join([kept, bare]).save(tmp_path / "joined")).sources == ()


def test_a_code_without_a_source_takes_masks_of_its_own_size_only(model):
    code = ddim.invert(model, tiny_text.pictures(1), prompt=SOURCE, steps=2)
    with refused("mask", "101x60", "32x32"):
        ddim.edit(model, code, TARGET, mask=torch.ones(60, 101))
    with refused("feather"):
        ddim.edit(model, code, TARGET, mask=torch.ones(32, 32), feather=3)
    with refused("crop"):
        ddim.edit(model, code, TARGET, crop="whole")
    with refused("feather"):
        ddim.edit(model, tiny_text.pictures(1), TARGET, feather=3, **SETTINGS)


def test_masks_of_each_size_are_taken(model):
    image, crop = bytes_of("RGB", 101, 60), (10, 5, 58, 53)
    photograph = torch.zeros(60, 101)
    photograph[17:41, 22:46] = 1
    cropped = photograph[5:53, 10:58]
    small = cropped[::3, ::3].repeat_interleave(2, 0).repeat_interleave(2, 1)
    for mask in (photograph, cropped, small):
        edited = ddim.edit(model, image, TARGET, mask=mask, crop=crop, feather=0, **SETTINGS)
        assert changed(edited, own(image), photograph)[0] == 0
        assert changed(edited, own(image), photograph)[1] > 0.9 * 3 * 24 * 24
