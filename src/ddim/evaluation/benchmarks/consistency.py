"""How far one x_T determines the image at every S: sections 4.2 and 5.2 of Song et al. 2021 (arXiv 2010.02502).

An item is the image of one seed at one S and eta. For one seed, every S starts from the same x_T. Each image is
compared with that of the same seed and eta at the largest S. Images are stored as PNG files and are compared as these
files hold them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import SPACINGS
from ..._utils.errors import InputError
from ..._utils.names import slug
from ..benchmark import Benchmark
from ..columns import FAILED, Item, Row, derived, key, keys, measured, summarise, with_interval
from ..options import MANY, BatchOption, FeatureOptions, ModelOption, Option, SeedOption, names
from ..plots import Plot, by_line
from ..tables import interval_text
from .table1 import check_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from ..runner import Session

STEPS = (10, 20, 50, 100, 200)
SHOWN = 8
"""The number of seeds on a sheet."""
MEASURES = {"psnr": ".2f", "ssim": ".3f", "cosine": ".3f", "l2": ".2f"}
"""PSNR in dB and SSIM of the pixels; cosine and Euclidean distance of the features."""
HEADINGS = {"psnr": "PSNR, dB", "ssim": "SSIM", "cosine": "cosine of features", "l2": "distance of features"}


@dataclass(frozen=True, kw_only=True)
class ConsistencyOptions(FeatureOptions):
    """The options of the benchmark of consistency."""

    model: ModelOption = "fashion"
    steps: Annotated[
        Sequence[int] | None, Option("Number of steps S; repeatable. By default 10, 20, 50, 100 and 200.", "-S")
    ] = None
    eta: Annotated[Sequence[float], Option("Values of eta from 0 to 1; repeatable. 0 is DDIM, 1 is DDPM.")] = (0.0, 1.0)
    reference: Annotated[int, Option("The S with which the others are compared.")] = 1000
    spacing: Annotated[str | None, Option(f"{names(SPACINGS)}. By default the model's own spacing.")] = None
    samples: Annotated[int, Option("Number of x_T.", "-n", least=1, most=MANY)] = 100
    seed: SeedOption = 0
    batch: BatchOption = 50


@dataclass(frozen=True)
class Trajectories:
    """The images of one eta and one S."""

    eta: float
    steps: int

    def __str__(self) -> str:
        return f"eta = {self.eta:g}, S = {self.steps}"


class Consistency(Benchmark[ConsistencyOptions, Trajectories]):
    """One x_T at many S: how similar each image is to that of S = 1000, in pixels and in features.

    With eta = 0 the image is determined by x_T; eta = 1 adds noise in every step. The last line of each eta compares
    the images of two different x_T. Sections 4.2 and 5.2 of Song et al. 2021.

    Example: ddim evaluate consistency --model fashion
    """

    name = "consistency"
    options_type = ConsistencyOptions
    folders = ("items", "pictures")
    columns = (
        *keys("model", "features", "spacing"),
        key("eta", "float64", "g"),
        *keys("reference", "seed", kind="int64"),
        key("steps", "int64", "d"),
        *(column for name, form in MEASURES.items() for column in with_interval(measured(name, form))),
        derived("images", "d", lambda rows, _: sum(row["ssim"] is not None for row in rows)),
        derived("same", "d", lambda rows, _: sum(row["ssim"] is not None and row["psnr"] is None for row in rows)),
        FAILED,
        measured("nfe", None, "int64"),
        measured("seconds"),
    )
    """``psnr`` is None for images that are the same; the table counts them as ``same``."""

    def __init__(self, options: ConsistencyOptions, session: "Session") -> None:
        from ...pipelines.common import check_batch
        from ..metrics.feature_extractor import feature_extractor_or_none

        super().__init__(options, session)
        check_batch(options.batch)
        check_seeds(options.seed, options.samples)
        self.seeds = range(options.seed, options.seed + options.samples)
        self.model = session.open_model(options, classes=True)
        self.network = feature_extractor_or_none(options.features, self.model.picture, self.model.device)
        self.spacing = options.spacing or str(self.model.schedule.spacing)
        usual = [s for s in STEPS if s < options.reference]
        self.steps = sorted(set(options.steps or usual))
        self.etas = list(dict.fromkeys(options.eta))
        self._check()

    def _check(self) -> None:
        """Raises InputError, before any work, if an S or an eta is out of its range, or there is no S."""
        from ...pipelines.common import grid_for
        from ...pipelines.sample import solver_with_eta

        levels, reference = self.model.schedule.path.levels, self.options.reference
        if not 2 <= reference <= levels:
            raise InputError(
                f"{reference} does not fit this model; use a whole number from 2 to {levels}.", parameter="reference"
            )
        for steps in (*self.steps, reference):
            grid_for(self.model, steps, self.spacing)
        for eta in self.etas:
            solver_with_eta("ddim", eta, None)
        if wrong := next((steps for steps in self.steps if steps >= reference), None):
            raise InputError(f"{wrong} is not less than the {reference} with which it is compared.", parameter="steps")
        if not self.steps:
            raise InputError(f"no usual S is less than {reference}; give --steps.", parameter="reference")

    def settings(self) -> list[Trajectories]:
        """For each eta the reference, with which the others are compared, and then every S."""
        return [Trajectories(eta, steps) for eta in self.etas for steps in (self.options.reference, *self.steps)]

    def rows_folder(self, setting: Trajectories) -> str:
        """One folder for each model."""
        return model_folder(self)

    def items(self, setting: Trajectories) -> list[Item]:
        """One for each seed."""
        return self.items_of(setting, self.seeds)

    def items_of(self, setting: Trajectories, seeds: Sequence[int]) -> list[Item]:
        """The items of some seeds."""
        features = "" if self.network is None else self.network.fingerprint[:12]
        own = {"model": self.model.fingerprint[:12], "features": features, "eta": float(setting.eta)}
        own |= {"spacing": self.spacing, "reference": self.options.reference, "steps": setting.steps}
        return [{**own, "seed": seed} for seed in seeds]

    def run(self, setting: Trajectories, items: Sequence[Item]) -> Sequence[Row]:
        """Generates images, stores them, and compares them with those of the reference, which must be there."""
        from ...data.images import save_image
        from ...pipelines.common import grid_for
        from ...pipelines.sample import solver_with_eta
        from ..generation import generate
        from ..metrics.feature_extractor import as_saved

        solver, grid = solver_with_eta("ddim", setting.eta, None), grid_for(self.model, setting.steps, self.spacing)
        images = as_saved(generate(self.model, solver, grid, [item["seed"] for item in items]))
        for item, image in zip(items, images, strict=True):
            save_image(image, self.file(item))
        rows: list[dict[str, Any]] = [{"nfe": setting.steps} for _ in items]
        if setting.steps != self.options.reference:
            # an image that failed at the reference has nothing to be compared with
            whole = [{**item, "steps": self.options.reference} for item in items]
            known = [k for k, item in enumerate(whole) if self.file(item).is_file()]
            for k, values in zip(known, self.compare(images[known], self.read([whole[k] for k in known])), strict=True):
                rows[k] |= values
        return rows

    def compare(self, images: "Tensor", others: "Tensor") -> list[dict[str, Any]]:
        """The ``MEASURES`` of pairs of images [N, C, H, W] in [0, 1].

        A value is None without features, and for the PSNR of equal images, which is infinite.
        """
        import torch

        from ..metrics.pairwise import psnr, ssim

        if not len(images):
            return []
        numbers = {"psnr": psnr(images, others).tolist(), "ssim": ssim(images, others).tolist()}
        if self.network is not None:
            a, b = (self.network.features(side).double() for side in (images, others))
            numbers["cosine"] = torch.cosine_similarity(a, b).tolist()
            numbers["l2"] = (a - b).norm(dim=1).tolist()
        lines = [dict(zip(numbers, line, strict=True)) for line in zip(*numbers.values(), strict=True)]
        return [{**dict.fromkeys(MEASURES), **{k: v for k, v in line.items() if isfinite(v)}} for line in lines]

    def summary(self, setting: Trajectories, rows: Sequence[Row]) -> list[Row]:
        """A line for each S, and after the last one a line for two different x_T."""
        if setting.steps == self.options.reference:
            return []
        lines: list[Row] = [summarise(self.columns, rows)]
        if setting.steps == self.steps[-1]:
            lines.append(self.other_seeds(setting.eta))
        return lines

    def other_seeds(self, eta: float) -> dict[str, Any]:
        """The line that compares the reference's images of neighbouring seeds: what another x_T gives."""
        import torch

        items = [
            i for i in self.items_of(Trajectories(eta, self.options.reference), self.seeds) if self.file(i).is_file()
        ]
        images = self.read(items) if len(items) > 1 else torch.empty(0)
        rows = self.compare(images, images.roll(1, 0)) if len(images) else []
        line = summarise(self.columns, [{**row, "eta": eta, "steps": None, "failed": ""} for row in rows])
        return {**line, "eta": eta, "steps": None}

    def read(self, items: Sequence[Mapping[str, Any]]) -> "Tensor":
        """Stored images, [N, C, H, W]."""
        import torch

        from ...data.images import read_images

        return torch.cat([read_images(self.file(item), self.model.picture) for item in items])

    def file(self, item: Mapping[str, Any]) -> Path:
        """The file of an item's image."""
        where = f"{item['model']}_{item['spacing']}_eta{item['eta']:g}_S{item['steps']}"
        return self.session.out / "pictures" / where / f"seed{item['seed']}.png"

    def about(self) -> Mapping[str, Any]:
        """The seeds, and what is compared."""
        return {
            "images": f"{len(self.seeds)} x_T, of seeds {self.seeds[0]} to {self.seeds[-1]}; {self.spacing} grids",
            "compared with": f"the image of the same seed and eta at S = {self.options.reference}; means, "
            "95 % intervals",
            "features": "none that fit"
            if self.network is None
            else f"{self.network.name} {self.network.fingerprint[:12]}",
        }

    def page(self, table: Sequence[Row]) -> str:
        """A line for each eta and S, and one for another x_T; values with their intervals."""
        out = ["| eta | S | " + " | ".join(HEADINGS.values()) + " |", "|---|---|" + "---|" * len(HEADINGS)]
        for line in table:
            cells = [interval_text(line, name, form) for name, form in MEASURES.items()]
            steps = f"{self.options.reference}, another x_T" if line["steps"] is None else line["steps"]
            out.append(f"| {line['eta']:g} | {steps} | " + " | ".join(cells) + " |")
        return "\n".join(out)

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """SSIM against S, a line for each eta."""
        rows = [{**row, "line": f"eta = {row['eta']:g}"} for row in table if row["steps"] is not None]
        y = f"SSIM to the image of S = {self.options.reference}"
        return {"": Plot(by_line(rows, "line", "steps", "ssim"), "S", y, f"{self.model.name}: one x_T")}

    def sheets(self, stem: Path) -> list[Path]:
        """For each eta a row for each of the first seeds and a column for each S; an image that failed is grey."""
        counts, shape = [*self.steps, self.options.reference], self.model.picture
        out = []
        for eta in self.etas:
            files = [
                self.file(item)
                for seed in self.seeds[:SHOWN]
                for steps in counts
                for item in self.items_of(Trajectories(eta, steps), [seed])
            ]
            about = f"rows: x_T; columns: S = {', '.join(map(str, counts))}; eta = {eta:g}"
            out.append(sheet_of(files, shape, len(counts), stem.with_name(f"{stem.name}_eta{eta:g}.png"), about))
        return out


def model_folder(benchmark: Benchmark[Any, Any]) -> str:
    """The folder of a model's rows, in benchmarks that share images between settings."""
    model = benchmark.options.model
    name = model if isinstance(model, str) else model.name
    return f"items/{slug(name)}_{benchmark.session.model.fingerprint[:12]}"


def sheet_of(files: Sequence[Path], shape: tuple[int, int, int], columns: int, to: Path, about: str) -> Path:
    """Writes a sheet of stored images; one that does not exist is grey."""
    import torch

    from ...data.images import read_images, save_image, sheet

    tiles = [read_images(file, shape)[0] if file.is_file() else torch.full(shape, 0.5) for file in files]
    return save_image(sheet(torch.stack(tiles), columns=columns, scale=sheet_scale(shape)), to, about)


def sheet_scale(shape: Sequence[int]) -> int:
    """How many pixels a pixel takes on a sheet: small images are enlarged."""
    return 2 if shape[1] < 64 else 1
