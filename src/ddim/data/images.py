"""Converts image files, PIL images and tensors to tensors [N, C, H, W] in [0, 1], and back."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .._utils.error_text import first_line, printable, reason_of
from .._utils.errors import InputError, is_whole
from .._utils.files import write_whole
from .._utils.silence import silence_libtiff
from ..inversion.photograph import MOST_PIXELS

if TYPE_CHECKING:
    from PIL import Image as PILImage

_ORIENTATION = 0x0112  # the EXIF tag
_16_BIT_FORMATS = ("PNG", "PPM")  # Pillow may open their 16-bit images as mode I, which usually means 32 bits

FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000", "GIF", "TIFF", "BMP", "DIB", "PPM", "ICO", "ICNS"),
    *("PSD", "TGA", "PCX", "DCX", "DDS", "BLP", "SGI", "SUN", "QOI", "FLI", "IM", "SPIDER", "FITS", "XBM", "XPM"),
)
"""The formats that are read, as Pillow calls them, if it knows them: pixels that it decodes itself.

It would hand EPS to Ghostscript, which runs programs, and WMF and others to whatever else is registered for them.
"""

ImageLike = Any
"""A path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1] (or uint8), or a list of these.

Files and PIL images are turned upright as their EXIF data says.
"""


def read_images(source: ImageLike, shape: Sequence[int], *, resize: bool = False, multiple: int = 0) -> Tensor:
    """Reads images into one float32 tensor [N, C, H, W] in [0, 1]; a float64 tensor stays float64.

    The EXIF orientation of files and PIL images is applied.

    Args:
        source: a path, a PIL image, a tensor in [0, 1] or of uint8, or a list of these.
        shape: (C, H, W) that the model takes, C in {1, 3}.
        resize: make every image fit: crop it to the aspect ratio of ``shape``, scale it, and convert its channels.
        multiple: for a model that takes any size whose sides are multiples of this number; ``shape`` is then only the
            size that ``resize`` produces. 0: ``shape`` is the only size.

    Raises:
        InputError: a file is missing or damaged, the channels or the size do not fit (the message says what would), or
            values lie outside [0, 1].
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("the list is empty.", parameter="images")
        read = [read_images(s, shape, resize=resize, multiple=multiple) for s in source]
        other = next((r for r in read if r.shape[1:] != read[0].shape[1:]), None)
        if other is not None:
            (h, w), (a, b) = read[0].shape[2:], other.shape[2:]
            raise InputError(
                f"the images have different sizes, {w}x{h} and {b}x{a}; give one size, or resize them.",
                parameter="images",
            )
        return torch.cat(read)
    if isinstance(source, Tensor):
        return _from_tensor(source, _required_shape(shape, source.shape[-2:], multiple, resize, "An image"), resize)
    image, name = opened(source)
    return _from_pil(image, _required_shape(shape, image.size[::-1], multiple, resize, name), resize, name)


def _required_shape(shape: Sequence[int], size: Sequence[int], multiple: int, resize: bool, name: str) -> Sequence[int]:
    """Returns the (C, H, W) that an image of (height, width) ``size`` must have; arguments as for ``read_images``."""
    if not multiple or resize or len(size) != 2:
        return shape
    near = [max(multiple, round(side / multiple) * multiple) for side in size]
    if list(size) != near:
        raise InputError(
            f"{name} is {size[1]}x{size[0]}; the model takes sides that are multiples of {multiple}, "
            f"such as {near[1]}x{near[0]}.",
            parameter="images",
            hint="Use resize=True, which fits it to the model's own size, or crop it.",
            offer="resize=True",
        )
    return shape[0], *near


def opened(source: ImageLike) -> "tuple[PILImage.Image, str]":
    """Opens a path, or takes a PIL image, both upright; also returns its name in an error message.

    Raises:
        InputError: ``source`` is neither, or ``open_image`` or ``upright`` refuses it.
    """
    if isinstance(source, (str, os.PathLike)):
        return open_image(Path(source)), printable(source)
    if hasattr(source, "convert") and hasattr(source, "getbands"):
        return upright(source, "The image"), "The image"
    raise InputError(
        f"{type(source).__name__} is not an image; give a path, a PIL image or a tensor.", parameter="images"
    )


