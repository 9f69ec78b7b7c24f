"""``ddim edit``: a real image, edited by words or brought to another class."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.choices import ATTENTIONS
from .._utils.errors import DDIMError, InputError, Interrupted
from . import options as o
from .command import typed
from .failure import code_and_sentence
from .files import CODE, PNG, guidance_tags, is_code, phrase, phrases, protect, settings_text, stem, target
from .groups import Options, option
from .output import Terminal, escaped, listening
from .repeat import repeat
from .session import keep_partial, partial_beside

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing.plan import AttentionEdit
    from ..inversion.latent_code import LatentCode

ATTENTION = "Attention, and where the image may change"
MODEL = "emoji"

_Source = Annotated[
    Path, typer.Argument(metavar="IMAGE|CODE", help="An image, or a code that ddim invert wrote.", show_default=False)
]
_From = Annotated[
    str | None,
    typer.Option(
        "--from", callback=o.check_utf8, help="What the image shows; a code knows its own.", show_default=False
    ),
]
_To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        callback=o.check_utf8,
        help="What the image is to show; (word:2) gives a word more weight; repeatable.",
        show_default=False,
    ),
]
_FromLabel = Annotated[
    int | None,
    typer.Option(
        "--from-label",
        help="The image's own class, for a class-conditional model; a code knows its own.",
        show_default=False,
    ),
]
_ToLabel = Annotated[
    list[int] | None,
    typer.Option("--to-label", help="The class to edit to, instead of --to; repeatable.", show_default=False),
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


def _window(name: str) -> Any:
    """What reads ``END`` or ``BEGIN,END`` of an option."""
    return lambda text: o.range_from(text, name)


def weights_from(pairs: list[str] | None) -> dict[str, float] | None:
    """``["tiger=2"]`` as a dict; None without a pair.

    Raises:
        InputError: something that is not WORD=FACTOR, or a word that appears twice.
    """
    out: dict[str, float] = {}
    for pair in pairs or []:
        word, _, factor = (part.strip() for part in pair.rpartition("="))
        if not word or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", factor):
            raise InputError(f"{pair!r} is not WORD=FACTOR; write for example tiger=2.", parameter="weight")
        if word in out:
            raise InputError(f"{word} appears twice.", parameter="weight")
        out[word] = float(factor)
    return out or None


def _one_or_each(blend: list[str] | None) -> str | list[str] | None:
    """One pair of words for all targets, or a list with one pair for each target."""
    return blend[0] if blend and len(blend) == 1 else blend or None


@dataclass(frozen=True)
class Attention(Options):
    """How attention follows the source's (prompt-to-prompt), and where the image may change."""

    attention: str = option(
        "refine",
        "--attention",
        "refine: words in both prompts keep the source's attention. replace: word for word. none: no control.",
        ATTENTION,
        verb="kind",
        tag="attention-",
        autocompletion=lambda: list(ATTENTIONS),
    )
    cross_steps: str | None = option(
        None,
        "--cross",
        "The part of the steps in which attention to words follows the source's; by default 0,0.4.",
        ATTENTION,
        parse=_window("cross_steps"),
        tag="cross",
        metavar="END|BEGIN,END",
    )
    self_steps: str | None = option(
        None,
        "--self",
        "The part of the steps in which self-attention follows the source's; by default 0,0.6.",
        ATTENTION,
        parse=_window("self_steps"),
        tag="self",
        metavar="END|BEGIN,END",
    )
    blend_start: float | None = option(
        None, "--blend-start", "The part of the steps after which --blend acts; by default 0.2.", ATTENTION, tag="start"
    )
    blend_threshold: float | None = option(
        None,
        "--blend-threshold",
        "A word lies where its attention map exceeds this part of the map's maximum; by default 0.3.",
        ATTENTION,
        tag="map",
    )
    weight_steps: str | None = option(
        None,
        "--weight-steps",
        "The part of the steps in which weighted words are scaled; by default that of --cross.",
        ATTENTION,
        parse=_window("weight_steps"),
        tag="scaled",
        metavar="END|BEGIN,END",
    )

    def edit(self, by_class: bool) -> "AttentionEdit":
        """The attention control that was asked for; classes have no words that attention could follow."""
        from ..editing.plan import AttentionEdit

        kind: dict[str, Any] = {"kind": "none"} if by_class else {}
        return AttentionEdit(**(kind | self.arguments))


