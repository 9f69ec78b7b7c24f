"""A classifier of noisy images, p(y | x_t, t): transformers' ResNetForImageClassification, told the noise level.

The level comes as one more input channel, the same number everywhere: log(alpha^2 / sigma^2) / 10. A folder holds
what ``ResNetForImageClassification.from_pretrained`` loads, and ``scheduler_config.json``, the levels it knows.
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
_LIMIT = 20.0  # of log-SNR: keeps levels without noise or signal finite


class NoisyResNet(nn.Module):
    """x, log-SNR -> logits.

    Args:
        resnet: a ResNetForImageClassification with one input channel more than the images have.
    """

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Noisy images [N, C, H, W] with alpha^2 + sigma^2 = 1, log(alpha^2 / sigma^2) [N] -> logits [N, K]."""
        level = (log_snr.clamp(-_LIMIT, _LIMIT) / 10).to(x.dtype).view(-1, 1, 1, 1)
        return self.resnet(torch.cat([x, level.expand(-1, 1, *x.shape[2:])], dim=1)).logits


class NoisyClassifier:
    """log p(y | x) at a node of any Gaussian path; made by ``ddim.load_classifier``. See ``guidance.Classifier``.

    Args:
        name: as it was asked for.
        resnet: a ResNetForImageClassification, put into eval mode and moved.
        path: the noise levels it was trained on; a node beyond them is answered as the nearest one.
        device: where it computes.
        dtype: what it computes in.

    Attributes:
        shape: (C, H, W) of the images it knows, values in [-1, 1].
        classes: K.
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
        """log p(y | x) of every class, float32 or wider, [N, K], for x = alpha x0 + sigma eps, [N, C, H, W]."""
        # any Gaussian path is a variance-preserving one, scaled: the level alone says what can be known of x0
        scaled = x / math.hypot(node.alpha, node.sigma)
        snr = 2 * (math.log(node.alpha) if node.alpha > 0 else -math.inf)
        snr -= 2 * math.log(node.sigma) if node.sigma > 0 else -math.inf
        level = torch.full((len(x),), min(max(snr, self._lowest), self._highest), device=x.device)
        return self.network(scaled.to(self.dtype), level).to(torch.promote_types(x.dtype, torch.float32)).log_softmax(1)

    def __call__(self, x: Tensor, node: Node, labels: Tensor) -> Tensor:
        """log p(label | x) for each sample's own label, [N]; differentiable in x."""
        return self.log_probs(x, node).gather(1, labels.to(x.device).view(-1, 1))[:, 0]


def load_classifier(
    folder: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> NoisyClassifier:
    """A classifier that ``ddim train`` made from ``task = "classifier"``.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and ``scheduler_config.json``.
        device: ``"cpu"``, ``"cuda"`` ...; by default cuda where there is one.
        dtype: what the network computes in: float32, float64, bfloat16 or float16.

    Raises:
        InputError: no such folder, or no such classifier in it; a pickle, which is never loaded.
        DDIMError: the files are broken.
    """
    where, dtype = device_and_dtype(device, dtype)
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"there is no folder {path}; ddim train recipes/fashion-classifier.toml makes a classifier.",
            parameter="classifier",
        )
    try:
        about, schedule = read_json(path / "config.json"), read_json(path / SCHEDULE)
    except InputError as error:
        raise InputError(f"{path} is no classifier of noisy images: {error}") from None
    if about.get("model_type") != "resnet" or "image_size" not in about:
        raise InputError(
            f"{path} is no classifier of noisy images; task = 'classifier' of ddim train makes one.",
            parameter="classifier",
        )
    network = read_resnet(path, "classifier")
    return NoisyClassifier(str(folder), network, from_scheduler_config(schedule), device=where, dtype=dtype)


def read_resnet(path: Path, parameter: str) -> Any:
    """The ResNetForImageClassification of a folder, float32 or wider.

    Args:
        path: the folder.
        parameter: what an error is about.

    Raises:
        InputError: transformers is not installed, there are no safetensors (pickles are never loaded), or they do not
            fit the config.
        DDIMError: the files are broken.
    """
    try:
        with loading():
            from transformers import ResNetForImageClassification
    except ImportError:
        raise InputError("A classifier needs transformers: pip install transformers.") from None
    return transformers_part(ResNetForImageClassification, path, parameter=parameter)
