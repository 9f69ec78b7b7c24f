"""The part that latent diffusion models share: images to latents and back, with the autoencoder's scale and shift."""

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.errors import DDIMError, InputError, is_number
from .._utils.files import read_json
from .base import Model
from .engine.kernels import kernels
from .engine.threads import run_in_threads
from .engine.work import Work
from .weights import diffusers_part

_UPCASTING = threading.Lock()


class LatentModel(Model):
    """A model that diffuses the latents of an AutoencoderKL or AutoencoderTiny.

    Attributes:
        upcasts: whether the family's pipeline obeys ``force_upcast`` in the autoencoder's config.
        vae: the autoencoder.
        scale, shift: latent = (output of the encoder - shift) * scale; numbers, or tensors [1, C, 1, 1].
        vae_threads: whether large batches of the autoencoder are split among threads on a CPU.
    """

    upcasts: ClassVar[bool] = False
    vae: Any
    scale: float | Tensor
    shift: float | Tensor
    vae_threads: bool = True

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images [N, C, H, W] in [0, 1]: the mean of the autoencoder's posterior, shifted and scaled.

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        with torch.no_grad(), self.upcast_vae(), kernels(self.device, self.tf32):
            x = images.to(device=self.device, dtype=self.vae.dtype) * 2 - 1
            work = self._vae_work[0].row(x.shape[2] * x.shape[3])
            code = run_in_threads(lambda rows: self.encoded(self.vae, rows), x, row_work=work, split=self.vae_threads)
            code = self._finite(code, "encoded an image")
        return self.to_code(code.to(self.state_dtype))

    def decode(self, x0: Tensor) -> Tensor:
        """Decodes latents [N, c, h, w] to images [N, C, H, W], clipped to [0, 1].

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        with torch.no_grad(), self.upcast_vae(), kernels(self.device, self.tf32):
            code = self.from_code(x0).to(self.vae.dtype)
            work = self._vae_work[1].row(code.shape[2] * code.shape[3] * self.downscaling**2)
            image = run_in_threads(
                lambda rows: self.decoded(self.vae, rows), code, row_work=work, split=self.vae_threads
            )
            image = self._finite(image, "decoded a sample")
        return ((image.to(self.state_dtype) + 1) / 2).clamp(0, 1)

    def encoded(self, vae: Any, x: Tensor) -> Tensor:
        """Encodes images [N, C, H, W] in [-1, 1] with an autoencoder of this family, without shift and scale."""
        return code_of(vae, x)

    def decoded(self, vae: Any, code: Tensor) -> Tensor:
        """Decodes what ``from_code`` has returned to images [N, C, H, W] in [-1, 1]."""
        return vae.decode(code).sample

    @cached_property
    def _vae_work(self) -> tuple[Work, Work]:
        """The estimated work of the encoder and of the decoder."""
        return Work.of(self.vae.encoder), Work.of(self.vae.decoder)

    def to_code(self, encoded: Tensor) -> Tensor:
        """Shifts and scales the encoder's output to the latent that the network sees."""
        return (encoded - self.shift) * self.scale

    def from_code(self, code: Tensor) -> Tensor:
        """Inverts ``to_code``: latent to the decoder's input."""
        return code / self.scale + self.shift

    def autoencoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype that the autoencoder should compute in, beside a network in ``dtype``.

        It is ``dtype``, except where that is float16 and the autoencoder's config has ``force_upcast``, which says that
        float16 overflows. Then it is float32, if the family's pipeline obeys that option.
        """
        upcast = self.upcasts and dtype == torch.float16 and self.vae.config.get("force_upcast")
        return torch.float32 if upcast else dtype

    @contextmanager
    def upcast_vae(self) -> Iterator[None]:
        """Inside the block, an autoencoder that needs it is in float32; afterwards its own tensors are restored."""
        if self.autoencoder_dtype(self.vae.dtype) == self.vae.dtype:
            yield
            return
        with _UPCASTING:  # without the lock, a second thread would take the float32 copies for the original tensors
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
        """Returns x if all of its numbers are finite; ``did`` completes the error's sentence."""
        if not bool(torch.isfinite(x).all()):
            half = " float16 overflows above 65504; load the model with bfloat16 or float32."
            raise DDIMError(
                f"The autoencoder of {self.name!r} returned NaN or infinity when it {did}."
                + (half if self.dtype == torch.float16 else "")
            )
        return x

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Returns the parts that have weights, by name."""


def read_autoencoder(folder: Path, *, parameter: str = "model") -> Any:
    """Loads the AutoencoderKL or AutoencoderTiny in a folder; see ``read_network``."""
    return read_network(folder, ("AutoencoderKL", "AutoencoderTiny"), parameter=parameter)


def read_network(folder: Path, kinds: Sequence[str], *, parameter: str = "model", variant: str | None = None) -> Any:
    """Loads the network of diffusers in a folder, on the CPU and in the dtype of its file.

    Args:
        folder: the folder.
        kinds: the classes that it may have.
        parameter: the argument that an error names.
        variant: the variant of the weights that is preferred.

    Raises:
        InputError: the folder holds another class, or weights that do not fit its config; see
            ``weights.diffusers_part``.
        DDIMError: the files are damaged.
    """
    import diffusers

    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json; a diffusers folder with config.json and .safetensors weights is needed.",
            parameter=parameter,
        )
    kind = str(read_json(folder / "config.json").get("_class_name"))
    if kind not in kinds:
        raise InputError(f"{folder} is a {kind}; it must be {' or '.join(kinds)}.", parameter=parameter)
    return diffusers_part(getattr(diffusers, kind), folder, parameter=parameter, variant=variant)


def code_of(autoencoder: Any, x: Tensor) -> Tensor:
    """Encodes images [N, C, H, W] in [-1, 1], without shift and scale; an AutoencoderKL gives its posterior's mean."""
    output = autoencoder.encode(x)
    return output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents


