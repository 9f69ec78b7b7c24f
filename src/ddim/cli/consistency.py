"""``ddim evaluate consistency``: one x_T at many S."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .evaluate import MANY, Folder, about_run, flags_of, tell, usable_folder, usable_seeds
from .files import slug
from .output import Terminal
from .table1 import Features

if TYPE_CHECKING:
    from ..evaluation.consistency import Consistency

SHOWN = 8
"""Rows of a sheet."""

_Steps = Annotated[
    list[int] | None, typer.Option("--steps", "-S", help="S; repeatable. By default 10, 20, 50, 100 and 200.")
]
_Eta = Annotated[list[float] | None, typer.Option("--eta", help="0 to 1; repeatable. By default 0, and 1 to compare.")]


def consistency(
    model: o.Model = "fashion",
    steps: _Steps = None,
    eta: _Eta = None,
    reference: Annotated[int, typer.Option("--reference", help="The S that the others are compared with.")] = 1000,
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help=f"{', '.join(o.SPACINGS)}. By default the model's own.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=MANY, help="How many x_T.")] = 100,
    features: Features = None,
    seed: o.Seed = 0,
    batch: o.Batch = 50,
    out: Folder = Path("evaluation/consistency"),
    device: o.Device = None,
) -> None:
    """One x_T at many S: how like the image of S = 1000 each is, in pixels and in features.

    At eta = 0 the image is decided by x_T; eta = 1 draws noise on the way. The last line of each eta is what two
    different x_T give. Sections 4.2 and 5.2 of Song et al. 2021.

    ddim evaluate consistency --model fashion
    """
    with Terminal() as terminal:
        from .._utils.lock import only_process
        from ..evaluation import consistency as c
        from ..evaluation.fitting import fitting_or_none
        from ..evaluation.plots import line_plot
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..pipelines.common import check_batch
        from .session import open_model

        check_batch(batch)
        among = processes()
        usable_folder(out, f"consistency-{slug(model)}")
        usable_seeds(seed, samples)
        counted = open_model(terminal, model, device, "float32", labels=[])
        network = fitting_or_none(features, counted.picture, counted.device)
        chosen = spacing or counted.schedule.spacing
        bench = c.Consistency(counted, network, out / "pictures", chosen, reference)
        counts = sorted(set(steps or [s for s in c.STEPS if s < reference]))
        etas = list(dict.fromkeys(c.ETAS if eta is None else eta))
        bench.check(counts, etas)
        seeds = range(seed, seed + samples)
        lines: list[dict[str, Any]] = []
        with (
            only_process(out, "writing results to", "--out") if among.main else nullcontext(),
            open_rows(out / "items" / f"{slug(model)}_{counted.fingerprint[:12]}", c.COLUMNS, among) as rows,
        ):
            for value in etas:
                for count in (reference, *counts):
                    items = bench.items(value, count, seeds)
                    with terminal.bar(f"eta = {value:g}, S = {count}", samples) as report:
                        bench.measure(rows, items, batch, report)
                    rows.gather()
                    if among.main and count != reference:
                        lines.append(c.line(value, count, rows.of(items)))
                if among.main:
                    lines.append(c.line(value, None, bench.chance(value, seeds)))
            if not among.main:
                return
            words = flags_of(model=model, steps=steps, eta=eta, reference=reference, spacing=spacing)
            words += flags_of(samples=samples, features=features, seed=seed)
            rest = {
                "images": f"{samples} x_T, of seeds {seed} to {seed + samples - 1}; {chosen} grids",
                "compared with": f"the image of the same seed and eta at S = {reference}; means, 95 % intervals",
                "features": "none that fit" if network is None else f"{network.name} {network.fingerprint[:12]}",
            }
            about = about_run("consistency", words, counted, rest)
            name = f"consistency-{slug(model)}"
            files = write_table(out, name, lines, _formats(c.MEASURES), about, c.layout(lines, reference))
            against = f"SSIM to the image of S = {reference}"
            drawn = line_plot(out / f"{name}.png", c.curves(lines, "ssim"), "S", against, title=f"{model}: one x_T")
            files += [drawn] if drawn else []
            files += [_sheet(out / f"{name}_eta{e:g}.png", bench, e, [*counts, reference], seeds) for e in etas]
        for one in lines:
            if one["failed"]:
                terminal.warn(f"eta = {one['eta']:g}, S = {one['steps']}: {one['failed']} images failed.")
        tell(terminal, "consistency", about, lines, files, f"{samples} x_T · {len(lines)} lines")


def _sheet(file: Path, bench: "Consistency", eta: float, counts: Sequence[int], seeds: Sequence[int]) -> Path:
    """A row for each of the first x_T, a column for each S; what failed is left grey."""
    import torch

    from ..data.images import read_images, save_image, sheet

    shape = bench.model.picture
    tiles = []
    for seed in seeds[:SHOWN]:
        for count in counts:
            (item,) = bench.items(eta, count, [seed])
            there = bench.file(item)
            tiles.append(read_images(there, shape)[0] if there.is_file() else torch.full(shape, 0.5))
    about = f"rows: x_T; columns: S = {', '.join(map(str, counts))}; eta = {eta:g}"
    return save_image(sheet(torch.stack(tiles), columns=len(counts), scale=2 if shape[1] < 64 else 1), file, about)


def _formats(measures: dict[str, str]) -> dict[str, str]:
    each = {f"{name}{end}": form for name, form in measures.items() for end in ("", "_low", "_high")}
    return {"eta": "g", "steps": "d", **each, "images": "d", "same": "d", "failed": "d"}
