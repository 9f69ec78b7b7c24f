"""Reads the idx files of MNIST-like data sets: images and their labels (http://yann.lecun.com/exdb/mnist)."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .._utils.error_text import reason_of
from .._utils.errors import InputError, UnknownName

if TYPE_CHECKING:
    from ..training.config import SourceConfig

_LABELS, _IMAGES = 2049, 2051  # the magic numbers


class IdxPart:
    """The images of an idx file as a ``sources.Part``.

    Args:
        images: uint8 [N, H, W].
        labels: [N], or None.
        prompt: the prompt of every image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, prompt: str = "") -> None:
        self.images, self.labels, self.text = images, labels, prompt
        self.class_names: Sequence[str] = ()  # idx files do not name their classes

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Returns the row's number, because its image has no file of its own."""
        return f"row {row}"

    def prompt(self, row: int) -> str:
        """Returns the prompt, which is the same for every row."""
        return self.text

    def label(self, row: int) -> int | None:
        """Returns the class of the image, or None without labels."""
        return None if self.labels is None else int(self.labels[row])

    def open(self, row: int) -> Image.Image:
        """Returns the image as a grey PIL image."""
        return Image.fromarray(self.images[row])


def idx_file(source: "SourceConfig") -> Path | None:
    """Finds the idx file of images that a source means.

    Returns:
        The file, if ``source.path`` is one, or is a folder that holds one for the split; None for other sources.

    Raises:
        InputError: the folder holds idx files, but none for the split.
    """
    path = Path(source.path)
    if "-idx3-ubyte" in path.name and path.is_file():
        return path
    found = sorted(path.glob("*-images-idx3-ubyte*")) if path.is_dir() else []
    if not found:
        return None
    names = {"train": "train", "test": "t10k"}
    if source.split not in names:
        raise UnknownName("data.split", source.split, names)
    chosen = [file for file in found if file.name.startswith((names[source.split], source.split))]
    if not chosen:
        raise InputError(
            f"{path} has no idx file for the split {source.split!r}, only {found[0].name}.", parameter="data.split"
        )
    return chosen[0]


def read_images(path: Path) -> np.ndarray:
    """Reads all images of an idx file, uint8 [N, H, W]. Raises InputError if it is empty, damaged or truncated."""
    images = _read(path, _IMAGES, 3, "images")
    if not len(images):
        raise InputError(f"there are no images in {path}.", parameter="data.path")
    return images


def read_labels(path: Path, count: int) -> np.ndarray:
    """Reads the labels, uint8 [count], from the idx file that lies beside the idx file of images ``path``.

    Raises:
        InputError: there is no such file, it is damaged, or it holds another number of labels.
    """
    name = path.name.replace("-images-idx3-", "-labels-idx1-")
    found = [path.with_name(other) for other in (name, name.removesuffix(".gz"), f"{name}.gz")]
    file = next((file for file in found if file != path and file.is_file()), None)
    if file is None:
        raise InputError(f"{path} needs a file of labels beside it; there is no {name}.", parameter="data.label")
    labels = _read(file, _LABELS, 1, "labels")
    if len(labels) != count:
        raise InputError(f"{file} holds {len(labels)} labels for {count} images.", parameter="data.label")
    return labels


def _read(path: Path, magic: int, sides: int, what: str) -> np.ndarray:
    """Reads an idx file: a big-endian magic number, ``sides`` big-endian sizes, then one byte for each number."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}", parameter="data.path") from None
    start = 4 * (1 + sides)
    head = [int.from_bytes(raw[at : at + 4], "big") for at in range(0, start, 4)]
    if len(raw) < start or head[0] != magic or len(raw) != start + int(np.prod(head[1:], dtype=object)):
        raise InputError(f"{path} is not a complete idx file of {what}.", parameter="data.path")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(head[1:])
