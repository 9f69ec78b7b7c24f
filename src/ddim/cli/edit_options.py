"""The options of ``ddim edit``: what the image is to show, attention control, and where it may change."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.choices import ATTENTION_BRANCHES, ATTENTIONS, KEY_VALUE_AREAS
from .._utils.errors import InputError
from ..editing.editors import EDITORS
from . import options as o
from .files import phrase, stem
from .groups import Options, option

if TYPE_CHECKING:
    from ..editing.plan import AttentionEdit

ATTENTION = "Attention, and where the image may change"


def _window(name: str, flag: str, help: str, tag: str, **more: Any) -> Any:
    """An option that takes ``END`` or ``BEGIN,END``, a part of the steps or of the layers.

    Args:
        name: the name of its field.
        flag, help, tag, more: as for ``option``.
    """

    def parse(text: str) -> Any:
        return o.range_from(text, name)

    return option(None, flag, help, ATTENTION, parse=parse, tag=tag, metavar="END|BEGIN,END", **more)


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
        "What the image is to show, '' for no words; (word:2) gives a word more weight; repeatable.",
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

    def check(self, inverted: bool, method: str) -> None:
        """Raises InputError, before a model is loaded, where they do not say what to edit to.

        Args:
            inverted: whether the source is a code, which knows its own prompt or class.
            method: the method, which may need no prompt of the source.
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
        needless = inverted or (method in EDITORS and not EDITORS[method].needs)
        if not needless and self.to and self.from_ is None:
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
    cross_steps: str | None = _window(
        "cross_steps",
        "--cross",
        "The part of the steps in which attention to words follows the source's; for refine and replace by default "
        "0,0.4.",
        "cross",
        about=False,
    )
    self_steps: str | None = _window(
        "self_steps",
        "--self",
        "The part of the steps in which self-attention follows the source's; for refine and replace by default 0,0.6, "
        "for plug-and-play 0,0.5.",
        "self",
        about=False,
    )
    value_steps: str | None = _window(
        "value_steps",
        "--value",
        "The part of the steps in which the image's values follow the source's; by default none.",
        "value",
    )
    key_value_steps: str | None = _window(
        "key_value_steps",
        "--key-value",
        "The part of the steps in which targets look at the keys and values of the source's image; for masactrl by "
        "default 0.08,1, for kv-edit 0,1.",
        "keyvalue",
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
    feature_steps: str | None = _window(
        "feature_steps",
        "--features",
        "The part of the steps in which a U-Net's features follow the source's; for plug-and-play by default 0,0.8.",
        "features",
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
    layers: str | None = _window(
        "layers",
        "--layers",
        "The part of the network's depth in which attention changes; by default all of it, for masactrl 0.625,1 and "
        "for plug-and-play 0.5,1.",
        "layers",
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
    weight_steps: str | None = _window(
        "weight_steps",
        "--weight-steps",
        "The part of the steps in which weighted words are scaled; by default the same part as --cross.",
        "scaled",
    )

    def edit(self, by_class: bool, editor: str | None = None) -> "AttentionEdit":
        """The attention control that was asked for, which classes and editors do without.

        Args:
            by_class: whether classes edit.
            editor: the name of the editor, if one edits.

        Raises:
            InputError: a setting that would have no effect.
        """
        from ..editing.plan import AttentionEdit

        if editor is not None and (idle := sorted(self.typed - {"attention"})):
            raise InputError(
                f"it is of attention control, which {editor!r} does without; leave it out, or use a method such as "
                "'direct'.",
                parameter=idle[0],
            )
        if editor is not None and "attention" not in self.typed:
            return AttentionEdit("none")

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


@dataclass(frozen=True)
class Automatic(Options):
    """Whether and how a mask is found."""

    auto_mask: bool = option(
        False,
        "--auto-mask",
        "Change only where the model's predictions under --from and --to differ (DiffEdit); with --mask where both "
        "allow it.",
        ATTENTION,
        argument=None,
        tag="automask",
    )
    mask_level: float | None = option(
        None,
        "--mask-level",
        "For --auto-mask: to which part of the largest time t the image is noised; by default 0.5.",
        ATTENTION,
        argument=None,
        tag="level",
    )
    mask_draws: int | None = option(
        None,
        "--mask-draws",
        "For --auto-mask: the number of noises; by default 10.",
        ATTENTION,
        argument=None,
        tag="draws",
    )
    mask_threshold: float | None = option(
        None,
        "--mask-threshold",
        "For --auto-mask: the part of the largest difference that the mask exceeds; by default 0.5.",
        ATTENTION,
        argument=None,
        tag="above",
    )
    mask_grow: int | None = option(
        None,
        "--mask-grow",
        "For --auto-mask: by how many pixels of the latent the mask grows; by default 0.",
        ATTENTION,
        argument=None,
        tag="grow",
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The automatic mask, if there is to be one.

        Raises:
            InputError: a value is out of range, or there is no automatic mask to set.
        """
        settings = {name.removeprefix("mask_"): getattr(self, name) for name in self.typed if name != "auto_mask"}
        if not self.auto_mask:
            if settings:
                raise InputError("it goes with --auto-mask.", parameter=f"mask_{min(settings)}")
            return {}
        from ..editing.auto_mask import AutoMask

        try:
            return {"auto_mask": AutoMask(**settings)}
        except InputError as error:
            raise InputError(error.message, parameter=f"mask_{error.parameter}") from None
