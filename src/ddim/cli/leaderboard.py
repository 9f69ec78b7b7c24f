"""``ddim evaluate leaderboard``: every inversion under guidance, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .evaluate import (
    Batch,
    Data,
    Folder,
    Images,
    Methods,
    Option,
    Recipe,
    Styles,
    Words,
    about_run,
    flags_of,
    tell,
    usable_folder,
    walk_trips,
    ways_from,
)
from .files import slug
from .output import Terminal, main_process

if TYPE_CHECKING:
    from ..evaluation.networks import Lpips

_Steps = Annotated[
    list[int] | None, typer.Option("--steps", "-S", min=1, help="S; repeatable. By default 10, 20 and 50.")
]
_Weights = Annotated[
    list[float] | None,
    typer.Option(
        "--guidance", "-w", help="w of the way forward; repeatable. By default 1 and 7.5.", show_default=False
    ),
]


def leaderboard(
    model: o.Model = "emoji",
    method: Methods = None,
    option: Option = None,
    steps: _Steps = None,
    guidance: _Weights = None,
    recipe: Recipe = None,
    data: Data = None,
    images: Images = None,
    words: Words = 2,
    styles: Styles = 2,
    batch: Batch = 16,
    out: Folder = Path("evaluation/leaderboard"),
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Every inversion under guidance: PSNR, SSIM, LPIPS, network calls, seconds, memory, and edits of the same codes.

    By default on the pictures that the package carries with the model, which are few; --recipe takes held-out ones, and
    seeks an edit's answer among all pictures of its style.

    ddim evaluate leaderboard --model emoji --recipe recipes/emoji.toml --images 50
    """
    with Terminal() as terminal:
        from ..evaluation.leaderboard import COLUMNS, FORMATS, STEPS, WEIGHTS, Leaderboard, lines, ranked, summary
        from ..evaluation.material import about as about_pictures
        from ..evaluation.material import material
        from ..evaluation.methods import taken
        from ..evaluation.plots import line_plot
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..training import load_config
        from .session import open_model

        among = processes()
        ways = ways_from(method, option)
        config = None if recipe is None else load_config(recipe)
        usable_folder(out, f"leaderboard-{slug(model)}")
        counted = open_model(terminal, model, device, dtype)
        if guidance and not counted.text:
            raise InputError(
                f"it goes with prompts, and the model {model!r} has no text encoder.", parameter="guidance"
            )
        weights = list(dict.fromkeys(guidance or WEIGHTS)) if counted.text else [1.0]
        asked = list(
            dict.fromkeys(
                steps or [s for s in STEPS if s <= counted.schedule.path.levels] or [counted.schedule.path.levels]
            )
        )
        found = taken(counted, ways, asked, weights)
        with terminal.status("reading the pictures"):
            pictures = material(counted, images, config, data)
        board = Leaderboard(counted, pictures, counted.calls, _lpips(terminal, counted.device), words, styles)
        trips = board.trips(found)
        with open_rows(out, COLUMNS, among) as rows:
            walk_trips(terminal, board, trips, rows, batch)
            if not rows.processes.main:
                return
            table = ranked([summary(trip, rows.of(board.items(trip))) for trip in trips])
            given = {"model": model, "method": method, "option": option, "steps": steps, "guidance": guidance}
            given |= {"recipe": recipe, "data": data, "images": images, "batch": batch, "dtype": dtype}
            given |= {"words": words, "styles": styles} if counted.text else {}
            rest = {**about_pictures(pictures), "batch": batch, "dtype": dtype, **_EXPLAINED}
            if counted.text:
                rest["answers"] = f"each sought among {board.choices}"
            about = about_run("leaderboard", flags_of(**given), counted, rest)
            name = f"leaderboard-{slug(model)}"
            files = write_table(out, name, table, FORMATS, about)
            weight, drawn = lines(table)
            title = f"{model}, {len(pictures.pictures)} pictures" + (f", w = {weight:g}" if weight is not None else "")
            axes = "network calls a picture, both ways", "PSNR, dB"
            plot = line_plot(out / f"{name}.png", drawn, *axes, title=title)
        files += [plot] if plot else []
        tell(terminal, "leaderboard", about, table, files, f"{len(pictures.pictures)} pictures · {len(trips)} settings")


_EXPLAINED = {
    "psnr": "dB, the mean over pictures; psnr_worst is the worst picture's",
    "nfe": "network calls a picture, back and forward, a guided one being two",
    "seconds": "a picture, of a batch both ways",
    "memory_mb": "the most that tensors take at a time, one picture both ways, above the model itself; 2^20 bytes",
    "top1": "edits of the same code, attention refined, whose answer is the nearest picture",
}


def _lpips(terminal: Terminal, device: Any) -> "Lpips | None":
    """LPIPS, or a warning and None."""
    from ..evaluation.networks import Lpips

    try:
        return Lpips(device)
    except InputError as error:
        if main_process():
            terminal.warn(f"The column lpips is empty: {error}")
        return None
