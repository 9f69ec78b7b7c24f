"""``ddim batch``: thousands of pictures, in batches that are each computed whole, here or on a cluster."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from ..editing.editors import EDITORS
from . import options as o
from .batch_options import Captions, Data, EditCaptions, Run, Solving
from .command import Command
from .edit_options import Attention, Automatic
from .failure import Commands
from .groups import Options, grouped
from .invert import Reaching
from .output import Terminal, escaped, progress

if TYPE_CHECKING:
    from ..batch.run import Progress, Summary
    from ..batch.worker import Work
    from ..core.guidance import Guidance
    from ..models.counted import Counted

MODEL = "emoji"
LINE_SECONDS = 30.0
"""How often a line says how far a run is, where there is no terminal for a bar."""
SHOWN = 5
"""How many of the items without a result the report names."""
FAILED = 3
"""The exit code of a run that is complete, but in which some items have no result."""

_Model = Annotated[
    str, typer.Option("--model", "-m", help="A bundled model, a folder in the diffusers format, or a hub id.")
]
_Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="Reconstruct the pictures at once; store the result, and how close it is.",
        rich_help_panel=o.SAMPLING,
    ),
]

app = typer.Typer(
    name="batch",
    cls=Commands,
    no_args_is_help=True,
    help="Thousands of pictures: a run that was killed goes on by the same command.",
)


def invert(
    data: Data = Data(),
    captions: Captions = Captions(),
    model: _Model = MODEL,
    inverting: o.Inverting = o.Inverting(),
    reaching: Reaching = Reaching(),
    guiding: o.InversionGuiding = o.InversionGuiding(),
    holding: o.Holding = o.Holding(),
    check: _Check = True,
    resize: o.Resize = False,
    run: Run = Run(),
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Invert pictures to their latent codes.

    Writes a row for each picture: its code, its reconstruction, and how close that is.

    Example: ddim batch invert --data photos --prompt "{text}" --method bdia --out codes
    """
    with Terminal() as terminal:
        from ..inversion import make_inversion

        holding.check()
        make_inversion(inverting.method, inverting.arguments.get("options"))
        fixed = {"check": check, "batched_cfg": machine.batched_cfg}
        groups = (inverting, reaching, guiding, holding)
        work = _work("invert", data, captions, model, machine, run, groups, _usual_of_inversion, fixed, resize=resize)
        _run(terminal, work, run)


