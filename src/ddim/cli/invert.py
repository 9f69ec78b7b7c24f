"""``ddim invert``: real images to latent codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .._utils.errors import InputError
from .._utils.names import protect, settings_text
from . import options as o
from .files import CODE, folder, guidance_tags, model_tag, pictures_slug, prompts_slug, resized, stem, target
from .groups import option
from .output import Terminal, escaped, listening

MODEL = "fashion"
_Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)]
_Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE.partial",
        help="Go on from the file that an interrupted run of the same command left.",
        rich_help_panel=o.FILES,
        show_default=False,
    ),
]
_Together = Annotated[
    bool, typer.Option("--together", help="Write all images into one code file.", rich_help_panel=o.FILES)
]
_Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="Reconstruct the images at once, and report how close they are.",
        rich_help_panel=o.SAMPLING,
    ),
]


@dataclass(frozen=True)
class Reaching(o.Strength):
    """How far an edit of the codes may go, and whether they keep what editors start from."""

    keep_trajectory: bool = option(
        False,
        "--keep-trajectory",
        "Store the samples at all steps in the code, from which some editors of ddim edit start.",
        o.SAMPLING,
        tag="trajectory",
    )


def invert(
    images: _Images,
    model: o.Model = MODEL,
    inverting: o.Inverting = o.Inverting(),
    reaching: Reaching = Reaching(),
    prompt: o.Prompts = None,
    guiding: o.InversionGuiding = o.InversionGuiding(),
    reference: o.Reference = None,
    label: o.Labels = None,
    holding: o.Holding = o.Holding(),
    check: _Check = True,
    keeping: o.Keeping = o.Keeping(),
    resize: o.Resize = False,
    out: o.Out = None,
    together: _Together = False,
    resume: _Resume = None,
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Invert real images to their latent codes.

    edict, bdia, belm, rex and reversible-heun return the image to the bit; ddim methods describes the others. For a
    model with text, say what the images show with --prompt, and at which --guidance they will be reconstructed (1 by
    default).

    Example: ddim invert face.png --model emoji --prompt "noto dog face" --method null-text --guidance 7.5
    """
    with Terminal() as terminal:
        holding.check()
        arguments = inverting.arguments
        one_file = together or len(images) == 1
        protect([target(out, "x", CODE) if one_file else folder(out, CODE) / "x"])

        from .._utils.errors import Interrupted
        from ..evaluation.metrics import errors
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode
        from ..inversion.partial import begun
        from ..pipelines.common import grid_for
        from ..pipelines.invert import EMBEDDED_IN_INVERSION
        from ..pipelines.invert import invert as invert_images
        from ..pipelines.pictures import read_pictures
        from ..pipelines.reconstruct import reconstruct
        from .repeat import repeat
        from .session import (
            about_model,
            about_prompts,
            error_text,
            guidance_for,
            if_it_acts,
            keep_partial,
            open_model,
            partial_beside,
        )

        method = inverting.method
        arguments["method"] = inversion = make_inversion(method, arguments.pop("options", None))
        counted = open_model(terminal, model, label, **machine.loading)
        counted.reference = reference
        guidance = guidance_for(counted, guiding, usual=1.0, batched_cfg=machine.batched_cfg)
        if counted.text and prompt is None:
            terminal.warn("There is no --prompt, so the images are inverted under the empty prompt.")
        grid = grid_for(counted, inverting.steps, arguments.get("spacing"))
        usual = make_inversion(method).options
        changed = {k: v for k, v in inversion.options.items() if v != usual.get(k)}
        tags = {
            **model_tag(model, MODEL),
            **guidance_tags(guidance, 1.0, guiding.negative, reference, embedded=EMBEDDED_IN_INVERSION),
            **guiding.tags,
            "label": "-".join(map(str, label)) if label else None,
            **inverting.tags,
            **reaching.tags,
            **holding.tags,
            **keeping.tags,
            **resized(resize),
            **machine.tags,
        }
        settings = settings_text(method, grid.steps, changed, arguments.get("spacing"), tags)
        files = _code_files(images, prompt, settings, out, one_file)
        protect(files, [*images, *(path for path in (resume, reference) if path)])
        crop = keeping.arguments.get("crop")
        pictures = read_pictures(counted, list(images), crop=crop, resize=resize, keep=keeping.keep_source)
        pixels = pictures.pixels
        kept = None if resume is None else LatentCode.load(resume)
        partial = partial_beside(files[0])
        if one_file and partial.exists() and (resume is None or not resume.exists() or not partial.samefile(resume)):
            raise InputError(
                f"{partial} holds what an interrupted run has done; go on from it by --resume, or remove it.",
                parameter="resume",
            )
        parts = list[LatentCode]()

        def keep(first: int, part: LatentCode, batch: int) -> None:
            """Writes what is done: each code as its batch ends, or the beginning of the one code of all images."""
            if not one_file:
                for k in range(len(part)):
                    part[k].save(files[first + k])
                return
            parts.append(part)
            resumed = kept is not None and first == 0  # the file that is resumed holds this and more
            if not resumed and first + len(part) < len(pixels):
                begun(parts, len(pixels), batch).save(partial)

        with terminal.bar("inverting", len(pixels)) as report:
            try:
                code = invert_images(
                    counted,
                    pictures,
                    labels=label,
                    prompt=prompt,
                    guidance=if_it_acts(counted, guidance),
                    resume=kept,
                    on_event=listening(report, keep),
                    **arguments,
                    **reaching.arguments,
                    **guiding.arguments,
                    **holding.arguments,
                    keep_source=keeping.keep_source,
                    **machine.arguments,
                )
            except Interrupted as stopped:
                raise keep_partial(stopped, partial, repeat(resume=None)) from None
        if one_file:
            code.save(files[0])
        for done in {partial, resume or partial}:  # the whole code holds all that they hold
            done.unlink(missing_ok=True)
        nfe = {"invert": counted.calls(len(code))}
        rows: list[dict[str, Any]] = [{"image": str(path)} for path in images]
        if check:
            with terminal.bar("reconstructing", len(pixels)) as report:
                again = reconstruct(
                    counted, code, batch=machine.batch, batched_cfg=machine.batched_cfg, on_event=listening(report)
                )
            nfe["reconstruct"] = counted.calls(len(code))
            rows = [row | error for row, error in zip(rows, errors(pixels, again), strict=True)]
        for k, row in enumerate(rows):
            row["file"] = str(files[0 if one_file else k])
            if code.sources:
                row["crop"] = list(code.crops[k])
        about = {
            "command": "invert",
            **about_model(counted, reference),
            "method": method,
            "options": dict(inversion.options),
            "steps": grid.steps,
            **reaching.about,
            "spacing": arguments.get("spacing", grid.spacing),
            "labels": label,
            **holding.about,
            **keeping.about,
            **about_prompts(counted, prompt, guiding.negative, guidance),
            **machine.about,
            "nfe": nfe,
            "images": rows,
            "files": [str(f) for f in files],
        }
        terminal.result(
            about,
            *([f"[bold]{escaped(files[0])}[/bold]"] if one_file else []),
            *(
                f"{escaped(row['image'] if one_file else row['file'])}"
                + (f"  [green]{error_text(row)}[/green]" if check else "")
                for row in rows
                if check or not one_file
            ),
            f"[dim]{len(code)} image{'s' * (len(code) > 1)} · {settings.replace('_', ' ')} · "
            f"{' + '.join(f'{v:g}' for v in nfe.values())} network calls per image · {terminal.seconds:.1f} s[/dim]",
        )


def _code_files(
    images: Sequence[Path], prompts: Sequence[str] | None, settings: str, out: Path | None, one_file: bool
) -> list[Path]:
    """The files to write: one for all images, or one for each, named after the image, its prompt and the settings."""
    if one_file:
        name = stem(images[0]) if len(images) == 1 else pictures_slug(images)
        parts = [part for part in (name, prompts_slug(prompts), settings) if part]
        return [target(out, "_".join(parts), CODE)]
    slugs = [prompts_slug([prompt]) for prompt in prompts or [""]]
    slugs = slugs * len(images) if len(slugs) == 1 else slugs  # ``invert`` refuses another number of prompts
    where = folder(out, CODE)
    named = zip(images, [*slugs, *[""] * len(images)], strict=False)
    return [
        target(where, "_".join(part for part in (stem(path), slug, settings) if part), CODE) for path, slug in named
    ]
