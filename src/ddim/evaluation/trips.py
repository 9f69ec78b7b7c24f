"""Pictures walked back and forward again: how near they come, what it takes, and what fails."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..pipelines.common import Spacing
from ..pipelines.events import Progress
from ..pipelines.invert import invert
from ..pipelines.reconstruct import reconstruct
from .edits import Picture
from .methods import Way
from .pairs import digest, mse, psnr, ssim
from .store import Columns, Row, surviving

Item = dict[str, Any]

IDENTITY = {
    **dict.fromkeys(("fingerprint", "picture", "prompt", "method", "options", "spacing", "dtype"), "string"),
    **{"steps": "int64", "guidance": "float64", "seed": "int64"},
}
"""What shapes a round trip. ``seed`` is a picture's place in the run: methods that draw noise draw by it."""
DISTANCES = dict.fromkeys(("mse", "psnr", "max", "ssim"), "float64")


@dataclass(frozen=True)
class Trip:
    """How pictures are inverted and brought back; ``guidance`` None for a model without text."""

    way: Way
    steps: int
    guidance: float | None = None
    spacing: Spacing | None = None

    @property
    def name(self) -> str:
        """``ddim iterations=5, S = 50, w = 7.5``."""
        weight = "" if self.guidance is None else f", w = {self.guidance:g}"
        return f"{self.way.title}, S = {self.steps}{weight}"


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """What a trip brought: the code, the pictures [N, C, H, W] in [0, 1], network calls and seconds a picture."""

    code: LatentCode
    pictures: Tensor
    nfe_back: float
    nfe_forward: float
    seconds: float


def trip_items(model: Model, pictures: Sequence[Picture], trip: Trip) -> list[Item]:
    """The identities of pictures on a trip."""
    spacing = trip.spacing or model.schedule.spacing
    same = {
        "fingerprint": str(model.fingerprint)[:12],
        "method": trip.way.method,
        "options": trip.way.told,
        "spacing": spacing if isinstance(spacing, str) else ",".join(f"{t:g}" for t in spacing),
        "dtype": str(model.dtype).removeprefix("torch."),
        "steps": trip.steps,
        "guidance": trip.guidance,
    }
    return [
        {**same, "picture": digest(p.pixels), "prompt": p.prompt, "seed": place} for place, p in enumerate(pictures)
    ]


def walk(
    model: Model,
    pictures: Sequence[Picture],
    trip: Trip,
    seed: int,
    calls: Callable[[int], float],
    progress: Progress | None = None,
) -> RoundTrip:
    """Inverts pictures and comes forward again, all in one batch; the k-th has the seed ``seed + k``.

    Raises:
        DDIMError: what ``invert`` and ``reconstruct`` raise.
    """
    pixels = torch.stack([picture.pixels for picture in pictures])
    began = time.perf_counter()
    code = invert(
        model,
        pixels.to(model.state_dtype),
        steps=trip.steps,
        method=trip.way.method,
        options=dict(trip.way.options),
        spacing=trip.spacing,
        prompt=[picture.prompt for picture in pictures] if model.text else None,
        guidance=trip.guidance,
        seed=seed,
        batch=len(pictures),
    )
    back = calls(len(pictures))
    images = reconstruct(model, code, batch=len(pictures)).cpu()  # which waits for the device
    seconds = (time.perf_counter() - began) / len(pictures)
    return RoundTrip(code, images, back, calls(len(pictures)), seconds)


def distances(pixels: Tensor, back: Tensor) -> list[Row]:
    """The columns ``DISTANCES`` of pairs [N, C, H, W] in [0, 1]."""
    worst = (pixels.double() - back.double()).abs().flatten(1).amax(1)
    found = zip(mse(pixels, back), psnr(pixels, back), worst, ssim(pixels, back), strict=True)
    return [dict(zip(DISTANCES, (float(v) for v in values), strict=True)) for values in found]


def in_runs(items: Sequence[Item]) -> list[list[Item]]:
    """Items parted where a seed does not follow the one before, so that the k-th of a batch has its own."""
    out: list[list[Item]] = []
    for item in items:
        if out and out[-1][-1]["seed"] == item["seed"] - 1:
            out[-1].append(item)
        else:
            out.append([item])
    return out


def measured_alone(columns: Columns, items: Sequence[Item], run: Callable[[Sequence[Item]], list[Row]]) -> list[Row]:
    """What ``run`` makes of items, as ``store.surviving`` does; the row of one that fails has no numbers.

    Args:
        columns: with ``failed`` among what is measured.
        items: whose seeds follow each other.
        run: items to whole rows.

    Raises:
        InputError: what cannot be used at all.
    """
    empty = dict.fromkeys(columns.measured)
    return surviving(items, run, lambda _, rows, __: rows, lambda item, why, _: {**item, **empty, "failed": why})


def blocks_of(items: Sequence[Item], batch: int) -> list[list[Item]]:
    """Items in batches."""
    return [list(items[k : k + batch]) for k in range(0, len(items), batch)]
