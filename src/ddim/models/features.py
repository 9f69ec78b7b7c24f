"""A classifier of clean images, whose features tell sets of images apart: transformers' ResNetForImageClassification.

A folder holds what ``ResNetForImageClassification.from_pretrained`` loads; its images go in as 2 x - 1. The package
carries one, ``fashion-features``.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, UnknownName
from .._utils.files import read_json
from .classifier import SCHEDULE, read_resnet
from .device import device_and_dtype
from .fingerprint import fingerprint


class CleanResNet(nn.Module):
    """x -> logits.

    Args:
        resnet: a ResNetForImageClassification.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], [N, C, H, W] -> logits [N, K]."""
        return self.resnet(x).logits

    def features(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], [N, C, H, W] -> what the last layer is given, the mean over the places, [N, D]."""
        return self.resnet.resnet(x).pooler_output.flatten(1)


class FeatureClassifier:
    """A classifier of images and its features; made by ``load_features``.

    Args:
        name: what figures in its features are called by.
        folder: where it lies.
        resnet: a ResNetForImageClassification, put into eval mode and moved.
        device: where it computes, in float32.

    Attributes:
        shape: (C, H, W) of the images it knows.
        dim: D, how many features.
        classes: K.
        fingerprint: a hash of config and weights, the same on every machine.
    """

    def __init__(self, name: str, folder: Path, resnet: Any, *, device: str | torch.device = "cpu") -> None:
        side = int(resnet.config.image_size)
        self.name, self.folder = name, folder
        self.device, _ = device_and_dtype(device, "float32")
        self.shape = (int(resnet.config.num_channels), side, side)
        self.dim, self.classes = int(resnet.config.hidden_sizes[-1]), int(resnet.config.num_labels)
        self.fingerprint = fingerprint(resnet, None, "features")  # of the weights as they come
        nn.Module.to(resnet, device=self.device, dtype=torch.float32)
        self.network = CleanResNet(resnet).eval().requires_grad_(False)

    def features(self, images: Tensor, batch: int = 250) -> Tensor:
        """Images [N, C, H, W] in [0, 1] -> features, float32 [N, D].

        Raises:
            InputError: images of another shape.
        """
        return self._asked(self.network.features, images, batch)

    def log_probs(self, images: Tensor, batch: int = 250) -> Tensor:
        """log p(y | x) of every class, float32 [N, K]; takes and raises as ``features``."""
        return self._asked(self.network, images, batch).log_softmax(1)

    def predict(self, images: Tensor, batch: int = 250) -> Tensor:
        """The likeliest class of each image, int64 [N]; takes and raises as ``features``."""
        return self.log_probs(images, batch).argmax(1)

    @torch.no_grad()
    def _asked(self, network: Any, images: Tensor, batch: int) -> Tensor:
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"{self.name} knows images of {sides(self.shape)}, not of {sides(tuple(images.shape[1:]))}."
            )
        parts = images.split(batch)
        return torch.cat([network(part.to(self.device, torch.float32) * 2 - 1).cpu() for part in parts])


def bundled_features() -> dict[str, Path]:
    """The feature classifiers that the package carries: name to folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "config.json").is_file()}


def load_features(name: str | Path, *, device: str | torch.device | None = None) -> FeatureClassifier:
    """A classifier that ``ddim train`` made from ``task = "classifier"`` with ``classifier.noise = false``.

    Args:
        name: ``"fashion-features"``, or a folder with ``config.json`` and ``model.safetensors``.
        device: ``"cpu"``, ``"cuda"`` ...; by default cuda where there is one.

    Raises:
        InputError: no such classifier; a pickle, which is never loaded.
        DDIMError: the files are broken.
    """
    where, _ = device_and_dtype(device, "float32")
    bundled = bundled_features()
    path = Path(bundled.get(str(name), name))
    if not path.is_dir():
        also = "A folder that ddim train made from recipes/fashion-features.toml will do too."
        raise UnknownName("feature classifier", str(name), bundled, parameter="features", hint=also)
    try:
        about = read_json(path / "config.json")
    except InputError as error:
        raise InputError(f"{path} is no feature classifier: {error}") from None
    if about.get("model_type") != "resnet" or "image_size" not in about:
        raise InputError(
            f"{path} is no feature classifier; task = 'classifier' of ddim train makes one.", parameter="features"
        )
    if (path / SCHEDULE).is_file():
        raise InputError(
            f"{path} is a classifier of noisy images; one with classifier.noise = false is needed.",
            parameter="features",
        )
    network = read_resnet(path, "features")
    return FeatureClassifier(str(name) if str(name) in bundled else path.resolve().name, path, network, device=where)


def sides(shape: tuple[int, ...]) -> str:
    """A shape in a sentence: ``1x32x32``."""
    return "x".join(map(str, shape))
