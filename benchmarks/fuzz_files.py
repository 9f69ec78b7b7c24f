"""Damaged pictures: 24 formats, read for a verb and for training.

A file must give a tensor of the model's shape in [0, 1], or an InputError that names it; training must go on without
it, and name it. It is nonsense if (1) an undamaged file, or one whose EXIF alone is odd, gives other pixels than
were written (beyond the format's own loss) or is not turned as its EXIF says; (2) a file that was cut short gives
other pixels in silence. A file with changed bytes may show another picture: few formats have checksums.
"""

import importlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import Case, Fault

SIDE = 16
LOSS = {"JPEG": 0.08, "WEBP": 0.08, "AVIF": 0.08, "GIF": 0.08, "JPEG2000": 0.08, "MPO": 0.08, "BLP": 0.3}
LOSS["ICNS"] = 0.08  # it holds larger copies, of which the largest is read


def _ramp() -> np.ndarray:
    """A smooth picture [16, 16, 3] in [0, 1] that no turn leaves as it is."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    return np.stack([x * 0.8 + 0.1, y * 0.9, (x + y) / 2 * x], axis=2)


def _sample(mode: str) -> tuple[Any, np.ndarray]:
    """A picture of a PIL mode, and what it shows: [16, 16, C] in [0, 1]."""
    from PIL import Image

    colour = Image.fromarray((_ramp() * 255).round().astype(np.uint8))
    if mode in ("RGB", "P", "CMYK"):
        image = colour.quantize(64) if mode == "P" else colour.convert(mode)
        return image, np.asarray(image.convert("RGB")) / 255
    if mode in ("I;16", "F", "I"):
        wide = (_ramp()[:, :, 0] * 65535).round()
        kinds = {"I;16": np.uint16, "F": np.float32, "I": np.int32}
        return Image.fromarray((wide / 65535 if mode == "F" else wide).astype(kinds[mode])), wide[:, :, None] / 65535
    if mode in ("LA", "RGBA"):  # the upper half lets a white ground through
        image = colour.convert(mode)
        clear = np.where(np.arange(SIDE)[:, None] < SIDE // 2, 64, 255).repeat(SIDE, 1).astype(np.uint8)
        image.putalpha(Image.fromarray(clear))
        share = clear[:, :, None] / 255
        solid = np.asarray(colour.convert("L"))[:, :, None] if mode == "LA" else np.asarray(colour)
        return image, solid / 255 * share + 1 - share
    image = colour.convert("L").convert(mode)
    return image, np.asarray(image.convert("L"))[:, :, None] / 255


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> PIL's format, mode, options
    "png": ("PNG", "RGB", {}),
    "grey.png": ("PNG", "L", {}),
    "deep.png": ("PNG", "I;16", {}),
    "palette.png": ("PNG", "P", {}),
    "clear.png": ("PNG", "RGBA", {}),
    "jpg": ("JPEG", "RGB", {"quality": 95}),
    "cmyk.jpg": ("JPEG", "CMYK", {"quality": 95}),
    "webp": ("WEBP", "RGB", {"quality": 95}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "dib": ("DIB", "L", {}),
    "tif": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "float.tif": ("TIFF", "F", {}),
    "wide.tif": ("TIFF", "I", {}),
    "avif": ("AVIF", "RGB", {"quality": 95}),
    "dds": ("DDS", "RGB", {}),
    "ico": ("ICO", "RGB", {"sizes": [(SIDE, SIDE)]}),
    "icns": ("ICNS", "RGBA", {"sizes": [(SIDE, SIDE, 1)]}),
    "ppm": ("PPM", "RGB", {}),
    "pcx": ("PCX", "RGB", {}),
    "tga": ("TGA", "RGB", {"compression": "tga_rle"}),
    "sgi": ("SGI", "RGB", {}),
    "spider": ("SPIDER", "F", {}),
    "im": ("IM", "RGB", {}),
    "jp2": ("JPEG2000", "RGB", {}),
    "xbm": ("XBM", "1", {}),
    "msp": ("MSP", "1", {}),
    "qoi": ("QOI", "RGB", {}),
    "mpo": ("MPO", "RGB", {"quality": 95}),
    "blp": ("BLP", "P", {}),
}
WITH_EXIF = ("png", "jpg", "webp", "avif", "clear.png")


def prepare(kind: str, root: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """Each format's file, and what it shows."""
    for needed in ("fuzz_material", "ddim.training.loop"):  # children then find it imported
        importlib.import_module(needed)

    made = {}
    for name, (kind, mode, options) in FORMATS.items():
        image, shown = _sample(mode)
        made[name] = written(image, kind, options), shown
    return made


def written(image: Any, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_exif(chance: Any) -> bytes:
    """EXIF that says orientation 6 and, beside it, tags of types and sizes that they should not have."""
    tags = chance.sample([0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x8298, 0x8769, 0x8825, 0xA002, 0x9286], 3)
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0))]
    entries += [(tag, chance.randint(1, 13), chance.choice((0, 1, 2, 9, 2**31)), chance.randbytes(4)) for tag in tags]
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(68)


