"""Which features a model's images are seen through, and what they are held against."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .._utils.errors import InputError
from ..models.features import FeatureClassifier, bundled_features, load_features, sides
from ..pipelines.events import Progress
from .frechet import Statistics
from .reference import carried_statistics, data_statistics


def fitting(name: str | None, picture: tuple[int, int, int], device: torch.device | str | None) -> FeatureClassifier:
    """The features for pictures of a shape: those asked for, or the carried ones that fit.

    Args:
        name: a carried classifier or a folder; None for what fits.
        picture: (C, H, W).
        device: where they are computed.

    Raises:
        InputError: none are known or fit; the sentence says what would do.
    """
    if name is not None:
        network = load_features(name, device=device)
        if network.shape != picture:
            raise InputError(
                f"the features of {network.name!r} are of pictures of {sides(network.shape)}, and the model draws "
                f"{sides(picture)}; give others.",
                parameter="features",
            )
        return network
    carried = (load_features(name, device=device) for name in bundled_features())
    found = next((network for network in carried if network.shape == picture), None)
    if found is None:
        raise InputError(
            f"no carried features fit pictures of {sides(picture)}: train a classifier of such pictures as "
            "recipes/fashion-features.toml does, and give its folder with --features and pictures with --data.",
            parameter="features",
        )
    return found


def fitting_or_none(
    name: str | None, picture: tuple[int, int, int], device: torch.device | str | None
) -> FeatureClassifier | None:
    """As ``fitting``; None where none were asked for and none fit."""
    try:
        return fitting(name, picture, device)
    except InputError:
        if name is not None:
            raise
        return None


def reference(
    network: FeatureClassifier,
    data: Path | None,
    split: str,
    cache: Path,
    progress: Progress | None = None,
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics that images are held against, and what they are of.

    Args:
        network: whose features.
        data: a recipe, whose pictures become square as it says, or pictures as ``data.path`` of a recipe takes them,
            cropped; None for the carried statistics.
        split: the part of ``data`` that is taken.
        cache: where statistics of ``data`` are kept.
        progress: called with how many pictures are done, and how many there are.

    Raises:
        InputError: nothing there, or too few pictures for a covariance.
    """
    if data is None:
        statistics, about = carried_statistics(network)
    else:
        from ..training import load_config
        from ..training.config import DataConfig
        from ..training.data import load_images

        channels, side, _ = network.shape
        if channels not in (1, 3):
            raise InputError(f"Pictures have 1 or 3 channels; {network.name!r} takes {channels}.")
        if data.suffix == ".toml":
            config = replace(load_config(data).data, split=split, size=side, channels=channels, label="", flip=False)
        else:
            config = DataConfig(path=str(data), split=split, size=side, channels=channels)
        statistics, about = data_statistics(network, load_images(config), config, cache=cache, progress=progress)
    enough("The reference has", statistics.count, network.dim)
    return statistics, about


def reference_text(about: Mapping[str, Any]) -> str:
    """What a table says of the reference, from what its statistics are told to be of."""
    data = about.get("data", {})
    return f"{about.get('images')} images of {data.get('path')}, {data.get('split')}"


def enough(what: str, count: int, dim: int) -> None:
    """Raises InputError where so many images have no whole covariance of ``dim`` features."""
    if count <= dim:
        raise InputError(
            f"{what} {count} images, too few for the covariance of {dim} features; use {dim + 1} or more, "
            "10000 as in published tables."
        )
