"""The Fréchet distance of generated images from a data set: FID, or the distance in another network's features.

A row stores the features of one image.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import SPACINGS
from ..._utils.errors import InputError, UnknownName
from ...solvers import SOLVERS
from ..benchmark import Benchmark
from ..columns import Item, Row, count, derived, filled_in, keys, measured, summarise
from ..options import MANY, BatchOption, ModelOption, Option, Options, SeedOption, Spacing, names
from .table1 import check_seeds

if TYPE_CHECKING:
    from ...models.base import Model
    from ...training.config import DataConfig
    from ...training.data import Images
    from ..metrics.feature_extractor import FeatureExtractor
    from ..metrics.frechet import Statistics
    from ..runner import Session

FITS = ("crop", "resize", "pad")


@dataclass(frozen=True, kw_only=True)
class FidOptions(Options):
    """The options of FID."""

    model: ModelOption = "fashion"
    data: Annotated[Path | None, Option("A folder of images, parquet or idx files.")] = None
    recipe: Annotated[
        Path | None,
        Option("Instead of --data: the data of this recipe, including its prompts.", metavar="RECIPE.toml"),
    ] = None
    split: Annotated[str | None, Option("The split of the data; by default test for idx files, else all.")] = None
    images: Annotated[int, Option("Number of generated images.", "-n", least=1, most=MANY)] = 10_000
    features: Annotated[
        str, Option("inception for FID; fashion-features or the folder of a classifier for its own distance.")
    ] = "inception"
    weights: Annotated[Path | None, Option("The file of Inception's weights, if they cannot be downloaded.")] = None
    steps: Annotated[int, Option("Number of steps S, from 1 to the model's T.", "-S")] = 50
    eta: Annotated[float, Option("The eta of the solver ddim.")] = 0.0
    solver: Annotated[str, Option(f"{names(SOLVERS)}.")] = "ddim"
    spacing: Annotated[
        Spacing | None,
        Option(f"{names(SPACINGS)}; or a list of times such as 900,500,100. By default the model's own spacing."),
    ] = None
    option: Annotated[
        Mapping[str, Any] | None, Option("An option of the solver, such as gamma=0.96; repeatable.", "-o")
    ] = None
    seed: SeedOption = 0
    guidance: Annotated[
        float | None, Option("Weight of classifier-free guidance; by default the usual one of the model.", "-w")
    ] = None
    fit: Annotated[str | None, Option(f"How images of --data become square: {', '.join(FITS)}. By default crop.")] = (
        None
    )
    resamples: Annotated[
        int | None,
        Option(
            "Resamples of the bootstrap interval; 0 for no interval. By default 200 for up to 512 features, else 0.",
            least=0,
        ),
    ] = None
    batch: BatchOption = 64


@dataclass(frozen=True)
class Sampler:
    """How images are generated; the attributes are arguments of ``ddim.sample``."""

    steps: int = 50
    solver: str = "ddim"
    eta: float = 0.0
    spacing: Spacing | None = None
    options: Mapping[str, Any] | None = None
    guidance: float = 7.5

    def __str__(self) -> str:
        return "generating"

    def about(self, model: "Model") -> dict[str, Any]:
        """What shapes an image beside the model and its seed.

        Raises:
            InputError: a name is unknown, or a number is out of its range.
        """
        from ...core.contracts import options_of
        from ...pipelines.common import grid_for
        from ...pipelines.sample import solver_for

        solver = solver_for(model, self.solver, self.eta, self.options)
        grid = grid_for(model, self.steps, self.spacing)
        guided = {"guidance": float(self.guidance)} if model.text else {}
        spacing = grid.spacing if self.spacing is None or isinstance(self.spacing, str) else list(self.spacing)
        return {"solver": self.solver, "options": options_of(solver), "steps": grid.steps, "spacing": spacing, **guided}


class Fid(Benchmark[FidOptions, Sampler]):
    """FID: the Fréchet distance of generated images from a data set, in the features of Inception.

    Example: ddim evaluate fid --model fashion --data fashion-mnist --fit pad

    With --features it is the distance in another network's features, under that network's name.
    """

    name = "fid"
    options_type = FidOptions
    folders = ("rows", "statistics")
    columns = (
        *keys("model", "features", "setting"),
        *keys("seed", kind="int64"),
        *keys("drawn"),
        filled_in("distance", ""),
        derived("images", "d", count),
        *(filled_in(name, ".4f") for name in ("value", "low", "high", "bias")),
        measured("vector", None, "binary"),
    )
    """``drawn`` is the prompt or the class, if there is one. ``vector`` is float32, little-endian."""

    def __init__(self, options: FidOptions, session: "Session") -> None:
        from ...models import device_and_dtype
        from ...training.data import load_images
        from ..method_spec import guidance_weight

        super().__init__(options, session)
        where, _ = device_and_dtype(session.device, "float32")
        check_seeds(options.seed, options.images)
        _check(options)
        self.model = session.open_model(options, classes=True)
        weight = guidance_weight(self.model, options.guidance, self.model.info.guidance)
        self.sampler = Sampler(options.steps, options.solver, options.eta, options.spacing, options.option, weight)
        self.sampling = self.sampler.about(self.model)  # raises an error before any work
        self.config = data_config(options, self.model.picture)
        with session.reporter.status("reading the images"):
            self.images = load_images(self.config)
        _check_count("the data", len(self.images), "images")
        with session.reporter.status("loading the network that extracts features"):
            self.network = open_network(options, where)
        self.conditions = conditions_of(self.model, self.images, options.images)
        self.reference: Statistics | None = None
        self.reference_about: dict[str, Any] = {}
        usual = 200 if self.network.dim <= 512 else 0
        self.resamples = usual if options.resamples is None else options.resamples

    @property
    def title(self) -> str:
        """FID, or the distance's name in the features of another network."""
        from ..metrics.frechet import title

        return "FID" if getattr(self.network, "original", False) else title(self.network.name)

    def begin(self) -> None:
        """Reads or computes the statistics of the data, and warns if there are too few images."""
        from ..reference import data_statistics

        with self.session.reporter.bar("the data", len(self.images)) as report:
            self.reference, self.reference_about = data_statistics(
                self.network, self.images, self.config, cache=self.session.out / "statistics", progress=report
            )
        for some, what in ((self.options.images, "generated images"), (len(self.images), "images of the data")):
            if some <= self.network.dim:
                self.session.reporter.warn(
                    f"{some} {what} are fewer than {self.network.dim} features need ({self.network.dim + 1}): the "
                    "distance is far too large, and compares only with distances of as many images."
                )

    def settings(self) -> list[Sampler]:
        """The one way in which images are generated."""
        return [self.sampler]

    def items(self, setting: Sampler) -> list[Item]:
        """One for each image."""
        return items(self.model, self.network, setting, self.options.seed, self.conditions)

    def run(self, setting: Sampler, items: Sequence[Item]) -> list[Row]:
        """Generates images, rounds them as the data's files are, and extracts their features."""
        import torch

        from ..metrics.feature_extractor import as_saved
        from ..round_trip import consecutive

        found = [self.network.features(as_saved(generate(self.model, setting, some))) for some in consecutive(items)]
        return [{"vector": vector.tobytes()} for vector in torch.cat(found).numpy().astype("<f4")]

    def summary(self, setting: Sampler, rows: Sequence[Row]) -> list[Row]:
        """The distance, with its interval."""
        from ..metrics.frechet import Statistics, bootstrap_interval, frechet_distance

        assert self.reference is not None
        vectors = vectors_of(rows)
        with self.session.reporter.status("the distance"):
            line = summarise(self.columns, rows) | {"distance": self.title}
            line["value"] = frechet_distance(Statistics.of(vectors), self.reference)
            if self.resamples:
                found = bootstrap_interval(vectors, self.reference, resamples=self.resamples, seed=self.options.seed)
                line |= {"low": found.low, "high": found.high, "bias": found.bias}
        return [line]

    def table_name(self) -> str:
        """Only a distance in Inception's features is called fid."""
        return "fid" if self.title == "FID" else "frechet"

    def about(self) -> Mapping[str, Any]:
        """How images are generated, and with what they are compared."""
        first = self.options.seed
        return {
            "sampling": self.sampling,
            "seeds": f"{first} to {first + self.options.images - 1}",
            "reference": self.reference_about,
            "interval": f"95 %, {self.resamples} resamples of the generated images" if self.resamples else "none",
        }

    def headline(self, table: Sequence[Row]) -> str:
        """The distance, with its interval."""
        line = table[0]
        interval = f" ({line['low']:.4g} to {line['high']:.4g})" if line["low"] is not None else ""
        return f"{line['distance']}: {line['value']:.4g}{interval}"


