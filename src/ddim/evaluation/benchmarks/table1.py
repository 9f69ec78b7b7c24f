"""Quality against the number of steps and eta: Table 1 of Song et al. 2021 (arXiv 2010.02502), in named features.

A cell of the table is a sampler. Every cell generates its images from the same seeds. An item is one image, and its row
stores the feature vector, from which distances and intervals can be computed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import SPACINGS
from ..._utils.errors import InputError, is_number
from ..._utils.names import slug
from ..benchmark import Benchmark
from ..columns import FAILED, Item, Row, derived, filled_in, first, key, keys, measured, succeeded, summarise
from ..options import MANY, BatchOption, ModelOption, Option, ReferenceOptions, SeedOption, names
from ..plots import Plot, Point

if TYPE_CHECKING:
    from ...core.grid import Grid
    from ...models.base import Model
    from ..metrics.frechet import Statistics
    from ..runner import Session

SIGMA_HAT, NONE = "sigma-hat", "none"
STEPS = (10, 20, 50, 100, 1000)
ETAS = ("0", "0.2", "0.5", "1", SIGMA_HAT)
HIGHER = ("heun", "adams-bashforth", "dpm++2m")
EVALUATIONS = (5, 8, 10, 15, 20)
LINEAR_AND_QUADRATIC = ("leading", "quadratic")
"""The paper's sub-sequences (its appendix D.2): tau_i = floor(c i), as in its code, and floor(c i^2)."""


def check_seeds(seed: int, count: int) -> None:
    """Raises InputError, before any work, if a seed of the run is too large."""
    from ...core.noise import checked_seed

    checked_seed(seed, count)


@dataclass(frozen=True)
class Cell:
    """A sampler.

    Attributes:
        solver: a key of ``ddim.SOLVERS``; ``ddpm`` is sigma-hat.
        eta: the eta of ``ddim``; 0 for other solvers.
        spacing: the grid's, or ``every level``.
        nodes: a hash of the grid's nodes; two cells with the same nodes are the same.
        nfe: network calls per image.
        grid: the grid.
    """

    solver: str
    eta: float
    spacing: str
    nodes: str
    nfe: int
    grid: "Grid" = field(compare=False)

    @property
    def keys(self) -> dict[str, Any]:
        """The values of the key columns that tell its rows from those of other cells."""
        own = {"solver": self.solver, "eta": self.eta, "spacing": self.spacing}
        return {**own, "steps": self.grid.steps, "grid": self.nodes}

    def __str__(self) -> str:
        eta = f"_eta{self.eta:g}" if self.solver == "ddim" else ""
        return f"{self.solver}{eta}_S{self.grid.steps}_{self.spacing.replace(' ', '-')}"


@dataclass(frozen=True)
class Place:
    """A place in the table. Several places may have the same cell.

    Attributes:
        cell: the sampler.
        spacing: the part of the table.
        row: ``eta = 0``, ``sigma-hat``, ``heun``.
        column: S; for higher-order solvers the number of network evaluations that they may use.
        budget: whether the column is a number of evaluations.
    """

    cell: Cell
    spacing: str
    row: str
    column: int
    budget: bool


@dataclass(frozen=True, kw_only=True)
class Table1Options(ReferenceOptions):
    """The options of Table 1."""

    model: ModelOption = "fashion"
    steps: Annotated[Sequence[int], Option("Number of steps S in the rows of eta; repeatable.", "-S")] = STEPS
    eta: Annotated[Sequence[str], Option("0 to 1, or sigma-hat; repeatable. 'none' omits these rows.")] = ETAS
    solver: Annotated[
        Sequence[str], Option("Solvers at a number of network evaluations; repeatable. 'none' omits these rows.")
    ] = HIGHER
    evaluations: Annotated[Sequence[int], Option("Network evaluations of --solver; repeatable.", least=1)] = EVALUATIONS
    spacing: Annotated[Sequence[str], Option(f"{names(SPACINGS)}; repeatable. By default the paper's two.")] = (
        LINEAR_AND_QUADRATIC
    )
    samples: Annotated[int, Option("Images of each cell.", "-n", least=1, most=MANY)] = 10000
    seed: SeedOption = 0
    batch: BatchOption = 50


