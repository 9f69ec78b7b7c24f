"""A classifier of noisy images, p(y | x_t, t), for classifier guidance: a ResNet of transformers with the noise level.

The noise level is one more input channel that is constant over the image: log(alpha^2 / sigma^2) / 10. A folder
contains the files that ``ResNetForImageClassification.from_pretrained`` loads, and ``scheduler_config.json`` with the
noise levels that the classifier was trained on.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError
from .._utils.files import read_json
from .._utils.silence import loading
from ..core.path import GaussianPath, Node
from .device import device_and_dtype
from .scheduler_config import from_scheduler_config
from .weights import transformers_part

SCHEDULE = "scheduler_config.json"
_LIMIT = 20.0  # bound of |log-SNR|, so that levels without noise or without signal stay finite


class NoisyResNet(nn.Module):
    """A ResNet that takes noisy images and their log-SNR.

    Args:
        resnet: a ResNetForImageClassification with one more input channel than the images have.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Classifies noisy images.

        Args:
            x: alpha x0 + sigma eps with alpha^2 + sigma^2 = 1, [N, C, H, W].
            log_snr: log(alpha^2 / sigma^2), [N].

        Returns:
            Logits [N, K].
        """
        level = (log_snr.clamp(-_LIMIT, _LIMIT) / 10).to(x.dtype).view(-1, 1, 1, 1)
        return self.resnet(torch.cat([x, level.expand(-1, 1, *x.shape[2:])], dim=1)).logits


class NoisyClassifier:
    """Computes log p(y | x) at a node of any Gaussian path; ``ddim.load_classifier`` makes it.

    It implements the protocol ``guidance.Classifier``.

    Args:
        name: the name or path that it was loaded by.
        resnet: a ResNetForImageClassification, which is moved and put into eval mode.
        path: the noise levels that it was trained on; a node beyond them is treated as the nearest one.
        device: the device that it computes on.
        dtype: the dtype that it computes in.

    Attributes:
        shape: (C, H, W) of its images; their values lie in [-1, 1].
        classes: the number of classes, K.
    """

    def __init__(
        self,
        name: str,
        resnet: Any,
        path: GaussianPath,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        side = int(resnet.config.image_size)
        self.name, self.path = name, path
        self.device, self.dtype = device_and_dtype(device, dtype)
        self.shape = (int(resnet.config.num_channels) - 1, side, side)
        self.classes = int(resnet.config.num_labels)
        ends = path.log_snr(torch.tensor([path.t_max, 1.0]))
        self._lowest, self._highest = float(ends[0]), float(ends[1])
        nn.Module.to(resnet, device=self.device, dtype=dtype)
        self.network = NoisyResNet(resnet).eval().requires_grad_(False)

    def log_probs(self, x: Tensor, node: Node) -> Tensor:
        """Returns log p(y | x) for every class: [N, K] in float32, or in x's dtype if that is wider.

        Args:
            x: alpha x0 + sigma eps, [N, C, H, W].
            node: the noise level of x.
        """
        # x / sqrt(alpha^2 + sigma^2) is a point of a variance-preserving path with the same SNR, which the ResNet knows
        scaled = x / math.hypot(node.alpha, node.sigma)
        snr = 2 * (math.log(node.alpha) if node.alpha > 0 else -math.inf)
        snr -= 2 * math.log(node.sigma) if node.sigma > 0 else -math.inf
        level = torch.full((len(x),), min(max(snr, self._lowest), self._highest), device=x.device)
        return self.network(scaled.to(self.dtype), level).to(torch.promote_types(x.dtype, torch.float32)).log_softmax(1)

    def __call__(self, x: Tensor, node: Node, labels: Tensor) -> Tensor:
        """Returns log p(label | x) for each sample's own label, [N]; it is differentiable in x."""
        return self.log_probs(x, node).gather(1, labels.to(x.device).view(-1, 1))[:, 0]


def load_classifier(
    folder: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> NoisyClassifier:
    """Loads a classifier of noisy images that ``ddim train`` has made (``task = "classifier"``).

    Args:
        folder: a folder with ``config.json``, ``model.safetensors`` and ``scheduler_config.json``.
        device: ``"cpu"``, ``"cuda"``, ...; by default cuda if available.
        dtype: the dtype that the network computes in: float32, float64, bfloat16 or float16.

    Raises:
        InputError: there is no such folder, it contains no such classifier, or its weights are a pickle (pickles are
            never loaded).
        DDIMError: the files are damaged.
    """
    where, dtype = device_and_dtype(device, dtype)
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"there is no folder {path}; to make a classifier, run ddim train recipes/fashion-classifier.toml.",
            parameter="classifier",
        )
    try:
        about, schedule = read_json(path / "config.json"), read_json(path / SCHEDULE)
    except InputError as error:
        raise InputError(f"{path} does not contain a classifier of noisy images: {error}") from None
    if about.get("model_type") != "resnet" or "image_size" not in about:
        raise InputError(
            f"{path} does not contain a classifier of noisy images; ddim train with task = 'classifier' makes one.",
            parameter="classifier",
        )
    network = read_resnet(path, "classifier")
    return NoisyClassifier(str(folder), network, from_scheduler_config(schedule), device=where, dtype=dtype)


def read_resnet(path: Path, parameter: str) -> Any:
    """Loads the ResNetForImageClassification of a folder, in float32, or in float64 if its file is.

    Args:
        path: the folder.
        parameter: the argument that an error names.

    Raises:
        InputError: transformers is not installed, there are no safetensors weights (pickles are never loaded), or they
            do not fit the config.
        DDIMError: the files are damaged.
    """
    try:
        with loading():
            from transformers import ResNetForImageClassification
    except ImportError:
        raise InputError("A classifier needs transformers: pip install transformers.") from None
    return transformers_part(ResNetForImageClassification, path, parameter=parameter)
