"""``ddim evaluate``: measured tables."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import options as o
from .files import settings_text, slug
from .terminal import Terminal, escaped

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.edits import EditPair, Setting

evaluate = typer.Typer(name="evaluate", no_args_is_help=True, help="Measure: tables, with the command under each.")

_Recipe = Annotated[
    Path,
    typer.Argument(metavar="RECIPE.toml", help="The model's: says where pictures are, and which were held out."),
]
_Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="An inversion; repeatable. By default all.", show_default=False),
]
_Attention = Annotated[
    list[str] | None,
    typer.Option("--attention", help="none, refine or replace; repeatable. By default none and refine."),
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

SHOWN = 40


@evaluate.command("edits")
def edits(
    recipe: _Recipe,
    model: o.Model = "emoji",
    method: _Methods = None,
    attention: _Attention = None,
    option: Option = None,
    steps: Annotated[int, typer.Option("--steps", "-S", min=1, help="S, from 1 to the model's T.")] = 20,
    guidance: Annotated[float, typer.Option("--guidance", help="w of the way forward.")] = 7.5,
    words: Annotated[int, typer.Option("--words", min=0, help="Edits of a source to other words.")] = 2,
    styles: Annotated[int, typer.Option("--styles", min=0, help="Edits of a source to other styles.")] = 2,
    limit: Limit = None,
    out: Folder = Path("evaluation/edits"),
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

        names, options = method or inversion_names(), o.options_from(option)
        if options and len(names) != 1:
            raise InputError(f"--option belongs to one method, and {len(names)} are measured; name it with --method.")
        for name in names:
            make_inversion(name, options)  # says what is unknown before any work
        kinds = attention or ["none", "refine"]
        config = load_config(recipe)
        counted = open_model(terminal, model, device, "float32")
        if not counted.text:
            raise InputError(f"The model {model!r} has no text encoder; edits by words need one.")
        with terminal.status("reading the pictures"):
            pictures = read_pictures(config)
            pairs = edit_pairs(pictures, words, styles)[:limit]
            if not pairs:
                raise InputError("There is nothing to edit: --words and --styles leave no pair; use 1 or more of one.")
            benchmark = EditBenchmark(counted.as_model, pictures, pairs)
        given = tuple(options.items())
        settings = [Setting("", n, k, guidance, steps, given) for n in names for k in kinds]
        settings = [replace(setting, name=f"{setting.title} · {setting.attention}") for setting in settings]
        rows = Rows(out / "rows.csv", ROW)
        todo = {pair.key for pair in pairs}
        same = {"steps": steps, "guidance": guidance, "fingerprint": counted.fingerprint[:12]}

        def ours(setting: Setting) -> list[dict[str, str]]:
            """The rows of this model, these settings and these pairs; others may share the folder."""
            wanted = {"setting": setting.name, **{k: str(v) for k, v in same.items()}}
            return [r for r in rows.rows if r["pair"] in todo and all(r[k] == v for k, v in wanted.items())]

        shown = {pair.key for pair in _shown(pairs)}
        for setting in settings:
            name = setting_name(setting, same["fingerprint"])
            done = {row["pair"] for row in ours(setting)}
            with terminal.bar(setting.name, len(todo)) as report:
                count = len(done)
                for measured, images in benchmark.run(setting, done):
                    if isinstance(images, Exception):
                        terminal.warn(f"{setting.name}: {measured[0]['pair'].partition(' -> ')[0]}: {images}")
                    else:
                        _keep_pictures(out / name, shown, measured, images)
                    nfe = counted.calls(len(measured))
                    rows.add([{**row, "nfe": nfe, **same} for row in measured])
                    count += len(measured)
                    if report is not None:
                        report(count, len(todo))
            _sheet(out / name, benchmark.pairs)
        table = []
        for setting in settings:
            for kind in ("word", "style"):
                mine = [r for r in ours(setting) if r["kind"] == kind]
                if mine:
                    table.append(
                        {
                            "method": setting.title,
                            "attention": setting.attention,
                            "edit": kind,
                            **summary(mine),
                        }
                    )
        flags = ["--model", model, *setting_flags(method, attention, option, steps, guidance)]
        flags += ["--words", words, "--styles", styles]
        flags += [] if limit is None else ["--limit", limit]
        about = {
            "command": shlex.join(["ddim", "evaluate", "edits", str(recipe), *map(str, flags)]),
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
    *("seconds", "nfe", "steps", "guidance", "fingerprint"),
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


def _shown(pairs: "Sequence[EditPair]") -> "Sequence[EditPair]":
    """The pairs that a sheet shows: drawn by chance from all, the same every time, whatever their outcome."""
    import numpy as np

    return [pairs[k] for k in sorted(np.random.default_rng(0).permutation(len(pairs))[:SHOWN].tolist())]


def _keep_pictures(folder: Path, keys: set[str], measured: Sequence[dict[str, Any]], images: "Tensor") -> None:
    """The edits of the pairs that the sheet shows."""
    from ..images import save_image, to_pil

    for row, image in zip(measured, images, strict=True):
        if row["pair"] in keys:
            save_image(to_pil(image), _picture(folder, row["pair"]))


def _sheet(folder: Path, pairs: "Sequence[EditPair]") -> None:
    """Source, edit and answer of the pairs that are shown."""
    import torch

    from ..images import read_images, save_image, sheet

    tiles = []
    for pair in _shown(pairs):
        file = _picture(folder, pair.key)
        if file.is_file():
            shape = tuple(pair.source.pixels.shape)
            tiles += [pair.source.pixels, read_images(file, shape)[0], pair.answer.pixels]
    if tiles:
        save_image(sheet(torch.stack(tiles), columns=15), folder.with_name(f"{folder.name}.png"))


def _picture(folder: Path, key: str) -> Path:
    """Named by its pair, not by its place, which another --words or --styles would shift."""
    return folder / f"{slug(key.replace(' -> ', ' to ').replace('/', ' '))}.png"


def setting_flags(
    method: Sequence[str] | None,
    attention: Sequence[str] | None,
    option: Sequence[str] | None,
    steps: int,
    guidance: float,
) -> list[object]:
    """The settings as they can be typed again."""
    several = (("--method", method), ("--attention", attention), ("--option", option))
    flags: list[object] = [word for flag, values in several for value in values or [] for word in (flag, value)]
    return [*flags, "--steps", steps, "--guidance", f"{guidance:g}"]


def setting_name(setting: "Setting", fingerprint: str) -> str:
    """What a setting's sheet and its folder of pictures are called."""
    rest = {"w": float(setting.guidance), "": fingerprint}
    return settings_text(setting.method, setting.steps, {**dict(setting.options), "": setting.attention}, rest=rest)
