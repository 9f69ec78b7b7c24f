"""``ddim edit``: a real image, edited by words or brought to another class."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.choices import ATTENTION_BRANCHES, ATTENTIONS, KEY_VALUE_AREAS
from .._utils.errors import DDIMError, InputError, Interrupted
from .._utils.names import protect, settings_text
from ..solvers import REVERSIBLE
from . import options as o
from .command import typed
from .failure import code_and_sentence
from .files import CODE, PNG, guidance_tags, is_code, model_tag, phrase, phrases, resized, stem, target
from .groups import Options, option, tags_of
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
class Targets(Options):
    """What the image shows, and what it is to show: in words, or as classes."""

    from_: str | None = option(
        None, "--from", "What the image shows; a code knows its own.", argument="source_prompt", callback=o.check_utf8
    )
    to: list[str] | None = option(
        None,
        "--to",
        "What the image is to show; (word:2) gives a word more weight; repeatable.",
        argument="prompt",
        callback=o.check_utf8,
    )
    from_label: int | None = option(
        None,
        "--from-label",
        "The image's own class, for a class-conditional model; a code knows its own.",
        argument="source_labels",
    )
    to_label: list[int] | None = option(
        None, "--to-label", "The class to edit to, instead of --to; repeatable.", argument="labels"
    )

    @property
    def names(self) -> list[str]:
        """Each target in a few words."""
        return list(self.to or [f"class {k}" for k in self.to_label or []])

    def check(self, inverted: bool) -> None:
        """Raises InputError, before a model is loaded, where they do not say what to edit to.

        Args:
            inverted: whether the source is a code, which knows its own prompt or class.
        """
        if self.to and self.to_label:
            raise InputError("it does not go with --to; use one of the two.", parameter="to_label")
        if self.from_label is not None and not self.to_label:
            raise InputError("it goes with --to-label, the class to edit to.", parameter="from_label")
        if self.from_ is not None and self.to_label:
            raise InputError("it goes with --to, and this edit is by class; leave it out.", parameter="source_prompt")
        if not self.to and not self.to_label:
            raise InputError(
                'it is missing; say what the image is to show, such as "noto cat face".', parameter="target"
            )
        if not inverted and self.to_label and self.from_label is None:
            raise InputError("it is missing; name the class of the image, such as 0.", parameter="from_label")
        if not inverted and self.to and self.from_ is None:
            raise InputError(
                'it is missing; say what the image shows, such as "noto dog face".', parameter="source_prompt"
            )


@dataclass(frozen=True)
class Attention(Options):
    """How attention follows the source's, and where the image may change."""

    attention: str = option(
        "refine",
        "--attention",
        "How attention follows the source. refine: at the words of both prompts. replace: word by word. masactrl: by "
        "the source's keys and values. plug-and-play: by its self-attention and features (U-Nets). kv-edit: by its "
        "keys and values outside --mask. none: not.",
        ATTENTION,
        argument="kind",
        tag="attention-",
        autocompletion=lambda: list(ATTENTIONS),
    )
    cross_steps: str | None = option(
        None,
        "--cross",
        "The part of the steps in which attention to words follows the source's; for refine and replace by default "
        "0,0.4.",
        ATTENTION,
        parse=_window("cross_steps"),
        about=False,
        tag="cross",
        metavar="END|BEGIN,END",
    )
    self_steps: str | None = option(
        None,
        "--self",
        "The part of the steps in which self-attention follows the source's; for refine and replace by default 0,0.6, "
        "for plug-and-play 0,0.5.",
        ATTENTION,
        parse=_window("self_steps"),
        about=False,
        tag="self",
        metavar="END|BEGIN,END",
    )
    value_steps: str | None = option(
        None,
        "--value",
        "The part of the steps in which the image's values follow the source's; by default none.",
        ATTENTION,
        parse=_window("value_steps"),
        tag="value",
        metavar="END|BEGIN,END",
    )
    key_value_steps: str | None = option(
        None,
        "--key-value",
        "The part of the steps in which targets look at the keys and values of the source's image; for masactrl by "
        "default 0.08,1, for kv-edit 0,1.",
        ATTENTION,
        parse=_window("key_value_steps"),
        tag="keyvalue",
        metavar="END|BEGIN,END",
    )
    key_value_area: str | None = option(
        None,
        "--key-value-area",
        "Which keys and values those are. image: all. background: those outside --mask. words: all, but the area of "
        "the --blend words looks at that of the source, and the rest at the rest.",
        ATTENTION,
        tag="area-",
        autocompletion=lambda: list(KEY_VALUE_AREAS),
    )
    feature_steps: str | None = option(
        None,
        "--features",
        "The part of the steps in which a U-Net's features follow the source's; for plug-and-play by default 0,0.8.",
        ATTENTION,
        parse=_window("feature_steps"),
        tag="features",
        metavar="END|BEGIN,END",
    )
    branches: str | None = option(
        None,
        "--branches",
        "The branches of guidance in which the image's attention follows the source's: cond (for refine and replace) "
        "or both (for the others).",
        ATTENTION,
        tag="branches-",
        autocompletion=lambda: list(ATTENTION_BRANCHES),
    )
    layers: str | None = option(
        None,
        "--layers",
        "The part of the network's depth in which attention changes; by default all of it, for masactrl 0.625,1 and "
        "for plug-and-play 0.5,1.",
        ATTENTION,
        parse=_window("layers"),
        tag="layers",
        metavar="END|BEGIN,END",
    )
    layer_indices: str | None = option(
        None,
        "--layer-indices",
        "The transformer blocks in which attention changes, from 0, in place of --layers.",
        ATTENTION,
        parse=lambda text: o.layers_from(text, "layer_indices"),
        tag="blocks",
        metavar="BLOCK,BLOCK",
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
        "The part of the steps in which weighted words are scaled; by default the same part as --cross.",
        ATTENTION,
        parse=_window("weight_steps"),
        tag="scaled",
        metavar="END|BEGIN,END",
    )

    def edit(self, by_class: bool) -> "AttentionEdit":
        """The attention control that was asked for; classes have no words that attention could follow."""
        from ..editing.plan import AttentionEdit

        if {"layers", "layer_indices"} <= self.typed:
            raise InputError("it does not go with --layer-indices; use one of the two.", parameter="layers")
        if by_class and (idle := sorted(self.typed - {"attention"})):
            raise InputError(
                "it controls attention to words, and this edit is by class; leave it out.", parameter=idle[0]
            )
        if by_class and self.attention == "refine":
            return AttentionEdit("none")
        return AttentionEdit(**self.arguments)


