"""``ddim sample``: pictures from noise."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from ..errors import InputError
from . import options as o
from .files import PNG, protect, settings_text, slug, target, value_text
from .terminal import Terminal, escaped

_Count = Annotated[int, typer.Option("--count", "-n", help="How many pictures.")]
_Eta = Annotated[float, typer.Option("--eta", help="0 is DDIM, 1 is DDPM; of the solver ddim.", rich_help_panel=o.WORK)]
_Seed = Annotated[int, typer.Option("--seed", help="The k-th picture has seed + k.", rich_help_panel=o.WORK)]
_Clip = Annotated[
    float | None,
    typer.Option("--clip", help="Hold the predicted x0 to ±CLIP.", rich_help_panel=o.WORK, show_default=False),
]
_Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Dynamic thresholding at this percentile.", rich_help_panel=o.WORK, show_default=False
    ),
]


def sample(
    model: o.Model = "fashion",
    count: _Count = 16,
    steps: o.Steps = 50,
    eta: _Eta = 0.0,
    seed: _Seed = 0,
    solver: o.Solver = "ddim",
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    label: o.Labels = None,
    clip: _Clip = None,
    threshold: _Threshold = None,
    out: o.Out = None,
    each: o.Each = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    device: o.Device = None,
    dtype: o.DType = "float32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Draw pictures from noise.

    A seed gives the same picture in any batch, and the same x_T for every S and solver.
    """
    with Terminal(json, quiet) as terminal:
        if clip is not None and threshold is not None:
            raise InputError("--clip and --threshold exclude each other; give one.")
        options, walk = o.options_from(option), o.spacing_from(spacing)
        target(out, f"x{PNG}", PNG)  # a wrong name is better known before the work than after

        from .. import verbs
        from ..solvers import SOLVERS
        from ..solvers.base import options_of
        from .pictures import write_each, write_page
        from .work import about_model, open_model

        known = options_of(verbs.solver_with_eta(solver, eta, options))
        counted = open_model(terminal, model, device, dtype, label)
        with terminal.bar("sampling", count) as report:
            images = verbs.sample(
                counted.as_model,
                count,
                steps=steps,
                eta=eta,
                seed=seed,
                solver=solver,
                spacing=walk,
                options=options,
                labels=label,
                clip_x0=clip,
                threshold=threshold,
                batch=batch,
                progress=report,
            )
        grid = verbs.grid_for(counted.as_model, steps, walk)
        about = {
            "command": "sample",
            **about_model(counted),
            "solver": solver,
            "options": known,
            "steps": grid.steps,
            "spacing": walk if isinstance(walk, list) else grid.spacing,
            "labels": label,
            "clip": clip,
            "threshold": threshold,
            "dtype": dtype,
        }
        changed = {k: v for k, v in known.items() if k == "eta" or v != options_of(SOLVERS[solver]()).get(k)}

        def name(first: int, pictures: int | None = None) -> str:
            return f"{slug(model)}_{_name(about, changed, walk, first, pictures)}{PNG}"

        page = target(out, name(seed, count if count != 16 else None), PNG)
        beside = page.with_suffix("")
        singles = [beside / name(seed + k) for k in range(count)] if each else []
        protect([page, *singles], [])
        seeds = list(range(seed, seed + count))
        files = [write_page(images, page, {**about, "seeds": seeds}, columns=columns, scale=scale)]
        files += write_each(images[: len(singles)], singles, [{**about, "seeds": [s]} for s in seeds[: len(singles)]])
        nfe = counted.calls(count)
        terminal.result(
            {**about, "seeds": seeds, "count": count, "nfe": nfe, "files": [str(f) for f in files]},
            f"[bold]{escaped(page)}[/bold]" + (f"  and {count} files in {escaped(beside)}" if each else ""),
            f"[dim]{count} picture{'s' * (count > 1)} · {solver}, S = {grid.steps}"
            + "".join(f", {k} = {value_text(v)}" for k, v in known.items())
            + f" · seed {seed}{f'–{seeds[-1]}' if count > 1 else ''} · "
            f"{nfe:g} network calls a picture · {terminal.seconds:.1f} s[/dim]",
        )


def _name(
    about: Mapping[str, Any],
    changed: Mapping[str, Any],
    walk: str | Sequence[float] | None,
    seed: int,
    count: int | None,
) -> str:
    """``ddim_S50_eta0_seed0``, and whatever else is not as usual."""
    rest = {
        "label": "-".join(map(str, about["labels"])) if about["labels"] else None,
        "clip": about["clip"],
        "threshold": about["threshold"],
        "": about["dtype"] if about["dtype"] != "float32" else None,
        "seed": seed,
        "n": count,
    }
    return settings_text(about["solver"], about["steps"], changed, walk, rest)
