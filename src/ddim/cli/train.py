"""``ddim train``: a model from a folder of images and a TOML file."""

from pathlib import Path
from typing import Annotated

import typer

from .._utils.names import protect
from .output import Terminal, escaped, main_process

_Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="The run; see recipes/fashion.toml.", show_default=False)
]
_NEXT = {  # the command that uses a trained model of each task
    "pixel": "ddim sample --model {}",
    "autoencoder": 'a recipe with task = "text" and text.autoencoder = "{}"',
    "text": 'ddim sample --model {} --prompt "..."',
    "flow": 'ddim sample --model {} --prompt "..."',
    "classifier": "ddim sample --classifier {} --label 0",
}
_Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]


def train(
    config: _Config,
    resume: _Resume = False,
) -> None:
    """Train a model from a TOML file.

    Under accelerate launch, all of its processes train it together.
    """
    with Terminal() as terminal:
        from ..training import Event, load_config, train

        settings = load_config(config)
        where = Path(settings.output.folder)
        protect([where / part / "x" for part in ("checkpoints", "samples", "model")], parameter="output.folder")
        last = Event("start", 0, settings.train.steps)

        def listen(event: Event) -> None:
            nonlocal last
            last = event

        # without a listener the run prints its own progress
        model = train(settings, resume=resume, on_event=listen if terminal.as_json or terminal.quiet else None)
        if not main_process():
            return
        by_class = settings.task == "pixel" and settings.pixel.condition == "labels"
        terminal.result(
            {
                "command": "train",
                "config": str(config),
                "steps": settings.train.steps,
                "resumed": resume,
                "images_per_second": round(last.images_per_second, 1),
                "files": [str(model)],
            },
            f"[bold]{escaped(model)}[/bold]",
            f"[dim]{settings.train.steps} steps · {terminal.seconds / 60:.1f} min · next: "
            f"{escaped(_NEXT[settings.task].format(model))}{' --label 0' * by_class}[/dim]",
        )