class Table1(Benchmark[Table1Options, Cell]):
    """Quality against S and eta, as in Table 1 of Song et al. 2021, with higher-order solvers beside it.

    The measure is the Fréchet distance to test images in the features of a named classifier. Cheap cells come first,
    and the table is written after each, so that a run can be stopped and continued.

    Example: ddim evaluate table1 --model fashion --samples 2000 --steps 10 --steps 20
    """

    name = "table1"
    options_type = Table1Options
    folders = ("cells", "reference")
    writes_each_setting = True
    columns = (
        *keys("model", "features"),
        key("solver"),
        key("eta", "float64", value=lambda rows, _: None if rows[0]["solver"] == "ddpm" else rows[0]["eta"]),
        key("spacing"),
        key("steps", "int64"),
        *keys("grid"),
        *keys("seed", kind="int64"),
        measured("nfe", "", "int64", first),
        *(filled_in(name, ".3f") for name in ("distance", "low", "high", "bias")),
        derived("images", "d", succeeded),
        FAILED,
        measured("seconds", ".4f"),
        measured("vector", None, "list<float32>"),
    )

    def __init__(self, options: Table1Options, session: "Session") -> None:
        from ...pipelines.common import check_batch
        from ..metrics.feature_extractor import feature_extractor
        from ..metrics.frechet import title
        from ..reference import check_covariance

        super().__init__(options, session)
        check_batch(options.batch)
        check_seeds(options.seed, options.samples)
        self.seeds = range(options.seed, options.seed + options.samples)
        model = session.open_model(options, classes=True)
        self.network = feature_extractor(options.features, model.picture, model.device)
        check_covariance("--samples asks for", options.samples, self.network.dim)
        self.measure = title(self.network.name)
        self.spacings = list(dict.fromkeys(options.spacing))
        self.places = places(
            model, options.steps, _chosen(options.eta), _chosen(options.solver), options.evaluations, self.spacings
        )
        self.cells = list(dict.fromkeys(place.cell for place in self.places))
        self.reference: Statistics | None = None
        self.reference_text = ""

    def begin(self) -> None:
        """Reads or computes the statistics of the reference."""
        from ..reference import open_reference, reference_text

        options = self.options
        with self.session.reporter.bar("the reference's features", 1) as report:
            self.reference, about = open_reference(
                self.network, options.data, options.split, self.session.out / "reference", report
            )
        self.reference_text = reference_text(about)

    def settings(self) -> list[Cell]:
        """The different cells of the table, the cheapest first."""
        return self.cells

    def rows_folder(self, setting: Cell) -> str:
        """A folder for each cell, because all rows of a folder are held in memory."""
        model = self.options.model
        return f"cells/{slug(model if isinstance(model, str) else model.name)}_{setting}"

    def cost(self, setting: Cell) -> float:
        """Network calls per image."""
        return setting.nfe

    def items(self, setting: Cell) -> list[Item]:
        """One for each seed."""
        return items(setting, self.session.model.fingerprint, self.network.fingerprint, self.seeds)

    def run(self, setting: Cell, items: Sequence[Item]) -> list[Row]:
        """Generates images, rounds them as the reference's files are, and extracts their features."""
        from ...pipelines.sample import solver_with_eta
        from ..generation import generate
        from ..metrics.feature_extractor import as_saved

        solver = solver_with_eta(setting.solver, setting.eta, None)
        images = generate(self.session.model, solver, setting.grid, [item["seed"] for item in items])
        vectors = self.network.features(as_saved(images)).tolist()
        return [{"vector": vector, "nfe": setting.nfe} for vector in vectors]

    def summary(self, setting: Cell, rows: Sequence[Row]) -> list[Row]:
        """The cell's line. It has no distance if an image failed, because the others are a different set."""
        import torch

        from ..metrics.frechet import bootstrap_interval

        line = summarise(self.columns, rows)
        line["nfe"] = setting.nfe
        line["why"] = next((row["failed"] for row in rows if row["failed"]), None)
        if self.reference is not None and rows and not line["failed"]:
            found = bootstrap_interval(torch.tensor([row["vector"] for row in rows]), self.reference)
            line |= {"distance": found.value, "low": found.low, "high": found.high, "bias": found.bias}
        return [line]

    def about(self) -> Mapping[str, Any]:
        """The seeds, the measure and the reference."""
        count = len(self.seeds)
        return {
            "images": f"{count} a cell, of seeds {self.seeds[0]} to {self.seeds[-1]}",
            "measure": f"{self.measure}; in brackets its 95 % interval for sets of {count} images",
            "reference": self.reference_text,
            "features": f"{self.network.name} {self.network.fingerprint[:12]}",
            "in parentheses": "network evaluations, where a solver cannot use as many as its column says",
        }

    def page(self, table: Sequence[Row]) -> str:
        """The table in the paper's layout."""
        return layout(self.places, self._measured(table))

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """A plot for each spacing."""
        measured = self._measured(table)
        return {
            f"-{spacing}" if k else "": Plot(
                curves(self.places, measured, spacing),
                "network evaluations",
                self.measure,
                f"{spacing} grids",
                log_y=True,
            )
            for k, spacing in enumerate(self.spacings)
        }

    def headline(self, table: Sequence[Row]) -> str:
        """The distance of a table with one cell."""
        if len(table) != 1:
            return ""
        line = table[0]
        if line["distance"] is None:
            return "no distance"
        return f"{line['distance']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"

    def _measured(self, table: Sequence[Row]) -> dict[Cell, Row]:
        return dict(zip(self.cells, table, strict=False))  # the table may be of the first cells only


