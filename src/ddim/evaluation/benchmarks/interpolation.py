"""How smoothly images follow x_T, and whether the images between are realistic: section 5.3 of Song et al. 2021.

A path goes from the image of one seed to that of the next, in equal steps of a weight w in [0, 1]. It goes one of three
ways:

- ``slerp``: x_T moves on the arc between the two x_T, as in the paper;
- ``lerp``: x_T moves on the straight line, whose middle has a smaller norm than the model was trained on;
- ``pixels``: the two images are blended, without the model.

With d the root mean square difference of pixels, or the Euclidean distance of features, a path has these measures:

- ``pace``: the largest d of two neighbouring frames over their mean d. An even path has 1, a jump a large value.
- ``length``: the sum of these d over the d of the ends. The straight line has 1.
- ``ppl``: perceptual path length, Eq. 2 of Karras et al. 2019 (arXiv 1812.04948), in the named features instead of
  LPIPS': d^2 / epsilon^2 of the frames at a random w and at w + epsilon. Epsilon is 1e-3 and not 1e-4, which would be
  lost in rounding after 50 steps in float32.
- ``contrast``: the standard deviation of the middle frame's pixels over the mean of the ends'.

Blending is smooth in all of these but the last. Whether the middle frames are realistic is measured by their Fréchet
distance to real images, beside the distance of as many ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import SPACINGS
from ..._utils.errors import InputError, UnknownName
from ..benchmark import Benchmark
from ..columns import (
    FAILED,
    Item,
    Row,
    derived,
    filled_in,
    key,
    keys,
    mean_interval,
    measured,
    median_interval,
    succeeded,
    summarise,
    with_interval,
)
from ..options import MANY, BatchOption, ModelOption, Option, ReferenceOptions, names
from ..rows import batches
from ..tables import interval_text
from .consistency import model_folder, sheet_of, sheet_scale
from .table1 import check_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from ..metrics.frechet import Statistics
    from ..runner import Session

WAYS = ("slerp", "lerp", "pixels")
EPSILON = 1e-3
SHOWN = 6
"""The number of paths on the sheet."""
MEASURES = {
    **{"pace_pixels": ".2f", "pace_features": ".2f", "length_pixels": ".2f", "length_features": ".2f"},
    **{"ppl": ".1f", "contrast": ".3f"},
}
DISTANCE = ("distance", "distance_low", "distance_high")


@dataclass(frozen=True, kw_only=True)
class InterpolationOptions(ReferenceOptions):
    """The options of the benchmark of interpolation."""

    model: ModelOption = "fashion"
    way: Annotated[Sequence[str], Option("slerp, lerp or pixels; repeatable.")] = WAYS
    frames: Annotated[int, Option("Images of each path, including both ends; an odd number.")] = 11
    steps: Annotated[int, Option("Number of steps S, from 1 to the model's T.", "-S")] = 50
    spacing: Annotated[str | None, Option(f"{names(SPACINGS)}. By default the model's own spacing.")] = None
    samples: Annotated[int, Option("Number of paths.", "-n", least=1, most=MANY)] = 200
    seed: Annotated[int, Option("The k-th path goes from seed + k to seed + k + 1.")] = 0
    batch: BatchOption = 52


class Interpolation(Benchmark[InterpolationOptions, str]):
    """Paths between x_T: how even they are, how long, and whether their middle images are realistic.

    Arcs, as in section 5.3 of Song et al. 2021, are compared with straight lines and with a blend of the two images.

    Example: ddim evaluate interpolation --model fashion
    """

    name = "interpolation"
    options_type = InterpolationOptions
    unit = "paths"
    folders = ("items", "pictures", "reference")
    columns = (
        *keys("model", "features"),
        key("way"),
        *keys("frames", "steps", kind="int64"),
        *keys("spacing"),
        *keys("seed", kind="int64"),
        # one path that jumps within epsilon would outweigh all others in the mean of ppl
        *(
            column
            for name, form in MEASURES.items()
            for column in with_interval(measured(name, form), median_interval if name == "ppl" else mean_interval)
        ),
        *(filled_in(name, ".2f") for name in DISTANCE),
        derived("paths", "d", succeeded),
        FAILED,
        *(measured(name, None, "list<float32>") for name in ("middle", "end")),
        measured("nfe", None, "int64"),
        measured("seconds"),
    )

    def __init__(self, options: InterpolationOptions, session: "Session") -> None:
        from ...data.images import sheet_size
        from ...pipelines.common import check_batch, grid_for
        from ..metrics.feature_extractor import feature_extractor_or_none

        super().__init__(options, session)
        self.ways = list(dict.fromkeys(options.way))
        if unknown := next((way for way in self.ways if way not in WAYS), None):
            raise UnknownName("way", unknown, WAYS)
        check_batch(options.batch)
        check_seeds(options.seed, options.samples + 1)
        self.model = session.open_model(options, classes=True)
        self.network = feature_extractor_or_none(options.features, self.model.picture, self.model.device)
        self.frames, self.spacing = options.frames, options.spacing or str(self.model.schedule.spacing)
        self.seeds = range(options.seed, options.seed + options.samples)
        self.shown = self.seeds[:SHOWN]
        shape = self.model.picture
        tiles = len(self.ways) * len(self.shown) * self.frames
        sheet_size(tiles, shape[1:], self.frames, scale=sheet_scale(shape), of="frames")
        if self.frames < 3 or self.frames % 2 == 0:
            raise InputError(f"{self.frames} has no middle; use an odd number from 3.", parameter="frames")
        grid_for(self.model, options.steps, self.spacing)
        self.reference: Statistics | None = None
        self.reference_text = ""
        self.ends: Row = {}

    def begin(self) -> None:
        """Reads or computes the statistics of the reference, if there are enough paths for a distance."""
        from ..reference import open_reference, reference_text

        if self.network is not None and len(self.seeds) > self.network.dim:
            folder = self.session.out / "reference"
            self.reference, about = open_reference(self.network, self.options.data, self.options.split, folder)
            self.reference_text = reference_text(about)

    def settings(self) -> list[str]:
        """One for each way to interpolate."""
        return self.ways

    def rows_folder(self, setting: str) -> str:
        """One folder for each model."""
        return model_folder(self)

    def items(self, setting: str) -> list[Item]:
        """One for each path: from a seed to the next."""
        return self.items_of(setting, self.seeds)

    def items_of(self, way: str, seeds: Sequence[int]) -> list[Item]:
        """The items of some seeds."""
        features = "" if self.network is None else self.network.fingerprint[:12]
        own = {"model": self.model.fingerprint[:12], "features": features, "way": way, "frames": self.frames}
        return [{**own, "steps": self.options.steps, "spacing": self.spacing, "seed": seed} for seed in seeds]

    def blocks(self, setting: str, items: Sequence[Item]) -> list[list[Item]]:
        """Paths that have about ``batch`` images together."""
        return batches(items, self.options.batch // (self.frames + 2), self.session.processes.count)

    def run(self, setting: str, items: Sequence[Item]) -> list[Row]:
        """Generates paths and measures them."""
        images = self.path(setting, [item["seed"] for item in items])
        self._keep(items, images)
        calls = self.options.steps * (2 if setting == "pixels" else self.frames + 2)
        return [{**row, "nfe": calls} for row in self.numbers(images)]

    def path(self, way: str, seeds: Sequence[int]) -> "Tensor":
        """The frames of a path for each seed, and two more at a random w and at w + epsilon.

        Returns:
            Images [N, frames + 2, C, H, W] in [0, 1].

        Raises:
            NotFinite: a sample is no longer finite.
        """
        import torch

        from ...core.slerp import slerp
        from ...pipelines.common import grid_for, prior
        from ...solvers import make_solver
        from ..generation import denoise_to_images

        grid, solver = grid_for(self.model, self.options.steps, self.spacing), make_solver("ddim")
        a, _ = prior(self.model, grid, seeds, self.model.shape)
        b, _ = prior(self.model, grid, [seed + 1 for seed in seeds], self.model.shape)
        at = torch.stack([_weights(seed, self.frames) for seed in seeds])  # [N, frames + 2]
        if way == "pixels":
            a, b = (denoise_to_images(self.model, solver, grid, x, None, seeds) for x in (a, b))
        mix = slerp if way == "slerp" else _straight
        each = [mix(a[k : k + 1], b[k : k + 1], float(w)) for k, row in enumerate(at) for w in row]
        images, classes = torch.cat(each), [seed for seed in seeds for _ in range(self.frames + 2)]
        if way != "pixels":  # both ends of a path have the class of its first seed
            images = denoise_to_images(self.model, solver, grid, images, None, classes)
        return images.unflatten(0, (len(seeds), self.frames + 2))

    def numbers(self, images: "Tensor") -> list[dict[str, Any]]:
        """The ``MEASURES`` of paths [N, frames + 2, C, H, W], and the features of their middles and first ends."""
        from ..metrics.feature_extractor import as_saved

        frames, middle = images[:, :-2], self.frames // 2
        spread = frames.flatten(2).double().std(2)
        ends = (spread[:, 0] + spread[:, -1]) / 2
        pixels = frames.flatten(2).double()
        numbers = {**_along("pixels", pixels), "contrast": spread[:, middle] / ends}
        vectors: dict[str, list[Any]] = {}
        if self.network is not None:
            saved = self._features(as_saved(frames))
            numbers |= _along("features", saved.double())
            near = self._features(images[:, -2:]).double()  # not rounded: the difference is less than a grey level
            numbers["ppl"] = (near[:, 1] - near[:, 0]).square().sum(1) / EPSILON**2
            vectors = {"middle": saved[:, middle].tolist(), "end": saved[:, 0].tolist()}
        columns = {**{k: v.tolist() for k, v in numbers.items()}, **vectors}
        lines = [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
        # if both ends are the same image, or have one grey, the divisor is 0
        return [{k: v if isinstance(v, list) or isfinite(v) else None for k, v in one.items()} for one in lines]

    def _features(self, frames: "Tensor") -> "Tensor":
        """Features of [N, F, C, H, W], [N, F, D]."""
        assert self.network is not None
        return self.network.features(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _keep(self, items: Sequence[Item], images: "Tensor") -> None:
        from ...data.images import save_image

        for item, frames in zip(items, images, strict=True):
            if item["seed"] in self.shown:
                for k in range(self.frames):
                    save_image(frames[k], self.file(item, k))

    def file(self, item: Mapping[str, Any], frame: int) -> Path:
        """The file of a stored frame."""
        where = f"{item['model']}_{item['spacing']}_S{item['steps']}_{item['frames']}frames_{item['way']}"
        return self.session.out / "pictures" / where / f"seed{item['seed']}_{frame:02d}.png"

    def summary(self, setting: str, rows: Sequence[Row]) -> list[Row]:
        """The way's line, with the Fréchet distance of the middle frames."""
        good = [row for row in rows if not row["failed"]]
        if setting == self.ways[0]:
            self.ends = distance([row["end"] for row in rows], self.reference)
        line = summarise(self.columns, rows) | {"way": setting}
        return [line | distance([row["middle"] for row in good], self.reference)]

    def about(self) -> Mapping[str, Any]:
        """The seeds, the features and the distance."""
        from ..metrics.frechet import title

        count, network = len(self.seeds), self.network
        found = {
            "paths": f"{count} of {self.frames} frames, from seeds {self.seeds[0]} to {self.seeds[-1]}, each to the "
            f"next; S = {self.options.steps}, {self.spacing}; means, of ppl the median; 95 % intervals",
            "features": "none that fit" if network is None else f"{network.name} {network.fingerprint[:12]}",
            "distance": f"{title(network.name)} to {self.reference_text}, of {count} images"
            if network is not None and self.reference is not None
            else "none: it needs features, and more paths than these have numbers",
        }
        if self.ends.get("distance") is not None:
            found["distance of the ends"] = interval_text(self.ends, "distance", ".1f")
        return found

    def page(self, table: Sequence[Row]) -> str:
        """A column for each way, values with their intervals."""
        out = ["| | " + " | ".join(one["way"] for one in table) + " |", "|---|" + "---|" * len(table)]
        titles = {"distance": "Fréchet distance of the middles", "ppl": "ppl, median"}
        for name, form in {**MEASURES, "distance": ".1f"}.items():
            cells = [interval_text(one, name, form) for one in table]
            out.append(f"| {titles.get(name, name.replace('_', ', '))} | " + " | ".join(cells) + " |")
        return "\n".join(out)

    def sheets(self, stem: Path) -> list[Path]:
        """The paths of the first seeds, each way below the other; a frame that failed is grey."""
        files = [
            self.file(item, k)
            for seed in self.shown
            for way in self.ways
            for item in self.items_of(way, [seed])
            for k in range(self.frames)
        ]
        about = f"rows: {', '.join(self.ways)} of each path"
        return [sheet_of(files, self.model.picture, self.frames, stem.with_name(f"{stem.name}.png"), about)]


