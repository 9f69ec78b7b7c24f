"""``ddim interpolate``: images between real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .._utils.choices import THROUGH
from .._utils.errors import InputError
from .._utils.names import protect, settings_text, short_hash
from . import options as o
from .files import PNG, guidance_tags, is_code, model_tag, prompts_slug, resized, stem, target
from .groups import tags_of
from .output import Terminal, escaped, listening

_Ends = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE|CODE...", help="Two or more images or saved codes.", show_default=False),
]
_Frames = Annotated[
    int,
    typer.Option(
        "--frames", help="The number of images from one end to the next, including both.", rich_help_panel=o.SAMPLING
    ),
]
_Corners = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="ROWSxCOLUMNS",
        help="A grid between four corners instead: top left, top right, bottom left, bottom right.",
        rich_help_panel=o.SAMPLING,
        show_default=False,
    ),
]
_Through = Annotated[
    str,
    typer.Option(
        "--through",
        help="ddim: along arcs between plain DDIM latents, with the codes' own images at the ends. "
        "state: along arcs between the codes as they are.",
        autocompletion=lambda: list(THROUGH),
        rich_help_panel=o.SAMPLING,
    ),
]
MODEL = "fashion"


def interpolate(
    ends: _Ends,
    model: o.CodeModel = None,
    frames: _Frames = 11,
    grid: _Corners = None,
    inverting: o.Inverting = o.Inverting(method="bdia"),
    through: _Through = "ddim",
    prompt: o.Prompts = None,
    guiding: o.InversionGuiding = o.InversionGuiding(),
    reference: o.Reference = None,
    label: o.Labels = None,
    holding: o.Holding = o.Holding(),
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    machine: o.Machine = o.Machine(),
) -> None:
    """Interpolate between images along the arcs between their latent codes.

    Images are inverted by --method first; saved codes are taken as they are. All codes must have one prompt, or one
    class.

    Example: ddim interpolate shirt.png coat.png --frames 11
    """
    with Terminal() as terminal:
        for name, values in (("prompt", prompt), ("label", label)):
            if values and len(set(values)) > 1:
                raise InputError(f"{len(values)} different ones; all images need the same.", parameter=name)
        words = prompt[0] if prompt else None
        if all(is_code(path) for path in ends):
            o.refuse_for_codes("prompt", "label", *o.GUIDING)
        holding.check()
        arguments, corners = inverting.arguments, o.grid_from(grid) if grid else None
        spacing = arguments.get("spacing")
        inputs = [*ends, *([reference] if reference else [])]
        protect([target(out, "x", PNG)], inputs)

        import torch

        from ..core.slerp import check_corners, check_frames
        from ..data.images import read_images
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode
        from ..pipelines import common
        from ..pipelines import interpolate as between
        from ..pipelines.batches import empty_code
        from ..pipelines.invert import EMBEDDED_IN_INVERSION, invert
        from .pictures import check_page, write_each, write_page
        from .session import about_model, guidance_for, if_it_acts, open_for_code, open_model

        check_corners(*corners) if corners else check_frames(frames)
        between.check_through(through)
        arguments["method"] = inversion = make_inversion(inverting.method, arguments.pop("options", None))
        saved = {path: LatentCode.load(path) for path in ends if is_code(path)}
        if saved and (label is None or len(saved) == len(ends)):
            counted = open_for_code(terminal, model, next(iter(saved.values())), **machine.loading)
        else:
            counted = open_model(terminal, model or MODEL, label, **machine.loading)
        counted.reference = reference
        guidance = guidance_for(counted, guiding, usual=1.0)
        shape, multiple = counted.picture, counted.multiple
        images_of = {p: read_images(p, shape, resize=resize, multiple=multiple) for p in ends if p not in saved}
        # codes as they will be, apart from their numbers: what does not go together is said before any inversion
        blank = empty_code(
            counted,
            inversion,
            common.grid_for(counted, inverting.steps, spacing),
            guidance,
            guiding.inversion_guidance,
            common.hold_for(counted, holding.clip, holding.threshold),
        )
        known = dict(saved)
        for path, pixels in images_of.items():
            x = torch.zeros(1, counted.shape[0], *common.latent_size(counted, (pixels.shape[2], pixels.shape[3])))
            texts = {"prompts": (words or "",), "negative": guiding.negative} if counted.text else {}
            known[path] = replace(blank, state={"x": x}, **texts)
        points = [known[path] for path in ends]
        total = sum(map(len, points))
        if total < 2 or (corners and total != 4):
            wanted = "four images or codes, its corners" if corners else "two images or codes"
            raise InputError(
                f"{'a grid' if corners else 'an interpolation'} needs {wanted}, not {total}.",
                parameter="grid" if corners else "images",
            )
        between.check_together(points)
        one = points[0]
        count = corners[0] * corners[1] if corners else (total - 1) * (frames - 1) + 1
        row = columns or (corners[1] if corners else count if total == 2 else frames)
        shape = common.picture_shape(counted, one)
        check_page(count, shape[1:], row, scale, of="grid" if corners else "frames")
        if images_of:
            usual = make_inversion(inversion.name).options
            changed = {k: v for k, v in inversion.options.items() if v != usual.get(k)}
            tags = {
                **model_tag(counted.name, MODEL),
                **guidance_tags(guidance, 1.0, guiding.negative, reference, embedded=EMBEDDED_IN_INVERSION),
                "label": label[0] if label else None,
                **tags_of(guiding, inverting, holding),
                **resized(resize),
                **machine.tags,
            }
            settings = settings_text(one.method, one.grid.steps, changed, spacing, tags)
        else:  # codes have the others in their own names
            tags = {**model_tag(model, one.model), **machine.tags}
            settings = settings_text(one.method, one.grid.steps, {}, rest=tags)
        begin = settings_text(one.method, one.grid.steps, {})
        page = target(out, _name(ends, begin, words, settings, total, frames, corners, through), PNG)
        beside = page.with_suffix("")
        digits = len(str(count - 1))
        singles = [beside / f"{beside.name}_{k:0{digits}d}{PNG}" for k in range(count)] if each else []
        protect([page, *singles], inputs)
        codes = dict(saved)
        for path, pixels in images_of.items():
            with terminal.bar(f"inverting {stem(path)}", 1) as report:
                codes[path] = invert(
                    counted,
                    pixels,
                    labels=label[0] if label else None,
                    prompt=words,
                    guidance=if_it_acts(counted, guidance),
                    on_event=listening(report),
                    **arguments,
                    **guiding.arguments,
                    **holding.arguments,
                )
        points = [codes[path] for path in ends]
        nfe: dict[str, float] = {"invert": counted.calls(len(images_of))} if images_of else {}
        about: dict[str, Any] = {
            "command": "interpolate",
            **about_model(counted, reference),
            "between": [str(path) for path in ends],
            "method": one.method,
            "options": dict(one.settings),
            "steps": one.grid.steps,
            "spacing": one.grid.spacing,
            "seed": inverting.seed,
            "labels": label,
            **holding.about,
            "through": through,
            "frames": None if corners else frames,
            "grid": list(corners) if corners else None,
            **({"prompts": list(one.prompts[:1]), "guidance": dict(one.guidance)} if counted.text else {}),
            **machine.about,
        }

        def keep(first: int, part: torch.Tensor) -> None:
            which = range(first, first + len(part))
            write_each(part, singles[first : which.stop], [{**about, "frame": k} for k in which])

        shared = {"through": cast(Any, through), "batch": machine.batch}
        with terminal.bar("interpolating", count) as report:
            on_event = listening(report, keep if each else None)
            if corners:
                images = between.interpolate_grid(
                    counted, *points, rows=corners[0], columns=corners[1], on_event=on_event, **shared
                )
            else:
                images = between.interpolate(counted, *points, frames=frames, on_event=on_event, **shared)
        nfe["between"] = counted.calls(count)
        files = [write_page(images, page, about, columns=row, scale=scale), *singles]
        terminal.result(
            {**about, "count": count, "nfe": nfe, "files": [str(f) for f in files]},
            f"[bold]{escaped(page)}[/bold]" + (f"  and {count} files in {escaped(beside)}" if each else ""),
            f"[dim]{count} images between {total} · {one.method}, S = {one.grid.steps} · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


def _name(
    ends: list[Path],
    begin: str,
    prompt: str | None,
    settings: str,
    total: int,
    frames: int,
    corners: tuple[int, int] | None,
    through: str,
) -> str:
    """``shirt_to_coat_bdia_S50_frames11``. What the names of all codes end in is said once, after the settings.

    Args:
        ends: the images and codes.
        begin: what the settings of a code's name begin with, such as ``bdia_S50``.
        prompt: the prompt of the images.
        settings: the settings that were typed, which begin with ``begin``.
        total: how many images there are, of which a code may hold several.
        frames, corners, through: the path.
    """
    stems = [stem(path) for path in ends]
    parts = [name.partition(f"_{begin}") for name in stems]
    alike = {tail for path, (_, _, tail) in zip(ends, parts, strict=True) if is_code(path)}
    own = settings.removeprefix(begin)
    if all(is_code(path) for path in ends) and len(alike) == 1:
        settings = begin + alike.pop() + own
        stems = [head for head, _, _ in parts]
    elif alike <= {own}:
        stems = [head for head, _, _ in parts]
    else:
        stems = [name.removesuffix(f"_{begin}") for name in stems]
    between = f"-{short_hash(*map(str, ends[1:-1]))}" if len(ends) > 2 else ""
    via = f"_via{total - 2}{between}" if total > 2 else ""
    shape = f"grid{corners[0]}x{corners[1]}" if corners else f"frames{frames}"
    said = f"_{prompts_slug([prompt])}" if prompt and any(not is_code(path) for path in ends) else ""
    return f"{stems[0]}_to_{stems[-1]}{via}{said}_{settings}_{shape}{'_state' * (through == 'state')}"
