"""Images for training: found, decoded, made square, and served by index as uint8 [N, C, size, size]."""

import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError, unknown
from ..images import flatten
from .config import DataConfig

BROKEN = (OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)


class Images(Protocol):
    """A set of images. ``skipped`` names those that could not be decoded and were left out."""

    skipped: list[str]

    def __len__(self) -> int: ...

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """One uint8 tensor [len(batch), C, size, size] for each batch of indices, in their order."""
        ...


class MemoryImages:
    """Images decoded once; broken ones are gone before they are counted."""

    def __init__(self, pixels: Tensor, skipped: list[str]) -> None:
        self.pixels, self.skipped = pixels, skipped

    def __len__(self) -> int:
        return len(self.pixels)

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """See ``Images``."""
        for batch in batches:
            yield self.pixels[torch.as_tensor(batch)]


class LazyImages(torch.utils.data.Dataset[tuple[Tensor, list[int]]]):
    """Images decoded as they are asked for. In place of a broken one comes the next that is whole."""

    def __init__(self, rows: "Rows", config: DataConfig) -> None:
        self.rows, self.config = rows, config
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, list[int]]:
        broken: list[int] = []
        for at in range(index, index + len(self)):
            try:
                return torch.from_numpy(self.rows.decode(at % len(self), self.config)), broken
            except BROKEN:
                broken.append(at % len(self))
        return torch.empty(0), broken  # raising here would bury the sentence in a worker's traceback

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """See ``Images``."""
        loader = torch.utils.data.DataLoader(
            self, batch_sampler=batches, num_workers=self.config.workers, collate_fn=_collate
        )
        for pixels, broken in loader:
            if not pixels.numel():  # one search through the whole set found none
                raise InputError(f"None of the {len(self)} images in {self.config.path} can be decoded.")
            names = (self.rows.name(index) for index in broken)
            self.skipped += [name for name in dict.fromkeys(names) if name not in self.skipped]
            yield pixels


def _collate(items: list[tuple[Tensor, list[int]]]) -> tuple[Tensor, list[int]]:
    return torch.stack([image for image, _ in items]), [index for _, broken in items for index in broken]


class Rows:
    """The image column of an HF data set, undecoded, so that one broken image harms nothing else."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The file of an image, or its row where there is no file."""
        cell = self.dataset[index][self.column]
        path = cell.get("path") if isinstance(cell, dict) else None
        return path or f"row {index}"

    def decode(self, index: int, config: DataConfig) -> np.ndarray:
        """One image as ``square`` makes it. Raises one of ``BROKEN``."""
        cell = self.dataset[index][self.column]
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        if not isinstance(cell, (bytes, str)):
            raise ValueError(f"there is no image in the cell, but {cell!r:.40}")
        with Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as image:
            return square(image, config)


def load_images(config: DataConfig) -> Images:
    """The images that a data section names.

    Raises:
        InputError: nothing there, no image among it, or none that can be decoded.
    """
    idx = _idx_file(config)
    if idx is not None:
        return MemoryImages(_from_idx(idx, config), [])
    rows = _open_dataset(config)
    if not len(rows):
        raise InputError(f"There are no images in {config.path}.")
    size = len(rows) * config.channels * config.size**2
    return LazyImages(rows, config) if size > config.memory_gib * 2**30 else _decode_all(rows, config)


def _decode_all(rows: Rows, config: DataConfig) -> MemoryImages:
    pixels = np.empty((len(rows), config.channels, config.size, config.size), dtype=np.uint8)
    whole, skipped, reason = 0, [], ""
    for index in range(len(rows)):
        try:
            pixels[whole] = rows.decode(index, config)
            whole += 1
        except BROKEN as error:
            skipped.append(rows.name(index))
            reason = reason or str(error)
    if not whole:
        raise InputError(f"None of the {len(rows)} images in {config.path} can be decoded (the first: {reason}).")
    return MemoryImages(torch.from_numpy(pixels[:whole]), skipped)


def fingerprint(images: Images) -> dict[str, int]:
    """Their number and a checksum of up to 64 of them, by which a resumed run knows its data again."""
    chosen = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int).tolist()
    (pixels,) = images.stream([chosen])
    return {"count": len(images), "crc32": zlib.crc32(pixels.numpy().tobytes())}


