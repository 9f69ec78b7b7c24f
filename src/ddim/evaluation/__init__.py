"""Benchmarks and metrics. A benchmark is a file in ``benchmarks`` and a line in ``BENCHMARKS``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import UnknownName
from .._utils.registry import Registry

if TYPE_CHECKING:
    from .benchmark import Benchmark
    from .runner import Evaluation, Reporter

BENCHMARKS: "Registry[Benchmark[Any, Any]]" = Registry(
    {
        "table1": "evaluation.benchmarks.table1:Table1",
        "table2": "evaluation.benchmarks.table2:Table2",
        "consistency": "evaluation.benchmarks.consistency:Consistency",
        "interpolation": "evaluation.benchmarks.interpolation:Interpolation",
        "leaderboard": "evaluation.benchmarks.leaderboard:Leaderboard",
        "edits": "evaluation.benchmarks.edits:Edits",
        "pie-bench": "evaluation.benchmarks.pie_bench:PieBench",
        "fid": "evaluation.benchmarks.fid:Fid",
    }
)
"""Every benchmark by its name; ``ddim evaluate NAME`` is made from it."""


def evaluate(
    name: str,
    *,
    out: str | Path | None = None,
    device: str | None = None,
    reporter: "Reporter | None" = None,
    command: str | None = None,
    **options: Any,
) -> "Evaluation | None":
    """Runs a benchmark. ``evaluate("table2", model="fashion", steps=[10, 50])`` is ``ddim evaluate table2 ...``.

    A run that was interrupted continues: call it again with the same folder. The options are those of the command, with
    underscores; ``model`` may also be a loaded model.

    Args:
        name: a key of ``BENCHMARKS``.
        out: the folder for rows, table, plots and sheets; by default ``evaluation/<name>``.
        device: where the model computes; by default a GPU if there is one.
        reporter: shows the progress; by default nothing is shown, and warnings are Python's.
        command: the line that repeats the run, written under the table; by default this call.
        options: the benchmark's options.

    Returns:
        The table's lines, its files and its provenance. With several processes, None in all but the main one.

    Raises:
        InputError: the benchmark or an option is unknown or wrong, or another run is writing into the folder.
        DDIMError: the model, the network or the disk fails.
    """
    from .runner import run_benchmark

    if name not in BENCHMARKS:
        raise UnknownName("benchmark", name, BENCHMARKS, parameter="name")
    if command is None:
        words = ", ".join([repr(name), *(f"{key}={_short(value)}" for key, value in options.items())])
        command = f"evaluate({words})"
    folder = Path("evaluation") / name if out is None else Path(out)
    return run_benchmark(BENCHMARKS[name], options, folder, device=device, reporter=reporter, command=command)


def _short(value: Any) -> str:
    """A value as Python writes it; a loaded model by its name."""
    return repr(getattr(value, "name", value)) if hasattr(value, "fingerprint") else repr(value)