def scale_of(config: Mapping[str, Any], name: str, *, parameter: str = "model") -> float:
    """Returns an autoencoder's ``scaling_factor``. Raises InputError if it is not a number other than 0."""
    scale = config.get("scaling_factor")
    if not is_number(scale) or float(scale) == 0:  # type: ignore[arg-type]
        raise InputError(
            f"the scaling_factor of {name!r}, {scale!r}, is not a number other than 0.", parameter=parameter
        )
    return float(scale)  # type: ignore[arg-type]


def shift_of(config: Mapping[str, Any], name: str) -> float:
    """Returns an autoencoder's ``shift_factor``, or 0 if it has none. Raises InputError if it is not a number."""
    shift = config.get("shift_factor")
    if shift is not None and not is_number(shift):
        raise InputError(f"the shift_factor of {name!r}, {shift!r}, is not a number.", parameter="model")
    return float(shift or 0.0)


def statistics_of(config: Mapping[str, Any], name: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Returns an autoencoder's scale and shift.

    If its config has ``latents_mean`` and ``latents_std``, both results have one number for each channel,
    [1, C, 1, 1]: ``scaling_factor / latents_std`` and ``latents_mean``.

    Args:
        config: the autoencoder's config.
        name: the model's name, for error messages.
        like: a tensor that has the dtype and device of the results.

    Raises:
        InputError: a value is not a number, or a list does not have one number for each channel.
    """
    scale, shift = scale_of(config, name), shift_of(config, name)
    both: list[Any] = [config.get(key) for key in ("latents_mean", "latents_std")]
    if any(numbers is None for numbers in both):
        return scale, shift
    for key, numbers in zip(("latents_mean", "latents_std"), both, strict=True):
        listed = numbers if isinstance(numbers, (list, tuple)) else ()
        valid = all(is_number(n) and (key == "latents_mean" or n > 0) for n in listed)
        if not valid or len(listed) != config.get("latent_channels"):
            raise InputError(
                f"the {key} of {name!r} is {numbers!r}; it must be a list with one number for each of "
                f"{config.get('latent_channels')} channels{', above 0' if key == 'latents_std' else ''}.",
                parameter="model",
            )
    mean, std = (like.new_tensor(numbers).view(1, -1, 1, 1) for numbers in both)
    return scale / std, mean
