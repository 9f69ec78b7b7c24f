"""``ddim evaluate``: measured tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import options as o
from .terminal import Terminal, escaped

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.edits import Setting

evaluate = typer.Typer(name="evaluate", no_args_is_help=True, help="Measure: tables, with the command under each.")

_Recipe = Annotated[
    Path,
    typer.Argument(metavar="RECIPE.toml", help="The model's: says where pictures are, and which were held out."),
]
_Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="An inversion; repeatable. By default all that edit.", show_default=False),
]
_Attention = Annotated[
    list[str] | None,
    typer.Option("--attention", help="none, refine or replace; repeatable. By default none and refine."),
]
_Limit = Annotated[
    int | None, typer.Option("--limit", help="Only the first pairs of a setting, for a trial.", show_default=False)
]
_Folder = Annotated[Path, typer.Option("--out", help="The folder for rows, tables and sheets; a run there goes on.")]

SHOWN = 40


@evaluate.command("edits")
def edits(
    recipe: _Recipe,
    model: o.Model = "emoji",
    method: _Methods = None,
    attention: _Attention = None,
    steps: o.Steps = 20,
    guidance: Annotated[float, typer.Option("--guidance", help="w of the way forward.")] = 7.5,
    words: Annotated[int, typer.Option("--words", help="Edits of a source to other words.")] = 2,
    styles: Annotated[int, typer.Option("--styles", help="Edits of a source to other styles.")] = 2,
    limit: _Limit = None,
    out: _Folder = Path("evaluation/edits"),
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Edits whose answer is known: held-out drawings to another word, or to another style.

    ddim evaluate edits recipes/emoji.toml --method direct --method null-text
    """
    with Terminal(json, quiet) as terminal:
        from ..evaluation.edits import EditBenchmark, Setting, edit_pairs, read_pictures, summary
        from ..evaluation.tables import Rows, write_table
        from ..inversion import inversion_names, make_inversion
        from ..training import load_config
        from .work import about_model, open_model

        names = method or [name for name in inversion_names() if name not in ("heun",)]
        for name in names:
            make_inversion(name)  # says what is unknown before any work
        kinds = attention or ["none", "refine"]
        config = load_config(recipe)
        counted = open_model(terminal, model, device, "float32")
        if not counted.text:
            raise InputError(f"The model {model!r} has no text encoder; edits by words need one.")
        with terminal.status("reading the pictures"):
            pictures = read_pictures(config)
            pairs = edit_pairs(pictures, words, styles)[:limit]
            benchmark = EditBenchmark(counted.as_model, pictures, pairs)
        settings = [Setting(f"{n} · {k}", n, k, guidance, steps) for n in names for k in kinds]
        rows = Rows(out / "rows.csv", ROW)
        for setting in settings:
            todo = {pair.key for pair in pairs}
            done = {row["pair"] for row in rows.rows if row["setting"] == setting.name} & todo
            with terminal.bar(setting.name, len(todo)) as report:
                count = len(done)
                for measured, images in benchmark.run(setting, done):
                    _keep_pictures(out, setting, [p.key for p in pairs], measured, images)
                    nfe = counted.calls(len(measured))
                    rows.add([{**row, "nfe": nfe, "steps": steps, "guidance": guidance} for row in measured])
                    count += len(measured)
                    if report is not None:
                        report(count, len(todo))
            _sheet(out, setting, benchmark.pairs)
        table = []
        for setting in settings:
            for kind in ("word", "style"):
                mine = [r for r in rows.rows if r["setting"] == setting.name and r["kind"] == kind]
                if mine:
                    table.append(
                        {"method": setting.method, "attention": setting.attention, "edit": kind, **summary(mine)}
                    )
        about = {
            "command": f"ddim evaluate edits {recipe} --model {model} --steps {steps} --guidance {guidance:g}",
            **about_model(counted),
            "pairs": len(pairs),
        }
        files = write_table(out, "edits", table, FORMATS, about)
        terminal.result(
            {"command": "evaluate edits", **about, "rows": table, "files": [str(f) for f in files]},
            f"[bold]{escaped(files[0])}[/bold]",
            f"[dim]{len(pairs)} pairs · {len(settings)} settings · {terminal.seconds:.0f} s[/dim]",
        )


ROW = (
    *("setting", "pair", "kind", "source_psnr", "source_ssim", "kept_mse", "common", "answer_psnr", "rank"),
    *("seconds", "nfe", "steps", "guidance"),
)
FORMATS = {
    "method": "",
    "attention": "",
    "edit": "",
    "pairs": "d",
    "source_psnr": ".2f",
    "source_ssim": ".3f",
    "kept_mse": ".4f",
    "answer_psnr": ".2f",
    "top1": ".1%",
    "top5": ".1%",
    "seconds": ".2f",
}


def _keep_pictures(
    out: Path, setting: "Setting", keys: list[str], measured: list[dict[str, Any]], images: "Tensor"
) -> None:
    """The edits of the first pairs, which the sheet shows, unselected."""
    from ..images import save_image, to_pil

    for row, image in zip(measured, images, strict=True):
        place = keys.index(row["pair"])
        if place < SHOWN:
            save_image(to_pil(image), out / _name(setting) / f"{place:02d}.png")


def _sheet(out: Path, setting: "Setting", pairs: list[Any]) -> None:
    """Source, edit and answer of the first pairs."""
    import torch

    from ..images import read_images, save_image, sheet

    tiles = []
    for place, pair in enumerate(pairs[:SHOWN]):
        file = out / _name(setting) / f"{place:02d}.png"
        if file.is_file():
            shape = tuple(pair.source.pixels.shape)
            tiles += [pair.source.pixels, read_images(file, shape)[0], pair.answer.pixels]
    if tiles:
        save_image(sheet(torch.stack(tiles), columns=15), out / f"{_name(setting)}.png")


def _name(setting: "Setting") -> str:
    return setting.name.replace(" · ", "_")
