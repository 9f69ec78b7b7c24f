"""``ddim models`` and ``ddim methods``: the models, solvers, inversions, editors and spacings that can be chosen.

With a model, they also tell what works on it, and what does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from .options import Files
from .output import Terminal, escaped, stdout

if TYPE_CHECKING:
    from ..models.counted import Counted

_Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A bundled model, a folder or a hub id to describe.", show_default=False),
]
_Of = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A bundled model, a folder or a hub id: tell which of them work on it, and why the others do not.",
        show_default=False,
    ),
]
_STEPS = 50
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def models(name: _Name = None, files: Files = Files()) -> None:
    """List the bundled models, or describe one model."""
    with Terminal() as terminal:
        if name is not None:
            from .session import open_model

            facts = describe(open_model(terminal, name, labels=[], **files.loading), name)
            terminal.result({"command": "models", **facts})
            if not (terminal.as_json or terminal.quiet):
                _show("", [("", ""), ("", "")], [[k.replace("_", " "), _text(v)] for k, v in facts.items()], head=False)
                more = f"ddim methods --model {escaped(name)}[dim] says why something does not work.[/dim]"
                stdout().print(more, soft_wrap=True, highlight=False)
            return
        from ..models import bundled_models

        rows = [_listed(key, folder) for key, folder in bundled_models().items()]
        terminal.result({"command": "models", "models": rows})
        if not (terminal.as_json or terminal.quiet):
            heads = [("name", "bold"), ("pictures", ""), ("prompts", ""), ("prediction", ""), ("spacing", "")]
            heads.append(("licence", "dim"))
            _show("Bundled models", heads, [[_text(row[head]) for head, _ in heads] for row in rows])
            stdout().print(
                "[dim]Every --model also takes a folder in the diffusers format or a hub id (owner/name); "
                "[/dim]ddim models NAME[dim] describes one model.[/dim]",
                soft_wrap=True,
            )


def methods(model: _Of = None, files: Files = Files()) -> None:
    """List solvers, inversions, editors and spacings, with their options; or what works on one model."""
    with Terminal() as terminal:
        facts = registries()
        if model is not None:
            _show_what_works(terminal, model, facts, files)
            return
        terminal.result({"command": "methods", **facts})
        if terminal.as_json or terminal.quiet:
            return
        common = [("name", "bold"), ("order", ""), ("calls/step", ""), ("exact", ""), ("options", "")]
        amplification = ("amplification", "")
        _show(
            "Solvers (--solver)",
            [*common, ("noise", ""), amplification, ("paper", "dim")],
            [
                _row(s, "order", "nfe", "exact", "options", "stochastic", "amplification", "paper")
                for s in facts["solvers"]
            ],
        )
        _show(
            "Inversions (--method)",
            [*common, amplification, ("paper", "dim")],
            [_row(s, "order", "nfe", "exact", "options", "amplification", "paper") for s in facts["inversions"]],
        )
        _show(
            "Editors (--method of ddim edit)",
            [common[0], common[2], ("exact at itself", ""), ("noise", ""), ("codes", ""), common[4], ("paper", "dim")],
            [_row(s, "nfe", "self_edit", "draws", "inversion", "options", "paper") for s in facts["editors"]],
        )
        _show("Spacings (--spacing)", [common[0], ("what", "")], [_row(s, "what") for s in facts["spacings"]])
        stdout().print(
            "[dim]order: of the error in the step size; for an inversion, of the round trip. exact: the image is "
            "reconstructed to rounding, by algebra or by what the code stores. amplification: how much the inversion "
            f"enlarges a disturbance over S = {_STEPS} steps of DDPM's linear schedule; 1 is neutral. Of an editor, "
            "calls/step: the rows that it asks the network for, per target and without guidance; exact at itself: an "
            "edit to the source's own prompt returns the source; codes: the inversion that it starts from. Options are "
            "typed as [/dim]-o KEY=VALUE[dim] (eta as [/dim]--eta[dim]).[/dim]",
            soft_wrap=True,
        )


def _show_what_works(terminal: Terminal, name: str, facts: dict[str, list[dict[str, Any]]], files: Files) -> None:
    """Prints which methods and controls work on a model, and why the others do not."""
    from ..pipelines.capabilities import CONTROLS, capabilities
    from .session import open_model

    opened = open_model(terminal, name, labels=[], **files.loading)
    table = capabilities(opened)
    facts["controls"] = [{"name": control, "what": what} for control, (what, _) in CONTROLS.items()]
    for kind, reasons in table.items():
        for entry in facts[kind]:
            entry["works"], entry["why_not"] = reasons[entry["name"]] is None, reasons[entry["name"]]
    terminal.result({"command": "methods", "model": name, **facts})
    if terminal.as_json or terminal.quiet:
        return
    for entry in facts["editors"]:
        entry["usual"] = _usual(opened, entry["name"]) if entry["works"] else None
    titles = {
        "solvers": "Solvers (--solver)",
        "inversions": "Inversions (--method)",
        "editors": "Editors (--method of ddim edit)",
        "controls": "Controls",
    }
    for kind, title in titles.items():
        shown = {"controls": "what", "editors": "usual"}.get(kind, "options")
        heads = [("name", "bold"), ("works", ""), (shown, ""), ("why not", "")]
        rows = [_row(entry, "works", shown, "why_not") for entry in facts[kind]]
        _show(f"{title} on {name}", heads, [[*row[:3], "" if row[3] == "–" else row[3]] for row in rows])


def _usual(model: "Counted", name: str) -> dict[str, Any]:
    """The usual settings of an editor for a model, without those that the model does not take."""
    from dataclasses import asdict

    from ..editing.editors import EDITORS

    editor = EDITORS[name]()
    usual = {**asdict(editor.usual(model.info)), "steps": editor.usual_steps(model.info, None)}
    return {key: value for key, value in usual.items() if value is not None}


def registries() -> dict[str, list[dict[str, Any]]]:
    """The properties of every solver, inversion, editor and spacing, as plain values."""
    from ..core.contracts import options_of
    from ..core.grid import SPACINGS, make_grid
    from ..core.path import ddpm_linear
    from ..editing.editors import EDITORS
    from ..inversion import inversion_names, make_inversion
    from ..solvers import SOLVERS
    from ..solvers.lattice import ReversibleSolver

    grid = make_grid(ddpm_linear(), _STEPS)
    solvers, inversions = [], []
    for name, kind in SOLVERS.items():
        solver = kind()
        exact = isinstance(solver, ReversibleSolver)
        solvers.append(
            {
                "name": name,
                "order": solver.order,
                "nfe": solver.nfe,
                "exact": exact,
                "stochastic": "always"
                if solver.stochastic
                else ("with eta > 0" if "eta" in options_of(solver) else "never"),
                "options": options_of(solver),
                "amplification": _rounded(solver.amplification(grid)) if exact else None,
                "paper": solver.paper,
            }
        )
    for name in inversion_names():
        method = make_inversion(name)
        inversions.append(
            {
                "name": name,
                "order": method.order,
                "nfe": method.nfe,
                "exact": method.exact,
                "options": dict(method.options),
                "amplification": _rounded(method.amplification(grid)),
                "paper": method.paper,
            }
        )
    editors = []
    for name, kind in EDITORS.items():
        editor = kind()
        inversion = editor.inversion()
        editors.append(
            {
                "name": name,
                "nfe": editor.nfe,
                "self_edit": editor.self_edit,
                "draws": editor.draws,
                "inversion": None if inversion is None else inversion.name,
                "options": editor.options,
                "paper": editor.paper,
            }
        )
    spacings = [
        {"name": name, "what": " ".join((make.__doc__ or "").strip().split("\n\n")[0].split())}
        for name, make in SPACINGS.items()
    ]
    return {"solvers": solvers, "inversions": inversions, "editors": editors, "spacings": spacings}


def describe(model: "Counted", name: str) -> dict[str, Any]:
    """What ``Model.describe`` says of a model; its schedule, sizes and licence; and what works on it."""
    from ..models import bundled_models
    from ..pipelines.capabilities import capabilities

    source = bundled_models().get(name, Path(name))
    path = model.schedule.path
    first, last = path.node(path.t_max / path.levels), path.node(path.t_max)
    table = {"first": float(f"{first.alpha**2:.6g}"), "last": float(f"{last.alpha**2:.4g}")}
    facts = {
        **model.describe(),
        **({"sizes": _sizes(model)} if model.multiple else {}),
        "schedule": _schedule(source),
        "alpha_bar": None if model.schedule.prediction == "flow" else table,
        "works": {kind: _working(reasons) for kind, reasons in capabilities(model).items()},
        "licence": _licence(source),
    }
    return {k: v for k, v in facts.items() if v is not None}


def _sizes(model: "Counted") -> str:
    """Which sizes its images may have, width first."""
    _, height, width = model.picture
    most = f", at most {model.info.largest} pixels long" if model.info.largest else ""
    return f"{width}x{height} by default; sides that are multiples of {model.multiple}{most}"


def _working(reasons: Mapping[str, str | None]) -> str:
    """What works and what does not, in short."""
    no = [name for name, reason in reasons.items() if reason is not None]
    if not no:
        return "all"
    yes = [name for name, reason in reasons.items() if reason is None]
    return f"all but {', '.join(no)}" if len(no) < len(yes) else f"{', '.join(yes) or 'none'}, not {', '.join(no)}"


def _listed(name: str, folder: Path) -> dict[str, Any]:
    """A bundled model's row, read from its config files without loading it."""
    network = _json(folder / "unet/config.json") or _json(folder / "transformer/config.json")
    scheduler = _json(folder / "scheduler/scheduler_config.json")
    flow = str(scheduler.get("_class_name")).startswith("FlowMatch")  # its config says neither of the two
    vae, text = _json(folder / "vae/config.json"), _json(folder / "text_encoder/config.json")
    factor = 2 ** (len(vae.get("block_out_channels", [0])) - 1)
    size, channels = int(network.get("sample_size") or 0) * factor, vae.get("in_channels") or network.get("in_channels")
    return {
        "name": name,
        "pictures": f"{size}x{size} {'grey' if channels == 1 else 'colour'}",
        "prompts": bool(text),
        "prediction": "flow" if flow else _PREDICTIONS.get(scheduler.get("prediction_type", "epsilon"), "?"),
        "spacing": "linspace" if flow else scheduler.get("timestep_spacing", "leading"),
        "licence": _licence(folder),
    }