def open_image(path: Path, parameter: str = "images") -> "PILImage.Image":
    """Opens an image file and decodes it; see ``decode``.

    Args:
        path: the file.
        parameter: the argument that an error names.

    Raises:
        InputError: there is no such file, or ``decode`` refuses it.
    """
    if not path.is_file():
        raise InputError(f"there is no file {printable(path)}.", parameter=parameter)
    return decode(path, printable(path), parameter)


def decode(source: str | Path | BinaryIO, name: str, parameter: str = "images") -> "PILImage.Image":
    """Decodes an image completely, and turns it upright as its EXIF data says.

    Args:
        source: a path, or an open binary file.
        name: the image's name in an error message.
        parameter: the argument that an error names.

    Raises:
        InputError: the file is not an image in one of ``FORMATS``, is damaged, has no pixels, or has more than Pillow
            decodes. Every error inside Pillow becomes this one.
    """
    from PIL import Image

    silence_libtiff()
    with _decoding(name, parameter), Image.open(source, formats=_formats()) as image:
        return _upright(image)


def size_of(source: str | Path | BinaryIO, name: str, parameter: str = "images") -> tuple[int, int]:
    """Returns (height, width) of an image by its header, as it is stored; decodes nothing. As for ``decode``."""
    from PIL import Image

    silence_libtiff()
    with _decoding(name, parameter), Image.open(source, formats=_formats()) as image:
        return image.height, image.width


def _formats() -> list[str]:
    """Returns those of ``FORMATS`` that Pillow can open."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def upright(image: "PILImage.Image", name: str, parameter: str = "images") -> "PILImage.Image":
    """Decodes an opened image completely, and turns it upright as its EXIF data says.

    Args:
        image: a PIL image. It stays as it is.
        name: the image's name in an error message.
        parameter: the argument that an error names.

    Raises:
        InputError: as for ``decode``.
    """
    with _decoding(name, parameter):
        return _upright(image)


@contextmanager
def _decoding(name: str, parameter: str) -> Iterator[None]:
    """Turns every error of Pillow inside the block into an InputError about ``name``."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not an image of a format that is read, such as PNG, JPEG or WebP.", parameter=parameter
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} is too large: {reason_of(error)}",
            parameter=parameter,
            hint="Make it smaller, or increase PIL.Image.MAX_IMAGE_PIXELS, which is half of the limit.",
        ) from None
    except MemoryError:  # usually a damaged header that claims a huge size, rather than a machine with little memory
        raise InputError(f"{name} needs more memory than there is; it may be damaged.", parameter=parameter) from None
    except Exception as error:  # decoders raise errors of any type, from AttributeError to ZeroDivisionError
        raise InputError(f"{name} is damaged or truncated: {reason_of(error)}", parameter=parameter) from None


def _upright(image: "PILImage.Image") -> "PILImage.Image":
    """Decodes an image, turns it as its EXIF data says, and drops that data.

    Otherwise a reader would turn it a second time, and Pillow cannot always rewrite the data.
    """
    from PIL import Image

    image.load()  # Pillow reads a file lazily
    if not all(image.size):
        raise ValueError(f"it is {image.width}x{image.height}")
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF data is damaged, but the pixels may still be fine
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(key, None)
    return turned


