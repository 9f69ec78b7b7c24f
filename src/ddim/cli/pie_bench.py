"""``ddim evaluate pie-bench``: the 700-picture benchmark of edits by words."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from . import options as o
from .evaluate import Folder, Limit, Option, setting_flags, setting_name
from .terminal import Terminal, escaped

_Data = Annotated[Path, typer.Option("--data", help="The folder with mapping_file.json and annotation_images.")]
_Methods = Annotated[
    list[str] | None, typer.Option("--method", help=f"{', '.join(o.METHODS)}; repeatable. By default direct.")
]
_Attentions = Annotated[
    list[str] | None, typer.Option("--attention", help=f"{', '.join(o.ATTENTIONS)}; repeatable. By default refine.")
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
    clip: Annotated[str, typer.Option("--clip", help="The CLIP: a folder or a hub id.")] = o.CLIP,
    dino: Annotated[str, typer.Option("--dino", help="The DINO ViT: a folder or a hub id.")] = o.DINO,
    out: Folder = Path("evaluation/pie-bench"),
    device: o.Device = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """PIE-Bench: edits by words on 700 pictures, their backgrounds, structure and CLIP scores.

    ddim evaluate pie-bench --model stable-diffusion-v1-5/stable-diffusion-v1-5 --data PIE-Bench_v1
    """
    with Terminal(json, quiet) as terminal:
        from ..evaluation.edits import Setting
        from ..evaluation.pie_bench import fitted, read_entries
        from ..evaluation.pie_run import ROW, PieBench
        from ..evaluation.scores import open_scorer
        from ..evaluation.tables import Rows, write_table
        from ..inversion import make_inversion
        from ..models import where_and_what
        from .work import about_model, open_model

        methods, attentions = (list(dict.fromkeys(given)) for given in (method or ["direct"], attention or ["refine"]))
        options = o.options_from(option)
        if options and len(methods) != 1:
            raise InputError(f"--option belongs to one method, and {len(methods)} are measured; give one --method.")
        for name in methods:
            make_inversion(name, options)  # says what is unknown before any work
        rows = Rows(out / "rows.csv", ROW)
        where, _ = where_and_what(device, "float32")
        with terminal.status("reading the pictures"):
            entries = read_entries(data, _categories(categories), limit)
        with terminal.status("loading what judges"):
            names = _parts(metrics) or None
            scorer = open_scorer(names, clip=clip, dino=dino, device=where, as_published=as_published)
        counted = open_model(terminal, model, device, "float32")
        for kind in attentions:  # what one cannot do with the prompts is said before another has begun
            entries = fitted(counted.as_model, entries, kind)
        bench = PieBench(counted.as_model, entries, scorer, lambda: counted.calls(1))
        given = tuple(options.items())
        settings = [Setting(f"{n} · {k}", n, k, guidance, steps, given) for n in methods for k in attentions]
        for setting in settings:
            _run(terminal, bench, setting, rows, out / setting_name(setting, counted.fingerprint[:12]))
        table = [row for setting in settings for row in _table(bench, setting, rows)]
        flags = ["--model", model, "--data", data, *setting_flags(method, attention, option, steps, guidance)]
        flags += [] if limit is None else ["--limit", limit]
        flags += [x for c in categories or [] for x in ("--categories", c)]
        flags += [x for m in metrics or [] for x in ("--metrics", m)]
        flags += ["--as-published"] if as_published else []
        flags += [x for flag, used in scorer.names.items() if used for x in (f"--{flag}", used)]
        about = {
            "command": shlex.join(["ddim", "evaluate", "pie-bench", *map(str, flags)]),
            **about_model(counted),
            "entries": len(entries),
            "metrics": "as published" if as_published else "over the background alone, without JPEG",
        }
        files = write_table(out, f"pie-bench{'_as-published' if as_published else ''}", table, _formats(scorer), about)
        terminal.result(
            {"command": "evaluate pie-bench", **about, "rows": table, "files": [str(f) for f in files]},
            f"[bold]{escaped(files[0])}[/bold]",
            f"[dim]{len(entries)} pictures · {len(settings)} settings · {terminal.seconds:.0f} s[/dim]",
        )


def _run(terminal: Terminal, bench: Any, setting: Any, rows: Any, folder: Path) -> None:
    """Measures what a setting still lacks, a row at a time."""
    total = len(bench.entries)
    with terminal.bar(setting.name, total) as report:
        count = len(bench.of(setting, rows.rows))
        for row, error in bench.run(setting, rows.rows, folder):
            if error is not None:
                terminal.warn(f"{setting.name}: {row['key']}: {error}")
            rows.add([row])
            count += 1
            if report is not None:
                report(count, total)


def _table(bench: Any, setting: Any, rows: Any) -> list[dict[str, Any]]:
    """A setting's part of the table: by category, and over all."""
    from ..evaluation.pie_run import summary

    own = {"method": setting.title, "attention": setting.attention}
    return [{**own, **row} for row in summary(bench.of(setting, rows.rows), bench.scorer.metrics)]


def _formats(scorer: Any) -> dict[str, str]:
    from ..evaluation.scores import METRICS

    titles = {METRICS[name].title: ".2f" for name in scorer.metrics}
    texts = dict.fromkeys(("method", "attention", "category"), "")
    return {**texts, "images": "d", "failed": "d", **titles, "seconds": ".2f"}


def _parts(given: Sequence[str] | None) -> list[str]:
    """``["0,1", "8"]`` as ["0", "1", "8"]."""
    return [part for text in given or [] for part in re.split(r"[,\s]+", text) if part]


def _categories(given: Sequence[str] | None) -> list[int] | None:
    parts = _parts(given)
    if strange := next((part for part in parts if not part.isdecimal()), None):
        raise InputError(f"--categories {strange} is not a number; write for example --categories 0,1.")
    return [int(part) for part in parts] or None
