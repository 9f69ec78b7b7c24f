"""Edits in a benchmark: pairs of a source and the answer, and the settings under which they are edited."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._utils.names import settings_text
from ..models.base import Model
from .eval_images import EvalImage
from .method_spec import MethodSpec


@dataclass(frozen=True, eq=False)
class EditPair:
    """An edit whose answer is known.

    Attributes:
        source: the image to edit.
        answer: the image that the edit should give.
        kind: ``word`` (another word in the same style) or ``style`` (the same word in another style).
    """

    source: EvalImage
    answer: EvalImage
    kind: str

    @property
    def key(self) -> str:
        """Its name in tables and rows."""
        return f"{self.source.prompt} -> {self.answer.prompt}"


def edit_pairs(images: Sequence[EvalImage], words: int = 2, styles: int = 2, seed: int = 0) -> list[EditPair]:
    """Edits of every held-out image whose answers are images of the set, chosen at random from a seed.

    Args:
        images: from ``recipe_images``.
        words: edits to another word of the same style, from the source's own group if it has other words. There are
            fewer if the group has fewer.
        styles: edits to another style of the same word.
        seed: the seed of the choice.
    """
    generator = np.random.default_rng(seed)
    out: list[EditPair] = []
    for source in (image for image in images if image.held):
        same_style = [image for image in images if image.style == source.style and image.word != source.word]
        near = [image for image in same_style if image.group == source.group] or same_style
        same_word = [image for image in images if image.word == source.word and image.style != source.style]
        for kind, answers, count in (("word", near, words), ("style", same_word, styles)):
            chosen = generator.permutation(len(answers))[:count]
            out += [EditPair(source, answers[k], kind) for k in chosen.tolist()]
    return out


@dataclass(frozen=True)
class EditSetting:
    """How edits are made: an inversion or an editor, an attention control, the guidance weight and the steps."""

    spec: MethodSpec
    attention: str
    guidance: float
    steps: int

    def __str__(self) -> str:
        return f"{self.spec.title} · {self.attention}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``ddim.edit``."""
        return {
            **self.spec.edit_arguments,
            "steps": self.steps,
            "guidance": self.guidance,
            "attention": self.attention,
        }

    def keys(self, model: Model) -> dict[str, Any]:
        """The values of the key columns ``edit_keys``."""
        return {
            "fingerprint": str(model.fingerprint)[:12],
            "method": self.spec.method,
            "options": self.spec.options_text,
            "attention": self.attention,
            "steps": self.steps,
            "guidance": float(self.guidance),
        }

    def file_name(self, model: Model, more: Mapping[str, float | None] | None = None) -> str:
        """The name of the setting's folder of images; ``more`` are further settings, left out if None."""
        rest = {"w": float(self.guidance), **(more or {}), "": model.fingerprint[:12]}
        options = {**dict(self.spec.options), "": self.attention}
        return settings_text(self.spec.method, self.steps, options, rest=rest)


def edit_settings(
    model: Model, specs: Sequence[MethodSpec], attentions: Sequence[str], guidance: float | None, steps: int
) -> list[EditSetting]:
    """Every method with every attention control, or with its own if it names one; editors have none.

    Args:
        model: the model, whose usual guidance is used where ``guidance`` is None; an editor has its own usual one.
        specs: the methods.
        attentions: the attention controls of inversions.
        guidance: the weight of guidance.
        steps: the number of steps, for methods that do not fix it.
    """
    out: list[EditSetting] = []
    for spec in specs:
        editor = spec.editor
        usual = model.info.guidance if editor is None else editor.usual(model.info).guidance
        count = steps if editor is None or editor.steps is None else editor.steps
        own = ["none"] if editor is not None else [spec.attention] if spec.attention else attentions
        out += [EditSetting(spec, one, usual if guidance is None else guidance, count) for one in own]
    return out
