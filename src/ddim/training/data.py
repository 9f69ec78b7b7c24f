"""Loads the images of a training run, and serves them by index as uint8 [N, C, size, size]."""

import warnings
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError
from ..data.sources import Part, open_source, square
from .config import DataConfig

LONGEST_EPOCH = 100_000_000


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        pixels: uint8 [N, C, size, size].
        prompts: N prompts; empty strings for a source without prompts.
        labels: N classes, or empty.
    """

    pixels: Tensor
    prompts: tuple[str, ...]
    labels: tuple[int, ...] = ()


class Images(Protocol):
    """A set of images that can be read in any order."""

    skipped: list[str]
    """Names of images that could not be decoded and were left out."""

    @property
    def classes(self) -> int:
        """The number of classes, 1 + the highest label; 0 if an image has no label."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the labels 0, 1, ... in the data set; empty if it does not name them."""
        ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """Yields one ``Batch`` for each list of indices, in the same order."""
        ...


class MemoryImages:
    """Decoded images in memory; images that could not be decoded are not counted.

    Args:
        pixels: each image once, uint8 [M, C, size, size].
        prompts: M prompts.
        visits: index -> image, so that an epoch may visit an image several times.
        skipped: names of images that could not be decoded.
        labels: M classes, or empty.
        class_names: names of the labels 0, 1, ..., if they are known.
    """

    def __init__(
        self,
        pixels: Tensor,
        prompts: Sequence[str],
        visits: Sequence[int],
        skipped: list[str],
        labels: Sequence[int] = (),
        class_names: Sequence[str] = (),
    ) -> None:
        self.pixels, self.prompts, self.visits, self.skipped = pixels, prompts, np.asarray(visits), skipped
        self.labels, self.classes, self.class_names = labels, 1 + max(labels, default=-1), class_names

    def __len__(self) -> int:
        return len(self.visits)

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """Yields one ``Batch`` for each list of indices."""
        for batch in batches:
            rows: list[int] = self.visits[batch].tolist()
            labels = tuple(self.labels[row] for row in rows) if self.classes else ()
            yield Batch(self.pixels[rows], tuple(self.prompts[row] for row in rows), labels)


class LazyImages(torch.utils.data.Dataset[tuple[Tensor, int, list[int]]]):
    """Images that are decoded when they are needed.

    An image that cannot be decoded is replaced by the next one that can.

    Args:
        rows: the undecoded images.
        config: how they are prepared.
    """

    def __init__(self, rows: "Rows", config: DataConfig) -> None:
        self.rows, self.config = rows, config
        self.skipped: list[str] = []
        self.classes, self.class_names = rows.classes, rows.class_names

    def __len__(self) -> int:
        return len(self.rows.visits)

    def __getitem__(self, index: int) -> tuple[Tensor, int, list[int]]:
        broken: list[int] = []
        start, count = self.rows.visits[index], len(self.rows)
        for at in range(start, start + count):
            try:
                return torch.from_numpy(self.rows.decode(at % count, self.config)), at % count, broken
            except InputError:
                broken.append(at % count)
        # Nothing could be decoded. An error raised in this worker process would reach the user inside a traceback, so
        # the empty tensor tells ``stream`` to raise it.
        return torch.empty(0), start, broken

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """Yields one ``Batch`` for each list of indices, decoded by ``workers`` processes.

        Raises:
            InputError: none of the images can be decoded.
        """
        loader = torch.utils.data.DataLoader(
            self, batch_sampler=batches, num_workers=self.config.workers, collate_fn=_collate
        )
        for pixels, found, broken in loader:
            if not pixels.numel():  # a search through the whole set has found no image that can be decoded
                raise InputError(
                    f"none of the {len(self.rows)} images in {_paths(self.config)} can be decoded.",
                    parameter="data.path",
                )
            names = (self.rows.name(index) for index in broken)
            self.skipped += [name for name in dict.fromkeys(names) if name not in self.skipped]
            labels = self.rows.labels(found) if self.classes else ()
            yield Batch(pixels, tuple(self.rows.prompt(row) for row in found), labels)


def _collate(items: list[tuple[Tensor, int, list[int]]]) -> tuple[Tensor, list[int], list[int]]:
    """Joins items of ``LazyImages``: pixels, the rows that they came from, and the rows that could not be decoded."""
    broken = [index for _, _, lost in items for index in lost]
    return torch.stack([pixels for pixels, _, _ in items]), [row for _, row, _ in items], broken


