"""The idx files of MNIST-type sets: images, and their labels beside them (http://yann.lecun.com/exdb/mnist)."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .._utils.errors import InputError, UnknownName
from .._utils.foreign import told

if TYPE_CHECKING:
    from ..training.config import SourceConfig

_LABELS, _IMAGES = 2049, 2051  # the magic numbers


class IdxPart:
    """Images of an idx file, uint8 [N, H, W], their labels [N], and a prompt for all; see ``sources.Part``."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, prompt: str = "") -> None:
        self.images, self.labels, self.words = images, labels, prompt
        self.class_names: Sequence[str] = ()  # an idx file has none

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """See ``Part``."""
        return f"row {row}"

    def prompt(self, row: int) -> str:
        """See ``Part``."""
        return self.words

    def label(self, row: int) -> int | None:
        """See ``Part``."""
        return None if self.labels is None else int(self.labels[row])

    def open(self, row: int) -> Image.Image:
        """See ``Part``."""
        return Image.fromarray(self.images[row])


def idx_file(source: "SourceConfig") -> Path | None:
    """The file of images, if ``path`` is one or a folder with them. Raises InputError for a split that is not there."""
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
    """All images of an idx file, uint8 [N, H, W]. Raises InputError for one that is empty, broken or cut off."""
    images = _read(path, _IMAGES, 3, "images")
    if not len(images):
        raise InputError(f"there are no images in {path}.", parameter="data.path")
    return images


def read_labels(path: Path, count: int) -> np.ndarray:
    """The labels, uint8 [count], that lie beside the file of images ``path``.

    Raises:
        InputError: there is no such file, it is broken, or it holds another number of labels.
    """
    name = path.name.replace("-images-idx3-", "-labels-idx1-")
    found = [path.with_name(other) for other in (name, name.removesuffix(".gz"), f"{name}.gz")]
    file = next((file for file in found if file != path and file.is_file()), None)
    if file is None:
        raise InputError(f"{path} has no labels beside it, no {name}.", parameter="data.label")
    labels = _read(file, _LABELS, 1, "labels")
    if len(labels) != count:
        raise InputError(f"{file} holds {len(labels)} labels for {count} images.", parameter="data.label")
    return labels


def _read(path: Path, magic: int, sides: int, what: str) -> np.ndarray:
    """The bytes of an idx file in their shape: big-endian magic, then as many sizes as there are sides."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {told(error)}", parameter="data.path") from None
    start = 4 * (1 + sides)
    head = [int.from_bytes(raw[at : at + 4], "big") for at in range(0, start, 4)]
    if len(raw) < start or head[0] != magic or len(raw) != start + int(np.prod(head[1:], dtype=object)):
        raise InputError(f"{path} is not a whole idx file of {what}.", parameter="data.path")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(head[1:])
