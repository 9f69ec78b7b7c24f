"""``ddim invert`` and ``ddim reconstruct``: real pictures to latent codes, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from . import options as o
from .files import CODE, PNG, folder, protect, settings_text, stem, target
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

    from ..inversion.latent_code import LatentCode
    from ..models.counted import Counted

_Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.", show_default=False)]
_Codes = Annotated[
    list[Path], typer.Argument(metavar="CODE...", help="Files that ddim invert wrote.", show_default=False)
]
_Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE.partial",
        help="Go on with what an interrupted run of the same command left.",
        rich_help_panel=o.FILES,
        show_default=False,
    ),
]
_Together = Annotated[bool, typer.Option("--together", help="All pictures in one code file.", rich_help_panel=o.FILES)]
_Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Come back at once, and say how near.", rich_help_panel=o.WORK)
]
_Originals = Annotated[
    list[Path] | None,
    typer.Option(
        "--original",
        help="What the code was made from: prints MSE and PSNR; repeatable, one a picture.",
        rich_help_panel=o.FILES,
        show_default=False,
    ),
]
_Sheet = Annotated[
    bool, typer.Option("--sheet", help="All pictures on one sheet instead of a file each.", rich_help_panel=o.FILES)
]


def invert(
    images: _Images,
    model: o.Model = "fashion",
    method: o.Method = "ddim",
    steps: o.Steps = 50,
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    prompt: o.Prompts = None,
    negative: o.Negative = None,
    guidance: o.GuidanceWeight = None,
    back: o.Back = None,
    rescale: o.Rescale = None,
    interval: o.Interval = None,
    seed: o.Seed = 0,
    label: o.Labels = None,
    clip: o.Clip = None,
    threshold: o.Threshold = None,
    check: _Check = True,
    resize: o.Resize = False,
    out: o.Out = None,
    together: _Together = False,
    resume: _Resume = None,
    batch: o.Batch = 64,
    one_by_one: o.OneByOne = False,
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Walk real pictures back to their latent codes.

    edict, bdia and belm come back exactly; ddim and heun nearly. A model with text takes what the pictures show with
    --prompt, and the --guidance under which they are to come back, by default 1.

    Example: ddim invert face.png --model emoji --prompt "noto dog face" --method null-text --guidance 7.5
    """
    with Terminal() as terminal:
        o.check_bounds(clip, threshold)
        options, walk = o.options_from(option), o.spacing_from(spacing)
        one_file = together or len(images) == 1
        protect([target(out, "x", CODE) if one_file else folder(out, CODE) / "x"])

        from .._utils.errors import Interrupted
        from ..core.prediction import Hold
        from ..data.images import read_images
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode
        from ..inversion.partial import KEY, begun
        from ..pipelines import common as walks
        from ..pipelines.invert import invert as invert_pictures
        from ..pipelines.reconstruct import reconstruct as come_back
        from .session import (
            about_model,
            about_words,
            error_text,
            errors,
            guidance_for,
            keep_partial,
            open_model,
            partial_beside,
            words_slug,
            words_text,
        )

        Hold(clip, threshold)  # which says what is wrong with them
        inversion = make_inversion(method, options)
        changed = {k: v for k, v in inversion.options.items() if v != make_inversion(method).options.get(k)}
        counted = open_model(terminal, model, device, dtype, label)
        guided = guidance_for(counted, guidance, rescale, interval, usual=1.0, negative=negative, one_by_one=one_by_one)
        if counted.text and prompt is None:
            terminal.warn("There is no --prompt, so the pictures are walked back under the empty one.")
        grid = walks.grid_for(counted, steps, walk)
        rest = {
            **words_text(guided, 1.0, negative),
            "back": None if back is None else float(back),
            "label": "-".join(map(str, label)) if label else None,
            "seed": seed or None,
            "clip": clip,
            "threshold": threshold,
            "": dtype if dtype != "float32" else None,
        }
        text = settings_text(method, grid.steps, changed, walk, rest)
        if one_file:
            name = stem(images[0]) if len(images) == 1 else f"{len(images)}pictures"
            shown = words_slug(prompt)
            files = [target(out, f"{name}_{f'{shown}_' * bool(shown)}{text}", CODE)]
        else:
            each = [words_slug([p]) for p in prompt or [""]]
            each = each * len(images) if len(each) == 1 else each  # the verb tells of a wrong number
            shown = [f"{words}_" * bool(words) for words in [*each, *[""] * len(images)][: len(images)]]
            where = folder(out, CODE)
            files = [target(where, f"{stem(path)}_{w}{text}", CODE) for path, w in zip(images, shown, strict=True)]
        protect(files, [*images, *([resume] if resume else [])])
        pixels = read_images(list(images), counted.picture, resize=resize, multiple=counted.multiple)
        kept = None if resume is None else LatentCode.load(resume)
        partial, parts = partial_beside(files[0]), list[LatentCode]()
        if one_file and partial.exists() and (resume is None or not resume.exists() or not partial.samefile(resume)):
            raise InputError(
                f"{partial} holds what an interrupted run had done; go on with it by --resume, or remove it.",
                parameter="resume",
            )

        def keep(first: int, part: LatentCode) -> None:
            if not one_file:
                for k in range(len(part)):
                    part[k].save(files[first + k])
                return
            parts.append(part)
            resumed = kept is not None and first == 0  # what the file that is gone on with holds already, and more
            if not resumed and first + len(part) < len(pixels):
                begun(parts, len(pixels), kept.settings[KEY]["batch"] if kept else batch).save(partial)

        with terminal.bar("inverting", len(pixels)) as report:
            try:
                code = invert_pictures(
                    counted,
                    pixels,
                    steps=steps,
                    method=inversion,
                    spacing=walk,
                    labels=label,
                    prompt=prompt,
                    negative=negative,
                    guidance=guided if walks.conditioned(counted) else None,
                    clip_x0=clip,
                    threshold=threshold,
                    inversion_guidance=back,
                    seed=seed,
                    batch=batch,
                    resume=kept,
                    on_event=listening(report, keep),
                )
            except Interrupted as stopped:
                raise keep_partial(stopped, partial, "the same command with") from None
        if one_file:
            code.save(files[0])
        for done in {partial, resume or partial}:  # all that it holds lies in the whole code
            done.unlink(missing_ok=True)
        nfe = {"invert": counted.calls(len(code))}
        measured: list[dict[str, Any]] = [{"image": str(path)} for path in images]
        if check:
            with terminal.bar("coming back", len(pixels)) as report:
                again = come_back(counted, code, batch=batch, batched_cfg=not one_by_one, on_event=listening(report))
            nfe["reconstruct"] = counted.calls(len(code))
            measured = [m | e for m, e in zip(measured, errors(pixels, again), strict=True)]
        for k, entry in enumerate(measured):
            entry["file"] = str(files[0 if one_file else k])
        terminal.result(
            {
                "command": "invert",
                **about_model(counted),
                "method": method,
                "options": dict(inversion.options),
                "steps": grid.steps,
                "spacing": walk if isinstance(walk, list) else grid.spacing,
                "labels": label,
                "clip": clip,
                "threshold": threshold,
                **about_words(counted, prompt, negative, guided),
                "dtype": dtype,
                "nfe": nfe,
                "images": measured,
                "files": [str(f) for f in files],
            },
            *([f"[bold]{escaped(files[0])}[/bold]"] if one_file else []),
            *(
                f"{escaped(e['image'] if one_file else e['file'])}"
                + (f"  [green]{error_text(e)}[/green]" if check else "")
                for e in measured
                if check or not one_file
            ),
            f"[dim]{len(code)} picture{'s' * (len(code) > 1)} · {text.replace('_', ' ')} · "
            f"{' + '.join(f'{v:g}' for v in nfe.values())} network calls a picture · {terminal.seconds:.1f} s[/dim]",
        )


