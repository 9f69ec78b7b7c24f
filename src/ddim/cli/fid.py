"""``ddim evaluate fid``: how far drawn pictures are from a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .evaluate import MANY, Folder, about_run, flags_of, usable_folder, usable_seeds
from .files import slug
from .output import Terminal, escaped

if TYPE_CHECKING:
    from ..training.config import DataConfig

_Data = Annotated[
    Path | None,
    typer.Option("--data", help="A folder of images, parquet or idx files.", show_default=False),
]
_Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", help="In place of --data: the [data] of this config, prompts too.", show_default=False),
]
_Split = Annotated[
    str | None,
    typer.Option("--split", help="Of the data; by default test for idx files, else all.", show_default=False),
]
_Features = Annotated[
    str,
    typer.Option(
        "--features", help="inception; fashion-features, or a folder of ddim train's, gives its own distance."
    ),
]
_Weights = Annotated[
    Path | None, typer.Option("--weights", help="Inception's, where they cannot be fetched.", show_default=False)
]
_Resamples = Annotated[
    int | None,
    typer.Option(
        "--resamples",
        min=0,
        help="Draws of the bootstrap interval; 0 for none. By default 200 up to 512 features, else 0.",
        show_default=False,
    ),
]


def fid(
    model: o.Model = "fashion",
    data: _Data = None,
    recipe: _Recipe = None,
    split: _Split = None,
    images: Annotated[int, typer.Option("--images", "-n", min=1, max=MANY, help="How many are drawn.")] = 10_000,
    features: _Features = "inception",
    weights: _Weights = None,
    steps: o.Steps = 50,
    eta: Annotated[float, typer.Option("--eta", help="Of the solver ddim.", rich_help_panel=o.WORK)] = 0.0,
    solver: o.Solver = "ddim",
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    seed: o.Seed = 0,
    guidance: o.GuidanceWeight = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", help="How --data's become square: crop (usual), resize or pad.", show_default=False),
    ] = None,
    resamples: _Resamples = None,
    out: Folder = Path("evaluation/fid"),
    batch: o.Batch = 64,
    device: o.Device = None,
) -> None:
    """FID: the Fréchet distance of drawn pictures from a data set, in Inception's features.

    ddim evaluate fid --model fashion --data fashion-mnist --fit pad

    With --features it is the distance in another network's, under its name. A run resumes, and Accelerate's processes
    share it.
    """
    with Terminal() as terminal:
        from ..evaluation.fid import COLUMNS, Walk, draw_features, items_of, words_of
        from ..evaluation.frechet import Statistics, bootstrap_interval, frechet_distance, title
        from ..evaluation.reference import data_statistics
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..models import device_and_dtype
        from ..training.data import load_images
        from .session import guidance_for, open_model

        among = processes()
        where, _ = device_and_dtype(device, "float32")
        usable_folder(out, f"fid-{slug(model)}")
        usable_seeds(seed, images)
        _check(features, weights, images)
        counted = open_model(terminal, model, device, "float32", labels=[])
        weight = guidance_for(counted, o.Guiding(guidance=guidance), usual=counted.info.guidance).weight
        walk = Walk(steps, solver, eta, o.spacing_from(spacing), o.options_from(option), weight)
        drawn = walk.about(counted)  # says what is wrong before any work
        config = _data(data, recipe, split, fit, counted.picture)
        with terminal.status("reading the pictures"):
            pictures = load_images(config)
        _enough("the data", len(pictures), "pictures")
        with terminal.status("loading what judges"):
            network: Any = _network(features, weights, where)
        words = words_of(counted, pictures, images)
        with open_rows(out, COLUMNS, among) as rows:
            about: dict[str, Any] = {}
            reference: Statistics | None = None
            if among.main:
                with terminal.bar("the data", len(pictures)) as report:
                    reference, about = data_statistics(
                        network, pictures, config, cache=out / "statistics", progress=report
                    )
                for count, what in ((images, "drawn pictures"), (len(pictures), "pictures of the data")):
                    if count <= network.dim:
                        terminal.warn(
                            f"{count} {what} are fewer than {network.dim} features need ({network.dim + 1}): the "
                            "distance is far too large, and compares only with others of as many."
                        )
            items = items_of(counted, network, walk, seed, words, among.count)
            with terminal.bar("drawing", images) as report:
                vectors = draw_features(counted, network, walk, items, rows, batch=batch, progress=report)
            if reference is None:
                return
            again = (200 if network.dim <= 512 else 0) if resamples is None else resamples
            called = "FID" if getattr(network, "original", False) else title(network.name)
            with terminal.status("the distance"):
                row: dict[str, Any] = {"value": frechet_distance(Statistics.of(vectors), reference)}
                row |= {"low": None, "high": None, "bias": None}
                if again:
                    interval = bootstrap_interval(vectors, reference, resamples=again, seed=seed)
                    row |= {"low": interval.low, "high": interval.high, "bias": interval.bias}
            row = {"distance": called, "images": images, **row}
            words = flags_of(model=model, data=data, recipe=recipe, split=split, weights=weights, spacing=spacing)
            words += flags_of(images=images, features=features, steps=steps, eta=eta, solver=solver, option=option)
            words += flags_of(seed=seed, guidance=weight if counted.text else None, resamples=resamples)
            words += flags_of(fit=config.fit if recipe is None else None)
            rest = {
                "walk": drawn,
                "seeds": f"{seed} to {seed + images - 1}",
                "reference": about,
                "interval": f"95 %, {again} resamples of the drawn pictures" if again else "none",
            }
            record = about_run("fid", words, counted, rest)
            kind = "fid" if called == "FID" else "frechet"
            name = f"{kind}-{slug(model)}"
            files = write_table(out, name, [row], FORMATS, record)
            span = f" ({row['low']:.4g} to {row['high']:.4g})" if again else ""
            terminal.result(
                {"command": "evaluate fid", **record, "rows": [row], "files": [str(f) for f in files]},
                f"{called}: [bold]{row['value']:.4g}[/bold]{span}",
                f"[bold]{escaped(files[0])}[/bold]",
                f"[dim]{images} pictures drawn, {len(pictures)} of the data · {terminal.seconds:.0f} s[/dim]",
            )


FORMATS = {"distance": "", "images": "d", "value": ".4f", "low": ".4f", "high": ".4f", "bias": ".4f"}


def _check(features: str, weights: Path | None, images: int) -> None:
    """Raises InputError for what is wrong before anything is loaded."""
    if weights is not None and features.lower() != "inception":
        raise InputError(
            f"they are Inception's, and --features asks for {features}; give one of the two.", parameter="weights"
        )
    if weights is not None and not weights.is_file():
        raise InputError(f"there is no file {weights}; give the file of Inception's weights.", parameter="weights")
    _enough("--images", images, "drawn pictures")


def _enough(which: str, count: int, what: str) -> None:
    if count < 2:
        raise InputError(f"{which}: {count} {what} have no covariance; two or more are needed.")


def _network(features: str, weights: Path | None, device: Any) -> Any:
    """What judges. Raises InputError where it cannot be had."""
    if features.lower() == "inception":
        from ..evaluation.inception import open_inception

        return open_inception(weights, device)
    from ..models.features import load_features

    return load_features(features, device=device)


def _data(
    data: Path | None, recipe: Path | None, split: str | None, fit: str | None, picture: tuple[int, int, int]
) -> "DataConfig":
    """Where the pictures come from, as large as the model's."""
    from .._utils.errors import UnknownName
    from ..evaluation.fid import whole_data
    from ..training import load_config
    from ..training.config import DataConfig

    channels, height, width = picture
    if (data is None) == (recipe is None):
        raise InputError(
            "the distance needs something to be from; give one of --data FOLDER and --recipe RECIPE.toml.",
            parameter="data",
        )
    if height != width or channels not in (1, 3):
        raise InputError(
            f"it draws pictures of {width}x{height} with {channels} channels; squares of 1 or 3 will do.",
            parameter="model",
        )
    if fit not in (None, "crop", "resize", "pad"):
        raise UnknownName("fit", fit, ["crop", "resize", "pad"])
    if recipe is not None:
        if fit is not None:
            raise InputError(f"{fit} goes with --data; {recipe} has a fit of its own.", parameter="fit")
        config = load_config(recipe).data
    else:
        config = DataConfig(str(data), height, channels=1 if channels == 1 else 3, fit=fit or "crop")  # type: ignore[arg-type]
    if (config.channels, config.size) != (channels, height):
        raise InputError(
            f"{recipe} makes pictures of {config.size}x{config.size} with {config.channels} channels; the model draws "
            f"{width}x{height} with {channels}.",
            parameter="recipe",
        )
    return whole_data(config, split)
