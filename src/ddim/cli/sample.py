"""``ddim sample``: images from noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from .._utils.names import protect, settings_text, value_text
from . import options as o
from .files import CODE, PNG, guidance_tags, model_slug, prompts_slug, target
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

_Count = Annotated[
    int | None,
    typer.Option("--count", "-n", help="Number of images; by default 16, or the number of prompts if there are more."),
]
_Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="In pixels, for a model that draws more than one size.",
        rich_help_panel=o.PROMPTS,
        show_default=False,
    ),
]
_Eta = Annotated[
    float,
    typer.Option("--eta", help="Noise of the solver ddim: 0 is DDIM, 1 is DDPM.", rich_help_panel=o.SAMPLING),
]
_Solver = Annotated[
    str | None,
    typer.Option(
        "--solver",
        help=f"{', '.join(o.SOLVERS)}; by default ddim, or the one of a distilled model (lcm, tcd).",
        autocompletion=lambda: list(o.SOLVERS),
        rich_help_panel=o.SAMPLING,
    ),
]
_Classifier = Annotated[
    Path | None,
    typer.Option(
        "--classifier",
        metavar="FOLDER",
        help="A classifier of noisy images that guides sampling to --label; ddim train makes one.",
        rich_help_panel=o.SAMPLING,
        show_default=False,
    ),
]
_ClassifierWeight = Annotated[
    float | None,
    typer.Option(
        "--classifier-weight",
        help="How strongly the classifier guides; 1, the default, is Bayes' rule.",
        rich_help_panel=o.SAMPLING,
        show_default=False,
    ),
]
_Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Let torch.compile translate the network first. It takes a minute, and seldom pays on a CPU.",
        rich_help_panel=o.SAMPLING,
    ),
]
_Code = Annotated[
    bool,
    typer.Option(
        "--code",
        help="Also write the latent code of the images, for ddim edit, interpolate and reconstruct.",
        rich_help_panel=o.FILES,
    ),
]
_MANY = 16


def sample(
    model: o.Model = "fashion",
    count: _Count = None,
    prompt: o.Prompts = None,
    guiding: o.Guiding = o.Guiding(),
    reference: o.Reference = None,
    size: _Size = None,
    solver: _Solver = None,
    run: o.Grid = o.Grid(),
    eta: _Eta = 0.0,
    label: o.Labels = None,
    classifier: _Classifier = None,
    classifier_weight: _ClassifierWeight = None,
    holding: o.Holding = o.Holding(),
    out: o.Out = None,
    each: o.Each = False,
    code: _Code = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    machine: o.GuidedMachine = o.GuidedMachine(),
    compile: _Compile = False,
) -> None:
    """Draw images from noise.

    A seed gives the same image in any batch, and the same x_T for every S and solver. A model with text draws its
    prompts at its usual guidance; without a prompt it draws the empty one.

    Example: ddim sample --model emoji --prompt "twemoji dog face" -n 8
    """
    with Terminal() as terminal:
        if classifier is None and classifier_weight is not None:
            raise InputError("it goes with --classifier FOLDER.", parameter="classifier_weight")
        holding.check()
        arguments = run.arguments
        pixels = o.size_from(size)
        usual_count = len(prompt) if prompt and len(prompt) > 1 else _MANY
        count = usual_count if count is None else count
        inputs = [reference] if reference else []
        protect([target(out, "x", PNG)], inputs)  # before the model is loaded, which takes longer

        from .. import load_classifier
        from ..core.contracts import options_of
        from ..pipelines.common import grid_for
        from ..pipelines.sample import sample as draw
        from ..pipelines.sample import seeded_code, solver_for, solver_with_eta
        from ..solvers import SOLVERS
        from .pictures import check_page, write_each, write_page
        from .session import (
            about_model,
            about_prompts,
            guidance_for,
            guidance_text,
            if_it_acts,
            open_model,
        )

        if solver is not None:  # before the model is loaded, which takes longer
            solver_with_eta(solver, eta, arguments.get("options"))
        counted = open_model(terminal, model, label, compile=compile, **machine.loading)
        options = options_of(solver_for(counted, solver, eta, arguments.get("options")))
        solver = counted.schedule.solver if solver is None else solver
        counted.reference = reference
        usual = counted.info.guidance
        guidance = guidance_for(counted, guiding, usual=usual, batched_cfg=machine.batched_cfg)
        if counted.text and prompt is None:
            terminal.warn("There is no --prompt, so the model draws the empty prompt: anything that it has learnt.")
        judge = None
        if classifier is not None:
            judge = load_classifier(classifier, device=machine.device, dtype=machine.dtype)
        check_page(count, pixels or counted.picture[1:], columns, scale)
        grid = grid_for(counted, run.steps, arguments.get("spacing"))
        led = 1.0 if classifier_weight is None else classifier_weight
        about = {
            "command": "sample",
            **about_model(counted, reference),
            "solver": solver,
            "options": options,
            "steps": grid.steps,
            "spacing": arguments.get("spacing", grid.spacing),
            "labels": label,
            **about_prompts(counted, prompt, guiding.negative, guidance),
            **({} if classifier is None else {"classifier": str(classifier), "classifier_weight": led}),
            **holding.about,
            **machine.about,
        }
        tags = {
            "label": "-".join(map(str, label)) if label else None,
            "led": None if classifier is None else f"{led:g}-by-{model_slug(str(classifier))}",
            **holding.tags,
            "size": size,
            **guidance_tags(guidance, usual, guiding.negative, reference, embedded=counted.info.embedded),
            **machine.tags,
        }
        changed = {k: v for k, v in options.items() if k == "eta" or v != options_of(SOLVERS[solver]()).get(k)}

        def name(seed: int, n: int | None = None) -> str:
            """Names a file after the model, the prompt, the settings and the seed; after n, where it is unusual."""
            settings = settings_text(
                solver, grid.steps, changed, arguments.get("spacing"), {**tags, "seed": seed, "n": n}
            )
            return "_".join(part for part in (model_slug(model), prompts_slug(prompt), settings) if part)

        seeds = list(range(run.seed, run.seed + count))
        page = target(out, name(run.seed, count if count != usual_count else None), PNG)
        beside = page.with_suffix("")
        singles = [target(beside, name(seed), PNG) for seed in seeds] if each else []
        coded = [page.with_suffix(CODE)] if code else []
        protect([page, *singles, *coded], inputs)
        prompts: list[str] = about.get("prompts", [])
        own = [{"prompts": [one]} for one in prompts] if len(prompts) > 1 else [{}] * count
        abouts = [{**about, **words, "seeds": [seed]} for seed, words in zip(seeds, own, strict=False)]

        def keep(first: int, part: "Tensor") -> None:
            which = slice(first, first + len(part))
            write_each(part, singles[which], abouts[which])

        settings: dict[str, Any] = {
            "eta": eta,
            "solver": solver,
            "labels": label,
            "prompt": prompt,
            "guidance": if_it_acts(counted, guidance),
            "size": pixels,
            **arguments,
            **guiding.arguments,
            **holding.arguments,
        }
        if coded:
            if judge is not None:
                raise InputError("a code cannot hold the classifier that guides; leave it out.", parameter="code")
            seeded_code(counted, count, **settings).save(coded[0])
        with terminal.bar("sampling", count) as report:
            images = draw(
                counted,
                count,
                classifier=judge,
                classifier_weight=classifier_weight,
                on_event=listening(report, keep if each else None),
                **settings,
                **machine.arguments,
            )
        files = [write_page(images, page, {**about, "seeds": seeds}, columns=columns, scale=scale), *singles, *coded]
        nfe = counted.calls(count)
        terminal.result(
            {**about, "seeds": seeds, "count": count, "nfe": nfe, "files": [str(f) for f in files]},
            f"[bold]{escaped(page)}[/bold]"
            + (f"  and {count} files in {escaped(beside)}" if each else "")
            + (f"  code: {escaped(coded[0])}" if coded else ""),
            f"[dim]{count} image{'s' * (count > 1)} · {solver}, S = {grid.steps}"
            + "".join(f", {k} = {value_text(v)}" for k, v in options.items())
            + f" · seed {run.seed}{f'–{seeds[-1]}' if count > 1 else ''} · {guidance_text(counted, guidance)}"
            f"{nfe:g} network calls per image · {terminal.seconds:.1f} s[/dim]",
        )
