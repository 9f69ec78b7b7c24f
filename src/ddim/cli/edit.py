"""``ddim edit``: a real picture, and what other words make of it."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import options as o
from .files import PNG, is_code, protect, settings_text, slug, stem, target
from .terminal import Terminal, escaped

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing.edit import Edited

_ATTENTION = "Attention, where to change, and what"
_Source = Annotated[
    Path, typer.Argument(metavar="IMAGE|CODE", help="A picture, or what ddim invert wrote.", show_default=False)
]
_From = Annotated[
    str | None,
    typer.Option("--from", help="What the picture shows; a code knows its own.", show_default=False),
]
_To = Annotated[
    list[str] | None,
    typer.Option("--to", help="What it is to show; (word:2) weighs a word; repeatable.", show_default=False),
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model with text; by default emoji, or the one that made the code.",
        show_default=False,
    ),
]
_Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"{', '.join(o.METHODS)}; by default direct.",
        autocompletion=lambda: list(o.METHODS),
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]
_Steps = Annotated[
    int | None,
    typer.Option("--steps", "-S", help="S; by default 50.", rich_help_panel=o.WORK, show_default=False),
]
_Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "-w",
        help="w of classifier-free guidance; by default 7.5, or the code's own.",
        rich_help_panel=o.WORDS,
        show_default=False,
    ),
]
_Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        help="refine: what both prompts say keeps its place. replace: word for word. none: no control.",
        autocompletion=lambda: list(o.ATTENTIONS),
        rich_help_panel=_ATTENTION,
    ),
]
_Cross = Annotated[
    str | None,
    typer.Option(
        "--cross",
        metavar="END|BEGIN,END",
        help="Steps in which the words' maps follow the source's, as a part of all; by default 0,0.4.",
        rich_help_panel=_ATTENTION,
        show_default=False,
    ),
]
_Self = Annotated[
    str | None,
    typer.Option(
        "--self",
        metavar="END|BEGIN,END",
        help="The same of the picture's own maps; by default 0,0.6.",
        rich_help_panel=_ATTENTION,
        show_default=False,
    ),
]
_Blend = Annotated[
    list[str] | None,
    typer.Option(
        "--blend",
        metavar="WORD/WORD",
        help="Change only where these words of source/target lie; repeatable: one a --to, or one for all.",
        rich_help_panel=_ATTENTION,
        show_default=False,
    ),
]
_Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="WORD=FACTOR",
        help="How strongly a word of --to counts; 1 changes nothing; repeatable.",
        rich_help_panel=_ATTENTION,
        show_default=False,
    ),
]
_Mask = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="A picture of the same size: white may change, black stays.",
        rich_help_panel=_ATTENTION,
        show_default=False,
    ),
]


def edit(
    source: _Source,
    from_: _From = None,
    to: _To = None,
    model: _Model = None,
    attention: _Attention = "refine",
    cross: _Cross = None,
    self_: _Self = None,
    blend: _Blend = None,
    weight: _Weights = None,
    mask: _Mask = None,
    method: _Method = None,
    steps: _Steps = None,
    guidance: _Guidance = None,
    negative: o.Negative = "",
    back: o.Back = None,
    seed: o.Seed = 0,
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    device: o.Device = None,
    dtype: o.DType = "float32",
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Change a real picture with words.

    Writes a strip (source, reconstruction, one picture a --to) and beside it a JSON file with all that repeats it.

    Example: ddim edit face.png --from "noto smiling face" --to "noto smiling face with sunglasses"

    Example: ddim edit cat.png --from "a cat on a mat" --to "a tiger on a mat" --blend cat/tiger --method null-text
    """
    with Terminal(json, quiet) as terminal:
        if not to:
            raise InputError('There is no --to; say what the picture is to show, such as --to "noto cat face".')
        coded = is_code(source)
        if not coded and from_ is None:
            raise InputError('There is no --from; say what the picture shows, such as --from "noto dog face".')
        made = {"--method": method, "--steps": steps, "--spacing": spacing, "--option": option, "--back": back}
        if coded and (flags := [flag for flag, value in made.items() if value is not None]):
            raise InputError(f"{flags[0]} is for pictures; {source} was walked back already, so leave it out.")
        options, walk, factors = o.options_from(option), o.spacing_from(spacing), o.weights_from(weight)
        windows: dict[str, Any] = {
            key: o.range_from(text, flag)
            for key, text, flag in (("cross_steps", cross, "--cross"), ("self_steps", self_, "--self"))
            if text is not None
        }
        protect([target(out, f"x{PNG}", PNG)], [source, *([mask] if mask else [])])

        from ..code import LatentCode, write_whole
        from ..editing.control import AttentionEdit
        from ..editing.edit import edit as edit_pictures
        from ..errors import Interrupted
        from ..inversion import make_inversion
        from .pictures import write_each, write_page
        from .work import about_model, error_text, errors, keep_partial, open_for_code, open_model

        how = AttentionEdit(attention, **windows)
        inversion = make_inversion(method or "direct", options)
        code = LatentCode.load(source) if coded else None
        if code is not None:
            counted = open_for_code(terminal, model, code, device, dtype)
        else:
            counted = open_model(terminal, model or "emoji", device, dtype)
        with terminal.bar("editing", len(to)) as report:
            try:
                edited = edit_pictures(
                    counted.as_model,
                    code or source,
                    to,
                    source_prompt=from_,
                    method=inversion,
                    steps=50 if steps is None else steps,
                    guidance=guidance,
                    attention=how,
                    blend=_one_or_each(blend),
                    weights=factors or None,
                    mask=mask,
                    negative=negative,
                    back=back,
                    seed=seed,
                    spacing=walk,
                    resize=resize,
                    batch=batch,
                    progress=report,
                    tell=report.tell if report else None,
                )
            except Interrupted as stopped:
                kept = target(out, f"{stem(source)}_{method}.code", PNG)
                raise keep_partial(stopped, kept, f"ddim invert {source} with the same settings and") from None
        images, rows = _strip(edited), len(edited.edits)
        rest = {
            "w": None if guidance is None else float(guidance),
            "": None if attention == "refine" else attention,
            "cross": cross and cross.replace(",", "-"),
            "self": self_ and self_.replace(",", "-"),
            "blend-": "-".join(map(_slug, blend)) if blend else None,
            "weight-": "-".join(f"{_slug(word)}{v:g}" for word, v in factors.items()) or None,
            "mask-": stem(mask) if mask else None,
            "not-": _slug(negative) if negative else None,
            "seed": seed or None,
        }
        name = settings_text(edited.code.method, edited.code.grid.steps, options, walk, rest)
        page = target(out, f"{stem(source)}_to_{_told(to)}_{name}{PNG}", PNG)
        beside = page.with_suffix("")
        shown = [*(["source"] if edited.source is not None else []), "reconstruction", *map(_slug, to)]
        singles = [
            beside / f"{n:0{len(str(rows))}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(shown)
        ]
        about_file = page.with_suffix(".json")
        protect([page, about_file, *(singles if each else [])], [source, *([mask] if mask else [])])
        one = edited.code
        measured = errors(edited.source, edited.reconstruction) if edited.source is not None else []
        about: dict[str, Any] = {
            "command": "edit",
            **about_model(counted),
            "source": str(source),
            "from": list(one.prompts),
            "to": [list(row) for row in edited.prompts],
            "negative": one.negative,
            "guidance": {**one.guidance, **({} if guidance is None else {"weight": guidance})},
            "method": one.method,
            "solver": one.solver,
            "options": dict(one.settings),
            "steps": one.grid.steps,
            "spacing": walk if isinstance(walk, list) else one.grid.spacing,
            "seed": seed,
            "attention": {"kind": how.kind, "cross": list(how.cross_steps), "self": list(how.self_steps)},
            "blend": blend,
            "weights": factors,
            "mask": str(mask) if mask else None,
            "resize": resize,
            "dtype": dtype,
            "strip": shown,
            "nfe": counted.calls(rows),
            "reconstruction": measured,
        }
        files = [write_page(images, page, about, columns=len(shown), scale=scale)]
        if each:
            files += write_each(images, singles, [{**about, "shows": what} for _ in range(rows) for what in shown])
        files.append(about_file)
        whole = {**about, "files": [str(f) for f in files]}
        told = jsonlib.dumps({**whole, "seconds": round(terminal.seconds, 3)}, indent=2, default=str)
        write_whole(about_file, f"{told}\n".encode())
        terminal.result(
            whole,
            f"[bold]{escaped(page)}[/bold]" + (f"  and {len(singles)} files in {escaped(beside)}" if each else ""),
            *(f"reconstruction  [green]{error_text(e)}[/green]" for e in measured),
            f"[dim]{' · '.join(shown)} · {one.method}, S = {one.grid.steps} · "
            f"w = {about['guidance'].get('weight', 1):g} · {about['nfe']:g} network calls a picture · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


def _strip(edited: "Edited") -> "Tensor":
    """Every picture's row: source (where there is one), reconstruction, edits; [N * row, C, H, W]."""
    import torch

    first = [] if edited.source is None else [edited.source[:, None].to(edited.edits)]
    return torch.cat([*first, edited.reconstruction[:, None], edited.edits], dim=1).flatten(0, 1).cpu()


def _one_or_each(blend: Sequence[str] | None) -> Any:
    """One for all targets, or a list with one a target."""
    several = list(blend or [])
    return several[0] if len(several) == 1 else several or None


def _told(to: Sequence[str]) -> str:
    return _slug(to[0]) if len(to) == 1 else f"{len(to)}targets"


def _slug(words: str) -> str:
    """Words in a file's name: at most 40 letters."""
    return slug(words.replace("/", " "))[:40].rstrip("-")
