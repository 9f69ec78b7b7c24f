"""Networks that turn images into feature vectors, and how the one that fits a model is chosen."""

from typing import Protocol

import torch
from torch import Tensor

from ..._utils.errors import InputError
from ...models.features import FeatureClassifier, bundled_features, load_features, sides


class FeatureExtractor(Protocol):
    """A network that turns images into vectors: a ``FeatureClassifier``, or Inception."""

    @property
    def name(self) -> str:
        """The name under which distances in these features are reported."""
        ...

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] to vectors, float32 [N, D]."""
        ...


def as_saved(images: Tensor) -> Tensor:
    """Images in [0, 1], rounded as a file with 8 bits a channel stores them.

    Real images come from such files, so generated ones are rounded too before the two are compared.
    """
    return (images.clamp(0, 1) * 255).round() / 255


def feature_extractor(
    name: str | None, picture: tuple[int, int, int], device: torch.device | str | None
) -> FeatureClassifier:
    """The network with this name, or the bundled one that fits images of a shape.

    Args:
        name: a bundled classifier or a folder; None takes the bundled one that fits.
        picture: the images' shape, (C, H, W).
        device: where the features are computed.

    Raises:
        InputError: the name is unknown, its images have another shape, or no bundled network fits.
    """
    if name is not None:
        network = load_features(name, device=device)
        if network.shape != picture:
            raise InputError(
                f"{network.name!r} takes images of {sides(network.shape)}, and the model generates {sides(picture)}.",
                parameter="features",
                hint="Give features of that shape.",
            )
        return network
    bundled = (load_features(name, device=device) for name in bundled_features())
    found = next((network for network in bundled if network.shape == picture), None)
    if found is None:
        raise InputError(
            f"no bundled features fit images of {sides(picture)}.",
            parameter="features",
            hint="Train a classifier of such images as recipes/fashion-features.toml does, and give its folder with "
            "--features and the images with --data.",
        )
    return found


def feature_extractor_or_none(
    name: str | None, picture: tuple[int, int, int], device: torch.device | str | None
) -> FeatureClassifier | None:
    """As ``feature_extractor``, but None if no name was given and no bundled network fits."""
    try:
        return feature_extractor(name, picture, device)
    except InputError:
        if name is not None:
            raise
        return None