def whole_data(config: "DataConfig", split: str | None = None) -> "DataConfig":
    """The images of a recipe as a reference: each once, not mirrored.

    Args:
        config: the recipe's data.
        split: which split. By default the test split of idx files, which have one, and else the recipe's own.
    """
    from ...data.idx import idx_file

    idx = idx_file(replace(config.sources[0], split="train")) is not None if split is None else False
    chosen = split or ("test" if idx else config.split)
    more = tuple(replace(source, repeat=1) for source in config.more)
    return replace(config, split=chosen, repeat=1, flip=False, more=more)


def conditions_of(model: "Model", images: "Images", count: int) -> list[str | int | None]:
    """What conditions each of ``count`` images.

    A model with text gets the prompts of the data in their order, from the first again when they are used up. A
    class-conditional model gets its classes in turn, any other nothing.

    Raises:
        InputError: the model has text, and the data has no prompts.
    """
    if model.classes:
        return [k % model.classes for k in range(count)]
    if not model.text:
        return [None] * count
    order = list(range(len(images)))
    parts = images.stream([order[at : at + 250] for at in range(0, min(count, len(order)), 250)])
    prompts = [prompt for part in parts for prompt in part.prompts]
    if not any(prompts):
        raise InputError(
            f"the model {model.name!r} takes prompts, and the data has none; give one with data.prompt.",
            parameter="recipe",
        )
    return [prompts[k % len(prompts)] for k in range(count)]


