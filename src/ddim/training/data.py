"""Images for training: found, decoded, made square, and served by index as uint8 [N, C, size, size]."""

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
    """Images as uint8 [N, C, size, size], their prompts (empty where a source has none), and their classes, if any."""

    pixels: Tensor
    prompts: tuple[str, ...]
    labels: tuple[int, ...] = ()


class Images(Protocol):
    """A set of images. ``skipped`` names those that could not be decoded and were left out."""

    skipped: list[str]

    @property
    def classes(self) -> int:
        """1 + the highest label; 0 where an image has none."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """What the data set itself calls the labels 0, 1, ...; empty where it does not say."""
        ...

    def __len__(self) -> int: ...

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """One ``Batch`` for each list of indices, in their order."""
        ...


class MemoryImages:
    """Images decoded once; broken ones are gone before they are counted.

    Args:
        pixels: each image once.
        prompts: as many.
        visits: which image an index means, so that an image may be met more than once an epoch.
        skipped: names of the broken ones.
        labels: as many as images, or none.
        class_names: of the labels 0, 1, ..., where they are known.
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
        """See ``Images``."""
        for batch in batches:
            rows: list[int] = self.visits[batch].tolist()
            labels = tuple(self.labels[row] for row in rows) if self.classes else ()
            yield Batch(self.pixels[rows], tuple(self.prompts[row] for row in rows), labels)


class LazyImages(torch.utils.data.Dataset[tuple[Tensor, int, list[int]]]):
    """Images decoded as they are asked for. In place of a broken one comes the next that is whole."""

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
        return torch.empty(0), start, broken  # raising here would bury the sentence in a worker's traceback

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """See ``Images``."""
        loader = torch.utils.data.DataLoader(
            self, batch_sampler=batches, num_workers=self.config.workers, collate_fn=_collate
        )
        for pixels, found, broken in loader:
            if not pixels.numel():  # one search through the whole set found none
                raise InputError(
                    f"none of the {len(self.rows)} images in {_places(self.config)} can be decoded.",
                    parameter="data.path",
                )
            names = (self.rows.name(index) for index in broken)
            self.skipped += [name for name in dict.fromkeys(names) if name not in self.skipped]
            labels = self.rows.labels(found) if self.classes else ()
            yield Batch(pixels, tuple(self.rows.prompt(row) for row in found), labels)


def _collate(items: list[tuple[Tensor, int, list[int]]]) -> tuple[Tensor, list[int], list[int]]:
    broken = [index for _, _, lost in items for index in lost]
    return torch.stack([pixels for pixels, _, _ in items]), [row for _, row, _ in items], broken


class Rows:
    """The rows of all sources, one after the other, undecoded, so that one broken image harms nothing else."""

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
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def name(self, index: int) -> str:
        """The file of an image, or its row where there is no file."""
        part, row = self._at(index)
        return part.name(row)

    def prompt(self, index: int) -> str:
        """Its words; empty where the source has none."""
        part, row = self._at(index)
        return part.prompt(row)

    def labels(self, indices: Iterable[int]) -> tuple[int, ...]:
        """Their classes, or nothing where one has none."""
        found = [part.label(row) for part, row in map(self._at, indices)]
        return tuple(label for label in found if label is not None) if None not in found else ()

    @property
    def classes(self) -> int:
        """1 + the highest label; 0 where an image has none."""
        return 1 + max(self.labels(range(len(self))), default=-1)

    @property
    def class_names(self) -> Sequence[str]:
        """What the sources call the labels 0, 1, ...; empty unless all of them agree."""
        first, *others = (part.class_names for part in self.parts)
        return first if all(list(other) == list(first) for other in others) else ()

    def decode(self, index: int, config: DataConfig) -> np.ndarray:
        """One image as ``square`` makes it. Raises InputError where it cannot be decoded."""
        part, row = self._at(index)
        return square(part.open(row), config)


def load_images(config: DataConfig) -> Images:
    """The images that a data section names.

    Raises:
        InputError: nothing there, no image among it, or none that can be decoded; a column, prompt or list of
            held-out rows that does not fit.
    """
    parts, repeats = [open_source(source, config) for source in config.sources], [s.repeat for s in config.sources]
    visits = sum(len(part) * repeat for part, repeat in zip(parts, repeats, strict=True))
    if visits > LONGEST_EPOCH:
        raise InputError(
            f"an epoch would meet {visits:,} pictures; at most {LONGEST_EPOCH:,} are ordered.", parameter="data.repeat"
        )
    rows = Rows(parts, repeats)
    _check_labels(rows.labels(range(len(rows))))
    size = len(rows) * config.channels * config.size**2
    return LazyImages(rows, config) if size > config.memory_gib * 2**30 else _decode_all(rows, config)


def _check_labels(labels: Sequence[int]) -> None:
    """Raises InputError for numbers that are no classes; warns of classes without a picture."""
    count, found = 1 + max(labels, default=-1), set(labels)
    if count > len(labels):
        raise InputError(
            f"the highest is {count - 1}, so there would be {count:,} classes of {len(labels):,} pictures; number the "
            "classes from 0.",
            parameter="data.label",
        )
    if len(found) < count:
        lacking = [k for k in range(count) if k not in found]
        warnings.warn(
            f"{len(lacking)} of {count} classes have no picture (the first: {lacking[0]}).", DDIMWarning, stacklevel=3
        )


def _decode_all(rows: Rows, config: DataConfig) -> MemoryImages:
    pixels = np.empty((len(rows), config.channels, config.size, config.size), dtype=np.uint8)
    skipped, reason, place = [], "", {}
    for index in range(len(rows)):
        try:
            pixels[len(place)] = rows.decode(index, config)
            place[index] = len(place)
        except InputError as error:
            skipped.append(rows.name(index))
            reason = reason or error.message.rstrip(".")
    if not place:
        raise InputError(
            f"none of the {len(rows)} images in {_places(config)} can be decoded (the first: {reason}).",
            parameter="data.path",
        )
    visits = [place[row] for row in rows.visits if row in place]
    prompts, labels = [rows.prompt(row) for row in place], rows.labels(place)
    decoded = torch.from_numpy(pixels[: len(place)])
    return MemoryImages(decoded, prompts, visits, skipped, labels, rows.class_names)


def _places(config: DataConfig) -> str:
    return " and ".join(source.path for source in config.sources)


def fingerprint(images: Images) -> dict[str, int]:
    """Their number and a checksum of up to 64 of them, by which a resumed run knows its data again."""
    chosen = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int).tolist()
    (batch,) = images.stream([chosen])
    words = "\0".join(batch.prompts).strip("\0").encode() + "".join(f"\0{label}" for label in batch.labels).encode()
    return {"count": len(images), "crc32": zlib.crc32(words, zlib.crc32(batch.pixels.numpy().tobytes()))}