@dataclass(frozen=True)
class Where(Options):
    """Which words count for more, and where the image may change."""

    blend: list[str] | None = option(
        None,
        "--blend",
        "Change only where these words of source/target lie; repeatable: one for each --to, or one for all.",
        ATTENTION,
        parse=_one_or_each,
        callback=o.check_utf8,
        metavar="WORD/WORD",
    )
    weight: list[str] | None = option(
        None,
        "--weight",
        "How strongly a word of --to counts; 1 changes nothing; repeatable.",
        ATTENTION,
        verb="weights",
        parse=weights_from,
        callback=o.check_utf8,
        metavar="WORD=FACTOR",
    )
    mask: Path | None = option(
        None,
        "--mask",
        "A grey image of the same size: white may change; black and what is transparent stays.",
        ATTENTION,
    )

    @property
    def tags(self) -> dict[str, str]:
        """What file names say of them."""
        weights = weights_from(self.weight) or {}
        found = {
            "blend-": "-".join(phrase(words.replace("/", "-")) for words in self.blend or []),
            "weight-": "-".join(f"{phrase(word)}{factor:g}" for word, factor in weights.items()),
            "mask-": stem(self.mask) if self.mask else "",
        }
        return {tag: value for tag, value in found.items() if value}


def edit(
    source: _Source,
    from_: _From = None,
    to: _To = None,
    from_label: _FromLabel = None,
    to_label: _ToLabel = None,
    model: _Model = None,
    attention: Attention = Attention(),
    where: Where = Where(),
    method: o.Method = "direct",
    run: o.Grid = o.Grid(),
    guiding: o.InversionGuiding = o.InversionGuiding(),
    holding: o.Holding = o.Holding(),
    resize: o.Resize = False,
    out: o.Out = None,
    each: o.Each = False,
    scale: o.Scale = 1,
    machine: o.GuidedMachine = o.GuidedMachine(),
) -> None:
    """Change a real image by words, or to another class.

    Writes a strip (source, reconstruction, one image for each --to), and beside it a JSON file with all settings.

    Example: ddim edit face.png --from "noto smiling face" --to "noto smiling face with sunglasses"

    Example: ddim edit shirt.png --model fashion-classes --from-label 0 --to-label 3 --guidance 3

    Example: ddim edit cat.png --from "a cat on a mat" --to "a tiger on a mat" --blend cat/tiger --method null-text
    """
    with Terminal() as terminal:
        inverted = is_code(source)
        _check_targets(inverted, from_, to, from_label, to_label)
        holding.check()
        arguments = {**run.arguments, **holding.arguments, **where.arguments, **machine.arguments}
        if "method" in typed():
            arguments["method"] = method
        how = attention.edit(by_class=bool(to_label))
        inputs = [source, *([where.mask] if where.mask else [])]
        protect([target(out, "x", PNG)], inputs)

        import torch

        from .._utils.files import write_whole
        from .._utils.texts import parse_weights
        from ..core.guidance import Guidance
        from ..data.images import read_images
        from ..inversion.latent_code import LatentCode
        from ..pipelines.common import picture_shape
        from ..pipelines.edit import edit as edit_images
        from ..pipelines.edit_plan import by_class
        from .pictures import check_page, write_each, write_page
        from .session import about_model, error_text, errors, guidance_for, if_it_acts, open_for_code, open_model

        code = LatentCode.load(source) if inverted else None
        if code is None:
            counted = open_model(terminal, model or MODEL, machine.device, machine.dtype, [0])
            usual, size = Guidance(counted.info.guidance if counted.text else 1.0), counted.picture
        else:
            counted = open_for_code(terminal, model, code, machine.device, machine.dtype)
            usual, size = Guidance.of(code.guidance), picture_shape(counted, code)
        by_class(counted, to, to_label)
        guidance = guidance_for(counted, guiding, usual=usual, batched_cfg=machine.batched_cfg)
        tags = {
            "from-": phrase(from_) if from_ is not None and not inverted else None,
            "label": from_label if to_label and not inverted else None,
            **guidance_tags(guidance, usual.weight, guiding.negative),
            "back": guiding.inversion_guidance,
            **attention.tags,
            **where.tags,
            **holding.tags,
            **run.tags,
            **machine.tags,
        }
        name = settings_text(
            method if code is None else code.method,
            run.count if code is None else code.grid.steps,
            arguments.get("options", {}),
            arguments.get("spacing"),
            tags,
        )
        aims = list(to or [f"class {k}" for k in to_label or []])
        page = target(out, f"{stem(source)}_to_{phrases(aims, 'targets')}_{name}", PNG)
        strip = [*(["source"] if code is None else []), "reconstruction", *map(phrase, aims)]
        beside = None if inverted else page.with_name(f"{page.with_suffix('').name}{CODE}")
        files = _Files(page, strip, 1 if code is None else len(code), each, beside)
        protect(files.written, inputs)
        check_page(files.rows * len(strip), size[1:], len(strip), scale, of="target")
        pixels = None
        if code is None:
            pixels = read_images(source, counted.picture, resize=resize, multiple=counted.multiple)
        about: dict[str, Any] = {"command": "edit", **about_model(counted), "source": str(source)}

        def on_code(made: "LatentCode") -> None:
            files.save(made)
            targets = list(to_label) if to_label else [parse_weights(text)[0] for text in to or []]
            about.update(
                {
                    "from": list(made.prompts) if to else made.conditions.cond.tensors["labels"].tolist(),
                    "to": [targets] * len(made),
                    "negative": made.negative,
                    "guidance": guidance.options,
                    "method": made.method,
                    "solver": made.solver,
                    "options": dict(made.settings),
                    "steps": made.grid.steps,
                    "spacing": arguments.get("spacing", made.grid.spacing),
                    "seed": run.seed,
                    "attention": {"kind": how.kind, "cross": list(how.cross_steps), "self": list(how.self_steps)},
                    "blend": where.blend,
                    "blend_start": how.blend_start,
                    "blend_threshold": how.blend_threshold,
                    "weights": arguments.get("weights") or {},
                    "weight_steps": list(how.weight_window),
                    "mask": str(where.mask) if where.mask else None,
                    "resize": resize,
                    "clip": holding.clip,
                    "hold": holding.threshold,
                    "dtype": machine.dtype,
                    "strip": strip,
                }
            )

        def on_images(first: int, part: "Tensor") -> None:
            tiles = _tiles(part, None if pixels is None else pixels[first : first + len(part)])
            at = first * len(strip)
            singles = files.singles[at : at + len(tiles)]
            write_each(tiles, singles, [{**about, "shows": what} for what in strip * len(part)])

        invert_words = {"images": source, "prompt": from_, "label": from_label, "model": counted.name, "method": method}
        with files.kept_code({**invert_words, "guidance": float(guidance.weight)}):
            with terminal.bar("editing", len(aims)) as report:
                edited = edit_images(
                    counted,
                    pixels if code is None else code,
                    to,
                    source_prompt=from_,
                    labels=to_label,
                    source_labels=from_label,
                    guidance=if_it_acts(counted, guidance),
                    attention=how,
                    negative=guiding.negative,
                    inversion_guidance=guiding.inversion_guidance,
                    resize=resize and inverted,  # pixels fit already, and a code does not take it
                    batched_cfg=machine.batched_cfg,
                    on_code=on_code,
                    on_event=listening(report, on_images if each else None),
                    **arguments,
                )
            images = torch.cat([edited.reconstruction[:, None], edited.edits], dim=1)
            rows = errors(pixels, edited.reconstruction) if pixels is not None else []
            about |= {"nfe": counted.calls(files.rows), "reconstruction": rows}
            write_page(_tiles(images, pixels), page, about, columns=len(strip), scale=scale)
            about["files"] = [str(page), *(str(file) for file in files.singles), str(files.about)]
            text = json.dumps({**about, "seconds": round(terminal.seconds, 3)}, indent=2, default=str)
            write_whole(files.about, f"{text}\n".encode())
        terminal.result(
            about,
            f"[bold]{escaped(page)}[/bold]"
            + (f"  and {len(files.singles)} files in {escaped(page.with_suffix(''))}" if each else ""),
            *(f"reconstruction  [green]{error_text(row)}[/green]" for row in rows),
            f"[dim]{' · '.join(strip)} · {edited.code.method}, S = {edited.code.grid.steps} · "
            f"w = {guidance.weight:g} · {about['nfe']:g} network calls per image · {terminal.seconds:.1f} s[/dim]",
        )


