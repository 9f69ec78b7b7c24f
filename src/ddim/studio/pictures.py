"""The pictures of a page: what was uploaded, the mask that was painted, and what a browser shows."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .._utils.errors import InputError
from .._utils.names import slug
from ..data.images import decode, open_image, save_image, size_of, to_pil
from ..data.photographs import Crop, read_photographs, takes, window
from ..models.base import Model
from .desk import Session
from .limits import Limits

if TYPE_CHECKING:
    from PIL import Image

LEAST_SHOWN, MOST_SHOWN = 448, 1024
"""The longer side in pixels of what a browser shows: small pictures are enlarged, large ones reduced."""


@dataclass(frozen=True)
class Upload:
    """A picture that was uploaded.

    Attributes:
        path: the file as it came, in the folder of the session.
        size: (height, width) in pixels, upright.
    """

    path: Path
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """Its file name."""
        return self.path.name


def taken(session: Session, path: str | Path | None, limits: Limits) -> Upload:
    """Takes an uploaded file into the folder of a session, and checks that it is a picture; the same file only once.

    Raises:
        InputError: there is no file, it is no picture, or it is larger than the limits.
    """
    if not path:
        raise InputError("it is missing; drop one, paste one, or choose a file.", parameter="images")
    source = Path(path)
    if not source.is_file():
        raise InputError("the file is not there any more; drop the picture again.", parameter="images")
    about = source.stat()
    key = (str(source), about.st_mtime_ns, about.st_size)
    if (known := session.known(key)) is not None:
        return known
    if (size := about.st_size) > limits.max_megabytes * 2**20:
        raise InputError(
            f"{source.name} has {size / 2**20:.1f} MB; the largest file has {limits.max_megabytes} MB.",
            parameter="images",
        )
    height, width = size_of(source, source.name)
    _check_pixels(height * width, limits, f"{source.name} has {width}x{height}")
    target = session.new_folder(result=False) / f"{slug(source.stem)}{source.suffix.lower()}"
    shutil.copyfile(source, target)
    try:
        image = open_image(target)
    except InputError as error:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise InputError(error.message.replace(str(target), source.name), parameter="images") from None
    upload = Upload(target, (image.height, image.width))
    session.remember(key, upload)
    return upload


def _check_pixels(pixels: int, limits: Limits, what: str, parameter: str = "images") -> None:
    """Raises InputError for a picture of too many pixels."""
    if pixels > limits.max_megapixels * 10**6:
        raise InputError(
            f"{what} pixels; the largest picture has {limits.max_megapixels} megapixels.", parameter=parameter
        )


def crop_for(model: Model, size: tuple[int, int]) -> Crop:
    """Returns the region of a picture without a mask that a model works on: all of it, or the largest at the centre.

    Args:
        model: the model.
        size: (height, width) of the picture.
    """
    if takes(size, model.picture, model.multiple):
        return 0, 0, size[1], size[0]
    return window(size, model.picture)


def mask_from(layers: Sequence[str | bytes], upload: Upload, limits: Limits) -> "Image.Image | None":
    """Returns the mask that was painted: white where the brush was, of the size of the picture; None without a stroke.

    Args:
        layers: RGBA images of the image editor, each a path or the bytes of a file.
        upload: the picture that was painted on.
        limits: of all layers together; their headers are read before any is decoded.

    Raises:
        InputError: a layer is no image, or they are larger than the limits.
    """
    import numpy as np
    from PIL import Image

    def file(layer: str | bytes) -> str | BytesIO:
        return layer if isinstance(layer, str) else BytesIO(layer)

    sizes = [size_of(file(layer), "a layer", "mask") for layer in layers]
    pixels = sum(height * width for height, width in sizes)
    _check_pixels(pixels, limits, f"its layers have {pixels:,}", "mask")
    painted = None
    for layer in layers:
        alpha = np.asarray(decode(file(layer), "a layer", "mask").convert("RGBA"))[..., 3] > 127
        painted = alpha if painted is None or painted.shape != alpha.shape else painted | alpha
    if painted is None or not painted.any():
        return None
    height, width = upload.size
    whole = Image.fromarray(np.where(painted, 255, 0).astype(np.uint8), "L")
    return whole.resize((width, height), Image.Resampling.NEAREST)


def shown(picture: "Tensor | Image.Image") -> "Image.Image":
    """Returns a picture as a browser shows it: small ones enlarged by whole factors, large ones reduced."""
    from PIL import Image

    image = to_pil(picture) if isinstance(picture, Tensor) else picture
    longest = max(image.size)
    if longest > MOST_SHOWN:
        image = image.copy()
        image.thumbnail((MOST_SHOWN, MOST_SHOWN))
        return image
    factor = max(1, -(-LEAST_SHOWN // longest)) if longest < LEAST_SHOWN else 1
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.NEAREST)


def canvas(upload: Upload) -> "Image.Image":
    """Returns an upload, upright and on white, as the canvas of the mask."""
    from ..data.images import flatten

    return shown(flatten(open_image(upload.path), "RGB", name=upload.name))


def photograph_of(upload: Upload) -> tuple[Tensor, bytes]:
    """Returns the pixels of an upload, uint8 [C, H, W], upright, and its colour profile."""
    return read_photographs(upload.path)[0]


def write_shown(session: Session, picture: "Tensor | Image.Image", name: str) -> str:
    """Writes a picture as a browser shows it; returns the path."""
    return str(save_image(shown(picture), session.place(name)))