def _from_pil(image: "PILImage.Image", shape: Sequence[int], resize: bool, name: str) -> Tensor:
    """Converts a PIL image to float32 [1, C, H, W] in [0, 1]."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = _mode(channels)
    grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    if not resize:
        have = 1 if grey else 3
        if have != channels:
            raise InputError(
                f"{name} has {have} colour channel(s), but the model takes {channels}; resize=True converts it.",
                parameter="images",
                offer="resize=True",
            )
        if image.size != (width, height):
            raise InputError(
                f"{name} is {image.width}x{image.height}, but the model takes {width}x{height}; resize=True makes it "
                "fit.",
                parameter="images",
                offer="resize=True",
            )
    image = flatten(image, mode, name=name)
    if resize and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return _floats(image, channels)


def scaled_from_pil(image: "PILImage.Image", channels: int, size: tuple[int, int]) -> Tensor:
    """Converts a whole PIL image to float32 [1, channels, *size] in [0, 1], scaled with Lanczos if its size differs."""
    from PIL import Image

    image = flatten(image, _mode(channels))
    if image.size != size[::-1]:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return _floats(image, channels)


def _floats(image: "PILImage.Image", channels: int) -> Tensor:
    """Converts an 8-bit PIL image to float32 [1, C, H, W] in [0, 1]."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (data.view(1, image.height, image.width, channels).permute(0, 3, 1, 2).float() / 255).contiguous()


def flatten(
    image: "PILImage.Image",
    mode: str,
    background: int = 255,
    parameter: str = "images",
    name: str = "an image",
) -> "PILImage.Image":
    """Converts an image to 8 bits per channel in ``mode`` (L or RGB), on an opaque background.

    Args:
        image: a PIL image with 1, 8 or 16 bits per channel. Images of floats and of 32-bit integers (PIL modes F and I)
            are refused, because no value of theirs is agreed to be white; PNG and PGM files of mode I are accepted,
            because their values have 16 bits.
        mode: ``L`` or ``RGB``.
        background: grey value (0..255) that shows through transparent pixels.
        parameter: the argument that an error names.
        name: the image's name in an error message.

    Raises:
        InputError: the image holds floats or 32-bit integers, is damaged, or has colours that Pillow cannot convert.
    """
    from PIL import Image

    with _decoding("the image", parameter):
        image.load()  # Pillow reads a file lazily, so an error in it may only appear here
    if image.mode == "F" or (image.mode == "I" and image.format not in _16_BIT_FORMATS):
        kind = "floats (PIL mode F)" if image.mode == "F" else "32-bit integers (PIL mode I)"
        raise InputError(
            f"{name} holds {kind}, for which no value is agreed to be white; use 8 or 16 bits, or a tensor in [0, 1].",
            parameter=parameter,
        )
    try:
        if image.mode.startswith("I"):  # 16 bits, in either byte order; 65535 / 257 = 255
            wide, clear = image.convert("I"), image.info.get("transparency")
            image = wide.point(lambda v: v / 257).convert("L")
            if clear is not None:  # a 16-bit grey PNG may declare one value transparent
                image.paste(background, mask=Image.fromarray(np.asarray(wide) == clear))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            behind = Image.new("RGBA", image.size, (background, background, background, 255))
            image = Image.alpha_composite(behind, image)
        return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # Pillow cannot convert its colours (such as LAB), or the transparency is damaged
        raise InputError(
            f"{name} has PIL mode {image.mode}, which cannot be converted to {mode} ({first_line(error)}); convert it "
            "to RGB.",
            parameter=parameter,
        ) from None


def bytes_from_tensor(x: Tensor) -> Tensor:
    """Converts a tensor of images to uint8 [N, C, H, W] with C in {1, 3}, at its own size.

    Raises:
        InputError: it is no batch of images, or its values lie outside [0, 1].
    """
    channels = int(x.shape[-3]) if x.ndim in (3, 4) else 0
    checked = x if x.dtype == torch.uint8 and channels else _from_tensor(x, x.shape[-3:], False)
    if channels not in (1, 3) or not checked.numel():
        raise InputError(f"a tensor of shape {tuple(x.shape)} is no image of 1 or 3 channels.", parameter="images")
    return to_uint8(checked if checked.ndim == 4 else checked[None])


