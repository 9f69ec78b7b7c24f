"""What the commands share around a model: opening it, counting its calls, measuring what came back."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from .. import __version__
from ..errors import InputError
from .terminal import Terminal

if TYPE_CHECKING:
    from torch import Tensor

    from ..code import LatentCode
    from ..denoiser import Cond, Denoiser
    from ..models.base import Model
    from ..path import Node
    from ..prediction import Pair


class Counted:
    """A model that counts how often its network is asked; everything else is the model's own."""

    def __init__(self, model: "Model") -> None:
        self.model, self.evaluations = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def denoiser(self) -> "Denoiser":
        """The model's denoiser, counted: one for each image it is asked about."""
        inner = self.model.denoiser()

        def denoise(x: "Tensor", node: "Node", cond: "Cond | None" = None) -> "Pair":
            self.evaluations += len(x)
            return inner(x, node, cond)

        return denoise

    def calls(self, images: int) -> float:
        """Network calls an image since the last time this was asked."""
        value, self.evaluations = self.evaluations / images, 0
        return int(value) if value == int(value) else round(value, 2)

    @property
    def as_model(self) -> "Model":
        """Itself, as the verbs want it."""
        return cast("Model", self)


def open_model(
    terminal: Terminal, name: str, device: str | None, dtype: str, labels: Sequence[int] | None = None
) -> Counted:
    """A model by name, with the spinner that this deserves.

    Raises:
        InputError: no such model or device, or a conditional one without a label.
        DDIMError: its files are broken, or the hub cannot be reached.
    """
    with terminal.status(f"loading {name}"):
        from ..models import load

        model = load(name, device=device, dtype=dtype)
    if model.classes and labels is None:
        raise InputError(f"The model {name!r} is conditional; give a class with --label 0 to {model.classes - 1}.")
    return Counted(model)


def open_for_code(terminal: Terminal, name: str | None, code: "LatentCode", device: str | None, dtype: str) -> Counted:
    """The model of that name, or the one that made the code; a conditional one takes its labels from the code.

    Raises:
        InputError: neither is to be had.
        DDIMError: its files are broken.
    """
    try:
        return open_model(terminal, name or code.model, device, dtype, labels=[])
    except InputError as error:
        if name is not None or not str(error).startswith("Unknown model"):
            raise
        raise InputError(
            f"The code was made by the model {code.model!r}, which is not to be found from here; give it with --model."
        ) from None


def about_model(model: "Model | Counted") -> dict[str, Any]:
    """What every file says of the model that made it."""
    return {"ddim": __version__, "model": model.name, "fingerprint": model.fingerprint}


def errors(images: "Tensor", others: "Tensor") -> list[dict[str, float | None]]:
    """For each pair: mse, psnr in dB (None where the two are the same to the bit), and the largest difference.

    Args:
        images, others: [N, C, H, W] in [0, 1].
    """
    distance = (images.double().cpu() - others.double().cpu()).flatten(1)
    mse = distance.square().mean(1).tolist()
    worst = distance.abs().amax(1).tolist()
    return [{"mse": m, "psnr": psnr(m), "max": w} for m, w in zip(mse, worst, strict=True)]


def psnr(mse: float) -> float | None:
    """10 log10(1 / mse) for values in [0, 1]; None for no error at all."""
    from math import log10

    return -10 * log10(mse) if mse > 0 else None


def error_text(error: Mapping[str, float | None]) -> str:
    """``MSE 1.2e-05 · PSNR 49.2 dB``."""
    value = error["psnr"]
    return f"MSE {error['mse']:.2g} · PSNR {'∞ (the same to the bit)' if value is None else f'{value:.1f} dB'}"