@dataclass(frozen=True)
class Where(Options):
    """Which words count for more, and where the image may change."""

    blend: list[str] | None = option(
        None,
        "--blend",
        "Change only where these words of source/target lie, or auto: where the words that differ lie; repeatable: one "
        "for each --to, or one for all.",
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
        argument="weights",
        parse=weights_from,
        about=False,
        callback=o.check_utf8,
        metavar="WORD=FACTOR",
    )
    mask: Path | None = option(
        None,
        "--mask",
        "A grey image of the size of the photograph, of its crop or of the model's image: what is white may change, "
        "what is black or transparent stays.",
        ATTENTION,
    )
    feather: int | None = option(
        None,
        "--feather",
        "The width in pixels of the soft edge, inside of what may change, with which the edit is pasted into the "
        "photograph; by default one pixel of the latent, at most an eighth of what may change.",
        ATTENTION,
        tag="feather",
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
        return {**super().tags, **{tag: value for tag, value in found.items() if value}}


def edit(
    source: _Source,
    targets: Targets = Targets(),
    model: _Model = None,
    attention: Attention = Attention(),
    where: Where = Where(),
    inverting: o.Inverting = o.Inverting(method="direct"),
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
    --mask, --blend or --crop, or from a code that keeps its source, it also writes the whole photograph with the edit
    pasted in, as NAME_photo.png: outside of the mask every byte is the photograph's.

    Example: ddim edit face.png --from "noto smiling face" --to "noto smiling face with sunglasses"

    Example: ddim edit photo.jpg --from "noto dog face" --to "noto cat face" --mask mask.png

    Example: ddim edit shirt.png --model fashion-classes --from-label 0 --to-label 3 --guidance 3

    Example: ddim edit cat.png --from "a cat on a mat" --to "a tiger on a mat" --blend cat/tiger --method null-text
    """
    with Terminal() as terminal:
        inverted, by_class = is_code(source), bool(targets.to_label)
        targets.check(inverted)
        if inverted:
            o.refuse_for_codes()
        holding.check()
        groups = (targets, where, inverting, guiding, holding, cropping, machine)
        arguments = {name: value for group in groups for name, value in group.arguments.items()}
        how = attention.edit(by_class)
        inputs = [source, *(path for path in (where.mask, reference) if path)]
        protect([target(out, "x", PNG)], inputs)

        import torch

        from .._utils.files import write_whole
        from .._utils.texts import parse_weights
        from ..core.guidance import Guidance
        from ..evaluation.metrics import errors
        from ..inversion.latent_code import LatentCode
        from ..pipelines.common import picture_shape
        from ..pipelines.edit import edit as edit_images
        from ..pipelines.edit import needs_photographs
        from ..pipelines.edit_plan import by_class as check_model
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
        if code is None:
            counted = open_model(terminal, model or MODEL, [0], **machine.loading)
            usual, size = Guidance(counted.info.guidance if counted.text else 1.0), counted.picture[1:]
        else:
            counted = open_for_code(terminal, model, code, **machine.loading)
            usual, size = Guidance.of(code.guidance), picture_shape(counted, code)[1:]
        counted.reference = reference
        check_model(counted, targets.to, targets.to_label)
        guidance = guidance_for(counted, guiding, usual=usual, batched_cfg=machine.batched_cfg)
        embedded = counted.info.embedded if usual.embedded is None else usual.embedded
        tags = {
            **model_tag(model, MODEL if code is None else code.model),
            "from-": phrase(targets.from_) if targets.from_ is not None and not inverted else None,
            "label": targets.from_label if not inverted else None,
            **guidance_tags(guidance, usual.weight, guiding.negative, reference, embedded=embedded),
            **tags_of(guiding, attention, where, holding, inverting, cropping),
            **resized(resize),
            **machine.tags,
        }
        name = settings_text(
            inverting.method if code is None else code.method,
            inverting.count(counted.info.steps) if code is None else code.grid.steps,
            arguments.get("options", {}),
            arguments.get("spacing"),
            tags,
        )
        page = target(out, f"{stem(source)}_to_{phrases(targets.names, 'targets')}_{name}", PNG)
        strip = [*(["source"] if code is None else []), "reconstruction", *map(phrase, targets.names)]
        pasted = bool(code.sources) if code else bool(where.mask) or needs_photographs(arguments.get("blend"), crop)
        files = _Files(page, strip, 1 if code is None else len(code), each, inverted, pasted)
        protect(files.written, inputs)
        check_page(files.rows * len(strip), size, len(strip), scale, of="target")
        if code is None:
            keep = needs_photographs(arguments.get("blend"), crop)
            pictures = read_pictures(
                counted, source, crop=crop, resize=resize, keep=keep, mask=arguments.pop("mask", None)
            )
        pixels = None if pictures is None else pictures.pixels
        about: dict[str, Any] = {"command": "edit", **about_model(counted, reference), "source": str(source)}

        def on_code(made: "LatentCode") -> None:
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
                    "method": made.method,
                    "solver": made.solver,
                    "options": dict(made.settings),
                    "steps": made.grid.steps,
                    "spacing": arguments.get("spacing", made.grid.spacing),
                    "seed": inverting.seed,
                    "attention": {
                        "kind": how.kind,
                        "cross": list(how.cross_steps),
                        "self": list(how.self_steps),
                        "value": list(how.value_steps),
                        "key_value": list(how.key_value_steps),
                        "key_value_area": how.key_value_area,
                        "features": list(how.feature_steps),
                        "branches": how.branches,
                        "layers": list(how.layers if how.layer_indices is None else how.layer_indices),
                    },
                    "blend_start": how.blend_start,
                    "blend_threshold": how.blend_threshold,
                    "weights": arguments.get("weights") or {},
                    "weight_steps": list(how.weight_window),
                    "resize": resize,
                    "crops": [list(crop) for crop in made.crops],
                    "strip": strip,
                }
            )

        def on_images(first: int, part: "Tensor") -> None:
            tiles = _tiles(part, None if pixels is None else pixels[first : first + len(part)])
            at = first * len(strip)
            singles = files.singles[at : at + len(tiles)]
            write_each(tiles, singles, [{**about, "shows": what} for what in strip * len(part)])

        # for the line of ddim invert that an interrupted inversion prints
        invert_words = {"prompt": targets.from_, "label": targets.from_label}
        going_on: dict[str, object] = {}
        if inverting.method in REVERSIBLE:  # the code has the guidance of its inversion, and not that of the targets
            invert_words |= {"guidance": guiding.inversion_guidance, "guidance_scale": None, "inversion_guidance": None}
            if guidance.weight != 1 and "guidance_scale" not in typed():
                going_on["guidance"] = float(guidance.weight)
        elif "guidance_scale" not in typed():
            invert_words["guidance"] = float(guidance.weight)
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
            write_page(_tiles(images, pixels), page, about, columns=len(strip), scale=scale)
            photographs = [one for row in edited.composites or () for one in row]
            for k, (file, photograph) in enumerate(zip(files.photographs, photographs, strict=True)):
                n, target_number = divmod(k, len(targets.names))
                shows = {"shows": targets.names[target_number], "size": list(photograph.shape[:0:-1])}
                write_photograph(photograph, file, {**about, **shows}, edited.code.sources[n].icc)
            about["photographs"] = [str(file) for file in files.photographs]
            about["files"] = [str(page), *map(str, files.singles), *about["photographs"], str(files.about)]
            text = json.dumps({**about, "seconds": round(terminal.seconds, 3)}, indent=2, default=str)
            write_whole(files.about, f"{text}\n".encode())
        terminal.result(
            about,
            f"[bold]{escaped(page)}[/bold]"
            + (f"  and {len(files.singles)} files in {escaped(page.with_suffix(''))}" if each else ""),
            *(f"photograph  [bold]{escaped(file)}[/bold]" for file in files.photographs),
            *(f"reconstruction  [green]{error_text(row)}[/green]" for row in rows),
            f"[dim]{' · '.join(strip)} · {edited.code.method}, "
            f"{steps_text(edited.code, inverting.count(counted.info.steps) if code is None else None)} · "
            f"{guidance_text(counted, guidance)}{about['nfe']:g} network calls per image · "
            f"{terminal.seconds:.1f} s[/dim]",
        )


class _Files:
    """The files that an edit writes.

    Args:
        page: the strip's file; the others are named after it.
        strip: what each image of the strip shows.
        rows: images that are edited.
        each: whether every image of the strip gets its own file.
        inverted: whether the source is a code; an image's code is saved while the edit runs.
        pasted: whether the edits are pasted into their photographs.
    """

    def __init__(
        self, page: Path, strip: Sequence[str], rows: int, each: bool, inverted: bool, pasted: bool = False
    ) -> None:
        self.page, self.rows = page, rows
        self.code = None if inverted else page.with_name(f"{page.with_suffix('').name}{CODE}")
        self.about = page.with_suffix(".json")
        self.saved = False
        digits = len(str(rows))
        names = [f"{n:0{digits}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(strip)]
        edits = rows * (len(strip) - (1 if inverted else 2))
        ends = [f"_photo{k + 1:0{len(str(edits))}d}" for k in range(edits)] if edits > 1 else ["_photo"]
        self.photographs = [page.with_name(f"{page.with_suffix('').name}{end}{PNG}") for end in ends] if pasted else []
        self.singles = [page.with_suffix("") / name for name in names] if each else []

    @property
    def written(self) -> list[Path]:
        """All files that the edit writes."""
        return [self.page, self.about, *self.singles, *self.photographs, *([self.code] if self.code else [])]

    def save(self, code: "LatentCode") -> None:
        """Saves the code of an image that was inverted."""
        if self.code is not None:
            code.save(self.code)
            self.saved = True

    @contextmanager
    def kept_code(self, invert_words: Mapping[str, object], going_on: Mapping[str, object]) -> Iterator[None]:
        """Around the edit: removes the code's file at the end; after an error, keeps it and says how to go on.

        Args:
            invert_words: parameters of ``ddim invert`` that differ from the running command's.
            going_on: parameters that an edit of the code must have in addition.
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
            idle = dict.fromkeys(("from_", "from_label", *o.INVERSION))  # which the code has already
            kept = f"The inverted code is in {self.code}"
            again = repeat(source=self.code, **{**idle, **going_on})
            kept += "." if isinstance(error, InputError) else f": {again} goes on."
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
