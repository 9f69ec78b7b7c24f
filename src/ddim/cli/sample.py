"""``ddim sample``: pictures from noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .files import PNG, protect, settings_text, slug, target, value_text
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

_Count = Annotated[
    int | None, typer.Option("--count", "-n", help="How many pictures; by default 16, or one a --prompt of several.")
]
_Eta = Annotated[float, typer.Option("--eta", help="0 is DDIM, 1 is DDPM; of the solver ddim.", rich_help_panel=o.WORK)]
_MANY = 16
_Classifier = Annotated[
    Path | None,
    typer.Option(
        "--classifier",
        metavar="FOLDER",
        help="A classifier of noisy pictures that leads to --label; ddim train makes one.",
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]
_Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Have torch.compile translate the network first: takes a minute; it seldom pays on a CPU.",
        rich_help_panel=o.WORK,
    ),
]
_ClassifierWeight = Annotated[
    float | None,
    typer.Option(
        "--classifier-weight",
        help="How strongly it leads; 1, the default, is Bayes' rule.",
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]


def sample(
    model: o.Model = "fashion",
    count: _Count = None,
    prompt: o.Prompts = None,
    negative: o.Negative = None,
    guidance: o.GuidanceWeight = None,
    rescale: o.Rescale = None,
    interval: o.Interval = None,
    size: o.Size = None,
    steps: o.Steps = 50,
    eta: _Eta = 0.0,
    seed: o.Seed = 0,
    solver: o.Solver = "ddim",
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    label: o.Labels = None,
    classifier: _Classifier = None,
    classifier_weight: _ClassifierWeight = None,
    clip: o.Clip = None,
    threshold: o.Threshold = None,
    out: o.Out = None,
    each: o.Each = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    one_by_one: o.OneByOne = False,
    device: o.Device = None,
    dtype: o.DType = "float32",
    compile: _Compile = False,
) -> None:
    """Draw pictures from noise.

    A seed gives the same picture in any batch, and the same x_T for every S and solver. A model with text draws its
    prompts, guided by w = 7.5; without a prompt it draws the empty one.

    Example: ddim sample --model emoji --prompt "twemoji dog face" -n 8
    """
    with Terminal() as terminal:
        if classifier is None and classifier_weight is not None:
            raise InputError("it goes with --classifier FOLDER.", parameter="classifier_weight")
        led = 1.0 if classifier_weight is None else classifier_weight
        o.check_bounds(clip, threshold)
        options, walk = o.options_from(option), o.spacing_from(spacing)
        pixels = o.size_from(size)
        several = len(prompt) if prompt and len(prompt) > 1 else 0
        usual_count = several or _MANY
        count = usual_count if count is None else count
        protect([target(out, "x", PNG)])  # what is wrong there is better known before the model is loaded

        from .. import load_classifier
        from ..core.contracts import options_of
        from ..core.prediction import Hold
        from ..pipelines import common as walks
        from ..pipelines.sample import sample as draw
        from ..pipelines.sample import solver_with_eta
        from ..solvers import SOLVERS
        from .pictures import check_page, write_each, write_page
        from .session import about_model, about_words, guidance_for, open_model, words_slug, words_text

        Hold(clip, threshold)  # which says what is wrong with them
        known = options_of(solver_with_eta(solver, eta, options))
        counted = open_model(terminal, model, device, dtype, label, compile=compile)
        guided = guidance_for(
            counted, guidance, rescale, interval, usual=counted.info.guidance, negative=negative, one_by_one=one_by_one
        )
        if counted.text and prompt is None:
            terminal.warn("There is no --prompt, so the model draws the empty one: anything it has learnt.")
        leader = None if classifier is None else load_classifier(classifier, device=device, dtype=dtype)
        check_page(count, pixels or counted.picture[1:], columns, scale)
        grid = walks.grid_for(counted, steps, walk)
        about = {
            "command": "sample",
            **about_model(counted),
            "solver": solver,
            "options": known,
            "steps": grid.steps,
            "spacing": walk if isinstance(walk, list) else grid.spacing,
            "labels": label,
            **about_words(counted, prompt, negative, guided),
            **({} if classifier is None else {"classifier": str(classifier), "classifier_weight": led}),
            "clip": clip,
            "threshold": threshold,
            "dtype": dtype,
        }
        words = {"size": size, **words_text(guided, counted.info.guidance, negative)}
        whose = "_".join(part for part in (slug(model), words_slug(prompt)) if part)
        changed = {k: v for k, v in known.items() if k == "eta" or v != options_of(SOLVERS[solver]()).get(k)}

        def name(first: int, pictures: int | None = None) -> str:
            return f"{whose}_{_name(about, changed, walk, first, pictures, words)}"

        page = target(out, name(seed, count if count != usual_count else None), PNG)
        beside = page.with_suffix("")
        singles = [target(beside, name(seed + k), PNG) for k in range(count)] if each else []
        protect([page, *singles])
        seeds = list(range(seed, seed + count))
        alone = [{**_alone(about, k), "seeds": [s]} for k, s in enumerate(seeds)] if each else []

        def keep(first: int, part: "Tensor") -> None:
            which = slice(first, first + len(part))
            write_each(part, singles[which], alone[which])

        with terminal.bar("sampling", count) as report:
            images = draw(
                counted,
                count,
                steps=steps,
                eta=eta,
                seed=seed,
                solver=solver,
                spacing=walk,
                options=options,
                labels=label,
                prompt=prompt,
                negative=negative,
                guidance=guided if walks.conditioned(counted) else None,
                size=pixels,
                classifier=leader,
                classifier_weight=classifier_weight,
                clip_x0=clip,
                threshold=threshold,
                batch=batch,
                on_event=listening(report, keep if each else None),
            )
        files = [write_page(images, page, {**about, "seeds": seeds}, columns=columns, scale=scale), *singles]
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
    words: Mapping[str, Any],
) -> str:
    """``ddim_S50_eta0_seed0``, and whatever else is not as usual."""
    rest = {
        "label": "-".join(map(str, about["labels"])) if about["labels"] else None,
        "led": about.get("classifier_weight"),
        "clip": about["clip"],
        "threshold": about["threshold"],
        **words,
        "": about["dtype"] if about["dtype"] != "float32" else None,
        "seed": seed,
        "n": count,
    }
    return settings_text(about["solver"], about["steps"], changed, walk, rest)


def _alone(about: Mapping[str, Any], k: int) -> dict[str, Any]:
    """What the k-th picture's own file says: of several prompts, its own."""
    prompts = about.get("prompts", [])
    return {**about, **({"prompts": [prompts[k]]} if len(prompts) > 1 else {})}
