"""The reference that generated images are compared with: statistics of a data set's features, which are cached."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .._utils.error_text import reason_of
from .._utils.errors import InputError
from .._utils.files import write_whole
from ..models.features import FeatureClassifier
from ..training.config import DataConfig
from ..training.data import Images
from .metrics.feature_extractor import FeatureExtractor
from .metrics.frechet import Statistics
from .runner import Progress

BUNDLED = "test_statistics.safetensors"
"""The file beside a bundled classifier that holds the statistics of test images."""
FORMAT = "ddim-statistics"


def save_statistics(statistics: Statistics, path: str | Path, about: dict[str, Any]) -> Path:
    """Writes statistics as safetensors; ``about``, plain JSON values, says what they are of.

    Raises:
        NotWritten: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {"mean": statistics.mean.contiguous(), "covariance": statistics.covariance.contiguous()}
    metadata = {"format": FORMAT, "count": str(statistics.count), "about": json.dumps(about, sort_keys=True)}
    return write_whole(path, save(tensors, metadata))


def read_statistics(path: str | Path) -> tuple[Statistics, dict[str, Any]]:
    """The statistics in a file of ``save_statistics``, and what they are of.

    Raises:
        InputError: there is no such file, or it has another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} does not contain statistics of features.")
            mean, covariance = file.get_tensor("mean").double(), file.get_tensor("covariance").double()
            return Statistics(mean, covariance, int(metadata["count"])), json.loads(metadata["about"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as the statistics of features: {reason_of(error)}") from None


def bundled_statistics(network: FeatureClassifier) -> tuple[Statistics, dict[str, Any]]:
    """The statistics that lie beside a classifier, and what they are of.

    Raises:
        InputError: there are none, or they belong to other weights.
    """
    file = network.folder / BUNDLED
    if not file.is_file():
        raise InputError(f"there are no statistics of a data set in {network.folder}; give the data.", parameter="data")
    statistics, about = read_statistics(file)
    if about.get("fingerprint") != network.fingerprint:
        raise InputError(
            f"{file} belongs to other weights than those beside it; recipes/fashion_statistics.py makes it anew."
        )
    return statistics, about


def data_statistics(
    network: FeatureExtractor,
    images: Images,
    config: DataConfig,
    *,
    cache: Path | None = None,
    batch: int = 250,
    progress: Progress | None = None,
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics of a data set, and what shaped them. They are read from the cache if it has them.

    Args:
        network: the network whose features are used.
        images: from ``load_images(config)``; each counts once, however often an epoch visits it.
        config: where the images come from, for the record, and how they become square.
        cache: a folder; the name of a file depends on the network's fingerprint and on every pixel.
        batch: images in each network call.
        progress: called with the number of images that are done, and their total.

    Raises:
        InputError: there are no images.
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
        save_statistics(statistics, file, about)
    return statistics, about


def about_data(network: FeatureExtractor, images: Images, config: DataConfig, batch: int = 250) -> dict[str, Any]:
    """What shapes statistics: the network, the number of images, and a hash of all pixels."""
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


def open_reference(
    network: FeatureClassifier,
    data: Path | None,
    split: str,
    cache: Path,
    progress: Progress | None = None,
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics that generated images are compared with, and what they are of.

    Args:
        network: the network whose features are used.
        data: a recipe, whose images become square as it says; or images in the form that ``data.path`` of a recipe
            takes, which are cropped; None for the bundled statistics.
        split: the split of ``data``.
        cache: the folder in which statistics of ``data`` are cached.
        progress: called with the number of images that are done, and their total.

    Raises:
        InputError: there are no such images, or too few for a covariance.
    """
    if data is None:
        statistics, about = bundled_statistics(network)
    else:
        from ..training import load_config
        from ..training.config import DataConfig
        from ..training.data import load_images

        channels, side, _ = network.shape
        if channels not in (1, 3):
            raise InputError(f"Images have 1 or 3 channels; {network.name!r} takes {channels}.")
        if data.suffix == ".toml":
            config = replace(load_config(data).data, split=split, size=side, channels=channels, label="", flip=False)
        else:
            config = DataConfig(path=str(data), split=split, size=side, channels=channels)
        statistics, about = data_statistics(network, load_images(config), config, cache=cache, progress=progress)
    check_covariance("The reference has", statistics.count, network.dim)
    return statistics, about


def reference_text(about: Mapping[str, Any]) -> str:
    """The reference in words, for the line under a table."""
    data = about.get("data", {})
    return f"{about.get('images')} images of {data.get('path')}, {data.get('split')}"


def check_covariance(what: str, count: int, dim: int) -> None:
    """Raises InputError if so many images do not determine the covariance of ``dim`` features."""
    if count <= dim:
        raise InputError(
            f"{what} {count} images, too few for the covariance of {dim} features; use {dim + 1} or more, "
            "such as the 10000 of published tables."
        )


def _batches(images: Images, batch: int) -> Iterator[Tensor]:
    """uint8 [N, C, H, W]."""
    order = list(range(len(images)))
    for part in images.stream([order[at : at + batch] for at in range(0, len(order), batch)]):
        yield part.pixels
