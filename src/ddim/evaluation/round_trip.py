"""Round trips: images are inverted and reconstructed, and compared with themselves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..models.counted import Counted
from ..pipelines.common import Spacing
from ..pipelines.invert import invert
from ..pipelines.reconstruct import reconstruct
from .columns import Item, Row
from .eval_images import EvalImage
from .method_spec import MethodSpec
from .metrics.pairwise import digest, mse, psnr, ssim

ERRORS = ("mse", "psnr", "max", "ssim")
"""The columns that ``compare`` measures."""


@dataclass(frozen=True)
class TripSetting:
    """How images are inverted and reconstructed.

    Attributes:
        spec: the inversion.
        steps: S, in both directions.
        guidance: the weight in both directions; None for a model without text.
        spacing: the grid's; None for the model's own.
    """

    spec: MethodSpec
    steps: int
    guidance: float | None = None
    spacing: Spacing | None = None

    def __str__(self) -> str:
        weight = "" if self.guidance is None else f", w = {self.guidance:g}"
        return f"{self.spec.title}, S = {self.steps}{weight}"


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """The result of a round trip.

    Attributes:
        code: what the inversion gave.
        images: the reconstructions, [N, C, H, W] in [0, 1].
        nfe_back, nfe_forward: network calls per image of the inversion and of the reconstruction.
        seconds: per image, in both directions.
    """

    code: LatentCode
    images: Tensor
    nfe_back: float
    nfe_forward: float
    seconds: float


def round_trip(model: Counted, images: Sequence[EvalImage], setting: TripSetting, seed: int) -> RoundTrip:
    """Inverts and reconstructs images in one batch; the k-th has the seed ``seed + k``.

    It counts the network calls itself, as ``nfe_back`` and ``nfe_forward``. A benchmark that uses it must therefore
    fill in a column ``nfe`` from these two; the runner would count 0.

    Raises:
        DDIMError: from ``ddim.invert`` or ``ddim.reconstruct``.
    """
    model.calls(1)
    began = time.perf_counter()
    code = inverted(model, images, setting, seed)
    back = model.calls(len(images))
    found = reconstruct(model, code, batch=len(images)).cpu()  # .cpu() waits for the device
    seconds = (time.perf_counter() - began) / len(images)
    return RoundTrip(code, found, float(back), float(model.calls(len(images))), seconds)


def inverted(model: Model, images: Sequence[EvalImage], setting: TripSetting, seed: int) -> LatentCode:
    """Inverts images in one batch; the k-th has the seed ``seed + k``. Raises DDIMError as ``ddim.invert`` does."""
    return invert(
        model,
        torch.stack([image.pixels for image in images]).to(model.state_dtype),
        steps=setting.steps,
        method=setting.spec.method,
        options=dict(setting.spec.options),
        spacing=setting.spacing,
        prompt=[image.prompt for image in images] if model.text else None,
        guidance=setting.guidance,
        seed=seed,
        batch=len(images),
    )


def trip_items(model: Model, images: Sequence[EvalImage], setting: TripSetting) -> list[Item]:
    """The keys of images under a setting. ``seed`` is an image's place, because methods that draw noise use it."""
    spacing = setting.spacing or model.schedule.spacing
    shared = {
        "fingerprint": str(model.fingerprint)[:12],
        "method": setting.spec.method,
        "options": setting.spec.options_text,
        "spacing": spacing if isinstance(spacing, str) else ",".join(f"{t:g}" for t in spacing),
        "dtype": str(model.dtype).removeprefix("torch."),
        "steps": setting.steps,
        "guidance": setting.guidance,
    }
    return [
        {**shared, "picture": digest(image.pixels), "prompt": image.prompt, "seed": place}
        for place, image in enumerate(images)
    ]


def compare(images: Tensor, others: Tensor) -> list[Row]:
    """The columns ``ERRORS`` of pairs of images [N, C, H, W] in [0, 1]; the PSNR of equal images is infinite."""
    worst = (images.double() - others.double()).abs().flatten(1).amax(1)
    found = zip(mse(images, others), psnr(images, others), worst, ssim(images, others), strict=True)
    return [dict(zip(ERRORS, (float(value) for value in values), strict=True)) for values in found]


def consecutive(items: Sequence[Item]) -> list[list[Item]]:
    """Items, split where a seed does not follow the one before: the k-th image of a batch has the seed ``seed + k``."""
    out: list[list[Item]] = []
    for item in items:
        if out and out[-1][-1]["seed"] == item["seed"] - 1:
            out[-1].append(item)
        else:
            out.append([item])
    return out