def reconstruct(
    codes: _Codes,
    model: o.CodeModel = None,
    original: _Originals = None,
    resize: o.Resize = False,
    out: o.Out = None,
    sheet: _Sheet = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    one_by_one: o.OneByOne = False,
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Come forward from latent codes to pictures.

    Solver, grid and settings are those that the code was made with.
    """
    with Terminal() as terminal:
        protect([target(out, "x", PNG)])

        import torch

        from ..data.images import read_images
        from ..inversion.latent_code import LatentCode
        from ..pipelines import common as walks
        from ..pipelines.reconstruct import reconstruct as come_back
        from .pictures import check_page, write_each, write_page
        from .session import about_model, error_text, errors, open_for_code

        loaded = [LatentCode.load(path) for path in codes]
        total = sum(map(len, loaded))
        originals = list(original or [])
        if originals and len(originals) != total:
            raise InputError(
                f"{len(originals)} were given for {total} pictures; give one for each, in their order.",
                parameter="original",
            )
        names = [n for path, code in zip(codes, loaded, strict=True) for n in _names(path, len(code))]
        if sheet or total == 1:
            name = names[0] if total == 1 else f"{stem(codes[0])}{f'_and_{len(codes) - 1}' * (len(codes) > 1)}_recon"
            files = [target(out, name, PNG)]
        else:
            files = [target(folder(out, PNG), name, PNG) for name in names]
        protect(files, [*codes, *originals])
        opened: dict[str, Counted] = {}
        shapes: list[Sequence[int]] = []
        for code in loaded:
            wanted = model or code.model
            if wanted not in opened:
                opened[wanted] = open_for_code(terminal, model, code, device, dtype)
            walks.solver_of(opened[wanted], code)
            shapes += [walks.picture_shape(opened[wanted], code)] * len(code)
        if len(files) == 1 and len(set(shapes)) > 1:
            raise InputError(
                "the codes hold pictures of different sizes; without --sheet each gets its own file.", parameter="sheet"
            )
        if len(files) == 1:
            check_page(total, shapes[0][1:], columns, scale, of="codes")
        truths = [read_images(path, shape, resize=resize) for path, shape in zip(originals, shapes, strict=False)]
        images: list[torch.Tensor] = []
        measured: list[dict[str, Any]] = []
        first: dict[str, Any] = {}
        for path, code in zip(codes, loaded, strict=True):
            counted = opened[model or code.model]
            about = {"command": "reconstruct", **about_model(counted), **_about(path, code)}

            def keep(begin: int, part: "Tensor", about: dict[str, Any] = about, counted: "Counted" = counted) -> None:
                nfe = counted.calls(len(part))
                first.update(first or {**about, "nfe": nfe})
                if len(files) > 1:
                    which = slice(len(images), len(images) + len(part))
                    write_each(part, files[which], [{**about, "nfe": nfe}] * len(part))
                measured.extend([{"code": str(about["code"]), "nfe": nfe}] * len(part))
                images.extend(part)

            with terminal.bar(f"coming back {stem(path)}", len(code)) as report:
                come_back(counted, code, batch=batch, batched_cfg=not one_by_one, on_event=listening(report, keep))
        if len(files) == 1:
            about = first | ({} if total == 1 else {"code": [str(c) for c in codes]})
            write_page(torch.stack(images), files[0], about, columns=columns, scale=scale)
        for k, truth in enumerate(truths):
            measured[k] = {**measured[k], "original": str(originals[k]), **errors(truth, images[k][None])[0]}
        measured = [{**one, "file": str(files[0 if len(files) == 1 else k])} for k, one in enumerate(measured)]
        terminal.result(
            {"command": "reconstruct", "dtype": dtype, "images": measured, "files": [str(f) for f in files]},
            *(
                f"[bold]{escaped(f)}[/bold]"
                + (f"  [green]{error_text(measured[k])}[/green]" if originals and len(files) == total else "")
                for k, f in enumerate(files)
            ),
            *(
                f"{escaped(m['original'])}  [green]{error_text(m)}[/green]"
                for m in measured
                if originals and len(files) < total
            ),
            f"[dim]{total} picture{'s' * (total > 1)} · {first['solver']}, S = {first['steps']} · "
            f"{first['nfe']:g} network calls a picture · {terminal.seconds:.1f} s[/dim]",
        )


def _names(path: Path, count: int) -> list[str]:
    """``shirt_bdia_S50_recon``, numbered where a code holds several pictures."""
    if count == 1:
        return [f"{stem(path)}_recon"]
    digits = len(str(count - 1))
    return [f"{stem(path)}_recon_{k:0{digits}d}" for k in range(count)]


def _about(path: Path, code: "LatentCode") -> dict[str, Any]:
    return {
        "code": str(path),
        "method": code.method,
        "solver": code.solver,
        "options": dict(code.options),
        "settings": dict(code.settings),
        "steps": code.grid.steps,
        "spacing": code.grid.spacing,
        **({"prompts": list(code.prompts), "negative": code.negative} if code.prompts else {}),
        **({"guidance": dict(code.guidance)} if code.guidance else {}),
    }