def items(
    model: "Model", network: "FeatureExtractor", sampler: Sampler, seed: int, conditions: Sequence[str | int | None]
) -> list[Item]:
    """The items of a run, one for each image."""
    setting = json.dumps(sampler.about(model), sort_keys=True)
    shared = {"model": model.fingerprint, "features": network.fingerprint, "setting": setting}
    return [{**shared, "seed": seed + k, "drawn": "" if one is None else str(one)} for k, one in enumerate(conditions)]


def generate(model: "Model", sampler: Sampler, items: Sequence[Item]) -> Any:
    """The images [N, C, H, W] of items whose seeds follow each other."""
    from ...pipelines.sample import sample

    conditions = [item["drawn"] for item in items]
    return sample(
        model,
        len(items),
        steps=sampler.steps,
        solver=sampler.solver,
        eta=sampler.eta,
        spacing=sampler.spacing,
        options=sampler.options,
        seed=items[0]["seed"],
        labels=[int(one) for one in conditions] if model.classes else None,
        prompt=conditions if model.text else None,
        guidance=sampler.guidance if model.text else None,
        batch=len(items),
    )


def vectors_of(rows: Sequence[Row]) -> Any:
    """The stored features, float32 [N, D]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.frombuffer(row["vector"], "<f4") for row in rows]).astype(np.float32))


def open_network(options: FidOptions, device: Any) -> Any:
    """The network whose features are used. Raises InputError if it cannot be loaded."""
    if options.features.lower() == "inception":
        from ..metrics.inception import open_inception

        return open_inception(options.weights, device)
    from ...models.features import load_features

    return load_features(options.features, device=device)


def data_config(options: FidOptions, picture: tuple[int, int, int]) -> "DataConfig":
    """The data to compare with, at the size of the model's images.

    Raises:
        InputError: there is not exactly one of ``data`` and ``recipe``, or the data does not fit the model.
    """
    from ...training import load_config
    from ...training.config import DataConfig

    channels, height, width = picture
    data, recipe, fit = options.data, options.recipe, options.fit
    if (data is None) == (recipe is None):
        raise InputError(
            "there must be one data set to compare with; give one of --data FOLDER and --recipe RECIPE.toml.",
            parameter="data",
        )
    if height != width or channels not in (1, 3):
        raise InputError(
            f"it generates images of {width}x{height} with {channels} channels; they must be square, with 1 or 3.",
            parameter="model",
        )
    if fit not in (None, *FITS):
        raise UnknownName("fit", fit, FITS)
    if recipe is not None:
        if fit is not None:
            raise InputError(f"{fit} goes with --data; {recipe} has a fit of its own.", parameter="fit")
        config = load_config(recipe).data
    else:
        config = DataConfig(str(data), height, channels=1 if channels == 1 else 3, fit=fit or "crop")  # type: ignore[arg-type]
    if (config.channels, config.size) != (channels, height):
        raise InputError(
            f"{recipe} makes images of {config.size}x{config.size} with {config.channels} channels; the model "
            f"generates {width}x{height} with {channels}.",
            parameter="recipe",
        )
    return whole_data(config, options.split)


def _check(options: FidOptions) -> None:
    """Raises InputError for what is wrong before anything is loaded."""
    if options.weights is not None and options.features.lower() != "inception":
        raise InputError(
            f"they belong to Inception, and --features asks for {options.features}; give one of the two.",
            parameter="weights",
        )
    if options.weights is not None and not options.weights.is_file():
        raise InputError(
            f"there is no file {options.weights}; give the file of Inception's weights.", parameter="weights"
        )
    _check_count("--images", options.images, "generated images")


def _check_count(which: str, count: int, what: str) -> None:
    if count < 2:
        raise InputError(f"{which}: {count} {what} have no covariance; use two or more.")
