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
from .terminal import Terminal, escaped

if TYPE_CHECKING:
    from torch import Tensor

    from ..inversion.latent_code import LatentCode


def edit(
    source: e.Source,
    from_: e.From = None,
    to: e.To = None,
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
    negative: o.Negative = "",
    back: o.Back = None,
    seed: e.Seed = None,
    spacing: o.Spacing = None,
    option: o.MethodOptions = None,
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    scale: o.Scale = 1,
    batch: o.Batch = 64,
    one_by_one: o.OneByOne = False,
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
            raise InputError(
                'it is missing; say what the picture is to show, such as "noto cat face".', parameter="target"
            )
        coded = is_code(source)
        if not coded and from_ is None:
            raise InputError(
                'it is missing; say what the picture shows, such as "noto dog face".', parameter="source_prompt"
            )
        made = {"--method": method, "--steps": steps, "--spacing": spacing, "--option": option, "--back": back}
        made |= {"--seed": seed, "--resize": resize or None}
        if coded and (given := [flag for flag, value in made.items() if value is not None]):
            raise InputError(
                f"it is for pictures; {source} was walked back already, so leave it out.",
                parameter=given[0].removeprefix("--"),
            )
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
        from .._utils.texts import parse_weights
        from ..core.guidance import Guidance
        from ..data.images import read_images
        from ..editing.attention import AttentionEdit
        from ..inversion import make_inversion
        from ..inversion.latent_code import LatentCode, write_whole
        from ..pipelines import common as walks
        from ..pipelines import verbs
        from ..pipelines.edit import edit as edit_pictures
        from ..pipelines.edit import planned, source_prompts, text_model
        from .pictures import check_page, write_each, write_page
        from .work import (
            about_model,
            error_text,
            errors,
            guidance_for,
            keep_partial,
            open_for_code,
            open_model,
            partial_beside,
        )

        how = AttentionEdit(attention, **windows)
        way = "direct" if method is None else method
        count, drawn = 50 if steps is None else steps, seed or 0
        inversion = make_inversion(way, options)
        code = LatentCode.load(source) if coded else None
        if code is not None:
            counted = open_for_code(terminal, model, code, device, dtype)
        else:
            counted = open_model(terminal, model or "emoji", device, dtype)
        taken = text_model(counted.as_model)
        guided = guidance_for(
            counted,
            guidance,
            rescale,
            interval,
            usual=7.5 if code is None else Guidance.of(code.guidance),
            negative=negative,
            one_by_one=one_by_one,
        )
        grid = code.grid if code is not None else walks.grid_for(counted.as_model, count, walk)
        rest = {
            "from-": phrase(from_) if from_ is not None and not coded else None,
            "w": None if guidance is None else float(guidance),
            "rescale": None if rescale is None else float(rescale),
            "interval": interval and interval.replace(",", "-"),
            "back": None if back is None else float(back),
            "": None if attention == "refine" else attention,
            "cross": cross and cross.replace(",", "-"),
            "self": self_ and self_.replace(",", "-"),
            "blend-": "-".join(phrase(b.replace("/", "-")) for b in blend) if blend else None,
            "start": blend_start,
            "threshold": blend_threshold,
            "weight-": "-".join(f"{phrase(word)}{v:g}" for word, v in factors.items()) or None,
            "scaled": weight_steps and weight_steps.replace(",", "-"),
            "mask-": stem(mask) if mask else None,
            "not-": phrase(negative) if negative else None,
            "seed": drawn or None,
            "in-": dtype if dtype != "float32" else None,
        }
        name = settings_text(way if code is None else code.method, grid.steps, options, walk, rest)
        page = target(out, f"{stem(source)}_to_{phrases(to, 'targets')}_{name}", PNG)
        beside, about_file = page.with_suffix(""), page.with_suffix(".json")
        code_file = page.with_name(f"{beside.name}{CODE}")
        rows = 1 if code is None else len(code)
        shown = [*(["source"] if code is None else []), "reconstruction", *map(phrase, to)]
        singles = [
            beside / f"{n:0{len(str(rows))}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(shown)
        ]
        written = [page, about_file, *(singles if each else []), *([code_file] if code is None else [])]
        protect(written, [source, *([mask] if mask else [])])
        seen = counted.picture if code is None else walks.picture_shape(counted.as_model, code)
        check_page(rows * len(shown), seen[1:], len(shown), scale, of="target")

        pixels = None
        if code is None:
            pixels = read_images(source, counted.picture, resize=resize, multiple=counted.multiple)
            size = (pixels.shape[2], pixels.shape[3])
            # what is wrong with the words is better known before the walk back than after
            planned(
                taken, source_prompts(from_, 1), to, size, how, _one_or_each(blend), factors or None, mask, grid.steps
            )
            with terminal.bar("inverting", 1) as report:
                try:
                    code = verbs.invert(
                        counted.as_model,
                        pixels,
                        steps=count,
                        method=inversion,
                        spacing=walk,
                        prompt=from_,
                        negative=negative,
                        guidance=guided,
                        back=back,
                        seed=drawn,
                        batch=batch,
                        progress=report,
                        tell=report.tell if report else None,
                    )
                except Interrupted as stopped:
                    again = _invert_command(
                        source,
                        {
                            "--prompt": from_,
                            "--guidance": value_text(float(guided.weight)),
                            "--model": counted.as_model.name,
                            "--method": way,
                            "--steps": count,
                            "--spacing": spacing,
                            "--option": option,
                            "--negative": negative or None,
                            "--rescale": rescale,
                            "--interval": interval,
                            "--back": back,
                            "--seed": seed,
                            "--resize": resize or None,
                            "--device": device,
                            "--dtype": dtype if dtype != "float32" else None,
                        },
                    )
                    raise keep_partial(stopped, partial_beside(code_file), again) from None
        one, targets = code, [[parse_weights(text)[0] for text in to]] * rows
        about: dict[str, Any] = {
            "command": "edit",
            **about_model(counted),
            "source": str(source),
            "from": list(one.prompts),
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
            "dtype": dtype,
            "strip": shown,
        }

        def keep(first: int, part: "Tensor") -> None:
            tiles = _strip(part, None if pixels is None else pixels[first : first + len(part)])
            at = first * len(shown)
            write_each(tiles, singles[at : at + len(tiles)], [{**about, "shows": what} for what in shown * len(part)])

        with _kept(code, code_file if pixels is not None else None, to):
            with terminal.bar("editing", len(to)) as report:
                edited = edit_pictures(
                    counted.as_model,
                    code,
                    to,
                    source_prompt=from_,
                    guidance=guided,
                    attention=how,
                    blend=_one_or_each(blend),
                    weights=factors or None,
                    mask=mask,
                    negative=negative,
                    batch=batch,
                    together=not one_by_one,
                    progress=report,
                    on_batch=keep if each else None,
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
def _kept(code: "LatentCode", file: Path | None, to: Sequence[str]) -> Iterator[None]:
    """Keeps the code of a picture in a file until the block is done; an error then says how to go on."""
    if file is None:
        yield
        return
    code.save(file)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        from .work import quoted

        command = quoted("ddim", "edit", file, *(word for target in to for word in ("--to", target)))
        kept = f"The walk back is in {file}: {command} goes on."
        if isinstance(error, DDIMError):
            error.hint = " ".join(part for part in (error.hint, kept) if part)
            raise
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DDIMError
        raise kind(f"{code_and_sentence(error)[1]} {kept}") from error
    file.unlink()


def _invert_command(source: Path, options: Mapping[str, Any]) -> str:
    """``ddim invert`` as it can be typed; what is None is left out."""
    from .work import quoted

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
