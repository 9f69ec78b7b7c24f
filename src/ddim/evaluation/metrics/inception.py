"""Inception v3 as torchmetrics and torch-fidelity load it: the network whose features define FID."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.error_text import first_line, reason_of
from ..._utils.errors import InputError
from ...models import device_and_dtype
from ...models.engine.threads import run_in_threads
from ...models.engine.work import Work

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""The file that torch-fidelity downloads: the original weights, named by the first digits of their SHA-256."""

_SIDE = 299  # of the images that the network works on, whatever the size of its input
_WHERE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"


class Inception:
    """The feature extractor of FID: 2048 features of Inception v3. ``open_inception`` makes one.

    Args:
        network: uint8 [N, 3, H, W] to [N, 2048]. It is put into eval mode and moved to the device.
        fingerprint: the SHA-256 of its weights.
        device: where it computes.

    Attributes:
        original: whether the weights are the ones that define FID.
        name: the name under which distances in these features are reported.
    """

    dim = 2048

    def __init__(self, network: nn.Module, fingerprint: str, device: str | torch.device = "cpu") -> None:
        self.device, _ = device_and_dtype(device, "float32")
        self.network, self.fingerprint = network.eval().requires_grad_(False).to(self.device), fingerprint
        self.original = fingerprint.startswith(WEIGHTS.removesuffix(".pth").rpartition("-")[2])
        self.name = "Inception" if self.original else f"Inception with weights {fingerprint[:8]}"

    @torch.no_grad()
    def features(self, images: Tensor, batch: int = 32) -> Tensor:
        """Images [N, 1 or 3, H, W] in [0, 1] to vectors, float32 [N, 2048].

        The images are rounded to 8 bits, and a grey image is used for all three channels.
        """
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
        work, parts = Work.of(self.network).row(_SIDE**2), [part.to(self.device) for part in pixels.split(batch)]
        return torch.cat([run_in_threads(self.network, part, row_work=work).float().cpu() for part in parts])


def open_inception(weights: Path | None = None, device: str | torch.device = "cpu") -> Inception:
    """Inception with the weights in a file, or with those that torch-fidelity downloads once and keeps in TORCH_HOME.

    Only tensors are read from a file (``weights_only``). A pickle with anything else is refused.

    Raises:
        InputError: torchmetrics or torch-fidelity is missing, or the weights cannot be downloaded or read.
    """
    where, _ = device_and_dtype(device, "float32")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE
    except (
        Exception
    ) as error:  # torch-fidelity imports torchvision, which raises errors of many kinds beside another torch
        raise InputError(
            f"FID needs torchmetrics and torch-fidelity: pip install 'ddim[fid]' ({first_line(error)})."
        ) from None
    if not _TORCH_FIDELITY_AVAILABLE:
        raise InputError("FID needs torch-fidelity: pip install 'ddim[fid]'. Or give another network with --features.")
    if weights is not None and not weights.is_file():
        raise InputError(f"there is no file {weights}; give {WEIGHTS}.", parameter="weights")
    kept = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    chosen = weights or (kept if kept.is_file() else None)
    path = None if chosen is None else str(chosen)
    try:
        with _tensors_only():
            found: Any = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)
    except Exception as error:  # from the network, the disk, the unpickler, or a shape that does not fit
        if chosen is not None:
            raise InputError(
                f"{chosen} does not hold Inception's weights: {reason_of(error)}", parameter="weights"
            ) from None
        raise InputError(
            f"Inception's weights cannot be downloaded ({first_line(error)}).",
            parameter="weights",
            hint=f"Put {_WHERE}/{WEIGHTS} into {kept.parent}, or give the file.",
        ) from None
    network = found.inception
    network.use_antialias = False  # as in the original; torchmetrics' default resizes images in another way
    with open(chosen or kept, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return Inception(network, digest.hexdigest(), where)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Inside this context torch.load reads nothing but tensors, whatever its caller asks for."""
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