def edit(
    data: Data = Data(),
    captions: EditCaptions = EditCaptions(),
    model: _Model = MODEL,
    attention: Attention = Attention(),
    automatic: Automatic = Automatic(),
    inverting: o.Editing = o.Editing(),
    strength: o.Strength = o.Strength(),
    guiding: o.InversionGuiding = o.InversionGuiding(),
    holding: o.Holding = o.Holding(),
    resize: o.Resize = False,
    run: Run = Run(),
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Edit pictures by words or to another class, each to one target.

    Writes a row for each picture: its edit, and how close its reconstruction is.

    Example: ddim batch edit --data faces --from "{text}" --to "{text} with sunglasses" --out edits
    """
    with Terminal() as terminal:
        from ..editing.editors import make_editor

        editor = inverting.method if inverting.method in EDITORS else None
        captions.check(needs_source=editor is None or bool(EDITORS[editor].needs))
        holding.check()
        make_editor(inverting.method, inverting.arguments.get("options"))
        how = attention.edit(bool(captions.to_label), editor)
        usual = partial(_usual_of_edit, inverting.method, inverting.arguments.get("options"))
        fixed = {"attention": how, "batched_cfg": machine.batched_cfg}
        groups = (automatic, inverting, strength, guiding, holding)
        shown = (*groups, attention)
        work = _work("edit", data, captions, model, machine, run, groups, usual, fixed, shown, resize=resize)
        _run(terminal, work, run)


def reconstruct(
    data: Data = Data(),
    model: o.CodeModel = None,
    run: Run = Run(),
    machine: o.Machine = o.Machine(),
) -> None:
    """Reconstruct the pictures of codes that ddim batch invert wrote.

    The batches and network calls are those of the inversion, so that exact methods return the same bits.

    Example: ddim batch reconstruct --data codes --out pictures
    """
    with Terminal() as terminal:
        from ..batch.output import Output

        made = Output(Path(data.required())).plan().settings
        if idle := sorted((data.typed & {"column", "split", "count"}) | (machine.typed & {"batch"})):
            raise InputError("the items and batches are those of the inversion; leave it out.", parameter=idle[0])
        work = _work("reconstruct", data, Captions(), model or str(made.get("model")), machine, run, (), None, {})
        dtype = machine.dtype if "dtype" in machine.typed else made.get("dtype", machine.dtype)
        threads = run.threads if "threads" in run.typed else made.get("threads", run.threads)
        _run(terminal, replace(work, loading={**work.loading, "dtype": dtype}, threads=threads), run)


def sample(
    data: Data = Data(),
    captions: Captions = Captions(),
    model: _Model = MODEL,
    guiding: o.Guiding = o.Guiding(),
    solving: Solving = Solving(),
    grid: o.Grid = o.Grid(),
    holding: o.Holding = o.Holding(),
    run: Run = Run(),
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Draw pictures from noise: --count of one prompt, or one for each row of --data.

    Example: ddim batch sample --count 1000 --prompt "twemoji dog face" --out dogs
    """
    with Terminal() as terminal:
        from ..solvers import make_solver

        holding.check()
        if solving.solver is not None:
            make_solver(solving.solver)
        groups = (guiding, solving, grid, holding)
        work = _work("sample", data, captions, model, machine, run, groups, _usual_of_samples, {})
        _run(terminal, work, run)


for _function in (invert, edit, reconstruct, sample):
    app.command(_function.__name__, cls=Command)(grouped(_function))


# --- the work -------------------------------------------------------------------------------------------------------


def _usual_of_inversion(counted: "Counted") -> "float | Guidance":
    """The guidance of an inversion where none was typed."""
    return 1.0


def _usual_of_samples(counted: "Counted") -> "float | Guidance":
    """The guidance of samples where none was typed."""
    return counted.info.guidance


def _usual_of_edit(method: str, options: Mapping[str, Any] | None, counted: "Counted") -> "float | Guidance":
    """The guidance of an edit where none was typed."""
    from ..editing.editors import make_editor

    editor = make_editor(method, options)
    if editor is not None:
        return editor.guidances(counted.info, None)[1]
    return counted.info.guidance if counted.text else 1.0


def _arguments(
    guiding: o.Guiding,
    usual: "Callable[[Counted], float | Guidance]",
    batched_cfg: bool,
    fixed: Mapping[str, Any],
    counted: "Counted",
) -> dict[str, Any]:
    """The arguments of a pipeline, of which guidance needs to know the model."""
    from .session import guidance_for, if_it_acts

    guidance = guidance_for(counted, guiding, usual=usual(counted), batched_cfg=batched_cfg)
    return {**fixed, "guidance": if_it_acts(counted, guidance)}


def _work(
    command: str,
    data: Data,
    captions: Captions | EditCaptions,
    model: str,
    machine: o.Machine,
    run: Run,
    groups: tuple[Options, ...],
    usual: "Callable[[Counted], float | Guidance] | None",
    fixed: Mapping[str, Any],
    shown: tuple[Options, ...] | None = None,
    *,
    resize: bool = False,
) -> "Work":
    """What the options ask for.

    Args:
        command: the verb.
        data, captions, model, machine, run, resize: the options.
        groups: whose arguments are the pipeline's.
        usual: the guidance of the model where none was typed; None for a verb without guidance.
        fixed: further arguments.
        shown: the groups that the plan lists; by default ``groups``.
    """
    from ..batch.items import Columns
    from ..batch.worker import Work

    if isinstance(captions, EditCaptions):
        words = {"prompt": captions.from_, "target": captions.to}
        words |= {"label": captions.from_label, "target_label": captions.to_label}
    else:
        words = {"prompt": captions.prompt, "label": captions.label}
    columns = Columns(data.data or "", data.column, data.split, **{k: v for k, v in words.items() if v})
    arguments: Any = {**{key: value for group in groups for key, value in group.arguments.items()}, **fixed}
    if usual is not None:
        guiding = next(group for group in groups if isinstance(group, o.Guiding))
        batched = isinstance(machine, o.GuidedMachine) and machine.batched_cfg
        arguments = partial(_arguments, guiding, usual, batched, arguments)
    listed = {one.name: getattr(group, one.name) for group in shown or groups for one in fields(group)}
    listed |= {key: value for key, value in fixed.items() if key in ("check", "batched_cfg")}
    listed.pop("typed", None)
    return Work(
        command,
        columns,
        model,
        machine.loading,
        arguments,
        resize,
        data.count,
        machine.batch,
        run.threads,
        listed,
    )


# --- the run --------------------------------------------------------------------------------------------------------


def _run(terminal: Terminal, work: "Work", run: Run) -> None:
    """Runs the work, and reports it; exits with ``FAILED`` where some items have no result."""
    from ..batch.run import Spread, run_batch

    out = run.folder()
    spread = Spread(run.ray, run.workers, run.timeout)
    try:
        with _shown(terminal, work.command) as show:
            summary = run_batch(work, out, spread, dry_run=run.dry_run, on_event=show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; finished batches are kept, and the same command goes on.") from None
    for sentence in summary.warnings:
        terminal.warn(sentence)
    plan = summary.plan
    about = {
        "command": f"batch {work.command}",
        "out": str(out),
        "items": plan.count,
        "batch": plan.size,
        "batches": plan.batches,
        "computed": summary.computed,
        "missing": summary.missing,
        "failed": len(summary.errors),
        "errors": [{"key": key, "error": sentence} for key, sentence in summary.errors[:SHOWN]],
    }
    terminal.result(about, *_lines(summary, run, terminal.seconds))
    if summary.errors and not run.dry_run:
        raise typer.Exit(FAILED)


def _lines(summary: "Summary", run: Run, seconds: float) -> Iterator[str]:
    """The report for people."""
    plan, failed = summary.plan, len(summary.errors)
    if run.dry_run:
        begun = f"{plan.batches - summary.missing} of them done" if summary.missing < plan.batches else "none done"
        cut = f"{plan.batches:,} batches of {plan.size}" if plan.batches > 1 else f"one batch of {plan.size}"
        yield f"{plan.count:,} items in {cut}, {begun}; nothing was written."
    else:
        yield f"[bold]{escaped(run.folder())}[/bold]  {plan.count - failed:,} of {plan.count:,} items have a result"
    for key, sentence in summary.errors[:SHOWN]:
        yield f"[red]{escaped(key)}[/red]  {escaped(sentence)}"
    if failed > SHOWN:
        yield f"[red]and {failed - SHOWN:,} more[/red]; the column error has them all."
    if not run.dry_run:
        yield f"[dim]{summary.computed:,} of {plan.batches:,} batches in this run · {seconds:.1f} s[/dim]"


@contextmanager
def _shown(terminal: Terminal, what: str) -> "Iterator[Callable[[Progress], None]]":
    """Shows a bar on a terminal, and elsewhere a line from time to time."""
    if not terminal.live:
        silent = terminal.as_json or terminal.quiet
        yield _ignored if silent else _Lines()
        return
    with progress() as bar:
        task, rate = bar.add_task(what, total=None, rate="loading"), _Rate()

        def show(at: "Progress") -> None:
            rate(at)
            bar.update(task, completed=at.items, total=at.plan.count, rate=rate.text)

        yield show


def _ignored(at: "Progress") -> None:
    """Shows nothing."""


class _Rate:
    """How many items a second this run has finished, and when it ends. It counts what was there before for nothing."""

    def __init__(self) -> None:
        self._began: float | None = None
        self.text = ""

    def __call__(self, at: "Progress") -> None:
        """Takes note of how far a run is."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        done, spent = at.items - at.begun, now - self._began
        if done == 0 or spent == 0:
            self.text = "loading"
            return
        left = timedelta(seconds=round((at.plan.count - at.items) * spent / done))
        self.text = f"{done / spent:.3g} items/s · {left} left"


class _Lines:
    """A line on stderr every ``LINE_SECONDS``."""

    def __init__(self) -> None:
        self._rate, self._last = _Rate(), time.monotonic()

    def __call__(self, at: "Progress") -> None:
        """Prints a line if it is time."""
        self._rate(at)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            print(f"{at.items:,} of {at.plan.count:,} items · {self._rate.text}", file=sys.stderr, flush=True)
