"""How smoothly images follow x_T, and whether those between are images: section 5.3 of Song et al. 2021, in numbers.

A path goes from the image of one seed to that of the next in equal steps of a weight w in [0, 1], on one of three ways:

- ``slerp``: x_T on the arc between the two x_T, as in the paper;
- ``lerp``: x_T on the straight line, whose middle has less than the norm that the model was trained on;
- ``pixels``: the two images faded into each other, without the model between.

Of each path is measured, with d the root mean square difference of pixels, or the Euclidean distance of features:

- ``pace``: the largest d of two neighbouring frames over their mean d; 1 is even, a jump is large;
- ``length``: the sum of these d over d of the ends; 1 is the straight line;
- ``ppl``: perceptual path length, Eq. 2 of Karras et al. 2019 (arXiv 1812.04948), in the named features where they
  have LPIPS': d^2 / epsilon^2 of the frames at a random w and at w + epsilon. Epsilon is 1e-3 in place of 1e-4, which
  50 steps in float32 would round;
- ``contrast``: the standard deviation of the middle frame's pixels over the mean of the ends'.

Fading is smooth by all of these but the last; whether the middle frames are images says their Fréchet distance to real
ones, beside that of as many ends.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.slerp import slerp
from ..data.images import save_image
from ..models.base import Model
from ..pipelines.common import grid_for, prior
from ..solvers import make_solver
from .drawing import walk
from .frechet import Statistics, bootstrap_interval
from .reference import Features, as_saved
from .store import Columns, Row, Rows, surviving
from .tables import interval_text, mean_interval, median_interval

WAYS = ("slerp", "lerp", "pixels")
EPSILON = 1e-3
MEASURES = {
    **{"pace_pixels": ".2f", "pace_features": ".2f", "length_pixels": ".2f", "length_features": ".2f"},
    **{"ppl": ".1f", "contrast": ".3f"},
}
COLUMNS = Columns(
    identity={
        **{"model": "string", "features": "string", "way": "string", "frames": "int64", "steps": "int64"},
        **{"spacing": "string", "seed": "int64"},
    },
    measured={
        **dict.fromkeys(MEASURES, "float64"),
        **{"middle": "list<float32>", "end": "list<float32>"},
        **{"nfe": "int64", "seconds": "float64", "failed": "string"},
    },
)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """The measurement of one model.

    Args:
        model: any; a class-conditional one draws both ends of a path in one class.
        features: what frames are compared in beside pixels; None for pixels alone.
        pictures: the folder that the frames of some paths are kept in.
        steps: S, of the deterministic DDIM.
        spacing: a key of ``ddim.SPACINGS``.
        frames: of a path, ends included; odd, so that there is a middle.
        shown: the seeds whose frames are kept.

    Raises:
        InputError: an even number of frames, or fewer than 3; an S out of range.
    """

    model: Model
    features: Features | None
    pictures: Path
    steps: int
    spacing: str
    frames: int
    shown: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.frames < 3 or self.frames % 2 == 0:
            raise InputError(f"{self.frames} has no middle; use an odd number from 3.", parameter="frames")
        grid_for(self.model, self.steps, self.spacing)

    def items(self, way: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
        """One a path: from a seed to the next."""
        seen = "" if self.features is None else self.features.fingerprint[:12]
        own = {"model": self.model.fingerprint[:12], "features": seen, "way": way, "frames": self.frames}
        return [{**own, "steps": self.steps, "spacing": self.spacing, "seed": seed} for seed in seeds]

    def measure(
        self, rows: Rows, items: Sequence[dict[str, Any]], batch: int, report: Callable[[int, int], None] | None = None
    ) -> None:
        """Walks the missing paths of one way, of about ``batch`` images together."""

        def made(some: Sequence[dict[str, Any]]) -> Tensor:
            return self.path(some[0]["way"], [item["seed"] for item in some])

        def kept(some: Sequence[dict[str, Any]], images: Tensor, began: float) -> list[Row]:
            self._keep(some, images)
            found = self.numbers(images)
            each = (perf_counter() - began) / len(some)
            return [{**empty(item), **own, "seconds": each} for item, own in zip(some, found, strict=True)]

        def failed(item: dict[str, Any], why: str, began: float) -> Row:
            return {**empty(item), "seconds": perf_counter() - began, "failed": why}

        def empty(item: dict[str, Any]) -> dict[str, Any]:
            return {**item, **dict.fromkeys(COLUMNS.measured), "nfe": self.nfe(item["way"])}

        def run(some: list[dict[str, Any]]) -> list[Row]:
            return surviving(some, made, kept, failed)

        rows.measure(items, max(1, batch // (self.frames + 2)), run, report)

    def path(self, way: str, seeds: Sequence[int]) -> Tensor:
        """The frames of a path for each seed, and two more, at a random w and at w + epsilon; [N, frames + 2, C, H, W].

        Raises:
            DDIMError: the sample stopped being numbers.
        """
        grid, solver = grid_for(self.model, self.steps, self.spacing), make_solver("ddim")
        a, _ = prior(self.model, grid, seeds, self.model.shape)
        b, _ = prior(self.model, grid, [seed + 1 for seed in seeds], self.model.shape)
        at = torch.stack([_weights(seed, self.frames) for seed in seeds])  # [N, frames + 2]
        if way == "pixels":
            a, b = (walk(self.model, solver, grid, x, None, seeds) for x in (a, b))
        mix = slerp if way == "slerp" else _straight
        each = [mix(a[k : k + 1], b[k : k + 1], float(w)) for k, row in enumerate(at) for w in row]
        images, several = torch.cat(each), [seed for seed in seeds for _ in range(self.frames + 2)]
        if way != "pixels":
            images = walk(self.model, solver, grid, images, None, several)
        return images.unflatten(0, (len(seeds), self.frames + 2))

    def nfe(self, way: str) -> int:
        """Network calls a path, those of ppl included."""
        return self.steps * (2 if way == "pixels" else self.frames + 2)

    def numbers(self, images: Tensor) -> list[dict[str, Any]]:
        """The ``MEASURES`` of paths [N, frames + 2, C, H, W], and the features of their middles and first ends."""
        frames, middle = images[:, :-2], self.frames // 2
        spread = frames.flatten(2).double().std(2)
        ends = (spread[:, 0] + spread[:, -1]) / 2
        pixels = frames.flatten(2).double()
        numbers = {**_along("pixels", pixels), "contrast": spread[:, middle] / ends}
        vectors: dict[str, list[Any]] = {}
        if self.features is not None:
            saved = self._seen(as_saved(frames))
            numbers |= _along("features", saved.double())
            near = self._seen(images[:, -2:]).double()  # not rounded: the difference is smaller than a grey level
            numbers["ppl"] = (near[:, 1] - near[:, 0]).square().sum(1) / EPSILON**2
            vectors = {"middle": saved[:, middle].tolist(), "end": saved[:, 0].tolist()}
        columns = {**{k: v.tolist() for k, v in numbers.items()}, **vectors}
        lines = [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
        # where the ends are one image, or of one grey, there is nothing to divide by
        return [{k: v if isinstance(v, list) or isfinite(v) else None for k, v in one.items()} for one in lines]

    def file(self, item: Mapping[str, Any], frame: int) -> Path:
        """Where a kept frame lies."""
        where = f"{item['model']}_{item['spacing']}_S{item['steps']}_{item['frames']}frames_{item['way']}"
        return self.pictures / where / f"seed{item['seed']}_{frame:02d}.png"

    def _seen(self, frames: Tensor) -> Tensor:
        """Features of [N, F, C, H, W], [N, F, D]."""
        assert self.features is not None
        return self.features.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _keep(self, items: Sequence[Mapping[str, Any]], images: Tensor) -> None:
        for item, frames in zip(items, images, strict=True):
            if item["seed"] in self.shown:
                for k in range(self.frames):
                    save_image(frames[k], self.file(item, k))


def line(way: str, rows: Sequence[Row], reference: Statistics | None) -> dict[str, Any]:
    """A line of the table: means over the paths with 95 % intervals, of ``ppl`` the median, since one path that jumps
    within epsilon outweighs all others; and the middles' Fréchet distance."""
    good = [row for row in rows if not row["failed"]]
    out: dict[str, Any] = {"way": way}
    for name in MEASURES:
        values = [row[name] for row in good if row[name] is not None]
        middle = median_interval if name == "ppl" else mean_interval
        out[name], out[f"{name}_low"], out[f"{name}_high"] = middle(values)
    out |= distance([row["middle"] for row in good], reference)
    return {**out, "paths": len(good), "failed": len(rows) - len(good)}


