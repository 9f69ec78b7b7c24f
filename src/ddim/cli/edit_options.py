"""The options of ``ddim edit`` that no other command has, or that mean something else there."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o

ATTENTION = "Attention, where to change, and what"
Source = Annotated[
    Path, typer.Argument(metavar="IMAGE|CODE", help="A picture, or what ddim invert wrote.", show_default=False)
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", callback=o.readable, help="What the picture shows; a code knows its own.", show_default=False
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to", callback=o.readable, help="What it is to show; (word:2) weighs a word; repeatable.", show_default=False
    ),
]
FromLabel = Annotated[
    int | None,
    typer.Option(
        "--from-label",
        help="The picture's own class, for a class-conditional model; a code knows its own.",
        show_default=False,
    ),
]
ToLabel = Annotated[
    list[int] | None,
    typer.Option("--to-label", help="In place of --to: the class it is to become; repeatable.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model with text, or one with classes; by default emoji, or the one that made the code.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"{', '.join(o.METHODS)}; by default direct.",
        autocompletion=lambda: list(o.METHODS),
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", "-S", help="S; by default 50.", rich_help_panel=o.WORK, show_default=False),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "-w",
        help="w of classifier-free guidance; by default the model's usual one, or the code's own.",
        rich_help_panel=o.WORDS,
        show_default=False,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        help="refine: what both prompts say keeps its place. replace: word for word. none: no control.",
        autocompletion=lambda: list(o.ATTENTIONS),
        rich_help_panel=ATTENTION,
    ),
]
Cross = Annotated[
    str | None,
    typer.Option(
        "--cross",
        metavar="END|BEGIN,END",
        help="Steps in which the words' maps follow the source's, as a part of all; by default 0,0.4.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
Self = Annotated[
    str | None,
    typer.Option(
        "--self",
        metavar="END|BEGIN,END",
        help="The same of the picture's own maps; by default 0,0.6.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
Blend = Annotated[
    list[str] | None,
    typer.Option(
        "--blend",
        callback=o.readable,
        metavar="WORD/WORD",
        help="Change only where these words of source/target lie; repeatable: one a --to, or one for all.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        callback=o.readable,
        metavar="WORD=FACTOR",
        help="How strongly a word of --to counts; 1 changes nothing; repeatable.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
WeightSteps = Annotated[
    str | None,
    typer.Option(
        "--weight-steps",
        metavar="END|BEGIN,END",
        help="Steps in which weighted words are scaled; by default those of --cross.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
BlendStart = Annotated[
    float | None,
    typer.Option(
        "--blend-start",
        help="From which part of the steps on words blend; by default 0.2.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
BlendThreshold = Annotated[
    float | None,
    typer.Option(
        "--blend-threshold",
        help="Where a word's map counts as its place, against its maximum; by default 0.3.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Of methods that draw noise; by default 0.",
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="A grey picture of the same size: white may change, what is black or transparent stays.",
        rich_help_panel=ATTENTION,
        show_default=False,
    ),
]
