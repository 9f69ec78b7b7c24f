"""``ddim edit``: a real image, edited by words or brought to another class."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from .._utils.names import protect, settings_text
from ..editing.editors import EDITORS
from ..solvers import REVERSIBLE
from . import options as o
from .command import typed
from .edit_files import EditFiles
from .edit_options import Attention, Automatic, Targets, Where
from .files import PNG, guidance_tags, is_code, model_tag, phrase, phrases, resized, stem, target
from .film import Dial, Film
from .groups import tags_of
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing.editors.base import Editor
    from ..editing.plan import AttentionEdit
    from ..inversion.latent_code import LatentCode

MODEL = "emoji"

_Source = Annotated[
    Path, typer.Argument(metavar="IMAGE|CODE", help="An image, or a code that ddim invert wrote.", show_default=False)
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"A model with text or with classes; by default {MODEL}, or the model that made the code.",
        show_default=False,
    ),
]


def edit(
    source: _Source,
    targets: Targets = Targets(),
    model: _Model = None,
    attention: Attention = Attention(),
    where: Where = Where(),
    automatic: Automatic = Automatic(),
    inverting: o.Editing = o.Editing(),
    dial: Dial = Dial(),
    guiding: o.InversionGuiding = o.InversionGuiding(),
    reference: o.Reference = None,
    holding: o.Holding = o.Holding(),
    cropping: o.Cropping = o.Cropping(),
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    scale: o.Scale = 1,
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Change a real image by words, or to another class.

    Writes a strip (source, reconstruction, one image for each --to), and beside it a JSON file with all settings. With
    --mask, --auto-mask, --blend or --crop, or from a code that keeps its source, it also writes the whole photograph
    with the edit pasted in, as NAME_photo.png: outside of the mask every byte is the photograph's. With --sweep, the
    strip shows the edit at each strength, and NAME_film.png shows it as a film.

    Example: ddim edit face.png --from "noto smiling face" --to "noto smiling face with sunglasses"

    Example: ddim edit photo.jpg --from "noto dog face" --to "noto cat face" --mask mask.png

    Example: ddim edit face.png --from "noto dog face" --to "noto cat face" --strength 0.2 --sweep 9

    Example: ddim edit shirt.png --model fashion-classes --from-label 0 --to-label 3 --guidance 3

    Example: ddim edit cat.png --from "a cat on a mat" --to "a tiger on a mat" --blend cat/tiger --method null-text
    """
    with Terminal() as terminal:
        inverted, by_class = is_code(source), bool(targets.to_label)
        targets.check(inverted, inverting.method)
        if inverted:  # whether an editor takes the others is known when the code is read
            o.refuse_for_codes(but=("options", "seed", *(["method"] if inverting.method in EDITORS else [])))
        holding.check()
        groups = (targets, where, automatic, inverting, dial, guiding, holding, cropping, machine)
        arguments = {name: value for group in groups for name, value in group.arguments.items()}
        inputs = [source, *(path for path in (where.mask, reference) if path)]
        protect([target(out, "x", PNG)], inputs)

        import torch

        from .._utils.files import write_whole
        from .._utils.texts import parse_weights
        from ..core.guidance import Guidance
        from ..editing.editors import make_editor
        from ..evaluation.metrics import errors
        from ..inversion.latent_code import LatentCode
        from ..pipelines.capabilities import check_editor
        from ..pipelines.common import is_encoded, picture_shape
        from ..pipelines.edit import edit as edit_images
        from ..pipelines.edit_plan import by_class as check_model
        from ..pipelines.pasting import needs_photographs
        from ..pipelines.pictures import read_pictures
        from .pictures import check_page, write_each, write_page, write_photograph
        from .session import (
            about_model,
            error_text,
            guidance_for,
            guidance_text,
            if_it_acts,
            open_for_code,
            open_model,
            steps_text,
        )

        code, pictures, crop = LatentCode.load(source) if inverted else None, None, arguments.pop("crop", None)
        named = inverting.method if code is None or "method" in typed() else code.method if is_encoded(code) else None
        editor = None if named is None else make_editor(named, arguments.get("options"))
        if code is not None and editor is None:
            o.refuse_for_codes(but=["seed"] if automatic.auto_mask else [])
        if reference is not None and editor is not None and editor.looks:
            raise InputError(
                f"{str(reference)!r} has no effect, because {editor.name!r} shows each image to the network as its own "
                "reference; leave it out.",
                parameter="reference",
            )
        how = attention.edit(by_class, None if editor is None else editor.name)
        if code is None:
            counted = open_model(terminal, model or MODEL, [0], **machine.loading)
            usual, size = Guidance(counted.info.guidance if counted.text else 1.0), counted.picture[1:]
        else:
            counted = open_for_code(terminal, model, code, **machine.loading)
            usual, size = Guidance.of(code.guidance), picture_shape(counted, code)[1:]
        counted.reference = reference
        check_model(counted, targets.to, targets.to_label)
        usual_steps, usual_strength = counted.info.steps, None
        if editor is not None:
            check_editor(counted, editor)
            usual_strength = editor.usual(counted.info).strength
            arguments |= dial.up_to(usual_strength)
            usual_steps = editor.usual_steps(counted.info, inverting.steps)
            usual = editor.guidances(counted.info, None)[1]
        guidance = guidance_for(counted, guiding, usual=usual, batched_cfg=machine.batched_cfg)
        embedded = counted.info.embedded if usual.embedded is None else usual.embedded
        tags = {
            **model_tag(model, MODEL if code is None else code.model),
            "from-": phrase(targets.from_) if targets.from_ is not None and not inverted else None,
            "label": targets.from_label if not inverted else None,
            **guidance_tags(guidance, usual.weight, guiding.negative, reference, embedded=embedded),
            **tags_of(guiding, attention, where, automatic, holding, inverting, dial, cropping),
            **resized(resize),
            **machine.tags,
        }
        name = settings_text(
            inverting.method if code is None else code.method if editor is None else editor.name,
            inverting.count(usual_steps) if code is None else code.grid.steps,
            arguments.get("options", {}),
            arguments.get("spacing"),
            tags,
        )
        page = target(out, f"{stem(source)}_to_{phrases(targets.names, 'targets')}_{name}", PNG)
        keep = needs_photographs(arguments.get("blend"), crop, arguments.get("auto_mask"))
        pasted = bool(code.sources) if code else bool(where.mask) or keep
        count = 1 if code is None else len(code)
        strip = [*(["source"] if code is None else []), "reconstruction", *map(phrase, targets.names)]
        film = None
        if dial.sweep is not None:
            film = Film(page, count, targets.names, arguments["strength"], source=code is None)
            strip = film.strip
        saves = code is None and (editor is None or editor.inversion() is not None)  # else it holds only the image
        frames = 1 if film is None else len(film.strengths)
        edits = count * len(targets.names) * frames
        sheet_rows = count if film is None else film.rows
        cause = "target" if film is None else "sweep"
        check_page(sheet_rows * len(strip), size, len(strip), scale, of=cause, given=dial.sweep)
        files = EditFiles(page, strip, count, edits if pasted else 0, each, saves, film)
        protect(files.written, inputs)
        if code is None:
            pictures = read_pictures(
                counted, source, crop=crop, resize=resize, keep=keep, mask=arguments.pop("mask", None)
            )
        pixels = None if pictures is None else pictures.pixels
        about: dict[str, Any] = {"command": "edit", **about_model(counted, reference), "source": str(source)}

        def on_code(made: "LatentCode") -> None:
            if saves:
                files.save(made)
            aims = list(targets.to_label or [parse_weights(text)[0] for text in targets.to or []])
            about["from"] = made.conditions.cond.tensors["labels"].tolist() if by_class else list(made.prompts)
            about["to"] = [aims] * len(made)
            about.update(
                {
                    # as typed; below, what the edit made of it
                    **attention.about,
                    **where.about,
                    **holding.about,
                    **machine.about,
                    "negative": made.negative,
                    "guidance": guidance.options,
                    "method": made.method if editor is None else editor.name,
                    "solver": made.solver,
                    "options": dict(made.settings) if editor is None else {**made.settings, **editor.options},
                    "steps": made.grid.steps,
                    "strength": _strength(arguments.get("strength"), made, usual_strength),
                    "spacing": arguments.get("spacing", made.grid.spacing),
                    "seed": inverting.seed,
                    "attention": _attention_record(how),
                    "blend_start": how.blend_start,
                    "blend_threshold": how.blend_threshold,
                    "weights": arguments.get("weights") or {},
                    "weight_steps": list(how.weight_window),
                    "resize": resize,
                    "crops": [list(crop) for crop in made.crops],
                    "strip": strip,
                }
            )
            if "auto_mask" in arguments:
                about["auto_mask"] = asdict(arguments["auto_mask"])
            if film is not None:
                about["frames"] = film.about(each)

        def on_images(first: int, part: "Tensor") -> None:
            tiles = _tiles(part, None if pixels is None else pixels[first : first + len(part)])
            shows = [{"shows": what} for what in strip]
            if film is not None:
                tiles, shows = part[:, 1:].flatten(0, 1).cpu(), film.shows
            at = first * len(shows)
            singles = files.singles[at : at + len(tiles)]
            write_each(tiles, singles, [{**about, **what} for what in shows * len(part)])

        farthest = _strength(arguments.get("strength"), None, usual_strength)
        invert_words, going_on = _lines_that_go_on(
            targets, inverting, guiding, editor, guidance.weight, farthest, seeded=automatic.auto_mask
        )
        if pictures is not None and pictures.photographs:  # the code keeps them, and that line knows no mask
            chosen = ",".join(map(str, pictures.photographs[0].crop))
            invert_words |= {"keep_source": True, "crop": None if resize else chosen}
        words = {"images": source, "model": counted.name, "method": inverting.method, **invert_words}
        with files.kept_code(words, going_on):
            with terminal.bar("editing", len(targets.names)) as report:
                edited = edit_images(
                    counted,
                    code or pictures,
                    guidance=if_it_acts(counted, guidance),
                    attention=how,
                    batched_cfg=machine.batched_cfg,
                    on_code=on_code,
                    on_event=listening(report, on_images if each else None),
                    **arguments,
                )
            images = torch.cat([edited.reconstruction[:, None], edited.edits], dim=1)
            rows = errors(pixels, edited.reconstruction) if pixels is not None else []
            about |= {"nfe": counted.calls(files.rows), "reconstruction": rows}
            tiles = _tiles(images, pixels) if film is None else film.tiles(images, pixels)
            if edited.blend_mask is not None:
                areas = edited.blend_mask.mean((2, 3))[:, ::frames]
                about["mask_areas"] = [[float(f"{area:.4g}") for area in row] for row in areas.tolist()]
            if film is not None:
                about["film"] = str(film.file)
            write_page(tiles, page, about, columns=len(strip), scale=scale)
            if film is not None:
                film.write(images, about, scale)
            photographs = [one for row in edited.composites or () for one in row]
            for k, (file, photograph) in enumerate(zip(files.photographs, photographs, strict=True)):
                n, target_number, frame = k // (edits // count), k // frames % len(targets.names), k % frames
                shows = {"shows": targets.names[target_number], "size": list(photograph.shape[:0:-1])}
                if film is not None:
                    shows["strength"] = film.strengths[frame]
                write_photograph(photograph, file, {**about, **shows}, edited.code.sources[n].icc)
            about["photographs"] = [str(file) for file in files.photographs]
            about["files"] = [str(page), *([about["film"]] if film else []), *map(str, files.singles)]
            about["files"] += [*about["photographs"], str(files.about)]
            text = json.dumps({**about, "seconds": round(terminal.seconds, 3)}, indent=2, default=str)
            write_whole(files.about, f"{text}\n".encode())
        terminal.result(
            about,
            f"[bold]{escaped(page)}[/bold]"
            + (f"  and {len(files.singles)} files in {escaped(page.with_suffix(''))}" if each else ""),
            *([f"film  [bold]{escaped(film.file)}[/bold]"] if film else []),
            *(f"photograph  [bold]{escaped(file)}[/bold]" for file in files.photographs if film is None),
            *([f"{len(files.photographs)} photographs to {escaped(files.photographs[-1])}"] if film and pasted else []),
            *(f"reconstruction  [green]{error_text(row)}[/green]" for row in rows),
            f"[dim]{' · '.join(strip) if film is None else film.text} · {about['method']}, "
            f"{steps_text(edited.code, inverting.count(usual_steps) if code is None else None)} · "
            f"{guidance_text(counted, guidance)}{about['nfe']:g} network calls per image · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


def _attention_record(how: "AttentionEdit") -> dict[str, Any]:
    """What the JSON file says of attention control."""
    return {
        "kind": how.kind,
        "cross": list(how.cross_steps),
        "self": list(how.self_steps),
        "value": list(how.value_steps),
        "key_value": list(how.key_value_steps),
        "key_value_area": how.key_value_area,
        "features": list(how.feature_steps),
        "branches": how.branches,
        "layers": list(how.layers if how.layer_indices is None else how.layer_indices),
    }


def _lines_that_go_on(
    targets: Targets,
    inverting: o.Editing,
    guiding: o.InversionGuiding,
    editor: "Editor | None",
    weight: float,
    farthest: float | None,
    *,
    seeded: bool,
) -> tuple[dict[str, object], dict[str, object]]:
    """Returns what the lines that go on from an interrupted edit say differently from the running command.

    Args:
        targets, inverting, guiding: the options.
        editor: the editor, if one edits.
        weight: the guidance weight of the targets.
        farthest: the largest strength.
        seeded: whether an automatic mask uses the seed.

    Returns:
        The parameters of ``ddim invert``, which an interrupted inversion prints, and those of an edit of the code.
    """
    invert: dict[str, object] = {"prompt": targets.from_, "label": targets.from_label, "strength": farthest}
    seed = inverting.seed or None
    edit: dict[str, object] = {"seed": seed if seeded else None}
    if editor is not None and (inversion := editor.inversion()) is not None:
        settings = [f"{key}={value}" for key, value in inversion.options.items()]
        invert |= {"method": inversion.name, "options": settings, "keep_trajectory": True}
        edit |= {"method": inverting.method, "options": inverting.options}
        edit["seed"] = seed if editor.draws or seeded else None
    if inverting.method in REVERSIBLE:  # the code has all steps and the guidance of its inversion, not the targets'
        invert |= {"strength": None, "guidance": guiding.inversion_guidance}
        invert |= {"guidance_scale": None, "inversion_guidance": None}
        if weight != 1 and "guidance_scale" not in typed():
            edit["guidance"] = float(weight)
    elif "guidance_scale" not in typed():
        invert["guidance"] = float(weight)
    return invert, edit


def _strength(asked: float | Sequence[float] | None, code: "LatentCode | None", usual: float | None) -> float | None:
    """The largest strength of an edit: as asked, else the code's own, else the usual one of the editor, if any."""
    if asked is not None:
        return max(asked) if isinstance(asked, Sequence) else asked
    return usual if code is None else code.settings.get("strength", usual)


def _tiles(images: "Tensor", source: "Tensor | None") -> "Tensor":
    """The images of the strips one after the other: from [N, 1 + K, C, H, W] and sources [N, C, H, W], where there
    are any, to [N * (2 + K), C, H, W]."""
    import torch

    first = [] if source is None else [source[:, None].to(images)]
    return torch.cat([*first, images], dim=1).flatten(0, 1).cpu()