def places(
    model: "Model",
    steps: Sequence[int] = STEPS,
    etas: Sequence[str] = ETAS,
    solvers: Sequence[str] = HIGHER,
    evaluations: Sequence[int] = EVALUATIONS,
    spacings: Sequence[str] = LINEAR_AND_QUADRATIC,
) -> list[Place]:
    """The places of the table, the cheapest first.

    Args:
        model: the model whose grids are used.
        steps: S in the rows of eta.
        etas: numbers in [0, 1], and ``sigma-hat``.
        solvers: keys of ``ddim.SOLVERS``, each with ``evaluations`` network calls. If no number of steps takes as many,
            the next smaller number is used.
        evaluations: network calls per image.
        spacings: keys of ``ddim.SPACINGS``.

    Raises:
        InputError: a name is unknown, a number is out of its range, or there is nothing to measure.
    """
    from ...pipelines.common import grid_for
    from ...solvers import make_solver
    from ..generation import grid_within

    out: list[Place] = []
    for spacing in spacings:
        if spacing not in SPACINGS:
            grid_for(model, 1, spacing)  # raises an error with the known names
        for eta, count in product(etas, steps):
            solver, value = _sampler(eta)
            cell = _cell(model, solver, value, grid_for(model, count, spacing))
            out.append(Place(cell, spacing, eta if eta == SIGMA_HAT else f"eta = {value:g}", count, False))
        for name, budget in product(solvers, evaluations):
            cell = _cell(model, name, 0.0, grid_within(make_solver(name), model, spacing, budget))
            out.append(Place(cell, spacing, name, budget, True))
    if not out:
        raise InputError(
            "there is nothing to measure: give --eta with --steps, or --solver with --evaluations.", parameter="steps"
        )
    return sorted(out, key=lambda place: place.cell.nfe)  # stable, so equal costs stay in the order of the options


def items(cell: Cell, model: str, features: str, seeds: Sequence[int]) -> list[Item]:
    """The items of a cell, one for each seed, for a model and features with these fingerprints."""
    own = {"model": model[:12], "features": features[:12], **cell.keys}
    return [{**own, "seed": seed} for seed in seeds]


def layout(where: Sequence[Place], measured: Mapping[Cell, Row]) -> str:
    """The table as in the paper, in Markdown: a part for each spacing, then one for the solvers at a budget.

    A value is written as ``distance [low, high]``; ``–`` if there is none.
    """
    parts = []
    for spacing, budget in sorted({(p.spacing, p.budget) for p in where}, key=lambda k: (k[1], _first(where, *k))):
        own = [p for p in where if (p.spacing, p.budget) == (spacing, budget)]
        columns, names = sorted({p.column for p in own}), list(dict.fromkeys(p.row for p in own))
        parts.append(f"**{spacing}, {'network evaluations' if budget else 'S'}**\n")
        parts.append("| | " + " | ".join(map(str, columns)) + " |")
        parts.append("|---|" + "---|" * len(columns))
        at = {(p.row, p.column): p.cell for p in own}
        for name in sorted(names, key=_rank):
            cells = [_text(measured.get(at[name, c]) if (name, c) in at else None, c, budget) for c in columns]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def curves(where: Sequence[Place], measured: Mapping[Cell, Row], spacing: str) -> dict[str, list[Point]]:
    """The rows of one spacing as lines: distance against network evaluations, with intervals."""
    out: dict[str, list[Point]] = {}
    for place in sorted(where, key=lambda p: (p.budget, _rank(p.row), p.cell.nfe)):
        line = measured.get(place.cell)
        if place.spacing == spacing and line is not None and line["distance"] is not None:
            out.setdefault(place.row, []).append(Point(place.cell.nfe, line["distance"], line["low"], line["high"]))
    return out


def _chosen(names: Sequence[str]) -> Sequence[str]:
    return () if tuple(names) == (NONE,) else names


def _sampler(eta: str) -> tuple[str, float]:
    if eta == SIGMA_HAT:
        return "ddpm", 0.0
    if not is_number(value := _number(eta)) or not 0 <= value <= 1:
        raise InputError(
            f"{eta} is not in [0, 1]; 0 is DDIM, 1 is DDPM, and {SIGMA_HAT} is DDPM's larger variance.",
            parameter="eta",
        )
    return "ddim", value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _cell(model: "Model", solver: str, eta: float, grid: "Grid") -> Cell:
    from ...pipelines.sample import solver_with_eta
    from ..generation import network_calls, spacing_label

    calls = network_calls(solver_with_eta(solver, eta, None), grid)
    nodes = sha256(" ".join(f"{node.t:.10g}" for node in grid).encode()).hexdigest()[:12]
    return Cell(solver, eta, spacing_label(model.schedule.path, grid), nodes, calls, grid)


def _first(where: Sequence[Place], spacing: str, budget: bool) -> int:
    """The first place of a part. Parts of one kind stay in the order of the options."""
    return next(k for k, p in enumerate(where) if (p.spacing, p.budget) == (spacing, budget))


def _rank(row: str) -> tuple[int, float, str]:
    """The order of the rows: eta rising, then sigma-hat, then solvers by name."""
    if row.startswith("eta = "):
        return 0, float(row.removeprefix("eta = ")), row
    return (1 if row == SIGMA_HAT else 2), 0.0, row


def _text(line: Row | None, column: int, budget: bool) -> str:
    if line is None or line["distance"] is None:
        return "–"
    text = f"{line['distance']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"
    return f"{text} ({line['nfe']})" if budget and line["nfe"] != column else text
