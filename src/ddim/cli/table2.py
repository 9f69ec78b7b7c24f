"""``ddim evaluate table2``: reconstruction error against S, every inversion."""

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .evaluate import (
    Batch,
    Data,
    Folder,
    Images,
    Methods,
    Option,
    Recipe,
    about_run,
    flags_of,
    tell,
    usable_folder,
    walk_trips,
    ways_from,
)
from .files import slug
from .output import Terminal

Steps = Annotated[
    list[int] | None,
    typer.Option("--steps", "-S", min=1, help="S, back and forward alike; repeatable. By default the table's own."),
]


def table2(
    model: o.Model = "fashion",
    method: Methods = None,
    option: Option = None,
    steps: Steps = None,
    spacing: o.Spacing = None,
    guidance: o.GuidanceWeight = None,
    recipe: Recipe = None,
    data: Data = None,
    images: Images = None,
    batch: Batch = 16,
    out: Folder = Path("evaluation/table2"),
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Reconstruction error against S, every inversion: Table 2 of Song et al. 2021.

    Invert in S steps, come forward in S steps; mean squared error on [0, 1]. By default S = 10 to 1000, on the pictures
    that the package carries with the model.

    ddim evaluate table2 --model fashion --steps 10 --steps 50 --method ddim --method belm
    """
    with Terminal() as terminal:
        from ..evaluation.material import about as about_pictures
        from ..evaluation.material import material
        from ..evaluation.methods import taken
        from ..evaluation.plots import line_plot
        from ..evaluation.store import open_rows, processes
        from ..evaluation.table2 import COLUMNS, FORMATS, STEPS, Reconstructions, lines, page, summary
        from ..evaluation.tables import write_table
        from ..evaluation.trips import Trip
        from ..training import load_config
        from .session import guidance_for, open_model

        among = processes()
        ways, walk = ways_from(method, option), o.spacing_from(spacing)
        config = None if recipe is None else load_config(recipe)
        usable_folder(out, f"table2-{slug(model)}")
        counted = open_model(terminal, model, device, dtype)
        asked = list(
            dict.fromkeys(
                steps or [s for s in STEPS if s <= counted.schedule.path.levels] or [counted.schedule.path.levels]
            )
        )
        weight = guidance_for(counted, o.Guiding(guidance=guidance), usual=1.0).weight
        found = taken(counted, ways, asked, [weight], walk)
        trips = [Trip(way, s, w if counted.text else None, walk) for way, w, s in found]
        with terminal.status("reading the pictures"):
            pictures = material(counted, images, config, data)
        bench = Reconstructions(counted, pictures.pictures, counted.calls)
        with open_rows(out, COLUMNS, among) as rows:
            walk_trips(terminal, bench, trips, rows, batch)
            if not rows.processes.main:
                return
            table = [summary(trip, rows.of(bench.items(trip))) for trip in trips]
            given = {"model": model, "method": method, "option": option, "steps": steps, "spacing": spacing}
            given |= {"guidance": guidance, "recipe": recipe, "data": data, "images": images, "batch": batch}
            given["dtype"] = dtype
            rest = {**about_pictures(pictures), "batch": batch, "dtype": dtype}
            about = about_run("table2", flags_of(**given), counted, rest)
            name = f"table2-{slug(model)}"
            files = write_table(out, name, table, FORMATS, about, page(table))
            title = f"{model}, {len(pictures.pictures)} pictures, {dtype}"
            axes = "S, back and forward", "mean squared error on [0, 1]"
            plot = line_plot(out / f"{name}.png", lines(table), *axes, log_y=True, title=title)
        files += [plot] if plot else []
        tell(terminal, "table2", about, table, files, f"{len(pictures.pictures)} pictures · {len(trips)} cells")
