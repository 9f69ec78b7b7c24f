"""Pictures in and out: files, PIL images and tensors to [N, C, H, W] in [0, 1], and back."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from .._utils.files import write_whole
from .._utils.foreign import first_line, hush_decoders, readable, told

if TYPE_CHECKING:
    from PIL import Image as PILImage

_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN = ("PNG", "PPM")  # formats whose numbers Pillow may hand out as mode I though they have 16 bits
MOST_PIXELS = 178_956_970
"""Of a sheet: what Pillow opens again before it takes a picture for an attack."""

ImageLike = Any
"""A path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1], or a list of these."""


def read_images(source: ImageLike, shape: Sequence[int], *, resize: bool = False, multiple: int = 0) -> Tensor:
    """Images as one float32 tensor [N, C, H, W] in [0, 1] (a float64 tensor stays float64).

    Args:
        source: a path, a PIL image, a tensor in [0, 1], or a list of these.
        shape: (C, H, W) that the model takes, C in {1, 3}.
        resize: crop to the model's aspect ratio, scale and convert the channels where an image does not fit.
        multiple: of a model that takes any size whose sides are multiples of this; then (H, W) is only what ``resize``
            makes of an image.

    Raises:
        InputError: missing or broken files, wrong channels or size (and what would fit), values outside [0, 1].
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("none was given.", parameter="images")
        read = [read_images(s, shape, resize=resize, multiple=multiple) for s in source]
        other = next((r for r in read if r.shape[1:] != read[0].shape[1:]), None)
        if other is not None:
            (h, w), (a, b) = read[0].shape[2:], other.shape[2:]
            raise InputError(
                f"{w}x{h} and {b}x{a} do not go together; give one size, or resize them.", parameter="images"
            )
        return torch.cat(read)
    if isinstance(source, Tensor):
        return _from_tensor(source, _taken(shape, source.shape[-2:], multiple, resize, "An image"), resize)
    if isinstance(source, (str, os.PathLike)):
        image, name = open_image(Path(source)), readable(source)
        return _from_pil(image, _taken(shape, image.size[::-1], multiple, resize, name), resize, name)
    if hasattr(source, "convert") and hasattr(source, "getbands"):
        name = "The image"
        return _from_pil(source, _taken(shape, source.size[::-1], multiple, resize, name), resize, name)
    raise InputError(
        f"{type(source).__name__} is not an image; give a path, a PIL image or a tensor.", parameter="images"
    )


def _taken(shape: Sequence[int], size: Sequence[int], multiple: int, resize: bool, name: str) -> Sequence[int]:
    """(C, H, W) that an image of (height, width) ``size`` must have."""
    if not multiple or resize or len(size) != 2:
        return shape
    near = [max(multiple, round(side / multiple) * multiple) for side in size]
    if list(size) != near:
        raise InputError(
            f"{name} is {size[1]}x{size[0]}; the model takes sides that are multiples of {multiple}, "
            f"such as {near[1]}x{near[0]}.",
            parameter="images",
        )
    return shape[0], *near


def open_image(path: Path, parameter: str = "images") -> "PILImage.Image":
    """A picture from a file, decoded and upright; see ``decode``. InputError where there is no such file.

    Args:
        path: the file.
        parameter: what the error is about.
    """
    if not path.is_file():
        raise InputError(f"there is no file {readable(path)}.", parameter=parameter)
    return decode(path, readable(path), parameter)


def decode(source: str | Path | BinaryIO, name: str, parameter: str = "images") -> "PILImage.Image":
    """A picture, decoded whole and turned as its EXIF data says. Whatever fails in it is one InputError.

    Args:
        source: a file, or an open one.
        name: what the error calls it.
        parameter: what the error is about.

    Raises:
        InputError: it is no picture, damaged, empty, or has more pixels than Pillow decodes.
    """
    from PIL import Image

    hush_decoders()
    with _decoding(name, parameter), Image.open(source) as image:
        image.load()
        if not all(image.size):
            raise ValueError(f"it is {image.width}x{image.height}")
        return _upright(image)


