"""``ddim evaluate table1``: quality against S and eta."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .evaluate import MANY, Folder, about_run, flags_of, tell, usable_folder, usable_seeds
from .files import slug
from .output import Terminal

if TYPE_CHECKING:
    from ..evaluation.table1 import Cell

NONE = "none"

_Steps = Annotated[
    list[int] | None,
    typer.Option("--steps", "-S", help="S of the rows of eta; repeatable. By default 10, 20, 50, 100 and 1000."),
]
_Eta = Annotated[
    list[str] | None,
    typer.Option(
        "--eta", help="0 to 1, or sigma-hat; repeatable. By default 0, 0.2, 0.5, 1, sigma-hat; none leaves them out."
    ),
]
_Solver = Annotated[
    list[str] | None,
    typer.Option(
        "--solver",
        help="Solvers at a number of network evaluations; repeatable. By default heun, adams-bashforth and dpm++2m; "
        "none leaves them out.",
    ),
]
_Evaluations = Annotated[
    list[int] | None,
    typer.Option("--evaluations", min=1, help="Of --solver; repeatable. By default 5, 8, 10, 15 and 20."),
]
_Spacing = Annotated[
    list[str] | None,
    typer.Option(
        "--spacing", help=f"{', '.join(o.SPACINGS)}; repeatable. By default leading and quadratic, the paper's two."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="A carried classifier or a folder of one, in whose features is measured; by default what fits the model.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="What to compare with: a recipe, or pictures as a recipe's data.path takes them. By default the test "
        "pictures whose statistics are carried with the features.",
        show_default=False,
    ),
]
Split = Annotated[str, typer.Option("--split", help="The part of --data.")]


def table1(
    model: o.Model = "fashion",
    steps: _Steps = None,
    eta: _Eta = None,
    solver: _Solver = None,
    evaluations: _Evaluations = None,
    spacing: _Spacing = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=MANY, help="Images a cell.")] = 10000,
    features: Features = None,
    data: Data = None,
    split: Split = "test",
    seed: o.Seed = 0,
    batch: o.Batch = 50,
    out: Folder = Path("evaluation/table1"),
    device: o.Device = None,
) -> None:
    """Quality against S and eta, as in Table 1 of Song et al. 2021, with higher-order solvers beside it.

    The measure is the Fréchet distance to test pictures in the features of a named classifier. Cells that cost little
    come first, and the table is written after each, so that a run can be cut and go on.

    ddim evaluate table1 --model fashion --samples 2000 --steps 10 --steps 20
    """
    with Terminal() as terminal:
        from .._utils.lock import only_process
        from ..evaluation import table1 as t
        from ..evaluation.fitting import enough, fitting, reference, reference_text
        from ..evaluation.frechet import title
        from ..evaluation.store import open_rows, processes
        from ..pipelines.common import check_batch
        from .session import open_model

        check_batch(batch)
        among = processes()
        usable_folder(out, f"table1-{slug(model)}")
        usable_seeds(seed, samples)
        counted = open_model(terminal, model, device, "float32", labels=[])
        network = fitting(features, counted.picture, counted.device)
        enough("--samples asks for", samples, network.dim)
        spacings = list(dict.fromkeys(spacing or t.LINEAR_AND_QUADRATIC))
        where = t.places(
            counted,
            steps or t.STEPS,
            _or_none(eta, t.ETAS),
            _or_none(solver, t.HIGHER),
            evaluations or t.EVALUATIONS,
            spacings,
        )
        with only_process(out, "writing results to", "--out") if among.main else nullcontext():
            target, of = (None, {})
            if among.main:
                with terminal.bar("the reference's features", 1) as report:
                    target, of = reference(network, data, split, out / "reference", report)
            cells = list(dict.fromkeys(place.cell for place in where))
            seeds = range(seed, seed + samples)
            words = flags_of(model=model, steps=steps, eta=eta, solver=solver, evaluations=evaluations, spacing=spacing)
            words += flags_of(samples=samples, features=features, data=data, split=split if data else None, seed=seed)
            measure = title(network.name)
            rest = {
                "images": f"{samples} a cell, of seeds {seed} to {seed + samples - 1}",
                "measure": f"{measure}; in brackets its 95 % interval for sets of {samples} images",
                "reference": reference_text(of),
                "features": f"{network.name} {network.fingerprint[:12]}",
                "in parentheses": "network evaluations, where a solver cannot make as many as its column says",
            }
            about = about_run("table1", words, counted, rest)
            measured: dict[Any, dict[str, Any]] = {}
            pace = _Pace(terminal, cells, samples, among.count)
            files: list[Path] = []
            for k, cell in enumerate(cells):
                wanted = t.items(cell, counted.fingerprint, network.fingerprint, seeds)
                folder = out / "cells" / f"{slug(model)}_{cell.name}"
                with (
                    open_rows(folder, t.COLUMNS, among) as rows,
                    terminal.bar(f"{cell.name} ({k + 1} of {len(cells)})", samples) as report,
                ):
                    pace.begin(cell, report)
                    t.measure(rows, cell, wanted, counted, network, batch, pace)
                    rows.gather()
                    if target is not None:
                        measured[cell] = t.summary(cell, rows.of(wanted), target)
                if among.main:
                    pace.end(cell, measured[cell])
                    files = _write(out, f"table1-{slug(model)}", where, spacings, measured, about, measure)
        if not among.main:
            return
        lines = [measured[cell] for cell in cells]
        for line in lines:
            if line["failed"]:
                terminal.warn(f"{line['solver']}, S = {line['steps']}: {line['failed']} images failed: {line['why']}")
        tell(terminal, "table1", about, lines, files, f"{len(cells)} cells · {samples} images each")


class _Pace:
    """Progress of a cell, and an estimate of what all cells together still take.

    On a terminal it feeds the bar; elsewhere it is a line a cell, and one a minute within long ones.
    """

    def __init__(self, terminal: Terminal, cells: "Sequence[Cell]", samples: int, processes: int) -> None:
        self.terminal, self.speaks = terminal, not (terminal.live or terminal.as_json or terminal.quiet)
        self.left = {cell: cell.nfe * samples / processes for cell in cells}
        self.total, self.calls, self.spent = len(cells), 0.0, 0.0

    def begin(self, cell: "Cell", report: Callable[[int, int], None] | None) -> None:
        """A cell is next; ``report`` is its bar."""
        self.cell, self.report = cell, report
        self.began = self.said = time.monotonic()
        self.from_ = -1

    def __call__(self, done: int, total: int) -> None:
        """So many of the cell's images are there."""
        now = time.monotonic()
        if self.from_ < 0:
            self.from_ = done
        self.left[self.cell] = self.cell.nfe * (total - done)
        self.now = (self.calls + self.cell.nfe * (done - self.from_), self.spent + now - self.began)
        if self.report is not None:
            self.report(done * self.cell.grid.steps, total * self.cell.grid.steps)
        if self.speaks and now - self.said > 60:
            self.said = now
            _say(f"{self.cell.name}: {done} of {total} images · {self.estimate}")

    def end(self, cell: "Cell", line: dict[str, Any]) -> None:
        """The cell is done."""
        self.left[cell] = 0
        self.calls, self.spent = self.now
        value = "no distance" if line["distance"] is None else f"{line['distance']:.2f}"
        interval = "" if line["distance"] is None else f" [{line['low']:.2f}, {line['high']:.2f}]"
        done = self.total - sum(1 for value in self.left.values() if value > 0)
        if self.speaks:
            _say(f"{cell.name}: {value}{interval} · {done} of {self.total} cells · {self.estimate}")

    @property
    def estimate(self) -> str:
        """How much longer, at the pace so far."""
        calls, spent = self.now
        if calls <= 0:
            return "no pace yet"
        seconds = sum(self.left.values()) * spent / calls
        rest = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
        return f"{calls / spent:.0f} evaluations/s, about {rest} left"