def square(image: Image.Image, config: DataConfig) -> np.ndarray:
    """An image as uint8 [channels, size, size]: upright, without transparency, fitted as the config says."""
    image = ImageOps.exif_transpose(image)
    size, grey = config.size, config.background
    mode, back = ("L", grey) if config.channels == 1 else ("RGB", (grey, grey, grey))
    image = flatten(image, mode, grey)
    if config.fit == "resize":
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    elif config.fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    else:
        if max(image.size) > size:
            image = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
        canvas = Image.new(mode, (size, size), back)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    pixels = np.array(image, dtype=np.uint8).reshape(size, size, config.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


# --- sources --------------------------------------------------------------------------------------------------------


def _idx_file(config: DataConfig) -> Path | None:
    """The idx file of a MNIST-type set, if ``path`` is one or a folder with them."""
    path = Path(config.path)
    if "-idx3-ubyte" in path.name and path.is_file():
        return path
    found = sorted(path.glob("*-images-idx3-ubyte*")) if path.is_dir() else []
    if not found:
        return None
    names = {"train": "train", "test": "t10k"}
    if config.split not in names:
        raise unknown("data.split", config.split, names)
    chosen = [file for file in found if file.name.startswith((names[config.split], config.split))]
    if not chosen:
        raise InputError(f"{path} has no idx file for the split {config.split!r}, only {found[0].name}.")
    return chosen[0]


def _from_idx(path: Path, config: DataConfig) -> Tensor:
    """All images of an idx file; format: http://yann.lecun.com/exdb/mnist (magic 2051, count, rows, columns)."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"Cannot read {path}: {error}.") from None
    head = np.frombuffer(raw[:16], dtype=">u4")
    if len(head) < 4 or head[0] != 2051 or len(raw) != 16 + int(head[1]) * int(head[2]) * int(head[3]):
        raise InputError(f"{path} is not a whole idx file of images.")
    images = np.frombuffer(raw, dtype=np.uint8, offset=16).reshape(int(head[1]), int(head[2]), int(head[3]))
    if not len(images):
        raise InputError(f"There are no images in {path}.")
    pixels = np.empty((len(images), config.channels, config.size, config.size), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels[row] = square(Image.fromarray(image), config)
    return torch.from_numpy(pixels)


def _open_dataset(config: DataConfig) -> Rows:
    """The HF data set behind ``path``: a parquet file, a folder, or a hub id."""
    try:
        import datasets
    except ImportError:
        raise InputError("Training needs more packages: pip install 'ddim[train]'.") from None
    path = Path(config.path)
    if not path.exists() and (
        path.is_absolute() or path.suffix in (".parquet", ".gz") or len(path.parts) > 2 or config.path[0] == "."
    ):
        raise InputError(f"There is no file or folder {path}.")
    try:
        if path.suffix == ".parquet":
            data = datasets.load_dataset("parquet", data_files=os.fspath(path), split="train")
        elif path.is_dir() and any(path.rglob("*.parquet")):
            data = datasets.load_dataset("parquet", data_dir=os.fspath(path), split=config.split)
        elif path.is_dir():
            files = {"image": _image_files(path / config.split if (path / config.split).is_dir() else path)}
            image = datasets.Features({"image": datasets.Image(decode=False)})
            data = datasets.Dataset.from_dict(files, features=image)
        elif path.exists():
            raise InputError(f"{path} is neither a folder, a parquet file nor an idx file of images.")
        else:
            data = datasets.load_dataset(config.path, split=config.split)
    except InputError:
        raise
    except Exception as error:  # datasets raises a dozen types of its own
        where = "is neither a path here nor a data set that the hub gives us"
        reason = "cannot be read" if path.exists() else where
        raise InputError(f"{config.path} {reason}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    column = _image_column(data, config, datasets.Image)
    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    return Rows(data.select_columns([column]), column)


def _image_files(folder: Path) -> list[str]:
    """Everything beneath ``folder`` that is named like an image, in the order of the names."""
    known = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.name[0] != ".")
    if not files:
        raise InputError(f"There are no images in {folder}.")
    return [os.fspath(file) for file in files]


def _image_column(data: Any, config: DataConfig, image_type: type) -> str:
    if config.column:
        if config.column not in data.column_names:
            raise unknown("data.column", config.column, data.column_names)
        return config.column
    for name, kind in data.features.items():
        if isinstance(kind, image_type):
            return name
    if "image" in data.column_names:
        return "image"
    raise InputError(f"No column of {config.path} holds images; it has {', '.join(data.column_names)}.")