def _from_tensor(x: Tensor, shape: Sequence[int], resize: bool) -> Tensor:
    """Checks a tensor of images, and converts it to floats [N, C, H, W]."""
    if x.ndim == 3:
        x = x.unsqueeze(0)
    if x.ndim != 4 or not len(x):
        raise InputError(
            f"a tensor of shape {tuple(x.shape)} is not a batch of images [N, C, H, W].", parameter="images"
        )
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    if not x.is_floating_point():
        raise InputError(f"a tensor of {x.dtype} is not an image; use floats in [0, 1] or uint8.", parameter="images")
    x = x if x.dtype == torch.float64 else x.float()
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(
            f"the values range from {float(x.min()):g} to {float(x.max()):g}; they must lie in [0, 1].",
            parameter="images",
        )
    channels, height, width = shape
    if x.shape[1] != channels and resize and {x.shape[1], channels} == {1, 3}:
        x = x.expand(-1, 3, -1, -1) if channels == 3 else _luma(x)
    if tuple(x.shape[2:]) != (height, width) and resize:
        x = _fit(x, height, width)
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(
            f"an image has shape {tuple(x.shape[1:])}, but the model takes {tuple(shape)}; resize=True makes it fit.",
            parameter="images",
            offer="resize=True",
        )
    return x


