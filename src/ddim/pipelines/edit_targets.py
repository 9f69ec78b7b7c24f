"""The targets of an edit: words, concepts or classes, as conditions of the network and a plan for attention."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.conditioning import POOLED, TEXT, TEXT_MASK, Conditioning
from ..editing.editors.base import Concept
from ..editing.plan import AttentionPlan
from ..editing.prompts import target_prompts
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from .edit_asked import Asked
from .edit_by import Parts
from .edit_plan import planned, planned_classes, prompts_of_code, refuse_words, source_prompts
from .edit_source import Source


@dataclass(frozen=True, eq=False)
class Targets:
    """The K targets of each of N sources.

    Attributes:
        own: the prompt or the class of each source.
        names: the targets without their weights, ``[N][K]``: prompts or classes.
        conditions: the conditions of each part of the targets, N K rows, those of one image next to each other.
        factors: the factors of each part, N K numbers; see ``Parts``.
        as_source: for each part, which rows have the very prompt of their source; none for classes.
        plan: the plan for attention control, or None.
    """

    own: Sequence[str] | Sequence[int]
    names: tuple[tuple[str | int, ...], ...]
    conditions: Sequence[Conditioning]
    factors: Sequence[Sequence[float]]
    as_source: Sequence[Sequence[bool]] = ()
    plan: AttentionPlan | None = None

    def beside(self, code: LatentCode) -> list[Conditioning]:
        """Returns the conditions of each part, in which targets with the prompt of their source have its embedding.

        Args:
            code: the sources' code.
        """
        if not self.as_source:
            return list(self.conditions)
        return [_with_own_words(part, code, same) for part, same in zip(self.conditions, self.as_source, strict=True)]


def targets_of(model: Model, asked: Asked, source: Source) -> Targets:
    """Reads the targets of an edit, and asks the model for their conditions.

    Raises:
        InputError: what ``edit`` raises about prompts, words, classes and attention.
    """
    return _classes(model, asked, source) if asked.classes else _prompts(model, asked, source)


def _classes(model: Model, asked: Asked, source: Source) -> Targets:
    """Reads the classes to edit to. Raises InputError for a value that is no class, or settings that words have."""
    given = asked.words
    words = {name: getattr(given, name) for name in ("source_prompt", "blend", "weights", "negative")}
    own, names = planned_classes(model, source.code, given.source_labels, given.labels, len(source), words)
    labels = [label for row in names for label in row]
    conditions = model.condition(labels, len(labels), size=source.size).cond
    return Targets(own, names, [conditions], Parts.of([[(Concept(""),) for _ in row] for row in names]).factors)


def _prompts(model: Model, asked: Asked, source: Source) -> Targets:
    """Reads the prompts to edit to, splits them into the parts that an editor asks for, and plans attention control.

    Raises:
        InputError: what ``edit`` raises about prompts and words.
    """
    given, editor, prompt = asked.words, asked.editor, asked.words.prompt
    if source.code is None:
        own = source_prompts(given.source_prompt, len(source))
    else:
        own = prompts_of_code(source.code, given.source_prompt, given.negative)
    assert prompt is not None
    parts = None
    if editor is not None:
        concepts = [[editor.concepts(text) for text in row] for row in target_prompts(prompt, len(own))]
        parts = Parts.of(concepts)
        refuse_words(editor, given.blend, given.weights, parts.texts)
        prompt = [["; ".join(concept.text for concept in target) for target in row] for row in concepts]
    masked = bool(source.user_masks) or asked.auto is not None
    how = (asked.attention, given.blend, given.weights)
    names, plan = planned(model, own, prompt, source.size, *how, masked=masked)
    parts = Parts.of([[(Concept(text),) for text in row] for row in names]) if parts is None else parts.plain()
    sources = [text for text, row in zip(own, names, strict=True) for _ in row]
    return Targets(
        own,
        names,
        _embedded(model, parts.texts, source.size),
        parts.factors,
        [[target == text for target, text in zip(part, sources, strict=True)] for part in parts.texts],
        plan,
    )


def _embedded(model: Model, parts: Sequence[Sequence[str]], size: tuple[int, int]) -> list[Conditioning]:
    """Returns the conditions of the prompts of each part; equal prompts are encoded once, and all of them together."""
    texts = list(dict.fromkeys(text for part in parts for text in part))
    encoded = model.encode_prompt(texts, size)
    return [encoded[[texts.index(text) for text in part]] for part in parts]


def _with_own_words(targets: Conditioning, code: LatentCode, same: Sequence[bool]) -> Conditioning:
    """Gives each target whose prompt is its source's the very embedding of the source, of which an embedding in another
    batch differs in the last bits.

    Args:
        targets: N * K rows.
        code: the sources' code.
        same: whether the prompts are equal, for each row.
    """
    if not any(same):
        return targets
    n, k = len(code), len(same) // len(code)
    sources = code.conditions.cond.tensors
    names = [name for name in (TEXT, TEXT_MASK, POOLED) if name in targets or name in sources]
    parts = (Conditioning({name: t[name] for name in names if name in t}) for t in (sources, targets.tensors))
    rows = [row // k if equal else n + row for row, equal in enumerate(same)]
    device = next(iter(targets.tensors.values())).device
    return targets.replace(**Conditioning.cat(part.to(device) for part in parts)[rows].tensors)