@contextmanager
def _decoding(name: str, parameter: str) -> Iterator[None]:
    """Pillow's errors inside as one InputError about ``name``."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image that can be read.", parameter=parameter) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} is too large: {told(error)}",
            parameter=parameter,
            hint="Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS, half of the limit.",
        ) from None
    except MemoryError:  # more often a damaged header than a machine too small
        raise InputError(f"{name} asks for more memory than there is; is it damaged?", parameter=parameter) from None
    except Exception as error:  # each format's decoder raises what comes up, from AttributeError to ZeroDivisionError
        raise InputError(f"{name} is broken or truncated: {told(error)}", parameter=parameter) from None


def _upright(image: "PILImage.Image") -> "PILImage.Image":
    """The picture turned as its EXIF data says; without that data then, which Pillow cannot always write anew."""
    from PIL import Image

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
    except Exception:  # damaged EXIF data says nothing of the turn, and nothing against the pixels
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        turned.info.pop(key, None)
    return turned


def _from_pil(image: "PILImage.Image", shape: Sequence[int], resize: bool, name: str) -> Tensor:
    from PIL import Image, ImageOps

    channels, height, width = shape
    mode = _mode(channels)
    grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    if not resize:
        have = 1 if grey else 3
        if have != channels:
            raise InputError(
                f"{name} has {have} colour channel(s), the model takes {channels}; resize converts it.",
                parameter="images",
            )
        if image.size != (width, height):
            raise InputError(
                f"{name} is {image.width}x{image.height}, the model takes {width}x{height}; resize fits it.",
                parameter="images",
            )
    image = flatten(image, mode, name=name)
    if resize and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (data.view(1, height, width, channels).permute(0, 3, 1, 2).float() / 255).contiguous()


def flatten(
    image: "PILImage.Image",
    mode: str,
    background: int = 255,
    parameter: str = "images",
    name: str = "an image",
) -> "PILImage.Image":
    """An image of any PIL mode in ``mode`` (L or RGB): 16 bits become 8, what is transparent lies on ``background``.

    Args:
        image: any PIL image of 1, 8 or 16 bits a channel. Floats and integers of 32 bits (PIL modes F and I) have no
            agreed white and are refused; of mode I, PNG and PGM files are taken, whose numbers have 16 bits.
        mode: ``L`` or ``RGB``.
        background: grey value 0..255.
        parameter: what the error is about.
        name: what the error calls the image.

    Raises:
        InputError: floats, integers of 32 bits, colours that Pillow does not convert, a damaged image.
    """
    from PIL import Image

    with _decoding("the image", parameter):
        image.load()  # of a file that was opened and not yet read
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN):
        kind = "floats (PIL mode F)" if image.mode == "F" else "integers of 32 bits (PIL mode I)"
        raise InputError(
            f"{name} is of {kind}, which have no agreed white; use 8 or 16 bits, or a tensor in [0, 1].",
            parameter=parameter,
        )
    try:
        if image.mode.startswith("I"):  # 16 bits, in either byte order
            wide, clear = image.convert("I"), image.info.get("transparency")
            image = wide.point(lambda v: v / 257).convert("L")
            if clear is not None:  # the one value that a PNG may declare transparent
                image.paste(background, mask=Image.fromarray(np.asarray(wide) == clear))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            behind = Image.new("RGBA", image.size, (background, background, background, 255))
            image = Image.alpha_composite(behind, image)
        return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # no way from its colours, such as LAB, or damaged transparency
        raise InputError(
            f"{name} is of PIL mode {image.mode}, which does not become {mode} ({first_line(error)}); make it RGB.",
            parameter=parameter,
        ) from None


def _from_tensor(x: Tensor, shape: Sequence[int], resize: bool) -> Tensor:
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
            f"the values run from {float(x.min()):g} to {float(x.max()):g}; they must lie in [0, 1].",
            parameter="images",
        )
    channels, height, width = shape
    if x.shape[1] != channels and resize and {x.shape[1], channels} == {1, 3}:
        x = x.expand(-1, 3, -1, -1) if channels == 3 else _luma(x)
    if tuple(x.shape[2:]) != (height, width) and resize:
        x = _fit(x, height, width)
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(
            f"an image of shape {tuple(x.shape[1:])} does not fit, the model takes {tuple(shape)}; resize fits it.",
            parameter="images",
        )
    return x


def _luma(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
    return (x * weights.view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)


def _fit(x: Tensor, height: int, width: int) -> Tensor:
    h, w = x.shape[2:]
    scale = min(h / height, w / width)
    ch, cw = max(round(height * scale), 1), max(round(width * scale), 1)
    x = x[:, :, (h - ch) // 2 :, (w - cw) // 2 :][:, :, :ch, :cw]
    return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


def _mode(channels: int) -> str:
    if channels not in (1, 3):
        raise InputError(f"Pictures have 1 or 3 channels; this model has {channels}.")
    return "L" if channels == 1 else "RGB"


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] floats to the nearest of 0..255, as uint8; shape kept."""
    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> "PILImage.Image":
    """One image [C, H, W] (or [1, C, H, W]) in [0, 1] as a PIL image."""
    from PIL import Image

    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3:
        raise InputError(f"A tensor of shape {tuple(image.shape)} is not one image [C, H, W].")
    mode = _mode(image.shape[0])
    data = to_uint8(image).permute(1, 2, 0).contiguous()
    return Image.frombytes(mode, (image.shape[2], image.shape[1]), data.numpy().tobytes())


