"""``ddim reconstruct``: latent codes back to images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from .._utils.names import protect, short_hash
from . import options as o
from .files import PNG, folder, model_tag, stem, target
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

    from ..inversion.latent_code import LatentCode
    from ..models.counted import Counted

_Codes = Annotated[
    list[Path], typer.Argument(metavar="CODE...", help="Files that ddim invert wrote.", show_default=False)
]
_Originals = Annotated[
    list[Path] | None,
    typer.Option(
        "--original",
        help="The image that a code was made from, to report MSE and PSNR; repeatable, one for each image.",
        rich_help_panel=o.FILES,
        show_default=False,
    ),
]
_Sheet = Annotated[
    bool, typer.Option("--sheet", help="Write all images onto one sheet, not a file each.", rich_help_panel=o.FILES)
]


def reconstruct(
    codes: _Codes,
    model: o.CodeModel = None,
    original: _Originals = None,
    resize: o.Resize = False,
    out: o.Out = None,
    sheet: _Sheet = False,
    columns: o.Columns = None,
    scale: o.Scale = 1,
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Reconstruct images from latent codes.

    The solver, the grid and all settings are the ones that the code was made with.
    """
    with Terminal() as terminal:
        protect([target(out, "x", PNG)])

        import torch

        from ..data.images import read_images
        from ..evaluation.metrics import errors
        from ..inversion.latent_code import LatentCode
        from ..pipelines.common import picture_shape, solver_of
        from ..pipelines.pictures import read_pictures
        from ..pipelines.reconstruct import reconstruct as images_of
        from .pictures import check_page, write_each, write_page
        from .session import about_model, error_text, open_for_code

        loaded = [LatentCode.load(path) for path in codes]
        total = sum(map(len, loaded))
        originals = list(original or [])
        if originals and len(originals) != total:
            raise InputError(
                f"{len(originals)} for {total} images; name one for each, in their order.",
                parameter="original",
            )
        tags = [{**model_tag(model, code.model), **machine.tags} for code in loaded]
        names = [n for path, code, tag in zip(codes, loaded, tags, strict=True) for n in _names(path, len(code), tag)]
        if sheet or total == 1:
            others = f"_and_{len(codes) - 1}-{short_hash(*map(str, codes[1:]))}" if len(codes) > 1 else ""
            name = names[0] if total == 1 else f"{stem(codes[0])}{others}{_text(tags[0])}_recon"
            files = [target(out, name, PNG)]
        else:
            files = [target(folder(out, PNG), name, PNG) for name in names]
        protect(files, [*codes, *originals])
        opened: dict[str, Counted] = {}
        shapes: list[Sequence[int]] = []
        for code in loaded:
            wanted = model or code.model
            if wanted not in opened:
                opened[wanted] = open_for_code(terminal, model, code, **machine.loading)
            solver_of(opened[wanted], code)
            shapes += [picture_shape(opened[wanted], code)] * len(code)
        if len(files) == 1 and len(set(shapes)) > 1:
            raise InputError(
                "the codes hold images of different sizes; without --sheet each gets its own file.", parameter="sheet"
            )
        if len(files) == 1:
            check_page(total, shapes[0][1:], columns, scale, of="codes")
        # A code that keeps its photographs knows which crop of them it holds.
        crops = [crop for code in loaded for crop in (code.crops or [None] * len(code))]
        truths = [
            read_images(path, shape, resize=resize)
            if crop is None
            else read_pictures(opened[model or code.model], [path], crop=crop).pixels
            for path, shape, crop, code in zip(
                originals, shapes, crops, [code for code in loaded for _ in range(len(code))], strict=False
            )
        ]
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

            with terminal.bar(f"reconstructing {stem(path)}", len(code)) as report:
                images_of(
                    counted,
                    code,
                    batch=machine.batch,
                    batched_cfg=machine.batched_cfg,
                    on_event=listening(report, keep),
                )
        if len(files) == 1:
            about = first | ({} if total == 1 else {"code": [str(c) for c in codes]})
            write_page(torch.stack(images), files[0], about, columns=columns, scale=scale)
        for k, truth in enumerate(truths):
            measured[k] = {**measured[k], "original": str(originals[k]), **errors(truth, images[k][None])[0]}
        measured = [{**one, "file": str(files[0 if len(files) == 1 else k])} for k, one in enumerate(measured)]
        terminal.result(
            {"command": "reconstruct", **machine.about, "images": measured, "files": [str(f) for f in files]},
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
            f"[dim]{total} image{'s' * (total > 1)} · {first['solver']}, S = {first['steps']} · "
            f"{first['nfe']:g} network calls per image · {terminal.seconds:.1f} s[/dim]",
        )


def _names(path: Path, count: int, tags: Mapping[str, str]) -> list[str]:
    """``shirt_bdia_S50_recon``, with the tags before its end, and numbered where a code holds more than one image."""
    name = f"{stem(path)}{_text(tags)}_recon"
    digits = len(str(count - 1))
    return [name] if count == 1 else [f"{name}_{k:0{digits}d}" for k in range(count)]


def _text(tags: Mapping[str, str]) -> str:
    return "".join(f"_{tag}{value}" for tag, value in tags.items())


def _about(path: Path, code: "LatentCode") -> dict[str, Any]:
    """How a code was made, for the metadata of its images."""
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