def _write(
    out: Path,
    name: str,
    where: Any,
    spacings: Sequence[str],
    measured: dict[Any, dict[str, Any]],
    about: dict[str, Any],
    title: str,
) -> list[Path]:
    """The table of the cells that are there, and a plot for each spacing."""
    from ..evaluation import table1 as t
    from ..evaluation.plots import line_plot
    from ..evaluation.tables import write_table

    files = write_table(out, name, list(measured.values()), FORMATS, about, t.layout(where, measured))
    for k, spacing in enumerate(spacings):
        file = out / (f"{name}-{spacing}.png" if k else f"{name}.png")
        curves = t.curves(where, measured, spacing)
        drawn = line_plot(file, curves, "network evaluations", title, log_y=True, title=f"{spacing} grids")
        files += [drawn] if drawn else []
    return files


FORMATS = {
    **dict.fromkeys(("solver", "eta", "spacing", "steps", "nfe"), ""),
    **dict.fromkeys(("distance", "low", "high", "bias"), ".3f"),
    **{"images": "d", "failed": "d", "seconds": ".4f"},
}


def _or_none(given: list[str] | None, usual: Sequence[str]) -> Sequence[str]:
    """What was asked for, nothing for ``none``, and what is usual where nothing was said."""
    return [] if given == [NONE] else given or usual


def _say(line: str) -> None:
    typer.echo(line, err=True)