def _schedule(source: Path) -> dict[str, Any] | None:
    config = _json(source / "scheduler/scheduler_config.json")
    keys = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "rescale_betas_zero_snr")
    return {k: config[k] for k in keys if config.get(k)} or None


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of a model card; None where there is no card or no licence."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.partition(":")[2].strip() for line in lines[:40] if line.startswith("license:")), None)


def _json(file: Path) -> dict[str, Any]:
    """A config file as a dict; empty where it is missing or broken."""
    from .._utils.files import read_json

    try:
        return read_json(file)
    except InputError:
        return {}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _row(entry: Mapping[str, Any], *keys: str) -> list[str]:
    return [_text(entry["name"]), *(_text(entry[k]) for k in keys)]


def _text(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ") if value >= 10_000 else str(value)
    if isinstance(value, Mapping):
        between = "; " if any(", " in str(v) for v in value.values()) else ", "
        return between.join(f"{k} = {_text(v)}" for k, v in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value))
    return str(value)


def _show(title: str, heads: list[tuple[str, str]], rows: list[list[str]], head: bool = True) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=head,
        pad_edge=False,
    )
    for name, style in heads:
        table.add_column(name, style=style or None, no_wrap=name == "name", overflow="fold")
    for row in rows:
        table.add_row(*map(escaped, row))
    stdout().print(table)