class Rows:
    """The undecoded rows of all sources, one source after the other.

    Args:
        parts: the sources.
        repeats: how often an epoch visits the images of each source.
    """

    def __init__(self, parts: Sequence[Part], repeats: Sequence[int]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.visits = [
            row
            for part, repeat in enumerate(repeats)
            for row in list(range(self.starts[part], self.starts[part + 1])) * repeat
        ]

    def __len__(self) -> int:
        return self.starts[-1]

    def _at(self, index: int) -> tuple[Part, int]:
        """Finds the source of a row, and its index in that source."""
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def name(self, index: int) -> str:
        """Returns the file of an image, or the number of its row if it has no file."""
        part, row = self._at(index)
        return part.name(row)

    def prompt(self, index: int) -> str:
        """Returns the prompt of an image; empty if its source has none."""
        part, row = self._at(index)
        return part.prompt(row)

    def labels(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Returns the classes of images; empty if one of them has none."""
        found = [part.label(row) for part, row in map(self._at, indices)]
        return tuple(label for label in found if label is not None) if None not in found else ()

    @property
    def classes(self) -> int:
        """The number of classes, 1 + the highest label; 0 if an image has no label."""
        return 1 + max(self.labels(range(len(self))), default=-1)

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the labels 0, 1, ... in the sources; empty unless all sources agree."""
        first, *others = (part.class_names for part in self.parts)
        return first if all(list(other) == list(first) for other in others) else ()

    def decode(self, index: int, config: DataConfig) -> np.ndarray:
        """Decodes one image and makes it square. Raises InputError if it cannot be decoded."""
        part, row = self._at(index)
        return square(part.open(row), config)


def load_images(config: DataConfig) -> Images:
    """Loads the images of a data section, into memory if they fit (``memory_gib``).

    Raises:
        InputError: there are no images, none can be decoded, or a column, prompt template or list of held-out rows
            does not fit the data.
    """
    parts, repeats = [open_source(source, config) for source in config.sources], [s.repeat for s in config.sources]
    visits = sum(len(part) * repeat for part, repeat in zip(parts, repeats, strict=True))
    if visits > LONGEST_EPOCH:
        raise InputError(
            f"an epoch would visit {visits:,} images, more than {LONGEST_EPOCH:,}.", parameter="data.repeat"
        )
    rows = Rows(parts, repeats)
    _check_labels(rows.labels(range(len(rows))))
    size = len(rows) * config.channels * config.size**2
    return LazyImages(rows, config) if size > config.memory_gib * 2**30 else _decode_all(rows, config)


def _check_labels(labels: Sequence[int]) -> None:
    """Raises InputError if there are more classes than images; warns of classes without an image."""
    count, found = 1 + max(labels, default=-1), set(labels)
    if count > len(labels):
        raise InputError(
            f"the highest label is {count - 1}, so there would be {count:,} classes for {len(labels):,} images; number "
            "the classes from 0.",
            parameter="data.label",
        )
    if len(found) < count:
        lacking = [k for k in range(count) if k not in found]
        warnings.warn(
            f"{len(lacking)} of {count} classes have no images (the first: {lacking[0]}).", DDIMWarning, stacklevel=3
        )


def _decode_all(rows: Rows, config: DataConfig) -> MemoryImages:
    """Decodes all images into memory. Raises InputError if none can be decoded."""
    pixels = np.empty((len(rows), config.channels, config.size, config.size), dtype=np.uint8)
    skipped, reason, position = [], "", {}
    for index in range(len(rows)):
        try:
            pixels[len(position)] = rows.decode(index, config)
            position[index] = len(position)
        except InputError as error:
            skipped.append(rows.name(index))
            reason = reason or error.message.rstrip(".")
    if not position:
        raise InputError(
            f"none of the {len(rows)} images in {_paths(config)} can be decoded (the first: {reason}).",
            parameter="data.path",
        )
    visits = [position[row] for row in rows.visits if row in position]
    prompts, labels = [rows.prompt(row) for row in position], rows.labels(position)
    decoded = torch.from_numpy(pixels[: len(position)])
    return MemoryImages(decoded, prompts, visits, skipped, labels, rows.class_names)


def _paths(config: DataConfig) -> str:
    """Returns the paths of all sources, for a message."""
    return " and ".join(source.path for source in config.sources)


def fingerprint(images: Images) -> dict[str, int]:
    """Returns the number of images and a checksum over up to 64 of them, by which a resumed run recognises its data."""
    chosen = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int).tolist()
    (batch,) = images.stream([chosen])
    words = "\0".join(batch.prompts).strip("\0").encode() + "".join(f"\0{label}" for label in batch.labels).encode()
    return {"count": len(images), "crc32": zlib.crc32(words, zlib.crc32(batch.pixels.numpy().tobytes()))}
