"""What generated images are held against: the statistics of a data set's features, kept once they are taken."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .._utils.errors import InputError
from ..models.features import FeatureClassifier
from ..pipelines.events import Progress
from ..training.config import DataConfig
from ..training.data import Images
from .frechet import Statistics, read_statistics

CARRIED = "test_statistics.safetensors"


class Features(Protocol):
    """A network that sees images as points: ``FeatureClassifier``, or Inception."""

    @property
    def name(self) -> str:
        """What figures in its features are called by."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells it from every other."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] -> float32 [N, D]."""
        ...


def as_saved(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file of 8 bits a channel holds them: data comes from such, and so must what is compared."""
    return (images.clamp(0, 1) * 255).round() / 255


def carried_statistics(network: FeatureClassifier) -> tuple[Statistics, dict[str, Any]]:
    """The statistics that lie beside a classifier, and what they are of.

    Raises:
        InputError: none lie there, or those of other weights.
    """
    file = network.folder / CARRIED
    if not file.is_file():
        raise InputError(f"no statistics of a data set lie in {network.folder}; name the data.", parameter="data")
    statistics, about = read_statistics(file)
    if about.get("fingerprint") != network.fingerprint:
        raise InputError(
            f"{file} was taken with other weights than lie beside it; recipes/fashion_statistics.py renews it."
        )
    return statistics, about


def data_statistics(
    network: Features,
    images: Images,
    config: DataConfig,
    *,
    cache: Path | None = None,
    batch: int = 250,
    progress: Progress | None = None,
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics of a data set, from the cache where they have been taken before, and what shaped them.

    Args:
        network: whose features.
        images: of ``load_images(config)``; every one counts once, however often an epoch visits it.
        config: where they come from, for the record, and how they became square.
        cache: a folder; the file is named by the network's fingerprint and by every pixel.
        batch: images a network call.
        progress: called with how many are done, and how many there are.

    Raises:
        InputError: no images.
    """
    about = about_data(network, images, config, batch)
    key = hashlib.sha256(json.dumps({k: v for k, v in about.items() if k != "data"}).encode()).hexdigest()[:24]
    file = None if cache is None else cache / f"statistics_{key}.safetensors"
    if file is not None and file.is_file():
        return read_statistics(file)[0], about

    def parts() -> Iterator[Tensor]:
        done = 0
        for pixels in _batches(images, batch):
            yield network.features(pixels.float() / 255)
            done += len(pixels)
            if progress is not None:
                progress(done, len(images))

    statistics = Statistics.of(parts())
    if file is not None:
        statistics.save(file, about)
    return statistics, about


def about_data(network: Features, images: Images, config: DataConfig, batch: int = 250) -> dict[str, Any]:
    """All that shapes statistics: the network, how many images, and every pixel of them."""
    digest = hashlib.sha256()
    for pixels in _batches(images, batch):
        digest.update(pixels.numpy().tobytes())
    shaped = {k: v for k, v in asdict(config).items() if k in ("size", "channels", "fit", "background")}
    data = {"path": Path(config.path).name, "split": config.split, **shaped}
    return {
        "features": network.name,
        "fingerprint": network.fingerprint,
        "dim": network.dim,
        "images": len(images),
        "pixels": digest.hexdigest(),
        "data": data,
    }


def _batches(images: Images, batch: int) -> Iterator[Tensor]:
    """uint8 [N, C, H, W]."""
    order = list(range(len(images)))
    for part in images.stream([order[at : at + batch] for at in range(0, len(order), batch)]):
        yield part.pixels
