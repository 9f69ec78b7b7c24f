"""``ddim edit``: a real picture, and what other words make of it."""

import contextlib
import json as jsonlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import DDIMError, InputError
from . import edit_options as e
from . import options as o
from .failure import code_and_sentence
from .files import CODE, PNG, is_code, phrase, phrases, protect, settings_text, stem, target, value_text
from .output import Terminal, escaped, listening

if TYPE_CHECKING:
    from torch import Tensor

    from ..inversion.latent_code import LatentCode


def edit(
    source: e.Source,
    from_: e.From = None,
    to: e.To = None,
    from_label: e.FromLabel = None,
    to_label: e.ToLabel = None,
    model: e.Model = None,
    attention: e.Attention = "refine",
    cross: e.Cross = None,
    self_: e.Self = None,
    blend: e.Blend = None,
    blend_start: e.BlendStart = None,
    blend_threshold: e.BlendThreshold = None,
    weight: e.Weights = None,
    weight_steps: e.WeightSteps = None,
    mask: e.Mask = None,
    method: e.Method = None,
    steps: e.Steps = None,
    guidance: e.Guidance = None,
    rescale: o.Rescale = None,
    interval: o.Interval = None,
    negative: o.Negative = None,
    back: o.Back = None,
    seed: e.Seed = None,
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    clip: o.Clip = None,
    threshold: o.Threshold = None,
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    one_by_one: o.OneByOne = False,
    device: o.Device = None,
    dtype: o.DType = "float32",
) -> None:
    """Change a real picture with words, or to another class.

    Writes a strip (source, reconstruction, one picture a --to) and beside it a JSON file with all that repeats it.

    Example: ddim edit face.png --from "noto smiling face" --to "noto smiling face with sunglasses"

    Example: ddim edit shirt.png --model runs/fashion-classes/model --from-label 0 --to-label 3 --guidance 3

    Example: ddim edit cat.png --from "a cat on a mat" --to "a tiger on a mat" --blend cat/tiger --method null-text
    """
    with Terminal() as terminal:
        if to and to_label:
            raise InputError("it goes without --to: words edit, or classes.", parameter="to_label")
        if from_label is not None and not to_label:
            raise InputError(
                "it goes with --to-label, the class that the picture is to become.", parameter="from_label"
            )
        if from_ is not None and to_label:
            raise InputError("it goes with --to; classes edit here, so leave it out.", parameter="source_prompt")
        if not to and not to_label:
            raise InputError(
                'it is missing; say what the picture is to show, such as "noto cat face".', parameter="target"
            )
        aims = list(to or [f"class {k}" for k in to_label or []])
        coded = is_code(source)
        if not coded and to_label and from_label is None:
            raise InputError("it is missing; say which class the picture is of, such as 0.", parameter="from_label")
        if not coded and to and from_ is None:
            raise InputError(
                'it is missing; say what the picture shows, such as "noto dog face".', parameter="source_prompt"
            )
        made = {
            "--method": method,
            "--steps": steps,
            "--spacing": spacing,
            "--option": option,
            "--inversion-guidance": back,
        }
        made |= {"--seed": seed, "--resize": resize or None, "--clip": clip, "--threshold": threshold}
        if coded and (given := [flag for flag, value in made.items() if value is not None]):
            raise InputError(
                f"it is for pictures; {source} was walked back already, so leave it out.",
                parameter=given[0].removeprefix("--"),
            )
        o.check_bounds(clip, threshold)
        options, walk, factors = o.options_from(option), o.spacing_from(spacing), o.weights_from(weight)
        windows: dict[str, Any] = {
            key: o.range_from(text, flag)
            for key, text, flag in (
                ("cross_steps", cross, "--cross"),
                ("self_steps", self_, "--self"),
                ("weight_steps", weight_steps, "--weight-steps"),
            )
            if text is not None
        }
        numbers = {"blend_start": blend_start, "blend_threshold": blend_threshold}
        windows |= {key: value for key, value in numbers.items() if value is not None}
        protect([target(out, "x", PNG)], [source, *([mask] if mask else [])])

        import torch

        from .._utils.errors import Interrupted
        from .._utils.files import write_whole
        from .._utils.texts import parse_weights
        from ..core.guidance import Guidance
        from ..data.images import read_images
        from ..editing.plan import AttentionEdit
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode
        from ..pipelines import common as walks
        from ..pipelines.edit import edit as edit_pictures
        from ..pipelines.edit_plan import by_class, planned, planned_classes, source_prompts
        from ..pipelines.invert import invert
        from .pictures import check_page, write_each, write_page
        from .session import (
            about_model,
            error_text,
            errors,
            guidance_for,
            keep_partial,
            open_for_code,
            open_model,
            partial_beside,
        )

        if to_label and attention == "refine" and not windows:
            attention = "none"  # classes have no words for attention to follow
        how = AttentionEdit(attention, **windows)
        way = "direct" if method is None else method
        count, drawn = 50 if steps is None else steps, seed or 0
        inversion = make_inversion(way, options)
        code = LatentCode.load(source) if coded else None
        if code is not None:
            counted = open_for_code(terminal, model, code, device, dtype)
        else:
            counted = open_model(terminal, model or "emoji", device, dtype, [0])
        by_class(counted, to, to_label)
        guided = guidance_for(
            counted,
            guidance,
            rescale,
            interval,
            usual=counted.info.guidance if code is None else Guidance.of(code.guidance),
            negative=negative,
            one_by_one=one_by_one,
        )
        grid = code.grid if code is not None else walks.grid_for(counted, count, walk)
        rest = {
            "from-": phrase(from_) if from_ is not None and not coded else None,
            "label": from_label if to_label and not coded else None,
            "w": None if guidance is None else float(guidance),
            "rescale": None if rescale is None else float(rescale),
            "interval": interval and interval.replace(",", "-"),
            "back": None if back is None else float(back),
            "": None if attention == ("none" if to_label else "refine") else attention,
            "cross": cross and cross.replace(",", "-"),
            "self": self_ and self_.replace(",", "-"),
            "blend-": "-".join(phrase(b.replace("/", "-")) for b in blend) if blend else None,
            "start": blend_start,
            "threshold": blend_threshold,
            "weight-": "-".join(f"{phrase(word)}{v:g}" for word, v in factors.items()) or None,
            "clip": clip,
            "hold": threshold,
            "scaled": weight_steps and weight_steps.replace(",", "-"),
            "mask-": stem(mask) if mask else None,
            "not-": phrase(negative) if negative else None,
            "seed": drawn or None,
            "in-": dtype if dtype != "float32" else None,
        }
        name = settings_text(way if code is None else code.method, grid.steps, options, walk, rest)
        page = target(out, f"{stem(source)}_to_{phrases(aims, 'targets')}_{name}", PNG)
        beside, about_file = page.with_suffix(""), page.with_suffix(".json")
        code_file = page.with_name(f"{beside.name}{CODE}")
        rows = 1 if code is None else len(code)
        shown = [*(["source"] if code is None else []), "reconstruction", *map(phrase, aims)]
        singles = [
            beside / f"{n:0{len(str(rows))}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(shown)
        ]
        written = [page, about_file, *(singles if each else []), *([code_file] if code is None else [])]
        protect(written, [source, *([mask] if mask else [])])
        seen = counted.picture if code is None else walks.picture_shape(counted, code)
        check_page(rows * len(shown), seen[1:], len(shown), scale, of="target")

        pixels = None
        if code is None:
            pixels = read_images(source, counted.picture, resize=resize, multiple=counted.multiple)
            size = (pixels.shape[2], pixels.shape[3])
            # what is wrong with the words is better known before the inversion than after
            if to_label:
                words = {"blend": blend, "weight": weight, "negative": negative, **windows}
                planned_classes(counted, None, from_label, to_label, 1, size, words, mask)
            if to:
                taken = range(inversion.solver().first(grid), grid.steps)
                own, where = source_prompts(from_, 1), _one_or_each(blend)
                planned(counted, own, to, size, how, where, factors or None, mask, taken)
            with terminal.bar("inverting", 1) as report:
                try:
                    code = invert(
                        counted,
                        pixels,
                        steps=count,
                        method=inversion,
                        spacing=walk,
                        labels=from_label if to_label else None,
                        prompt=from_,
                        negative=negative,
                        guidance=guided if walks.conditioned(counted) else None,
                        inversion_guidance=back,
                        clip_x0=clip,
                        threshold=threshold,
                        seed=drawn,
                        batch=batch,
                        on_event=listening(report),
                    )
                except Interrupted as stopped:
                    again = _invert_command(
                        source,
                        {
                            "--prompt": from_,
                            "--label": from_label if to_label else None,
                            "--guidance": value_text(float(guided.weight)),
                            "--model": counted.name,
                            "--method": way,
                            "--steps": count,
                            "--spacing": spacing,
                            "--option": option,
                            "--negative": negative or None,
                            "--rescale": rescale,
                            "--interval": interval,
                            "--inversion-guidance": back,
                            "--clip": clip,
                            "--threshold": threshold,
                            "--seed": seed,
                            "--resize": resize or None,
                            "--device": device,
                            "--dtype": dtype if dtype != "float32" else None,
                        },
                    )
                    raise keep_partial(stopped, partial_beside(code_file), again) from None
        one = code
        targets: list[Any] = [list(to_label) if to_label else [parse_weights(text)[0] for text in to or []]] * rows
        about: dict[str, Any] = {
            "command": "edit",
            **about_model(counted),
            "source": str(source),
            "from": list(one.prompts) if to else one.conditions.cond.tensors["labels"].tolist(),
            "to": targets,
            "negative": one.negative,
            "guidance": guided.options,
            "method": one.method,
            "solver": one.solver,
            "options": dict(one.settings),
            "steps": one.grid.steps,
            "spacing": walk if isinstance(walk, list) else one.grid.spacing,
            "seed": drawn,
            "attention": {"kind": how.kind, "cross": list(how.cross_steps), "self": list(how.self_steps)},
            "blend": blend,
            "blend_start": how.blend_start,
            "blend_threshold": how.blend_threshold,
            "weights": factors,
            "weight_steps": list(how.weight_window),
            "mask": str(mask) if mask else None,
            "resize": resize,
            "clip": clip,
            "hold": threshold,
            "dtype": dtype,
            "strip": shown,
        }

        def keep(first: int, part: "Tensor") -> None:
            tiles = _strip(part, None if pixels is None else pixels[first : first + len(part)])
            at = first * len(shown)
            write_each(tiles, singles[at : at + len(tiles)], [{**about, "shows": what} for what in shown * len(part)])

        with _kept(code, code_file if pixels is not None else None, to, to_label):
            with terminal.bar("editing", len(aims)) as report:
                edited = edit_pictures(
                    counted,
                    code,
                    to,
                    source_prompt=from_ if to else None,
                    labels=to_label,
                    source_labels=from_label if to_label else None,
                    guidance=guided if walks.conditioned(counted) else None,
                    attention=how,
                    blend=_one_or_each(blend),
                    weights=factors or None,
                    mask=mask,
                    negative=negative,
                    batch=batch,
                    batched_cfg=not one_by_one,
                    on_event=listening(report, keep if each else None),
                )
            images = torch.cat([edited.reconstruction[:, None], edited.edits], dim=1)
            measured = errors(pixels, edited.reconstruction) if pixels is not None else []
            about |= {"nfe": counted.calls(rows), "reconstruction": measured}
            files = [write_page(_strip(images, pixels), page, about, columns=len(shown), scale=scale)]
            files += [*(singles if each else []), about_file]
            whole = {**about, "files": [str(f) for f in files]}
            told = jsonlib.dumps({**whole, "seconds": round(terminal.seconds, 3)}, indent=2, default=str)
            write_whole(about_file, f"{told}\n".encode())
        terminal.result(
            whole,
            f"[bold]{escaped(page)}[/bold]" + (f"  and {len(singles)} files in {escaped(beside)}" if each else ""),
            *(f"reconstruction  [green]{error_text(one)}[/green]" for one in measured),
            f"[dim]{' · '.join(shown)} · {one.method}, S = {one.grid.steps} · "
            f"w = {about['guidance'].get('weight', 1):g} · {about['nfe']:g} network calls a picture · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


@contextlib.contextmanager
def _kept(
    code: "LatentCode", file: Path | None, to: Sequence[str] | None, labels: Sequence[int] | None
) -> Iterator[None]:
    """Keeps the code of a picture in a file until the block is done; an error then says how to go on."""
    if file is None:
        yield
        return
    code.save(file)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        from .session import quoted

        aims = [("--to", target) for target in to or []] + [("--to-label", k) for k in labels or []]
        command = quoted("ddim", "edit", file, *(word for aim in aims for word in aim))
        kept = f"The walk back is in {file}: {command} goes on."
        if isinstance(error, InputError):
            kept = f"The inverted code is in {file}."
        if isinstance(error, DDIMError):
            error.hint = " ".join(part for part in (error.hint, kept) if part)
            raise
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DDIMError
        raise kind(f"{code_and_sentence(error)[1]} {kept}") from error
    file.unlink()


def _invert_command(source: Path, options: Mapping[str, Any]) -> str:
    """``ddim invert`` as it can be typed; what is None is left out."""
    from .session import quoted

    words: list[object] = ["ddim", "invert", source]
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        elif value is not None:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (flag, one)]
    return quoted(*words)


def _strip(images: "Tensor", source: "Tensor | None") -> "Tensor":
    """Every picture's row: source (where there is one), reconstruction, edits; from [N, 1 + K, C, H, W] to
    [N * row, C, H, W]."""
    import torch

    first = [] if source is None else [source[:, None].to(images)]
    return torch.cat([*first, images], dim=1).flatten(0, 1).cpu()


def _one_or_each(blend: Sequence[str] | None) -> Any:
    """One for all targets, or a list with one a target."""
    several = list(blend or [])
    return several[0] if len(several) == 1 else several or None