def _luma(x: Tensor) -> Tensor:
    """Converts RGB [N, 3, H, W] to grey [N, 1, H, W] with the weights of ITU-R BT.601, which Pillow uses too."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)


def _fit(x: Tensor, height: int, width: int) -> Tensor:
    """Crops images around their centre to the aspect ratio of (height, width), and scales them to that size."""
    h, w = x.shape[2:]
    scale = min(h / height, w / width)
    ch, cw = max(round(height * scale), 1), max(round(width * scale), 1)
    x = x[:, :, (h - ch) // 2 :, (w - cw) // 2 :][:, :, :ch, :cw]
    return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


def _mode(channels: int) -> str:
    """Returns the PIL mode for a number of channels."""
    if channels not in (1, 3):
        raise InputError(f"Images have 1 or 3 channels; this model has {channels}.")
    return "L" if channels == 1 else "RGB"


def to_uint8(images: Tensor) -> Tensor:
    """Rounds floats in [0, 1] to uint8 in 0..255, on the CPU; the shape stays the same, and so does uint8."""
    if images.dtype == torch.uint8:
        return images.detach().cpu()
    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> "PILImage.Image":
    """Converts one image [C, H, W] or [1, C, H, W] to a PIL image: floats in [0, 1], or uint8.

    A uint8 image may have transparency in its last channel, as ``Edited.composites`` may.
    """
    from PIL import Image

    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3:
        raise InputError(f"A tensor of shape {tuple(image.shape)} is not one image [C, H, W].")
    alpha = {2: "LA", 4: "RGBA"}.get(image.shape[0]) if image.dtype == torch.uint8 else None
    mode = alpha or _mode(image.shape[0])
    data = to_uint8(image).permute(1, 2, 0).contiguous()
    return Image.frombytes(mode, (image.shape[2], image.shape[1]), data.numpy().tobytes())


def sheet_size(
    count: int,
    picture: Sequence[int],
    columns: int | None = None,
    *,
    scale: int = 1,
    gap: int = 2,
    of: str = "count",
    given: int | None = None,
) -> tuple[int, int]:
    """Returns the (width, height) in pixels of the sheet that ``sheet`` makes.

    Args:
        count: how many images it shows.
        picture: their (height, width).
        columns, scale, gap: as for ``sheet``.
        of: the parameter that ``count`` comes from, for the error.
        given: its value, if that is not ``count``.

    Raises:
        InputError: ``scale`` or ``columns`` is not a positive whole number, or the sheet has more than ``MOST_PIXELS``;
            the error then names the argument that makes it too large.
    """
    for name, value in (("scale", scale), ("columns", 1 if columns is None else columns)):
        if not is_whole(value) or value < 1:
            raise InputError(f"{value!r} is not a whole number of 1 or more.", parameter=name)

    def size(columns: int | None, scale: int) -> tuple[int, int]:
        wide = columns or max(1, round(count**0.5))
        high = -(-count // wide)
        return wide * (picture[1] * scale + gap) + gap, high * (picture[0] * scale + gap) + gap

    def fits(columns: int | None, scale: int) -> bool:
        width, height = size(columns, scale)
        return width * height <= MOST_PIXELS

    width, height = size(columns, scale)
    if not fits(columns, scale):
        name, value = of, count if given is None else given
        if scale > 1 and fits(columns, 1):
            name, value = "scale", scale
        elif columns is not None and columns > count:
            name, value = "columns", columns
        raise InputError(
            f"{value} makes a sheet of {width:,} x {height:,} pixels; the largest has {MOST_PIXELS:,}.", parameter=name
        )
    return width, height


def sheet(images: Tensor, columns: int | None = None, *, scale: int = 1, gap: int = 2) -> "PILImage.Image":
    """Arranges images on one white sheet, row by row.

    Args:
        images: [N, C, H, W] in [0, 1].
        columns: how many images a row has; by default about sqrt(N).
        scale: each pixel becomes a square of ``scale`` x ``scale`` pixels.
        gap: width of the white space around each image, in pixels of the sheet.

    Raises:
        InputError: the sheet would have more than ``MOST_PIXELS``.
    """
    from PIL import Image

    n, c, h, w = images.shape
    columns = max(1, round(n**0.5)) if columns is None else columns
    page = Image.new(_mode(c), sheet_size(n, (h, w), columns, scale=scale, gap=gap), "white")
    for k in range(n):
        tile = to_pil(images[k]).resize((w * scale, h * scale), Image.Resampling.NEAREST)
        page.paste(tile, (gap + (k % columns) * (w * scale + gap), gap + (k // columns) * (h * scale + gap)))
    return page


def save_image(
    image: "Tensor | PILImage.Image", path: str | os.PathLike[str], about: str = "", icc: bytes = b""
) -> Path:
    """Writes one image as a PNG file, atomically.

    Args:
        image: a PIL image, or a tensor [C, H, W] as ``to_pil`` takes it.
        path: the file; its name must end in ``.png``.
        about: a text for the PNG's ``Description``; empty for none.
        icc: the colour profile; empty for none.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        InputError: the name does not end in ``.png``.
        DDIMError: the file cannot be written.
    """
    picture = to_pil(image) if isinstance(image, Tensor) else image
    return _write_png(picture, Path(path), about, {"icc_profile": icc} if icc else {})


def save_animation(
    frames: "Sequence[PILImage.Image]",
    path: str | os.PathLike[str],
    milliseconds: Sequence[int],
    about: str = "",
) -> Path:
    """Writes frames as an animated PNG file, atomically. It is lossless, plays in browsers, and repeats without end.

    A program that knows no animated PNG shows the first frame.

    Args:
        frames: PIL images of one size and mode, at least one.
        path, about: as for ``save_image``.
        milliseconds: how long each frame is shown.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        InputError: the name does not end in ``.png``.
        DDIMError: the file cannot be written.
    """
    rest = {"save_all": True, "append_images": list(frames[1:]), "duration": list(milliseconds), "loop": 0}
    return _write_png(frames[0], Path(path), about, rest)


def _write_png(picture: "PILImage.Image", target: Path, about: str, settings: Mapping[str, Any]) -> Path:
    """Writes a PNG file with a ``Description``; ``settings`` are those of Pillow's writer."""
    from PIL import PngImagePlugin

    if target.suffix.lower() != ".png":
        raise InputError(
            f"{target} does not end in .png; images are written as PNG, which is lossless.", parameter="path"
        )
    info = PngImagePlugin.PngInfo()
    if about:
        info.add_text("Description", printable(about))
    return write_whole(target, png_bytes(picture, pnginfo=info, **settings))


def png_bytes(picture: "PILImage.Image", **settings: Any) -> bytes:
    """Returns a picture as the bytes of a PNG file; ``settings`` are those of Pillow's writer."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **settings)
    return buffer.getvalue()
