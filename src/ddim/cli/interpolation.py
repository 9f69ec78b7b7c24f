"""``ddim evaluate interpolation``: paths between x_T."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from .evaluate import MANY, Folder, about_run, flags_of, tell, usable_folder, usable_seeds
from .files import slug
from .output import Terminal
from .table1 import Data, Features, Split

if TYPE_CHECKING:
    from ..evaluation.interpolation import Interpolation

SHOWN = 6
"""Paths of a sheet."""


def interpolation(
    model: o.Model = "fashion",
    way: Annotated[
        list[str] | None, typer.Option("--way", help="slerp, lerp, pixels; repeatable. By default all three.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Images of a path, ends included; odd.")] = 11,
    steps: o.Steps = 50,
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help=f"{', '.join(o.SPACINGS)}. By default the model's own.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, max=MANY, help="How many paths.")] = 200,
    features: Features = None,
    data: Data = None,
    split: Split = "test",
    seed: Annotated[int, typer.Option("--seed", help="The k-th path goes from seed + k to seed + k + 1.")] = 0,
    batch: o.Batch = 52,
    out: Folder = Path("evaluation/interpolation"),
    device: o.Device = None,
) -> None:
    """Paths between x_T: how even they are, how long, and whether their middles are images.

    Arcs, as in section 5.3 of Song et al. 2021, beside straight lines and beside the two images faded into each other.

    ddim evaluate interpolation --model fashion
    """
    with Terminal() as terminal:
        from .._utils.errors import UnknownName
        from .._utils.lock import only_process
        from ..data.images import sheet_size
        from ..evaluation import interpolation as i
        from ..evaluation.fitting import fitting_or_none, reference, reference_text
        from ..evaluation.frechet import title
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..pipelines.common import check_batch
        from .session import open_model

        ways = list(dict.fromkeys(way or i.WAYS))
        for one in ways:
            if one not in i.WAYS:
                raise UnknownName("way", one, i.WAYS)
        check_batch(batch)
        among = processes()
        usable_folder(out, f"interpolation-{slug(model)}")
        usable_seeds(seed, samples + 1)
        counted = open_model(terminal, model, device, "float32", labels=[])
        network = fitting_or_none(features, counted.picture, counted.device)
        seeds, chosen = range(seed, seed + samples), spacing or counted.schedule.spacing
        shown = seeds[:SHOWN]
        sheet_size(
            len(ways) * len(shown) * frames, counted.picture[1:], frames, scale=_scale(counted.picture), of="frames"
        )
        bench = i.Interpolation(counted, network, out / "pictures", steps, chosen, frames, shown)
        lines: list[dict[str, Any]] = []
        with (
            only_process(out, "writing results to", "--out") if among.main else nullcontext(),
            open_rows(out / "items" / f"{slug(model)}_{counted.fingerprint[:12]}", i.COLUMNS, among) as rows,
        ):
            judged = network is not None and samples > network.dim
            target, of = (None, {})
            if network is not None and judged and among.main:
                target, of = reference(network, data, split, out / "reference")
            for one in ways:
                items = bench.items(one, seeds)
                with terminal.bar(one, samples) as report:
                    bench.measure(rows, items, batch, report)
                rows.gather()
                if among.main:
                    lines.append(i.line(one, rows.of(items), target))
            if not among.main:
                return
            ends = i.distance([row["end"] for row in rows.of(bench.items(ways[0], seeds))], target)
            words = flags_of(model=model, way=way, frames=frames, steps=steps, spacing=spacing, samples=samples)
            words += flags_of(features=features, data=data, split=split if data else None, seed=seed)
            rest = {
                "paths": f"{samples} of {frames} frames, from seeds {seed} to {seed + samples - 1}, each to the next; "
                f"S = {steps}, {chosen}; means, of ppl the median; 95 % intervals",
                "features": "none that fit" if network is None else f"{network.name} {network.fingerprint[:12]}",
                "distance": f"{title(network.name)} to {reference_text(of)}, of {samples} images"
                if network is not None and judged
                else "none: it needs features, and more paths than these have numbers",
                "distance of the ends": None
                if ends["distance"] is None
                else f"{ends['distance']:.1f} [{ends['distance_low']:.1f}, {ends['distance_high']:.1f}]",
            }
            rest = {key: value for key, value in rest.items() if value is not None}
            about = about_run("interpolation", words, counted, rest)
            name = f"interpolation-{slug(model)}"
            files = write_table(out, name, lines, _formats(i.MEASURES), about, i.layout(lines))
            files.append(_sheet(out / f"{name}.png", bench, ways, shown))
        for one in lines:
            if one["failed"]:
                terminal.warn(f"{one['way']}: {one['failed']} paths failed.")
        tell(terminal, "interpolation", about, lines, files, f"{samples} paths · {len(ways)} ways")


def _sheet(file: Path, bench: "Interpolation", ways: Sequence[str], seeds: Sequence[int]) -> Path:
    """The paths of each seed one under the other; what failed is left grey."""
    import torch

    from ..data.images import read_images, save_image, sheet

    shape, tiles = bench.model.picture, []
    for seed in seeds:
        for way in ways:
            (item,) = bench.items(way, [seed])
            there = [bench.file(item, k) for k in range(bench.frames)]
            tiles += [read_images(f, shape)[0] if f.is_file() else torch.full(shape, 0.5) for f in there]
    about = f"rows: {', '.join(ways)} of each path"
    return save_image(sheet(torch.stack(tiles), columns=bench.frames, scale=_scale(shape)), file, about)


def _scale(picture: Sequence[int]) -> int:
    """Of the sheet."""
    return 2 if picture[1] < 64 else 1


def _formats(measures: dict[str, str]) -> dict[str, str]:
    means = {**measures, "distance": ".2f"}
    each = {f"{name}{end}": form for name, form in means.items() for end in ("", "_low", "_high")}
    return {"way": "", **each, "paths": "d", "failed": "d"}
