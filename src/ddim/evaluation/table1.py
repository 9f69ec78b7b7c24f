"""Quality against the number of steps and eta: Table 1 of Song et al. 2021 (arXiv 2010.02502), in named features.

A cell is a sampler; its images are drawn from the same seeds in every cell. An item is one image: what is kept of it is
its feature vector, so that distances and intervals can be computed again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number
from ..core.grid import SPACINGS, Grid
from ..models.base import Model
from ..pipelines.common import grid_for
from ..pipelines.sample import solver_with_eta
from ..solvers import make_solver
from .drawing import cost, draw, spacing_label, within
from .frechet import Statistics, bootstrap_interval
from .plots import Point
from .reference import Features, as_saved
from .store import Columns, Row, Rows, surviving

SIGMA_HAT = "sigma-hat"
STEPS = (10, 20, 50, 100, 1000)
ETAS = ("0", "0.2", "0.5", "1", SIGMA_HAT)
HIGHER = ("heun", "adams-bashforth", "dpm++2m")
EVALUATIONS = (5, 8, 10, 15, 20)
LINEAR_AND_QUADRATIC = ("leading", "quadratic")
"""The paper's sub-sequences (its appendix D.2): tau_i = floor(c i), as its code has it, and floor(c i^2)."""

COLUMNS = Columns(
    identity={
        **{"model": "string", "features": "string", "solver": "string", "eta": "float64"},
        **{"spacing": "string", "steps": "int64", "grid": "string", "seed": "int64"},
    },
    measured={"vector": "list<float32>", "nfe": "int64", "seconds": "float64", "failed": "string"},
)