def _flipped(data: bytes, chance: Any, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 40))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _header(data: bytes, chance: Any, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 2, 4))):
        out[chance.randrange(min(64, len(out)))] = chance.choice((0, 1, 127, 128, 255))
    return bytes(out)


def _zeroed(data: bytes, chance: Any, others: list[bytes]) -> bytes:
    begin = chance.randrange(len(data))
    end = min(len(data), begin + chance.choice((4, 32, 400)))
    return data[:begin] + bytes(end - begin) + data[end:]


DAMAGES: dict[str, Callable[[bytes, Any, list[bytes]], bytes]] = {
    "whole": lambda data, chance, others: data,
    "cut": lambda data, chance, others: data[: chance.randrange(len(data))],
    "flipped": _flipped,
    "header": _header,
    "zeroed": _zeroed,
    "spliced": lambda data, chance, others: chance.choice(others)[: chance.choice((8, 32, 100))] + data[32:],
    "doubled": lambda data, chance, others: data + data,
    "tail": lambda data, chance, others: data + chance.randbytes(64),
}


def damaged(case: Case, material: Any) -> tuple[str, bytes, np.ndarray, str]:
    """A format, a file of it, what that shows undamaged, and the damage."""
    chance, name = case.chance, list(FORMATS)[case.number % len(FORMATS)]
    data, shown = material[name]
    damage = chance.choice([*DAMAGES, "cut", "flipped", "header", "exif"])
    if damage == "exif" and name in WITH_EXIF:
        kind, mode, options = FORMATS[name]
        return name, written(_sample(mode)[0], kind, {**options, "exif": odd_exif(chance)}), np.rot90(shown, -1), damage
    damage = "header" if damage == "exif" else damage
    return name, DAMAGES[damage](data, chance, [d for d, _ in material.values()]), shown, damage


def run(case: Case, material: Any) -> str:
    """Reads one file in both ways."""
    from PIL import Image

    name, data, shown, damage = damaged(case, material)
    file = Path(f"it.{name.rpartition('.')[2]}")
    case.tell(f"{name} {damage}: {data[:4096].hex()}")
    file.write_bytes(data)
    Path("set").mkdir()
    (Path("set") / file.name).write_bytes(data)
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save("set/whole.png")
    strict = damage in ("whole", "exif", "cut") or (damage in ("doubled", "tail") and name == "png")
    expected = shown if strict else None
    loss = LOSS.get(FORMATS[name][0], 0.012)
    outcome = for_verbs(file, shown.shape[2], expected, loss, damage, FORMATS[name][1])
    if name != "spider":  # a suffix that says nothing: a folder's other files are not looked at
        for_training(file, shown.shape[2], expected, loss, damage)
    return outcome


def compared(pixels: np.ndarray, expected: np.ndarray | None, loss: float, damage: str, by: str) -> None:
    """Nonsense, if what was read is not what was written."""
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise Fault("not a picture", f"{by} reads values from {pixels.min()} to {pixels.max()}")
    if expected is not None and (off := float(np.abs(pixels - expected.transpose(2, 0, 1)).mean())) > loss:
        raise Fault(f"nonsense ({damage})", f"{by} reads it off by {off:.3f} of the range on average, in silence")


def for_verbs(file: Path, channels: int, expected: np.ndarray | None, loss: float, damage: str, mode: str) -> str:
    from ddim._utils.errors import InputError
    from ddim.data.images import read_images

    try:
        out = read_images([str(file)], (channels, SIDE, SIDE), resize=expected is None or file.suffix == ".icns")
    except InputError as error:
        if file.name not in str(error) and mode != "F":
            raise Fault("a refusal without the file's name", str(error)) from None
        if damage == "whole" and mode not in ("F", "I"):  # floats and 32 bits have no agreed white
            raise Fault("a whole file is refused", str(error)) from None
        return "refused"
    if out.shape != (1, channels, SIDE, SIDE):
        raise Fault("shape", str(tuple(out.shape)))
    compared(out[0].numpy(), expected, loss, damage, "read_images")
    return "read"


def for_training(file: Path, channels: int, expected: np.ndarray | None, loss: float, damage: str) -> None:
    from ddim.training.config import DataConfig
    from ddim.training.data import load_images

    kind: Any = channels
    images: Any = load_images(DataConfig("set", size=SIDE, channels=kind, background=255))
    if not any("whole" not in name and file.name in name for name in images.skipped):
        (batch,) = images.stream([list(range(len(images)))])
        if len(batch.pixels) != 2 or batch.pixels[1].any():
            raise Fault("training lost a picture", f"skipped {images.skipped}")
        compared(batch.pixels[0].numpy() / 255, expected, loss, damage, "training")
