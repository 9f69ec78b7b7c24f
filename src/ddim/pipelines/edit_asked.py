"""What an edit is asked for: the arguments of ``edit``, after all checks that need no image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._utils.errors import InputError, is_number
from ..core.contracts import Inversion
from ..core.guidance import Guidance
from ..data.photographs import CropLike
from ..editing.auto_mask import AutoMask
from ..editing.blend import MaskLike
from ..editing.composite import checked_feather
from ..editing.editors.base import Editor
from ..editing.plan import AttentionEdit
from ..editing.prompts import Weights
from ..editing.strength import checked_strengths
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from .capabilities import check_acts, check_guidance, check_negative, check_weight
from .common import Spacing
from .edit_by import Chosen
from .edit_plan import Blend, attention_asked, by_class

DEFAULTS: dict[str, Any] = {"method": "direct", "seed": 0}
"""Settings of the inversion of images. They are None in the signature, because a code takes none of them."""


@dataclass(frozen=True, eq=False)
class Words:
    """What the images show and what they are to show, as ``edit`` was given it. None is what was left out."""

    prompt: str | Sequence[str] | Sequence[Sequence[str]] | None
    source_prompt: str | Sequence[str] | None
    labels: int | Sequence[int] | Sequence[Sequence[int]] | None
    source_labels: int | Sequence[int] | None
    blend: Blend | list[Any]
    weights: Weights | list[Any] | None
    negative: str | None


@dataclass(frozen=True, eq=False)
class Region:
    """Where the images may change, and how they are read, as ``edit`` was given it."""

    mask: MaskLike | None
    auto_mask: str | AutoMask | None
    crop: CropLike | None
    resize: bool
    feather: int | None


@dataclass(frozen=True, eq=False)
class Inverting:
    """The settings of the inversion, as ``edit`` was given them. None is what was left out."""

    method: str | Inversion | None
    options: Mapping[str, Any] | None
    steps: int | None
    spacing: Spacing | None
    inversion_guidance: float | None
    clip_x0: float | None
    threshold: float | None
    seed: int | None


@dataclass(frozen=True, eq=False)
class Asked:
    """What an edit is asked for.

    Attributes:
        words: what the images show and are to show.
        region: where they may change.
        inverting: the settings of the inversion.
        classes: whether classes edit, and not prompts.
        chosen: the editor; None if targets are sampled beside their sources.
        guidance: of the targets; None is the usual one.
        attention: the attention control.
        strengths: the strengths; None is that of the source, or the usual one.
        auto: the automatic mask, if there is to be one.
    """

    words: Words
    region: Region
    inverting: Inverting
    classes: bool
    chosen: Chosen | None
    guidance: float | Guidance | None
    attention: AttentionEdit
    strengths: tuple[float | None, ...]
    auto: AutoMask | None

    @staticmethod
    def of(
        model: Model,
        code: LatentCode | None,
        words: Words,
        region: Region,
        inverting: Inverting,
        guidance: float | Guidance | None,
        attention: str | AttentionEdit | None,
        strength: float | Sequence[float] | None,
    ) -> "Asked":
        """Checks what can be checked without an image.

        Args:
            model: the model.
            code: the source, if it is a code.
            words, region, inverting, guidance, attention, strength: as ``edit`` was given them.

        Raises:
            InputError: what ``edit`` raises about the model, the guidance, the strength and the settings.
        """
        if region.feather is not None:
            region = replace(region, feather=checked_feather(region.feather))
        classes = by_class(model, words.prompt, words.labels)
        if words.source_labels is not None and not classes:
            raise InputError("they go with labels, and here a prompt edits; leave them out.", parameter="source_labels")
        chosen = Chosen.of(model, inverting.method, inverting.options, guidance, code)
        _check_guidance(model, code, chosen, guidance, inverting.inversion_guidance, words.negative)
        strengths, auto = checked_strengths(strength), AutoMask.of(region.auto_mask)
        editor = None if chosen is None else chosen.editor
        if auto is not None and editor is not None and editor.looks:
            raise InputError(
                f"it does not go with {editor.name!r}, whose prompt is an instruction and shows nothing of "
                "the source; give a mask.",
                parameter="auto_mask",
            )
        needless = editor is not None and not editor.needs and not classes and code is None
        if needless and words.source_prompt is None:
            words = replace(words, source_prompt="")
        how = attention_asked(attention, classes, editor)
        return Asked(words, region, inverting, classes, chosen, guidance, how, strengths, auto)

    @property
    def editor(self) -> Editor | None:
        """The editor, if one edits."""
        return None if self.chosen is None else self.chosen.editor

    @property
    def method(self) -> str | Inversion:
        """The inversion of images."""
        if self.chosen is not None:
            return self.chosen.inversion
        return DEFAULTS["method"] if self.inverting.method is None else self.inverting.method

    @property
    def options(self) -> Mapping[str, Any] | None:
        """The options of the inversion; those of an editor are the editor's."""
        return self.inverting.options if self.chosen is None else None

    @property
    def seed(self) -> int:
        """The seed of the first image."""
        return DEFAULTS["seed"] if self.inverting.seed is None else self.inverting.seed

    def refuse_for_code(self) -> None:
        """Raises InputError for a setting of the inversion, which a code has behind it."""
        given, editor = self.inverting, self.editor
        asked = {
            "steps": given.steps,
            "options": self.options or None,
            "method": given.method if editor is None else None,
            "clip_x0": given.clip_x0,
            "threshold": given.threshold,
            "inversion_guidance": given.inversion_guidance,
            "spacing": given.spacing,
            "resize": self.region.resize or None,
            "crop": self.region.crop,
            "seed": None if self.auto is not None or (editor is not None and editor.draws) else given.seed,
        }
        if idle := [name for name, value in asked.items() if value is not None]:
            raise InputError(
                "it is a setting of the inversion, and a code is inverted already; leave it out.", parameter=idle[0]
            )


def _check_guidance(
    model: Model,
    code: LatentCode | None,
    chosen: Chosen | None,
    guidance: float | Guidance | None,
    inversion_guidance: float | None,
    negative: str | None,
) -> None:
    """Raises InputError for guidance, or a negative prompt of images, that is wrong or would have no effect.

    Args:
        model, guidance, inversion_guidance, negative: as for ``edit``.
        code: the source, if it is a code.
        chosen: the editor, which has checked its own guidance.
    """
    if chosen is not None:
        chosen.check_negative(model, negative if code is None else None)
        return
    if isinstance(guidance, Guidance):
        check_guidance(model, guidance)
        if inversion_guidance in (None, 1):
            check_acts(guidance, None if code is None else Guidance.of(code.guidance))
    elif guidance is not None and is_number(guidance) and model.text:
        check_weight(model, guidance, "guidance")
    if code is None:
        weight = model.info.guidance if guidance is None else guidance
        check_negative(model, negative, weight.weight if isinstance(weight, Guidance) else weight)