def distance(vectors: Sequence[Sequence[float] | None], reference: "Statistics | None") -> dict[str, Any]:
    """The Fréchet distance of images with these features, with its interval.

    All values are None if there are too few images, or no reference.
    """
    import torch

    from ..metrics.frechet import bootstrap_interval

    known = [vector for vector in vectors if vector is not None]
    if reference is None or len(known) <= reference.dim:
        return dict.fromkeys(DISTANCE)
    found = bootstrap_interval(torch.tensor(known), reference)
    return dict(zip(DISTANCE, (found.value, found.low, found.high), strict=True))


def _weights(seed: int, frames: int) -> "Tensor":
    """The w of the frames, then a random one and its neighbour, float64 [frames + 2]."""
    import torch

    random = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 - EPSILON)
    return torch.cat([torch.linspace(0, 1, frames, dtype=torch.float64), random, random + EPSILON])


def _straight(a: "Tensor", b: "Tensor", weight: float) -> "Tensor":
    return ((1 - weight) * a.double() + weight * b.double()).to(a.dtype)


def _along(what: str, points: "Tensor") -> "dict[str, Tensor]":
    """Pace and length of paths [N, F, D]; not finite if nothing moves, or the ends are the same."""
    step = (points[:, 1:] - points[:, :-1]).norm(dim=2)
    whole = (points[:, -1] - points[:, 0]).norm(dim=1)
    return {f"pace_{what}": step.amax(1) / step.mean(1), f"length_{what}": step.sum(1) / whole}
