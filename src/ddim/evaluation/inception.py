"""Inception's features, by torchmetrics and torch-fidelity: the network that FID is defined by."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.error_text import first_line, reason_of
from .._utils.errors import InputError
from ..models import device_and_dtype

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""The file that torch-fidelity fetches: the weights of the original, under the first digits of their SHA-256."""

_WHERE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"


class Inception:
    """The 2048 features of Inception v3, as FID takes them; see ``open_inception``.

    Args:
        network: uint8 [N, 3, H, W] -> [N, 2048], put into eval mode and moved.
        fingerprint: of its weights, SHA-256.
        device: where it computes.

    Attributes:
        original: whether the weights are those that FID is defined by.
        name: what figures are called by.
    """

    dim = 2048

    def __init__(self, network: nn.Module, fingerprint: str, device: str | torch.device = "cpu") -> None:
        self.device, _ = device_and_dtype(device, "float32")
        self.network, self.fingerprint = network.eval().requires_grad_(False).to(self.device), fingerprint
        self.original = fingerprint.startswith(WEIGHTS.removesuffix(".pth").rpartition("-")[2])
        self.name = "Inception" if self.original else f"Inception with weights {fingerprint[:8]}"

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 32) -> Tensor:
        """Images [N, 1 or 3, H, W] in [0, 1], rounded to 8 bits -> float32 [N, 2048]; grey counts for each colour."""
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        return torch.cat([self.network(part.to(self.device)).float().cpu() for part in pixels.split(batch)])


def open_inception(weights: Path | None = None, device: str | torch.device = "cpu") -> Inception:
    """Inception with the weights of a file, or with those that torch-fidelity fetches once and keeps in TORCH_HOME.

    Files are read as tensors alone (``weights_only``): what else a pickle holds is refused.

    Raises:
        InputError: torchmetrics or torch-fidelity is not installed, or the weights cannot be had or read.
    """
    where, _ = device_and_dtype(device, "float32")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE
    except Exception as error:  # torchvision, which torch-fidelity imports, fails in its own ways beside another torch
        raise InputError(
            f"FID needs torchmetrics and torch-fidelity: pip install 'ddim[fid]' ({first_line(error)})."
        ) from None
    if not _TORCH_FIDELITY_AVAILABLE:
        raise InputError("FID needs torch-fidelity: pip install 'ddim[fid]'; --features takes another network.")
    if weights is not None and not weights.is_file():
        raise InputError(f"there is no file {weights}; give {WEIGHTS}.", parameter="weights")
    kept = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    chosen = weights or (kept if kept.is_file() else None)
    path = None if chosen is None else str(chosen)
    try:
        with _tensors_alone():
            found: Any = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)
    except Exception as error:  # of the network, the disk, the unpickler, or a shape that does not fit
        if chosen is not None:
            raise InputError(
                f"{chosen} does not hold Inception's weights: {reason_of(error)}", parameter="weights"
            ) from None
        raise InputError(
            f"Inception's weights cannot be fetched ({first_line(error)}); put {_WHERE}/{WEIGHTS} "
            f"into {kept.parent}, or name the file.",
            parameter="weights",
        ) from None
    network = found.inception
    network.use_antialias = False  # as in the original; torchmetrics' own default makes images larger in another way
    with open(chosen or kept, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return Inception(network, digest.hexdigest(), where)


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """torch.load reads tensors alone inside, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
