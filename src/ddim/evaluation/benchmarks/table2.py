"""Reconstruction error against the number of steps: the layout of Table 2 of Song et al. 2021 (arXiv 2010.02502)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import SPACINGS
from ..benchmark import Benchmark
from ..columns import FAILED, Item, Row, count, derived, key, keys, largest, least, mean, measured
from ..options import ImageOptions, MethodOptions, ModelOption, Option, Spacing, names
from ..plots import Plot, by_line
from ..tables import markdown

if TYPE_CHECKING:
    from ...models.base import Model
    from ..round_trip import TripSetting
    from ..runner import Session

STEPS = (10, 20, 50, 100, 200, 500, 1000)
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
"""The paper's result for DDIM on the test set of CIFAR10: the mean squared error per dimension, on [0, 1]."""


def method_title(rows: Sequence[Row], _: str) -> str:
    """The method with its options, such as ``ddim iterations=5``."""
    return " ".join(part for part in (rows[0]["method"], rows[0]["options"]) if part)


TRIP_KEYS = (
    *keys("fingerprint", "picture", "prompt"),
    key("method", value=method_title),
    *keys("options", "spacing", "dtype"),
    *keys("seed", kind="int64"),
)
"""The keys of a round trip, beside ``steps`` and ``guidance``; ``seed`` is the image's place in the run."""


def chosen_steps(steps: Sequence[int] | None, usual: Sequence[int], model: "Model") -> list[int]:
    """The numbers of steps without repetition; by default the usual ones that the model has levels for."""
    levels = model.schedule.path.levels
    return list(dict.fromkeys(steps or [s for s in usual if s <= levels] or [levels]))


def _psnr_of_mean(rows: Sequence[Row], _: str) -> float | None:
    from ..metrics.pairwise import decibels

    return decibels(mean(rows, "mse"))


@dataclass(frozen=True, kw_only=True)
class Table2Options(MethodOptions, ImageOptions):
    """The options of Table 2."""

    model: ModelOption = "fashion"
    steps: Annotated[
        Sequence[int] | None,
        Option(
            "Number of steps S in both directions; repeatable. By default 10, 20, 50, 100, 200, 500 and 1000.",
            "-S",
            least=1,
        ),
    ] = None
    spacing: Annotated[
        Spacing | None,
        Option(f"{names(SPACINGS)}; or a list of times such as 900,500,100. By default the model's own spacing."),
    ] = None
    guidance: Annotated[
        float | None, Option("Weight of classifier-free guidance; by default 1, the prompt alone.", "-w")
    ] = None