@dataclass(frozen=True)
class Cell:
    """A sampler.

    Attributes:
        solver: a key of ``ddim.SOLVERS``; ``ddpm`` is sigma-hat.
        eta: of ``ddim``, else 0.
        spacing: the grid's, or ``every level``.
        nodes: a hash of the grid's nodes; cells that walk the same ones are one.
        nfe: network calls an image.
        grid: what it walks.
    """

    solver: str
    eta: float
    spacing: str
    nodes: str
    nfe: int
    grid: Grid = field(compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its rows from other cells'."""
        own = {"solver": self.solver, "eta": self.eta, "spacing": self.spacing}
        return {**own, "steps": self.grid.steps, "grid": self.nodes}

    @property
    def name(self) -> str:
        """For people, and for a folder."""
        eta = f"_eta{self.eta:g}" if self.solver == "ddim" else ""
        return f"{self.solver}{eta}_S{self.grid.steps}_{self.spacing.replace(' ', '-')}"


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the table: cells that are the same stand in several places.

    Attributes:
        cell: the sampler.
        spacing: of the part of the table.
        row: ``eta = 0``, ``sigma-hat``, ``heun``.
        column: S; of the higher-order solvers the evaluations that they may make.
        budget: whether the column counts evaluations.
    """

    cell: Cell
    spacing: str
    row: str
    column: int
    budget: bool


def places(
    model: Model,
    steps: Sequence[int] = STEPS,
    etas: Sequence[str] = ETAS,
    solvers: Sequence[str] = HIGHER,
    evaluations: Sequence[int] = EVALUATIONS,
    spacings: Sequence[str] = LINEAR_AND_QUADRATIC,
) -> list[Place]:
    """The table's places, those that cost least first.

    Args:
        model: of which the grids are.
        steps: S of the rows of eta.
        etas: numbers in [0, 1], and ``sigma-hat``.
        solvers: keys of ``ddim.SOLVERS``, each at ``evaluations`` network calls or, where no number of steps makes as
            many, at the next smaller number.
        evaluations: network calls an image.
        spacings: keys of ``ddim.SPACINGS``.

    Raises:
        InputError: an unknown name, a number out of its range, or nothing to measure.
    """
    out: list[Place] = []
    for spacing in spacings:
        if spacing not in SPACINGS:
            grid_for(model, 1, spacing)  # says what is known
        for eta, count in product(etas, steps):
            solver, value = _sampler(eta)
            cell = _cell(model, solver, value, grid_for(model, count, spacing))
            out.append(Place(cell, spacing, eta if eta == SIGMA_HAT else f"eta = {value:g}", count, False))
        for name, budget in product(solvers, evaluations):
            cell = _cell(model, name, 0.0, within(make_solver(name), model, spacing, budget))
            out.append(Place(cell, spacing, name, budget, True))
    if not out:
        raise InputError(
            "there is nothing to measure: give --eta with --steps, or --solver with --evaluations.", parameter="steps"
        )
    return sorted(out, key=lambda place: place.cell.nfe)  # stable: as they were given where they cost the same


def items(cell: Cell, model: str, features: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A cell's items: one a seed, for a model and features of these fingerprints."""
    own = {"model": model[:12], "features": features[:12], **cell.identity}
    return [{**own, "seed": seed} for seed in seeds]


def measure(
    rows: Rows,
    cell: Cell,
    wanted: Sequence[Mapping[str, Any]],
    model: Model,
    features: Features,
    batch: int,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Draws what a cell still lacks of ``wanted``, ``batch`` images at once, and keeps the features.

    Images count as 8-bit files hold them, as the reference's do. An image that a solver makes no numbers of is a row
    with that sentence.
    """
    solver = solver_with_eta(cell.solver, cell.eta, None)

    def made(some: Sequence[Mapping[str, Any]]) -> Tensor:
        return draw(model, solver, cell.grid, [item["seed"] for item in some])

    def seen(some: Sequence[Mapping[str, Any]], images: Tensor, began: float) -> list[Row]:
        vectors = features.features(as_saved(images)).tolist()
        each = (perf_counter() - began) / len(some)
        return [_row(item, cell, vector, each) for item, vector in zip(some, vectors, strict=True)]

    def failed(item: Mapping[str, Any], why: str, began: float) -> Row:
        return _row(item, cell, None, perf_counter() - began, why)

    def run(some: list[Mapping[str, Any]]) -> list[Row]:
        return surviving(some, made, seen, failed)

    rows.measure(wanted, batch, run, report)


def summary(cell: Cell, rows: Sequence[Row], reference: Statistics) -> dict[str, Any]:
    """A cell's line of the table in long form; no distance where an image failed, since the others are another set."""
    failed = [row["failed"] for row in rows if row["vector"] is None]
    line: dict[str, Any] = {
        **{"solver": cell.solver, "eta": None if cell.solver == "ddpm" else cell.eta},
        **{"spacing": cell.spacing, "steps": cell.grid.steps, "nfe": cell.nfe},
        **dict.fromkeys(("distance", "low", "high", "bias")),
        **{"images": len(rows) - len(failed), "failed": len(failed), "why": failed[0] if failed else None},
        "seconds": sum(row["seconds"] for row in rows) / max(len(rows), 1),
    }
    if rows and not failed:
        found = bootstrap_interval(torch.tensor([row["vector"] for row in rows]), reference)
        line |= {"distance": found.value, "low": found.low, "high": found.high, "bias": found.bias}
    return line


def layout(where: Sequence[Place], measured: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The table as the paper has it, in Markdown: a part for each spacing, then one for the solvers at a budget.

    A cell reads ``distance [low, high]``; ``–`` where there is none.
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


def curves(where: Sequence[Place], measured: Mapping[Cell, Mapping[str, Any]], spacing: str) -> dict[str, list[Point]]:
    """A row's name -> distance against network evaluations with its interval, of one spacing."""
    out: dict[str, list[Point]] = {}
    for place in sorted(where, key=lambda p: (p.budget, _rank(p.row), p.cell.nfe)):
        line = measured.get(place.cell)
        if place.spacing == spacing and line is not None and line["distance"] is not None:
            out.setdefault(place.row, []).append(Point(place.cell.nfe, line["distance"], line["low"], line["high"]))
    return out


def _sampler(eta: str) -> tuple[str, float]:
    if eta == SIGMA_HAT:
        return "ddpm", 0.0
    if not is_number(value := _number(eta)) or not 0 <= value <= 1:
        raise InputError(
            f"{eta} lies outside [0, 1]; 0 is DDIM, 1 is DDPM, {SIGMA_HAT} DDPM's larger variance.", parameter="eta"
        )
    return "ddim", value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _cell(model: Model, solver: str, eta: float, grid: Grid) -> Cell:
    calls = cost(solver_with_eta(solver, eta, None), grid)
    nodes = sha256(" ".join(f"{node.t:.10g}" for node in grid).encode()).hexdigest()[:12]
    return Cell(solver, eta, spacing_label(model.schedule.path, grid), nodes, calls, grid)


def _row(item: Mapping[str, Any], cell: Cell, vector: list[float] | None, seconds: float, failed: str = "") -> Row:
    return {**item, "vector": vector, "nfe": cell.nfe, "seconds": seconds, "failed": failed or None}


def _first(where: Sequence[Place], spacing: str, budget: bool) -> int:
    """The part's place among those of its kind: as they were asked for is as they first cost."""
    return next(k for k, p in enumerate(where) if (p.spacing, p.budget) == (spacing, budget))


def _rank(row: str) -> tuple[int, float, str]:
    """eta rising, then sigma-hat, then solvers by name."""
    if row.startswith("eta = "):
        return 0, float(row.removeprefix("eta = ")), row
    return (1 if row == SIGMA_HAT else 2), 0.0, row


def _text(line: Mapping[str, Any] | None, column: int, budget: bool) -> str:
    if line is None or line["distance"] is None:
        return "–"
    text = f"{line['distance']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"
    return f"{text} ({line['nfe']})" if budget and line["nfe"] != column else text