def _check_targets(
    inverted: bool,
    from_: str | None,
    to: Sequence[str] | None,
    from_label: int | None,
    to_label: Sequence[int] | None,
) -> None:
    """Raises InputError, before a model is loaded, where prompts and classes do not say what to edit to."""
    if to and to_label:
        raise InputError("it goes without --to: either prompts edit, or classes.", parameter="to_label")
    if from_label is not None and not to_label:
        raise InputError("it goes with --to-label, the class to edit to.", parameter="from_label")
    if from_ is not None and to_label:
        raise InputError("it goes with --to; here classes edit, so leave it out.", parameter="source_prompt")
    if not to and not to_label:
        raise InputError('it is missing; say what the image is to show, such as "noto cat face".', parameter="target")
    if not inverted and to_label and from_label is None:
        raise InputError("it is missing; name the class of the image, such as 0.", parameter="from_label")
    if not inverted and to and from_ is None:
        raise InputError('it is missing; say what the image shows, such as "noto dog face".', parameter="source_prompt")


_OF_THE_CODE = ("from_", "from_label", "method", "steps", "spacing", "options", "seed", "inversion_guidance")
"""Parameters of the inversion, which a code has already."""


class _Files:
    """The files that an edit writes.

    Args:
        page: the strip's file; the others are named after it.
        strip: what each image of the strip shows.
        rows: images that are edited.
        each: whether every image of the strip gets its own file.
        code: the file for the inverted code while the edit runs; None where the source is a code.
    """

    def __init__(self, page: Path, strip: Sequence[str], rows: int, each: bool, code: Path | None) -> None:
        self.page, self.rows, self.code = page, rows, code
        self.about = page.with_suffix(".json")
        self.saved = False
        digits = len(str(rows))
        names = [f"{n:0{digits}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(strip)]
        self.singles = [page.with_suffix("") / name for name in names] if each else []

    @property
    def written(self) -> list[Path]:
        """All of them."""
        return [self.page, self.about, *self.singles, *([self.code] if self.code else [])]

    def save(self, code: "LatentCode") -> None:
        """Saves the code of an image that was inverted."""
        if self.code is not None:
            code.save(self.code)
            self.saved = True

    @contextmanager
    def kept_code(self, invert_words: Mapping[str, object]) -> Iterator[None]:
        """Around the edit: removes the code's file at the end; after an error, keeps it and says how to go on.

        Args:
            invert_words: parameters of ``ddim invert`` that differ from the running command's.
        """
        try:
            yield
        except Interrupted as stopped:  # during the inversion
            assert self.code is not None
            command = repeat("ddim invert", out=None, **invert_words)
            raise keep_partial(stopped, partial_beside(self.code), command) from None
        except (Exception, KeyboardInterrupt) as error:
            if not self.saved:
                raise
            idle = dict.fromkeys((*_OF_THE_CODE, "clip", "threshold", "resize"))
            kept = f"The inverted code is in {self.code}"
            kept += "." if isinstance(error, InputError) else f": {repeat(source=self.code, **idle)} goes on."
            if isinstance(error, DDIMError):
                error.hint = " ".join(part for part in (error.hint, kept) if part)
                raise
            kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DDIMError
            raise kind(f"{code_and_sentence(error)[1]} {kept}") from error
        if self.saved and self.code is not None:
            self.code.unlink()


def _tiles(images: "Tensor", source: "Tensor | None") -> "Tensor":
    """The images of the strips one after the other: from [N, 1 + K, C, H, W] and sources [N, C, H, W], where there
    are any, to [N * (2 + K), C, H, W]."""
    import torch

    first = [] if source is None else [source[:, None].to(images)]
    return torch.cat([*first, images], dim=1).flatten(0, 1).cpu()