class Table2(Benchmark[Table2Options, "TripSetting"]):
    """Reconstruction error against S for every inversion: Table 2 of Song et al. 2021.

    Images are inverted in S steps and reconstructed in S steps. The error is the mean squared error on [0, 1]. By
    default S is 10 to 1000, on the images that are bundled with the model.

    Example: ddim evaluate table2 --model fashion --steps 10 --steps 50 --method ddim --method belm
    """

    name = "table2"
    options_type = Table2Options
    failed_key = "picture"
    columns = (
        *TRIP_KEYS,
        key("steps", "int64", "d"),
        *keys("guidance", kind="float64"),
        derived("images", "d", count),
        measured("mse", ".3g"),
        measured("psnr", ".2f", value=_psnr_of_mean),
        derived("psnr_worst", ".2f", lambda rows, _: least(rows, "psnr")),
        measured("max", ".3g", value=largest),
        measured("ssim", ".4f"),
        measured("nfe_back", "g"),
        measured("nfe_forward", "g"),
        measured("seconds", ".3g"),
        FAILED,
    )

    def __init__(self, options: Table2Options, session: "Session") -> None:
        from ..eval_images import eval_images, read_recipe
        from ..method_spec import accepted, chosen_methods, guidance_weight
        from ..round_trip import TripSetting

        super().__init__(options, session)
        specs = chosen_methods(options.method, options.option)
        recipe = None if options.recipe is None else read_recipe(options.recipe)
        model = session.open_model(options)
        steps = chosen_steps(options.steps, STEPS, model)
        weight = guidance_weight(model, options.guidance, usual=1.0)
        found = accepted(model, specs, steps, [weight], options.spacing)
        self.trips = [TripSetting(spec, s, w if model.text else None, options.spacing) for spec, w, s in found]
        with session.reporter.status("reading the images"):
            self.images = eval_images(model, options.images, recipe, options.data)

    def settings(self) -> "Sequence[TripSetting]":
        """One for each method and number of steps."""
        return self.trips

    def items(self, setting: "TripSetting") -> list[Item]:
        """One for each image."""
        from ..round_trip import trip_items

        return trip_items(self.session.model, self.images.images, setting)

    def run(self, setting: "TripSetting", items: Sequence[Item]) -> list[Row]:
        """Inverts and reconstructs images, and compares."""
        import torch

        from ..round_trip import compare, consecutive, round_trip

        rows: list[Row] = []
        for some in consecutive(items):
            images = [self.images.images[item["seed"]] for item in some]
            trip = round_trip(self.session.model, images, setting, some[0]["seed"])
            shared = {"nfe_back": trip.nfe_back, "nfe_forward": trip.nfe_forward, "seconds": trip.seconds}
            pixels = torch.stack([image.pixels for image in images])
            rows += [{**shared, **errors} for errors in compare(pixels, trip.images)]
        return rows

    def about(self) -> Mapping[str, Any]:
        """The images, and how they were run."""
        return {**self.images.about, "batch": self.options.batch, "dtype": self.options.dtype}

    def page(self, table: Sequence[Row]) -> str:
        """The table in the paper's layout: a line for each method, a column for each S."""
        return page(table)

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """The error against S, a line for each method."""
        title = f"{self.session.model.name}, {len(self.images.images)} images, {self.options.dtype}"
        lines = by_line([row for row in table if row["mse"]], "method", "steps", "mse")
        return {"": Plot(lines, "S in each direction", "mean squared error on [0, 1]", title, log_y=True)}


def page(table: Sequence[Row]) -> str:
    """The paper's layout: first the errors of every method at every S, then what they cost."""
    steps = sorted({row["steps"] for row in table})
    cells = {(row["method"], row["steps"]): row for row in table}
    methods = list(dict.fromkeys(row["method"] for row in table))
    heads = {s: f"S = {s}" for s in steps}

    def part(title: str, text: Callable[[Row], str | None], before: Sequence[Row] = ()) -> str:
        lines = [
            {"method": m, **{heads[s]: text(cells[m, s]) if (m, s) in cells else None for s in steps}} for m in methods
        ]
        return f"{title}\n\n{markdown([*before, *lines], {'method': '', **dict.fromkeys(heads.values(), '')})}"

    def number(name: str, form: str) -> Callable[[Row], str | None]:
        return lambda row: None if row[name] is None else format(row[name], form)

    def calls(row: Row) -> str | None:
        return None if row["nfe_back"] is None else f"{row['nfe_back']:g} + {row['nfe_forward']:g}"

    paper = {
        "method": "DDIM on CIFAR10, as published",
        **{heads[s]: f"{PAPER[s]:g}" if s in PAPER else None for s in steps},
    }
    parts = [
        part(
            "Mean squared error per dimension, images on [0, 1]",
            number("mse", ".2g"),
            [paper] if set(PAPER) & set(steps) else [],
        ),
        part("PSNR of that error, dB", number("psnr", ".1f")),
        part("PSNR of the worst image, dB", number("psnr_worst", ".1f")),
        part("Network calls per image, inversion + reconstruction", calls),
        part("Seconds per image", number("seconds", ".2g")),
    ]
    if any(row["failed"] for row in table):
        parts.append(part("Images that failed", number("failed", "d")))
    return "\n\n".join(parts)
