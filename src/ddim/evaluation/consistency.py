"""How far one x_T decides the image, whatever S: sections 4.2 and 5.2 of Song et al. 2021 (arXiv 2010.02502).

An item is the image of one seed at one S and eta. All S of a seed start at the same x_T, and each image is compared
with that of the same seed and eta at the largest S. Images are kept as PNG, and compared as these hold them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..data.images import read_images, save_image
from ..models.base import Model
from ..pipelines.common import grid_for
from ..pipelines.sample import solver_with_eta
from .drawing import draw
from .pairs import psnr, ssim
from .plots import Point
from .reference import Features, as_saved
from .store import Columns, Row, Rows, surviving
from .tables import interval_text, mean_interval

STEPS = (10, 20, 50, 100, 200)
ETAS = (0.0, 1.0)
REFERENCE = 1000
MEASURES = {"psnr": ".2f", "ssim": ".3f", "cosine": ".3f", "l2": ".2f"}
"""What is measured of two images: PSNR in dB and SSIM of the pixels, cosine and Euclidean distance of the features."""

COLUMNS = Columns(
    identity={
        **{"model": "string", "features": "string", "eta": "float64", "spacing": "string"},
        **{"reference": "int64", "steps": "int64", "seed": "int64"},
    },
    measured={**dict.fromkeys(MEASURES, "float64"), "nfe": "int64", "seconds": "float64", "failed": "string"},
)


@dataclass(frozen=True, eq=False)
class Consistency:
    """The measurement of one model.

    Args:
        model: any.
        features: what else images are compared in; None for pixels alone.
        pictures: the folder that images are kept in.
        spacing: a key of ``ddim.SPACINGS``, of every S.
        reference: the S that the others are compared with, more than any of them.
    """

    model: Model
    features: Features | None
    pictures: Path
    spacing: str
    reference: int = REFERENCE

    def check(self, steps: Sequence[int], etas: Sequence[float]) -> None:
        """Raises InputError for an S or eta out of its range, or for no S, before any work."""
        levels = self.model.schedule.path.levels
        if not 2 <= self.reference <= levels:
            raise InputError(
                f"{self.reference} does not fit this model; use a whole number from 2 to {levels}.",
                parameter="reference",
            )
        for count in (*steps, self.reference):
            grid_for(self.model, count, self.spacing)
        for eta in etas:
            solver_with_eta("ddim", eta, None)
        if wrong := next((count for count in steps if count >= self.reference), None):
            raise InputError(
                f"{wrong} is not less than the {self.reference} that it is compared with.", parameter="steps"
            )
        if not steps:
            raise InputError(f"no usual S is less than {self.reference}; give --steps.", parameter="reference")

    def items(self, eta: float, steps: int, seeds: Iterable[int]) -> list[dict[str, Any]]:
        """One a seed."""
        seen = "" if self.features is None else self.features.fingerprint[:12]
        own = {"model": self.model.fingerprint[:12], "features": seen, "eta": float(eta), "spacing": self.spacing}
        return [{**own, "reference": self.reference, "steps": steps, "seed": seed} for seed in seeds]

    def measure(
        self, rows: Rows, items: Sequence[dict[str, Any]], batch: int, report: Callable[[int, int], None] | None = None
    ) -> None:
        """Draws what is missing of one eta and S and compares it; the reference's images must be there."""

        def made(some: Sequence[dict[str, Any]]) -> Tensor:
            one = some[0]
            solver, grid = solver_with_eta("ddim", one["eta"], None), grid_for(self.model, one["steps"], self.spacing)
            return as_saved(draw(self.model, solver, grid, [item["seed"] for item in some]))

        def kept(some: Sequence[dict[str, Any]], images: Tensor, began: float) -> list[Row]:
            for item, image in zip(some, images, strict=True):
                save_image(image, self.file(item))
            found: list[dict[str, Any]] = [{} for _ in some]
            if some[0]["steps"] != self.reference:
                # one that failed at the reference has nothing to be compared with
                known = [k for k, item in enumerate(some) if self.file(self._whole(item)).is_file()]
                whole = [self._whole(some[k]) for k in known]
                for k, values in zip(known, self.compare(images[known], self.read(whole)), strict=True):
                    found[k] = values
            each = (perf_counter() - began) / len(some)
            return [{**empty(item), "seconds": each, **f} for item, f in zip(some, found, strict=True)]

        def failed(item: dict[str, Any], why: str, began: float) -> Row:
            return {**empty(item), "seconds": perf_counter() - began, "failed": why}

        def empty(item: dict[str, Any]) -> dict[str, Any]:
            return {**item, **dict.fromkeys(MEASURES), "nfe": item["steps"], "failed": None}

        def run(some: list[dict[str, Any]]) -> list[Row]:
            return surviving(some, made, kept, failed)

        rows.measure(items, batch, run, report)

    def chance(self, eta: float, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """How alike the reference's images of neighbouring seeds are: what another x_T gives; [] for one image."""
        there = [item for item in self.items(eta, self.reference, seeds) if self.file(item).is_file()]
        images = self.read(there) if len(there) > 1 else torch.empty(0)
        return self.compare(images, images.roll(1, 0)) if len(images) else []

    def compare(self, images: Tensor, others: Tensor) -> list[dict[str, Any]]:
        """The ``MEASURES`` of pairs of images [N, C, H, W] in [0, 1]; None without features, and for the PSNR of equal
        images, which is infinite."""
        if not len(images):
            return []
        numbers = {"psnr": psnr(images, others).tolist(), "ssim": ssim(images, others).tolist()}
        if self.features is not None:
            a, b = (self.features.features(side).double() for side in (images, others))
            numbers["cosine"] = torch.cosine_similarity(a, b).tolist()
            numbers["l2"] = (a - b).norm(dim=1).tolist()
        lines = [dict(zip(numbers, line, strict=True)) for line in zip(*numbers.values(), strict=True)]
        return [{**dict.fromkeys(MEASURES), **{k: v for k, v in f.items() if abs(v) < torch.inf}} for f in lines]

    def read(self, items: Sequence[Mapping[str, Any]]) -> Tensor:
        """Kept images, [N, C, H, W]."""
        return torch.cat([read_images(self.file(item), self.model.picture) for item in items])

    def file(self, item: Mapping[str, Any]) -> Path:
        """Where an item's image lies."""
        where = f"{item['model']}_{item['spacing']}_eta{item['eta']:g}_S{item['steps']}"
        return self.pictures / where / f"seed{item['seed']}.png"

    def _whole(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {**item, "steps": self.reference}


def line(eta: float, steps: int | None, rows: Sequence[Row]) -> dict[str, Any]:
    """A line of the table: each measure's mean with its 95 % interval; ``steps`` is None for another x_T.

    Infinite PSNRs, of images that are the same, are left out and counted as ``same``.
    """
    good = [row for row in rows if row["ssim"] is not None]
    out: dict[str, Any] = {"eta": eta, "steps": steps}
    for name in MEASURES:
        values = [row[name] for row in good if row[name] is not None]
        out[name], out[f"{name}_low"], out[f"{name}_high"] = mean_interval(values)
    same = sum(row["psnr"] is None for row in good)
    return {**out, "images": len(good), "same": same, "failed": sum(bool(row.get("failed")) for row in rows)}


def layout(lines: Sequence[Mapping[str, Any]], reference: int) -> str:
    """The table in Markdown: a line for each eta and S, then one for another x_T."""
    heads = {"psnr": "PSNR, dB", "ssim": "SSIM", "cosine": "cosine of features", "l2": "distance of features"}
    out = ["| eta | S | " + " | ".join(heads[name] for name in MEASURES) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for one in lines:
        cells = [interval_text(one, name, form) for name, form in MEASURES.items()]
        steps = f"{reference}, another x_T" if one["steps"] is None else one["steps"]
        out.append(f"| {one['eta']:g} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def curves(lines: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[Point]]:
    """A line for each eta: a measure against S."""
    out: dict[str, list[Point]] = {}
    for one in lines:
        if one["steps"] is not None and one[name] is not None:
            at = Point(one["steps"], one[name], one[f"{name}_low"], one[f"{name}_high"])
            out.setdefault(f"eta = {one['eta']:g}", []).append(at)
    return out
