"""What models on an autoencoder's codes share: pictures in and out, and the autoencoder's own numbers."""

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.errors import DDIMError, InputError, is_number
from .._utils.files import read_json
from .base import Model
from .engine.threads import run_in_threads
from .weights import diffusers_part

_WIDENING = threading.Lock()


class LatentModel(Model):
    """A model on the codes of an AutoencoderKL or AutoencoderTiny.

    Attributes:
        upcasts: whether the family's pipeline heeds the autoencoder's ``force_upcast``.
        vae: the autoencoder.
        scale, shift: code = (what the autoencoder says - shift) * scale; numbers, or one a channel [1, C, 1, 1].
        min_pictures: of a thread, in the autoencoder; None keeps a batch in one piece.
    """

    upcasts: ClassVar[bool] = False
    vae: Any
    scale: float | Tensor
    shift: float | Tensor
    min_pictures: int | None = 4

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to the mean of the autoencoder's code, shifted and scaled by its config.

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        with torch.no_grad(), self.widened():
            x = images.to(device=self.device, dtype=self.vae.dtype) * 2 - 1
            code = run_in_threads(lambda rows: code_of(self.vae, rows), x, least=self.min_pictures)
            code = self._finite(code, "encoded a picture")
        return self.to_code(code.to(self.state_dtype))

    def decode(self, x0: Tensor) -> Tensor:
        """A code to an image in [0, 1], what lies outside cut.

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        with torch.no_grad(), self.widened():
            code = self.from_code(x0).to(self.vae.dtype)
            image = run_in_threads(lambda rows: self.vae.decode(rows).sample, code, least=self.min_pictures)
            image = self._finite(image, "decoded a sample")
        return ((image.to(self.state_dtype) + 1) / 2).clamp(0, 1)

    def to_code(self, said: Tensor) -> Tensor:
        """What the autoencoder says, as the network sees it."""
        return (said - self.shift) * self.scale

    def from_code(self, code: Tensor) -> Tensor:
        """The other way."""
        return code / self.scale + self.shift

    def autoencoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What its autoencoder computes in beside a network in ``dtype``: float32 where its config says that float16
        overflows, and the family heeds that."""
        wide = self.upcasts and dtype == torch.float16 and self.vae.config.get("force_upcast")
        return torch.float32 if wide else dtype

    @contextmanager
    def widened(self) -> Iterator[None]:
        """Inside, an autoencoder that needs float32 is in it; afterwards it has the very tensors that it had before."""
        if self.autoencoder_dtype(self.vae.dtype) == self.vae.dtype:
            yield
            return
        with _WIDENING:  # a second thread would take the wide tensors for the autoencoder's own
            tensors = [t for t in chain(self.vae.parameters(), self.vae.buffers()) if t.dtype == torch.float16]
            before = [t.data for t in tensors]
            try:
                for tensor in tensors:
                    tensor.data = tensor.data.float()
                yield
            finally:
                for tensor, data in zip(tensors, before, strict=True):
                    tensor.data = data

    def _finite(self, x: Tensor, did: str) -> Tensor:
        """What the autoencoder returned, once it is seen to be numbers."""
        if not bool(torch.isfinite(x).all()):
            half = " float16 overflows above 65504; load the model with bfloat16 or float32."
            raise DDIMError(
                f"The autoencoder of {self.name!r} returned NaN or infinity when it {did}."
                + (half if self.dtype == torch.float16 else "")
            )
        return x

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The parts that hold weights, by name."""


def read_autoencoder(folder: Path, *, parameter: str = "model") -> Any:
    """The AutoencoderKL or AutoencoderTiny of a folder, on the CPU and in its file's dtype.

    Raises:
        InputError: another autoencoder, or weights that do not fit; see ``weights.diffusers_part``.
        DDIMError: the files are broken.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    named = _class_of(folder, parameter)
    if named not in kinds:
        raise InputError(f"{folder} is a {named}; {' or '.join(kinds)} is taken.", parameter=parameter)
    return diffusers_part(kinds[named], folder, parameter=parameter)


def read_text_unet(folder: Path) -> Any:
    """The UNet2DConditionModel of a folder; as ``read_autoencoder``."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if (named := _class_of(folder, "model")) != UNet2DConditionModel.__name__:
        raise InputError(f"{folder} is a {named}; a UNet2DConditionModel is taken.", parameter="model")
    return diffusers_part(UNet2DConditionModel, folder)


def _class_of(folder: Path, parameter: str) -> str:
    """The class that a network's config names."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no weights; a diffusers folder with config.json and .safetensors weights is needed.",
            parameter=parameter,
        )
    return str(read_json(folder / "config.json").get("_class_name"))


def code_of(autoencoder: Any, x: Tensor) -> Tensor:
    """Pictures [N, C, H, W] in [-1, 1] to codes, not yet shifted and scaled; of a distribution the mean."""
    found = autoencoder.encode(x)
    return found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents


def scale_of(config: Mapping[str, Any], name: str, *, parameter: str = "model") -> float:
    """An autoencoder's ``scaling_factor``. Raises InputError where it is none."""
    scale = config.get("scaling_factor")
    if not is_number(scale) or float(scale) == 0:  # type: ignore[arg-type]
        raise InputError(
            f"the scaling_factor of {name!r}, {scale!r}, is not a number other than 0.", parameter=parameter
        )
    return float(scale)  # type: ignore[arg-type]


def shift_of(config: Mapping[str, Any], name: str) -> float:
    """An autoencoder's ``shift_factor``; 0 where it has none. Raises InputError where it is no number."""
    shift = config.get("shift_factor")
    if shift is not None and not is_number(shift):
        raise InputError(f"the shift_factor of {name!r}, {shift!r}, is not a number.", parameter="model")
    return float(shift or 0.0)


def statistics_of(config: Mapping[str, Any], name: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """An autoencoder's scale and shift: of ``latents_mean`` and ``latents_std``, where it has both, for each channel.

    Args:
        config: the autoencoder's.
        name: for the sentence of an error.
        like: the dtype and device of what is for each channel.

    Raises:
        InputError: what is no number, or not one for each channel.
    """
    scale, shift = scale_of(config, name), shift_of(config, name)
    both: list[Any] = [config.get(key) for key in ("latents_mean", "latents_std")]
    if any(numbers is None for numbers in both):
        return scale, shift
    for key, numbers in zip(("latents_mean", "latents_std"), both, strict=True):
        several = numbers if isinstance(numbers, (list, tuple)) else ()
        fine = all(is_number(n) and (key == "latents_mean" or n > 0) for n in several)
        if not fine or len(several) != config.get("latent_channels"):
            raise InputError(
                f"the {key} of {name!r}, {numbers!r}, is not a number for each of "
                f"{config.get('latent_channels')} channels.",
                parameter="model",
            )
    mean, std = (like.new_tensor(numbers).view(1, -1, 1, 1) for numbers in both)
    return scale / std, mean