def sheet_size(
    count: int, picture: Sequence[int], columns: int | None = None, *, scale: int = 1, gap: int = 2, of: str = "count"
) -> tuple[int, int]:
    """(width, height) in pixels of what ``sheet`` makes of ``count`` images of (height, width) ``picture``.

    Args:
        count, picture: of the images.
        columns, scale, gap: as for ``sheet``.
        of: the parameter that ``count`` comes from.

    Raises:
        InputError: a scale or number of columns that is none, or more than ``MOST_PIXELS``, with the number that is too
            large.
    """
    for name, value in (("scale", scale), ("columns", 1 if columns is None else columns)):
        if not is_whole(value) or value < 1:
            raise InputError(f"{value} is not a number of them; use 1 or more.", parameter=name)

    def size(columns: int | None, scale: int) -> tuple[int, int]:
        wide = columns or max(1, round(count**0.5))
        high = -(-count // wide)
        return wide * (picture[1] * scale + gap) + gap, high * (picture[0] * scale + gap) + gap

    def fits(columns: int | None, scale: int) -> bool:
        width, height = size(columns, scale)
        return width * height <= MOST_PIXELS

    width, height = size(columns, scale)
    if not fits(columns, scale):
        name, value = of, count
        if scale > 1 and fits(columns, 1):
            name, value = "scale", scale
        elif columns is not None and columns > count:
            name, value = "columns", columns
        raise InputError(
            f"{value} makes a sheet of {width:,} x {height:,} pixels; {MOST_PIXELS:,} are the most.", parameter=name
        )
    return width, height


def sheet(images: Tensor, columns: int | None = None, *, scale: int = 1, gap: int = 2) -> "PILImage.Image":
    """Many images [N, C, H, W] on one sheet, row by row on white.

    Args:
        images: in [0, 1].
        columns: images a row; a square sheet by default.
        scale: whole pixels a pixel.
        gap: white pixels between images, after scaling.

    Raises:
        InputError: a sheet of more than ``MOST_PIXELS``.
    """
    from PIL import Image

    n, c, h, w = images.shape
    columns = max(1, round(n**0.5)) if columns is None else columns
    page = Image.new(_mode(c), sheet_size(n, (h, w), columns, scale=scale, gap=gap), "white")
    for k in range(n):
        tile = to_pil(images[k]).resize((w * scale, h * scale), Image.Resampling.NEAREST)
        page.paste(tile, (gap + (k % columns) * (w * scale + gap), gap + (k // columns) * (h * scale + gap)))
    return page


def save_image(image: "Tensor | PILImage.Image", path: str | os.PathLike[str], about: str = "") -> Path:
    """Writes one image as a PNG, whole or not at all; ``about`` goes into its ``Description``.

    Raises:
        InputError: a name that does not end in .png.
        DDIMError: the file cannot be written.
    """
    from PIL import PngImagePlugin

    target = Path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"{target} does not end in .png; pictures are written without loss, as PNG.", parameter="path")
    picture = to_pil(image) if isinstance(image, Tensor) else image
    info = PngImagePlugin.PngInfo()
    if about:
        info.add_text("Description", readable(about))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return write_whole(target, buffer.getvalue())
