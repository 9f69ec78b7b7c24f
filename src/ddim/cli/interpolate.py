"""``ddim interpolate``: the pictures between real ones."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from .._utils.errors import InputError
from . import options as o
from .files import PNG, is_code, protect, settings_text, stem, target
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from ..inversion.latent_code import LatentCode

_Ends = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE|CODE...", help="Two or more pictures or saved codes.", show_default=False),
]
_Frames = Annotated[
    int, typer.Option("--frames", help="From each to the next, both ends included.", rich_help_panel=o.WORK)
]
_Grid = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="ROWSxCOLUMNS",
        help="Between four corners instead: top left, top right, bottom left, bottom right.",
        rich_help_panel=o.WORK,
        show_default=False,
    ),
]
_Through = Annotated[
    str,
    typer.Option(
        "--through",
        help="ddim: along arcs of plain DDIM latents, with the codes' own pictures at the ends. "
        "state: along arcs of the codes as they are.",
        rich_help_panel=o.WORK,
    ),
]
_Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="What all the pictures show.", rich_help_panel=o.WORDS, show_default=False),
]


def interpolate(
    ends: _Ends,
    model: o.CodeModel = None,
    frames: _Frames = 11,
    grid: _Grid = None,
    method: o.Method = "bdia",
    steps: o.Steps = 50,
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    through: _Through = "ddim",
    prompt: _Prompt = None,
    negative: o.Negative = None,
    guidance: o.GuidanceWeight = None,
    label: o.Labels = None,
    clip: o.Clip = None,
    threshold: o.Threshold = None,
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Go from picture to picture along the arcs between their latent codes.

    Pictures are inverted with --method first; saved codes are taken as they are. Those of a model with text must have
    been made with one prompt.

    Example: ddim interpolate shirt.png coat.png --frames 11
    """
    with Terminal() as terminal:
        if prompt and len(set(prompt)) > 1:
            raise InputError(
                f"{len(prompt)} were given; an interpolation needs one for all its pictures.", parameter="prompt"
            )
        if label and len(set(label)) > 1:
            raise InputError(
                f"{len(label)} were given; an interpolation needs one for all its pictures.", parameter="label"
            )
        words = prompt[0] if prompt else None
        way = cast(Any, through)  # the library knows the names, and says the nearest
        o.check_bounds(clip, threshold)
        options, walk = o.options_from(option), o.spacing_from(spacing)
        corners = o.grid_from(grid) if grid else None
        protect([target(out, "x", PNG)], ends)

        import torch

        from ..core.slerp import check_corners, check_frames
        from ..data.images import read_images
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode
        from ..pipelines import common as walks
        from ..pipelines import interpolate as between
        from ..pipelines.invert import invert
        from .pictures import check_page, write_each, write_page
        from .session import about_model, guidance_for, open_for_code, open_model

        check_corners(*corners) if corners else check_frames(frames)
        between.check_through(through)
        inversion = make_inversion(method, options)
        saved = {path: LatentCode.load(path) for path in ends if is_code(path)}
        told = {"prompt": prompt, "negative": negative or None, "guidance": guidance, "label": label, "option": option}
        told |= {"spacing": spacing, "clip": clip, "threshold": threshold}
        if len(saved) == len(ends) and (idle := [key for key, value in told.items() if value is not None]):
            raise InputError("it goes with pictures; codes were walked back already.", parameter=idle[0])
        if saved and (label is None or len(saved) == len(ends)):
            counted = open_for_code(terminal, model, next(iter(saved.values())), device, dtype)
        else:
            counted = open_model(terminal, model or "fashion", device, dtype, label)
        guided = guidance_for(counted, guidance, usual=1.0, negative=negative)
        shape, multiple = counted.picture, counted.multiple
        pictures = {p: read_images(p, shape, resize=resize, multiple=multiple) for p in ends if p not in saved}
        walked = walks.grid_for(counted, steps, walk)
        blank = walks.empty_code(counted, inversion, walked, guided, hold=walks.hold_for(counted, clip, threshold))
        known = dict(saved)
        for path, pixels in pictures.items():
            _, *sides = pixels.shape[1:]
            x = torch.zeros(1, counted.shape[0], *(side // (counted.multiple or 1) for side in sides))
            texts = {"prompts": (words or "",), "negative": negative} if counted.text else {}
            known[path] = replace(blank, state={"x": x}, **texts)
        points = [known[path] for path in ends]
        total = sum(map(len, points))
        if total < 2 or (corners and total != 4):
            wanted = "four pictures or codes, its corners" if corners else "two pictures or codes"
            raise InputError(
                f"{'a grid' if corners else 'an interpolation'} needs {wanted}; {total} given.",
                parameter="grid" if corners else "images",
            )
        between.check_together(points)
        one = points[0]
        count = corners[0] * corners[1] if corners else (total - 1) * (frames - 1) + 1
        row = columns or (corners[1] if corners else count if total == 2 else frames)
        shape = walks.picture_shape(counted, one)
        check_page(count, shape[1:], row, scale, of="grid" if corners else "frames")
        page = target(out, _name(ends, one, total, frames, corners, through), PNG)
        beside = page.with_suffix("")
        digits = len(str(count - 1))
        singles = [beside / f"{beside.name}_{k:0{digits}d}{PNG}" for k in range(count)] if each else []
        protect([page, *singles], ends)
        codes = dict(saved)
        for path, pixels in pictures.items():
            with terminal.bar(f"inverting {stem(path)}", 1) as report:
                codes[path] = invert(
                    counted,
                    pixels,
                    steps=steps,
                    method=inversion,
                    spacing=walk,
                    labels=label[0] if label else None,
                    prompt=words,
                    negative=negative,
                    guidance=guided if walks.conditioned(counted) else None,
                    clip_x0=clip,
                    threshold=threshold,
                    on_event=listening(report),
                )
        points = [codes[path] for path in ends]
        nfe: dict[str, float] = {"invert": counted.calls(len(pictures))} if pictures else {}
        about: dict[str, Any] = {
            "command": "interpolate",
            **about_model(counted),
            "between": [str(path) for path in ends],
            "method": one.method,
            "options": dict(one.settings),
            "steps": one.grid.steps,
            "spacing": one.grid.spacing,
            "through": through,
            "frames": None if corners else frames,
            "grid": list(corners) if corners else None,
            **({"prompts": list(one.prompts[:1]), "guidance": dict(one.guidance)} if counted.text else {}),
            "dtype": dtype,
        }

        def keep(first: int, part: torch.Tensor) -> None:
            which = range(first, first + len(part))
            write_each(part, singles[first : which.stop], [{**about, "frame": k} for k in which])

        asked = {"through": way, "batch": batch}
        with terminal.bar("going between", count) as report:
            heard = listening(report, keep if each else None)
            if corners:
                images = between.interpolate_grid(
                    counted, *points, rows=corners[0], columns=corners[1], on_event=heard, **asked
                )
            else:
                images = between.interpolate(counted, *points, frames=frames, on_event=heard, **asked)
        nfe["between"] = counted.calls(count)
        files = [write_page(images, page, about, columns=row, scale=scale), *singles]
        terminal.result(
            {**about, "count": count, "nfe": nfe, "files": [str(f) for f in files]},
            f"[bold]{escaped(page)}[/bold]" + (f"  and {count} files in {escaped(beside)}" if each else ""),
            f"[dim]{count} pictures between {total} · {one.method}, S = {one.grid.steps} · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


def _name(
    ends: list[Path], code: "LatentCode", total: int, frames: int, corners: tuple[int, int] | None, through: str
) -> str:
    """``shirt_to_coat_bdia_S50_frames11``; saved codes lose the settings that their names end in."""
    settings = settings_text(code.method, code.grid.steps, {})
    names = [stem(path).partition(f"_{settings}")[0] for path in ends]
    via = f"_via{total - 2}" if total > 2 else ""
    shape = f"grid{corners[0]}x{corners[1]}" if corners else f"frames{frames}"
    return f"{names[0]}_to_{names[-1]}{'' if corners else via}_{settings}_{shape}{'_state' * (through == 'state')}"
