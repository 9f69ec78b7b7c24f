"""``ddim evaluate edits``: edits of held-out drawings whose answer is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .evaluate import (
    Folder,
    Limit,
    Methods,
    Option,
    Styles,
    Words,
    about_run,
    flags_of,
    setting_name,
    settings,
    tell,
    telling,
    usable_folder,
    ways_from,
)
from .files import slug
from .output import Terminal

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.edits import EditPair, Setting
    from ..evaluation.plots import Point
    from ..evaluation.store import Row

_Recipe = Annotated[
    Path,
    typer.Argument(metavar="RECIPE.toml", help="The model's: says where pictures are, and which were held out."),
]
_Attention = Annotated[
    list[str] | None,
    typer.Option("--attention", help="none, refine or replace; repeatable. By default none and refine."),
]

SHOWN = 40
FORMATS = {
    "method": "",
    "attention": "",
    "edit": "",
    "pairs": "d",
    "failed": "d",
    "source_psnr": ".2f",
    "source_ssim": ".3f",
    "kept_mse": ".4f",
    "answer_psnr": ".2f",
    "top1": ".1%",
    "top5": ".1%",
    "seconds": ".2f",
}


def edits(
    recipe: _Recipe,
    model: o.Model = "emoji",
    method: Methods = None,
    attention: _Attention = None,
    option: Option = None,
    steps: Annotated[int, typer.Option("--steps", "-S", min=1, help="S, from 1 to the model's T.")] = 20,
    guidance: Annotated[float, typer.Option("--guidance", "-w", help="w of the way forward.")] = 7.5,
    words: Words = 2,
    styles: Styles = 2,
    limit: Limit = None,
    out: Folder = Path("evaluation/edits"),
    device: o.Device = None,
) -> None:
    """Edits whose answer is known: held-out drawings to another word, or to another style.

    ddim evaluate edits recipes/emoji.toml --method direct --method null-text
    """
    with Terminal() as terminal:
        from ..evaluation.edits import COLUMNS, EditBenchmark, edit_pairs, read_pictures
        from ..evaluation.methods import way_of
        from ..evaluation.plots import line_plot
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..inversion import inversion_names
        from ..training import load_config
        from .session import open_model

        among = processes()
        ways = ways_from(method, option) or [way_of(name) for name in inversion_names()]
        config = load_config(recipe)
        usable_folder(out, f"edits-{slug(model)}")
        counted = open_model(terminal, model, device, "float32")
        if not counted.text:
            raise InputError(f"{model!r} has no text encoder; edits by words need one.", parameter="model")
        with terminal.status("reading the pictures"):
            pictures = read_pictures(config)
            pairs = edit_pairs(pictures, words, styles)[:limit]
            if not pairs:
                raise InputError("--words and --styles leave no pair to edit; use 1 or more of one.", parameter="words")
            benchmark = EditBenchmark(counted, pictures, pairs, counted.calls)
        several = settings(ways, attention or ["none", "refine"], guidance, steps)
        shown = {pair.key for pair in _shown(pairs)}
        of: dict[str, list[Row]] = {}
        with open_rows(out, COLUMNS, among) as rows:
            for setting in several:
                folder = out / setting_name(setting, counted.fingerprint[:12])
                with terminal.bar(setting.name, len(pairs)) as report:

                    def run(items: Any, setting: "Setting" = setting, folder: Path = folder) -> "Sequence[Row]":
                        measured, images = benchmark.run(setting, items)
                        if not isinstance(images, Exception):
                            _keep_pictures(folder, shown, measured, images)
                        return measured

                    blocks = benchmark.blocks(setting)
                    rows.measure_blocks(blocks, telling(terminal, setting.name, "pair", run), report)
                rows.gather()
                if rows.processes.main:
                    _sheet(folder, pairs)
                of[setting.name] = rows.of([item for block in blocks for item in block])
            if not rows.processes.main:
                return
            table = [line for setting in several for line in _lines(setting, of[setting.name])]
            given = {"model": model, "method": method, "attention": attention, "option": option, "steps": steps}
            given |= {"guidance": guidance, "words": words, "styles": styles, "limit": limit}
            command = [str(recipe), *flags_of(**given)]
            about = about_run(
                "edits", command, counted, {"images": len({id(p.source) for p in pairs}), "pairs": len(pairs)}
            )
            name = f"edits-{slug(model)}"
            files = write_table(out, name, table, FORMATS, about)
            points = {setting.name: _point(of[setting.name]) for setting in several}
            axes = "PSNR of the source that comes back, dB", "edits nearest to their answer, %"
            plot = line_plot(out / f"{name}.png", points, *axes, log_x=False, title=f"{len(pairs)} edits of {model}")
        tell(
            terminal,
            "edits",
            about,
            table,
            [*files, *filter(None, [plot])],
            f"{len(pairs)} pairs · {len(several)} settings",
        )


def _lines(setting: "Setting", rows: "Sequence[Row]") -> "list[Row]":
    """A setting's part of the table: words, and styles."""
    from ..evaluation.edits import summary

    own = {"method": setting.title, "attention": setting.attention}
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("word", "style")}
    return [{**own, "edit": kind, **summary(mine)} for kind, mine in kinds.items() if mine]


def _point(rows: "Sequence[Row]") -> "list[Point]":
    """A setting in the plot, over all its edits."""
    from ..evaluation.edits import summary
    from ..evaluation.plots import Point

    found = summary(rows)
    return [] if found["source_psnr"] is None else [Point(found["source_psnr"], 100 * found["top1"])]


def _shown(pairs: "Sequence[EditPair]") -> "Sequence[EditPair]":
    """The pairs that a sheet shows: drawn by chance from all, the same every time, whatever their outcome."""
    import numpy as np

    return [pairs[k] for k in sorted(np.random.default_rng(0).permutation(len(pairs))[:SHOWN].tolist())]


def _keep_pictures(folder: Path, keys: set[str], measured: "Sequence[Row]", images: "Tensor") -> None:
    """The edits of the pairs that the sheet shows."""
    from ..data.images import save_image, to_pil

    for row, image in zip(measured, images, strict=True):
        if row["pair"] in keys:
            save_image(to_pil(image), _picture(folder, row["pair"]))


def _sheet(folder: Path, pairs: "Sequence[EditPair]") -> None:
    """Source, edit and answer of the pairs that are shown."""
    import torch

    from ..data.images import read_images, save_image, sheet

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
