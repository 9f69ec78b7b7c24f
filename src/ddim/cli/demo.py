"""``ddim demo``: the main job on the carried models, and a page that shows it."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .output import Terminal, escaped

_Out = Annotated[Path, typer.Option("--out", help="The folder for the page and its pictures.")]
_Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="A folder with four or more PNGs to invert; by default those beside the model.",
        show_default=False,
    ),
]
_Editor = Annotated[
    str | None,
    typer.Option(
        "--editor", help="The text model for the edits, emoji by default; '' leaves them out.", show_default=False
    ),
]
_QuickHelp = "Leave out all work with S = 1000."


def demo(
    out: _Out = Path("demo"),
    model: o.Model = "fashion",
    images: _Images = None,
    seed: Annotated[int, typer.Option("--seed", help="The k-th sample has seed + k.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help=_QuickHelp)] = False,
    editor: _Editor = None,
    device: o.Device = None,
) -> None:
    """Run the main job on the carried models and leave a page that shows it: index.html and results.json."""
    with Terminal() as terminal:
        from ..demo import run

        results = run(terminal, out, model=model, images=images, seed=seed, quick=quick, editor=editor, device=device)
        page = out / "index.html"
        terminal.result(
            {"command": "demo", "files": [str(page), str(out / "results.json")], "results": results},
            f"[bold]{escaped(page)}[/bold]  [dim]{terminal.seconds:.0f} s · the numbers are in "
            f"{escaped(out / 'results.json')}[/dim]",
        )