def distance(vectors: Sequence[Sequence[float] | None], reference: Statistics | None) -> dict[str, Any]:
    """The Fréchet distance of images with these features, and its interval; None where there are too few, or no
    reference."""
    known = [vector for vector in vectors if vector is not None]
    if reference is None or len(known) <= reference.dim:
        return dict.fromkeys(("distance", "distance_low", "distance_high"))
    found = bootstrap_interval(torch.tensor(known), reference)
    return {"distance": found.value, "distance_low": found.low, "distance_high": found.high}


def layout(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown, a column for each way."""
    out = ["| | " + " | ".join(one["way"] for one in lines) + " |", "|---|" + "---|" * len(lines)]
    titles = {"distance": "Fréchet distance of the middles", "ppl": "ppl, median"}
    for name, form in {**MEASURES, "distance": ".1f"}.items():
        cells = [interval_text(one, name, form) for one in lines]
        out.append(f"| {titles.get(name, name.replace('_', ', '))} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _weights(seed: int, frames: int) -> Tensor:
    """The frames' w, then a random one and its neighbour, float64 [frames + 2]."""
    random = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 - EPSILON)
    return torch.cat([torch.linspace(0, 1, frames, dtype=torch.float64), random, random + EPSILON])


def _straight(a: Tensor, b: Tensor, weight: float) -> Tensor:
    return ((1 - weight) * a.double() + weight * b.double()).to(a.dtype)


def _along(where: str, points: Tensor) -> dict[str, Tensor]:
    """Pace and length of paths [N, F, D]; not finite where nothing moves, or the ends are one."""
    step = (points[:, 1:] - points[:, :-1]).norm(dim=2)
    whole = (points[:, -1] - points[:, 0]).norm(dim=1)
    return {f"pace_{where}": step.amax(1) / step.mean(1), f"length_{where}": step.sum(1) / whole}
