"""``ddim demo``: edits, round trips, interpolations and samples of two models, on one page."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._utils.error_text import printable
from .._utils.names import protect, slug
from . import options as o
from .files import folder
from .output import Terminal, escaped, progress
from .repeat import repeat
from .session import open_model
from .tables import describe

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ..demo import DemoModel

_Out = Annotated[Path, typer.Option("--out", help="The folder for the page and its pictures.")]
_Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="A folder with at least four PNG files to invert; by default the model's own test pictures.",
        show_default=False,
    ),
]
_Editor = Annotated[
    str | None,
    typer.Option(
        "--editor",
        help="The text model for prompts and edits, by default emoji; '' leaves these sections out.",
        show_default=False,
    ),
]
_Seed = Annotated[int, typer.Option("--seed", help="The k-th sample has the seed SEED + k, counted from 0.")]
_Full = Annotated[
    bool,
    typer.Option(
        "--full",
        help="Make everything anew: also samples with the model's largest S, such as S = 1000, round trips at three S, "
        "and null-text edits. Without it, stored tables stand for the longest.",
    ),
]


def demo(
    out: _Out = Path("demo"),
    model: o.Model = "fashion",
    images: _Images = None,
    seed: _Seed = 0,
    full: _Full = False,
    editor: _Editor = None,
    device: o.Device = None,
) -> None:
    """Edit, invert, interpolate and sample with the bundled models, and write a page with the results.

    The page is index.html. It is there as soon as the first pictures are edited, and fills while the rest is made. Its
    numbers are also in results.json.
    """
    with Terminal() as terminal:
        from ..demo import output_files, run, source_pictures
        from ..models import bundled_models

        protect(output_files(folder(out), ["x"]))
        shown = _open(terminal, model, device)
        paths = source_pictures(model, images)
        names = [slug(path.stem) for path in paths]
        protect(output_files(out, names), paths)
        if editor is None and "emoji" in bundled_models():
            editor = "emoji"
        text_model = _open(terminal, editor, device) if editor else None
        with _Bars(terminal) as bars:
            results = run(
                out,
                shown,
                dict(zip(names, paths, strict=True)),
                bars,
                editor=text_model,
                resize=images is not None,
                seed=seed,
                full=full,
                command=repeat(),
            )
        page, numbers = out / "index.html", out / "results.json"
        terminal.result(
            {"command": "demo", "files": [str(page), str(numbers)], "results": results},
            f"[bold]{escaped(page)}[/bold]  [dim]{terminal.seconds:.0f} s · the numbers are in "
            f"{escaped(numbers)}[/dim]",
        )


def _open(terminal: Terminal, name: str, device: str | None) -> "DemoModel":
    from ..demo import DemoModel

    counted = open_model(terminal, name, labels=[], device=device)
    return DemoModel(name, counted.model, describe(counted, name))


class _Bars:
    """A progress bar for each section and one for the whole demo; a line for each section if there is no terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.lines = not (terminal.live or terminal.as_json or terminal.quiet)
        self.bars = progress(transient=False) if terminal.live else None
        self.running: list[tuple[TaskID, float]] = []  # each with the time when it began

    def __enter__(self) -> "_Bars":
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def start(self, calls: int) -> None:
        """Adds the bar of the whole demo."""
        self._add("[bold]the whole demo", calls)

    @contextmanager
    def section(self, title: str, calls: int) -> Iterator[None]:
        """Adds the bar of a section, or prints a line when the section is done."""
        began = time.perf_counter()
        self._add(title, calls)
        yield
        if self.bars is not None:
            self.running.pop()
        if self.lines:
            spent = time.perf_counter() - began
            print(f"{title}: {spent:.1f} s, {calls} network calls", file=sys.stderr, flush=True)

    def advance(self, calls: float) -> None:
        """Moves the bars of the section and of the whole demo."""
        for task, began in self.running:
            assert self.bars is not None
            self.bars.advance(task, calls)
            rate = self.bars.tasks[task].completed / max(time.perf_counter() - began, 1e-9)
            self.bars.update(task, rate=f"{rate:.0f} images/s")

    def page(self, file: Path) -> None:
        """Prints where the page is, above the bars."""
        text = f"{file} has its first pictures after {self.terminal.seconds:.0f} s. It fills while the rest is made."
        if self.bars is not None:
            self.bars.console.print(escaped(text), highlight=False, soft_wrap=True)
        if self.lines:
            print(printable(text), file=sys.stderr, flush=True)

    def _add(self, title: str, calls: int) -> None:
        if self.bars is not None:
            self.running.append((self.bars.add_task(title, total=calls, rate=""), time.perf_counter()))
