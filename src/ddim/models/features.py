"""A classifier of clean images, whose features are used to compare sets of images (Frechet distance).

It is a ResNetForImageClassification of transformers, and its folder contains what ``from_pretrained`` loads. Images x
in [0, 1] enter as 2 x - 1. The package contains one, ``fashion-features``.
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
from .engine.threads import run_in_threads
from .engine.work import Work
from .fingerprint import fingerprint


class CleanResNet(nn.Module):
    """A ResNet that classifies clean images.

    Args:
        resnet: a ResNetForImageClassification.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images [N, C, H, W] in [-1, 1]; returns logits [N, K]."""
        return self.resnet(x).logits

    def features(self, x: Tensor) -> Tensor:
        """Returns the input of the last layer, averaged over all positions: [N, C, H, W] in [-1, 1] -> [N, D]."""
        return self.resnet.resnet(x).pooler_output.flatten(1)


class FeatureClassifier:
    """A classifier of clean images, and its features; ``load_features`` makes it. It computes in float32.

    Args:
        name: the name that results computed with its features are reported under.
        folder: its folder.
        resnet: a ResNetForImageClassification, which is moved and put into eval mode.
        device: the device that it computes on.

    Attributes:
        shape: (C, H, W) of its images.
        dim: the number of features, D.
        classes: the number of classes, K.
        fingerprint: a hash of config and weights, the same on every machine.
    """

    def __init__(self, name: str, folder: Path, resnet: Any, *, device: str | torch.device = "cpu") -> None:
        side = int(resnet.config.image_size)
        self.name, self.folder = name, folder
        self.device, _ = device_and_dtype(device, "float32")
        self.shape = (int(resnet.config.num_channels), side, side)
        self.dim, self.classes = int(resnet.config.hidden_sizes[-1]), int(resnet.config.num_labels)
        self.fingerprint = fingerprint(resnet, None, "features")  # before the cast below changes the weights
        nn.Module.to(resnet, device=self.device, dtype=torch.float32)
        self.network = CleanResNet(resnet).eval().requires_grad_(False)

    def features(self, images: Tensor, batch: int = 250) -> Tensor:
        """Computes the features of images.

        Args:
            images: [N, C, H, W] in [0, 1].
            batch: how many images are computed at once.

        Returns:
            float32 [N, D], on the CPU.

        Raises:
            InputError: the images have another shape than ``shape``.
        """
        return self._in_batches(self.network.features, images, batch)

    def log_probs(self, images: Tensor, batch: int = 250) -> Tensor:
        """Returns log p(y | x) for every class, float32 [N, K]; arguments and errors as for ``features``."""
        return self._in_batches(self.network, images, batch).log_softmax(1)

    def predict(self, images: Tensor, batch: int = 250) -> Tensor:
        """Returns the most likely class of each image, int64 [N]; arguments and errors as for ``features``."""
        return self.log_probs(images, batch).argmax(1)

    @torch.no_grad()
    def _in_batches(self, network: Any, images: Tensor, batch: int) -> Tensor:
        """Calls a network on images in [0, 1], batch by batch."""
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"{self.name} takes images of {sides(self.shape)}, not of {sides(tuple(images.shape[1:]))}."
            )
        work = Work.of(self.network).row(images.shape[2] * images.shape[3])
        parts = [part.to(self.device, torch.float32) * 2 - 1 for part in images.split(batch)]
        return torch.cat([run_in_threads(network, part, row_work=work).cpu() for part in parts])


def bundled_features() -> dict[str, Path]:
    """Returns the feature classifiers that the package contains: name -> folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "config.json").is_file()}


def load_features(name: str | Path, *, device: str | torch.device | None = None) -> FeatureClassifier:
    """Loads a classifier of clean images: a bundled one, or one that ``ddim train`` has made.

    Args:
        name: ``"fashion-features"``, or a folder with ``config.json`` and ``model.safetensors``, as training with
            ``task = "classifier"`` and ``classifier.noise = false`` writes it.
        device: ``"cpu"``, ``"cuda"``, ...; by default cuda if available.

    Raises:
        InputError: there is no such classifier, or its weights are a pickle (pickles are never loaded).
        DDIMError: the files are damaged.
    """
    where, _ = device_and_dtype(device, "float32")
    bundled = bundled_features()
    path = Path(bundled.get(str(name), name))
    if not path.is_dir():
        also = "A folder that ddim train made from recipes/fashion-features.toml is accepted too."
        raise UnknownName("feature classifier", str(name), bundled, parameter="features", hint=also)
    try:
        about = read_json(path / "config.json")
    except InputError as error:
        raise InputError(f"{path} does not contain a feature classifier: {error}") from None
    if about.get("model_type") != "resnet" or "image_size" not in about:
        raise InputError(
            f"{path} does not contain a feature classifier; ddim train with task = 'classifier' makes one.",
            parameter="features",
        )
    if (path / SCHEDULE).is_file():
        raise InputError(
            f"{path} contains a classifier of noisy images; one trained with classifier.noise = false is needed.",
            parameter="features",
        )
    network = read_resnet(path, "features")
    return FeatureClassifier(str(name) if str(name) in bundled else path.resolve().name, path, network, device=where)


def sides(shape: tuple[int, ...]) -> str:
    """Formats a shape for a message, such as ``1x32x32``."""
    return "x".join(map(str, shape))
