"""``ddim evaluate pie-bench``: the 700-picture benchmark of edits by words."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.choices import ATTENTIONS
from .._utils.errors import InputError, is_number
from . import options as o
from .evaluate import (
    Folder,
    Limit,
    Option,
    about_run,
    flags_of,
    setting_name,
    settings,
    tell,
    telling,
    usable_folder,
    ways_from,
)
from .files import slug, value_text
from .output import Terminal

if TYPE_CHECKING:
    from ..evaluation.plots import Point

_Data = Annotated[Path, typer.Option("--data", help="The folder with mapping_file.json and annotation_images.")]
_Methods = Annotated[
    list[str] | None, typer.Option("--method", help=f"{', '.join(o.METHODS)}; repeatable. By default direct.")
]
_Attentions = Annotated[
    list[str] | None, typer.Option("--attention", help=f"{', '.join(ATTENTIONS)}; repeatable. By default refine.")
]
_Categories = Annotated[
    list[str] | None,
    typer.Option("--categories", help="Only these of 0 to 9, such as 0,1,8; repeatable.", show_default=False),
]
_Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        help=f"{', '.join(o.METRICS)}; repeatable. By default all whose networks are to be had.",
        show_default=False,
    ),
]


def pie_bench(
    model: o.Model,
    data: _Data,
    method: _Methods = None,
    attention: _Attentions = None,
    option: Option = None,
    steps: Annotated[int, typer.Option("--steps", "-S", min=1, help="S, from 1 to the model's T.")] = 50,
    guidance: Annotated[float, typer.Option("--guidance", "-w", help="w of the way forward.")] = 7.5,
    limit: Limit = None,
    categories: _Categories = None,
    metrics: _Metrics = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Score as the published tables did, quirks and all.")
    ] = False,
    blend_weight: Annotated[
        float, typer.Option("--blend-weight", min=0, help="On the target's blend word; the published edits have 2.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of each edit; the published ones have 1234.")
    ] = 0,
    clip: Annotated[str, typer.Option("--clip", help="The CLIP: a folder or a hub id.")] = o.CLIP,
    dino: Annotated[str, typer.Option("--dino", help="The DINO ViT: a folder or a hub id.")] = o.DINO,
    out: Folder = Path("evaluation/pie-bench"),
    device: o.Device = None,
) -> None:
    """PIE-Bench: edits by words on 700 pictures, their backgrounds, structure and CLIP scores.

    ddim evaluate pie-bench --model stable-diffusion-v1-5/stable-diffusion-v1-5 --data PIE-Bench_v1
    """
    with Terminal() as terminal:
        from ..editing.plan import AttentionEdit
        from ..evaluation.pie_bench import fitted, read_entries
        from ..evaluation.pie_run import COLUMNS, PieBench, summary
        from ..evaluation.plots import line_plot
        from ..evaluation.scores import known_metrics, open_scorer
        from ..evaluation.store import open_rows, processes
        from ..evaluation.tables import write_table
        from ..models import device_and_dtype
        from .session import open_model

        among = processes()
        ways = ways_from(method or ["direct"], option)
        attentions = list(dict.fromkeys(attention or ["refine"]))
        where, _ = device_and_dtype(device, "float32")
        names, kinds = _parts("--metrics", metrics), _categories(categories)
        known_metrics(names or [])
        for kind in attentions:
            AttentionEdit(kind)
        if not is_number(blend_weight):
            raise InputError(f"{blend_weight} is not a number; the published edits have 2.", parameter="blend_weight")
        usable_folder(out, f"pie-bench-{slug(model)}")
        with terminal.status("reading the pictures"):
            entries = read_entries(data, kinds, limit)
        with terminal.status("loading what judges"):
            scorer = open_scorer(names, clip=clip, dino=dino, device=where, as_published=as_published)
        counted = open_model(terminal, model, device, "float32")
        for kind in attentions:  # what one cannot do with the prompts is said before another has begun
            entries = fitted(counted, entries, kind)
        bench = PieBench(counted, entries, scorer, lambda: counted.calls(1), blend_weight=blend_weight, seed=seed)
        several = settings(ways, attentions, guidance, steps)
        unusual = {"blend_weight": blend_weight if blend_weight != 1 else None, "seed": seed or None}
        with open_rows(out, COLUMNS, among) as rows:
            for setting in several:
                folder = out / setting_name(setting, counted.fingerprint[:12], unusual)
                with terminal.bar(setting.name, len(entries)) as report:

                    def run(items: Any, setting: Any = setting, folder: Path = folder) -> Any:
                        return [bench.run(setting, item, folder) for item in items]

                    rows.measure(bench.items(setting), 1, telling(terminal, setting.name, "key", run), report)
            rows.gather()
            if not rows.processes.main:
                return
            table = [
                {"method": setting.title, "attention": setting.attention, **line}
                for setting in several
                for line in summary(rows.of(bench.items(setting)), scorer.metrics)
            ]
            given = {"model": model, "data": data, "method": method, "attention": attention, "option": option}
            given |= {"steps": steps, "guidance": guidance, "limit": limit, "categories": categories}
            given |= {"metrics": metrics, "as_published": as_published, **unusual}
            given |= {flag: used for flag, used in scorer.names.items() if used}
            rest = {"entries": len(entries), "metrics": "as published" if as_published else _LOSSLESS}
            about = about_run("pie-bench", flags_of(**given), counted, rest)
            apart = "".join(f"_{k}{value_text(v)}" for k, v in unusual.items() if v is not None)
            name = f"pie-bench{'_as-published' if as_published else ''}{apart}-{slug(model)}"
            files = write_table(out, name, table, _formats(scorer), about)
            axes = "PSNR of the background, dB", "CLIP score of the whole edit"
            plot = line_plot(out / f"{name}.png", _points(table), *axes, log_x=False, title=f"PIE-Bench, {model}")
        files += [plot] if plot else []
        tell(terminal, "pie-bench", about, table, files, f"{len(entries)} pictures · {len(several)} settings")


_LOSSLESS = "over the background alone, without JPEG"


def _points(table: Sequence[Mapping[str, Any]]) -> "dict[str, list[Point]]":
    """A setting in the plot, over all entries; none without both metrics."""
    from ..evaluation.plots import Point

    whole = [row for row in table if row["category"] == "all"]
    found = {f"{row['method']} · {row['attention']}": (row.get("PSNR"), row.get("CLIP whole")) for row in whole}
    return {name: [Point(x, y)] for name, (x, y) in found.items() if x is not None and y is not None}


def _formats(scorer: Any) -> dict[str, str]:
    from ..evaluation.scores import METRICS

    titles = {METRICS[name].title: ".2f" for name in scorer.metrics}
    texts = dict.fromkeys(("method", "attention", "category"), "")
    return {**texts, "images": "d", "failed": "d", **titles, "seconds": ".2f"}


def _parts(flag: str, given: Sequence[str] | None) -> list[str] | None:
    """``["0,1", "8"]`` as ["0", "1", "8"]; None where the flag was not given. Raises InputError for an empty text."""
    if given is None:
        return None
    parts = [part for text in given for part in re.split(r"[,\s]+", text) if part]
    if not parts:
        raise InputError(f"{given[0]!r} names nothing; leave it out for all.", parameter=flag.removeprefix("--"))
    return parts


def _categories(given: Sequence[str] | None) -> list[int] | None:
    parts = _parts("--categories", given)
    if strange := next((part for part in parts or [] if not part.isdecimal()), None):
        raise InputError(f"{strange} is not a number; write for example --categories 0,1.", parameter="categories")
    return None if parts is None else [int(part) for part in parts]
