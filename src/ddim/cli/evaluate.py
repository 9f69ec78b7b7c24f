"""``ddim evaluate``: measured tables. What its commands share; each is a module of its own, registered in ``app``."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .failure import Commands
from .files import protect, settings_text
from .output import Terminal, escaped

if TYPE_CHECKING:
    from ..evaluation.edits import Setting
    from ..evaluation.leaderboard import Leaderboard
    from ..evaluation.methods import Way
    from ..evaluation.store import Row, Rows
    from ..evaluation.table2 import Reconstructions
    from ..evaluation.trips import Trip
    from ..models.counted import Counted

evaluate = typer.Typer(
    name="evaluate", cls=Commands, no_args_is_help=True, help="Measure: tables, with the command under each."
)

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="An inversion, or one with its options such as 'ddim iterations=5'; repeatable. By default all.",
        show_default=False,
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option of the one --method, such as start=prompt; repeatable.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Only the first so many, for a trial.", show_default=False),
]
Folder = Annotated[Path, typer.Option("--out", help="The folder for rows, tables and sheets; a run there goes on.")]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE.toml",
        help="The model's: its held-out or test pictures, in place of those that the package carries.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="A folder of pictures to take instead, for models without text.", show_default=False),
]
Images = Annotated[
    int | None,
    typer.Option("--images", min=1, help="How many of the pictures, spread evenly over them.", show_default=False),
]
Words = Annotated[int, typer.Option("--words", min=0, help="Edits of a source to other words.")]
Styles = Annotated[int, typer.Option("--styles", min=0, help="Edits of a source to other styles.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Pictures a network call.", rich_help_panel=o.MACHINE)]


MANY = 10_000_000
"""The most images that a measurement is asked for; each has a row, and all rows are held in memory."""


def usable_folder(out: Path, name: str) -> None:
    """Raises InputError, before any work, where results cannot lie in ``out``, or a table be called ``name`` there."""
    kept = [out / part / "x" for part in ("rows", "items", "cells", "pictures", "reference", "statistics")]
    protect([*kept, *(out / f"{name}{end}" for end in (".md", ".csv", ".json", ".png"))])


def usable_seeds(seed: int, samples: int) -> None:
    """Raises InputError, before any work, where so many seeds from this one on are not to be had."""
    from ..core.noise import checked_seed

    checked_seed(seed, samples)


def ways_from(method: Sequence[str] | None, option: list[str] | None) -> "list[Way]":
    """The methods that were asked for, each once; none for all.

    Raises:
        InputError: an unknown method or option, or an option for several.
    """
    from ..evaluation.methods import way, way_of

    options = o.options_from(option)
    ways = [way_of(text) for text in method or []]
    if options and len(ways) != 1:
        raise InputError(
            f"it belongs to one method, and {len(ways) or 'all'} are measured; give one --method.", parameter="option"
        )
    if options:
        ways = [way(ways[0].method, {**dict(ways[0].options), **options})]
    return list(dict.fromkeys(ways))


def telling(terminal: Terminal, name: str, key: str, run: "Callable[[Any], Sequence[Row]]") -> "Callable[[Any], Any]":
    """``run``, each different failure among whose rows is a warning with the row's ``key``."""

    def told(items: Any) -> "Sequence[Row]":
        rows = run(items)
        for sentence in dict.fromkeys(f"{row[key]}: {row['failed']}" for row in rows if row["failed"]):
            terminal.warn(f"{name}: {sentence}")
        return rows

    return told


def walk_trips(
    terminal: Terminal, bench: "Reconstructions | Leaderboard", trips: "Sequence[Trip]", rows: "Rows", batch: int
) -> None:
    """Measures what each trip lacks, under a bar of its own, and gathers the rows of all processes."""
    from ..evaluation.trips import blocks_of

    for trip in trips:
        items = bench.items(trip)
        with terminal.bar(trip.name, len(items)) as report:
            run = telling(terminal, trip.name, "picture", partial(bench.run, trip))
            rows.measure_blocks(blocks_of(items, batch), run, report)
    rows.gather()


def flags_of(**given: object) -> list[str]:
    """Options as they can be typed again; None and False are left out, a list is repeated."""
    words: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            several = value if isinstance(value, (list, tuple)) else [value]
            words += [w for v in several for w in (flag, f"{v:.15g}" if isinstance(v, float) else str(v))]
    return words


def about_run(name: str, words: Sequence[str], counted: "Counted", rest: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under a table: the command, the model, what else there is to say, machine and versions."""
    from ..evaluation.tables import machine, versions
    from .session import about_model

    command = shlex.join(["ddim", "evaluate", name, *words])
    return {"command": command, **about_model(counted), **rest, "machine": machine(), "versions": versions()}


def tell(
    terminal: Terminal, name: str, about: Mapping[str, Any], table: "Sequence[Row]", files: Sequence[Path], said: str
) -> None:
    """Ends a command: where its table is."""
    terminal.result(
        {"command": f"evaluate {name}", **about, "rows": table, "files": [str(f) for f in files]},
        *(f"[bold]{escaped(f)}[/bold]" for f in files if f.suffix in (".md", ".png")),
        f"[dim]{said} · {terminal.seconds:.0f} s[/dim]",
    )


def setting_name(setting: "Setting", fingerprint: str, more: Mapping[str, float | None] | None = None) -> str:
    """What a setting's sheet and its folder of pictures are called; ``more`` shaped them too, None is left out."""
    rest = {"w": float(setting.guidance), **(more or {}), "": fingerprint}
    return settings_text(setting.method, setting.steps, {**dict(setting.options), "": setting.attention}, rest=rest)


def settings(ways: "Sequence[Way]", attentions: Sequence[str], guidance: float, steps: int) -> "list[Setting]":
    """Every method with every attention control, named as the progress shows them."""
    from ..evaluation.edits import Setting

    made = [Setting("", w.method, kind, guidance, steps, w.options) for w in ways for kind in attentions]
    return [replace(setting, name=f"{setting.title} · {setting.attention}") for setting in made]
