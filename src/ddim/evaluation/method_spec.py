"""Inversions and editors with their options, as tables name them, and which of them a model supports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._utils.errors import InputError
from ..core.conditioning import Conditioning
from ..core.contracts import Inversion
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.path import Node
from ..editing.editors import EDITORS, make_editor
from ..editing.editors.base import Editor
from ..editing.plan import AttentionEdit
from ..inversion import inversion_names, make_inversion
from ..models.base import Model
from ..models.wrapper import ModelWrapper
from ..pipelines.capabilities import capabilities
from ..pipelines.common import Spacing, conditioned
from ..pipelines.edit import edit
from ..pipelines.invert import invert

VARIANTS = {"ddim": ("ddim iterations=5",), "null-text": ("null-text start=prompt",)}
"""Variants that are measured beside a method when all methods are."""

EDIT_VARIANTS = tuple(f"direct attention={name}" for name in ("none", "masactrl", "plug-and-play"))
"""Attention controls that are measured beside the usual one when the edits of all methods are."""

ATTENTION = "attention"
"""What names the attention control of edits beside the options of a method, as in ``direct attention=none``."""


@dataclass(frozen=True)
class MethodSpec:
    """An inversion or an editor with those of its options that differ from their defaults.

    Attributes:
        method: the name.
        options: the options.
        attention: the attention control of its edits; empty is the usual one.
    """

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    attention: str = ""

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any] | None = None) -> "MethodSpec":
        """A method with options, whose values may be texts.

        Raises:
            InputError: the method or an option is unknown, or a value is out of its range.
        """
        own = dict(options or {})
        attention = str(own.pop(ATTENTION, ""))
        if attention:
            AttentionEdit(attention)
        chosen, usual = _made(name, own).options, _made(name, None).options
        changed = tuple((key, value) for key, value in sorted(chosen.items()) if value != usual.get(key))
        return cls(name, changed, attention)

    @classmethod
    def parse(cls, text: str) -> "MethodSpec":
        """The spec that a text such as ``ddim iterations=5`` names.

        Raises:
            InputError: as for ``of``, or an option is not KEY=VALUE.
        """
        name, *pairs = text.split() or [""]
        options = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if not key or not value:
                raise InputError(
                    f"{text!r} is not a method with options; write for example 'ddim iterations=5'.",
                    parameter="method",
                )
            options[key.replace("-", "_")] = value
        return cls.of(name, options)

    @property
    def editor(self) -> Editor | None:
        """The editor; None for an inversion."""
        return make_editor(self.method, dict(self.options))

    @property
    def only_edits(self) -> bool:
        """Whether it differs from others in its edits alone: an editor, or another attention control."""
        return bool(self.attention) or self.editor is not None

    @property
    def edit_arguments(self) -> dict[str, Any]:
        """The arguments of ``ddim.edit`` that choose it."""
        usual = "refine" if self.editor is None else "none"
        return {"method": self.method, "options": dict(self.options), "attention": self.attention or usual}

    @property
    def options_text(self) -> str:
        """The options as ``iterations=5``. It is the same however they were written."""
        named = [*self.options, *([(ATTENTION, self.attention)] if self.attention else [])]
        return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in named)

    @property
    def title(self) -> str:
        """The method with its options, such as ``ddim iterations=5``."""
        return " ".join(part for part in (self.method, self.options_text) if part)


def _made(name: str, options: Mapping[str, Any] | None) -> Editor | Inversion:
    """The editor or the inversion of a name."""
    return make_editor(name, options) or make_inversion(name, options)


def all_methods() -> list[MethodSpec]:
    """Every registered inversion, each followed by its ``VARIANTS``."""
    return [MethodSpec.parse(text) for name in inversion_names() for text in (name, *VARIANTS.get(name, ()))]


def all_editors() -> list[MethodSpec]:
    """Every registered editor, after the ``EDIT_VARIANTS``."""
    return [*map(MethodSpec.parse, EDIT_VARIANTS), *map(MethodSpec, EDITORS)]


def usable_methods(model: Model) -> list[MethodSpec]:
    """Every inversion and every editor that works on a model."""
    works = capabilities(model)
    return [MethodSpec(name) for kind in ("inversions", "editors") for name, why in works[kind].items() if why is None]


def chosen_methods(method: Sequence[str] | None, option: Mapping[str, Any] | None) -> list[MethodSpec]:
    """The methods that the options ``method`` and ``option`` name, each once; empty if they name none.

    Raises:
        InputError: a method or an option is unknown, or there is an option and not exactly one method.
    """
    specs = [MethodSpec.parse(text) for text in method or ()]
    if option and len(specs) != 1:
        raise InputError(
            f"it belongs to one method, and {len(specs) or 'all'} are measured; give one --method.", parameter="option"
        )
    if option:
        specs = [MethodSpec.of(specs[0].method, {**dict(specs[0].options), **option})]
    return list(dict.fromkeys(specs))


def refusal(
    model: Model, spec: MethodSpec, steps: int, guidance: float, spacing: Spacing | None = None, *, edits: bool = False
) -> InputError | None:
    """The error that ``ddim.invert`` raises for a model and these settings; None if it accepts them.

    With ``edits`` it is that of ``ddim.edit``: an editor may have the name of an inversion. The network is not called.
    """
    picture = torch.zeros(1, *model.picture)
    try:
        if edits:
            edit(
                _Uncalled(model), picture, "a", source_prompt="b", steps=steps, guidance=guidance, **spec.edit_arguments
            )
        invert(
            _Uncalled(model),
            picture,
            steps=steps,
            method=spec.method,
            options=dict(spec.options),
            spacing=spacing,
            guidance=guidance if model.text else None,
        )
    except InputError as error:
        return error
    except _CalledError:
        pass
    return None


def accepted(
    model: Model,
    specs: Sequence[MethodSpec],
    steps: Sequence[int],
    weights: Sequence[float],
    spacing: Spacing | None = None,
    *,
    edits: bool = False,
) -> list[tuple[MethodSpec, float, int]]:
    """The combinations of methods, guidance weights and steps that a model accepts.

    Args:
        model: the model.
        specs: the methods; if there are none, all that accept the model.
        steps: numbers of steps; an editor that fixes its own has that one.
        weights: guidance weights; an editor also has its own usual one.
        spacing: as for ``ddim.invert``.
        edits: whether the methods edit, which editors do, and otherwise invert.

    Raises:
        InputError: one of the ``specs`` is refused in every combination, or no inversion accepts the steps.
    """
    out: list[tuple[MethodSpec, float, int]] = []
    refused: list[InputError] = []
    for spec in specs or (all_editors() if edits else all_methods()):
        editor = spec.editor if edits else None
        own = [] if editor is None else [editor.usual(model.info).guidance]
        counts = steps if editor is None or editor.steps is None else [editor.steps]
        pairs = [(weight, s) for weight in dict.fromkeys([*own, *weights]) for s in counts]
        found = [(weight, s, refusal(model, spec, s, weight, spacing, edits=edits)) for weight, s in pairs]
        out += [(spec, weight, s) for weight, s, refused in found if refused is None]
        refused = [error for *_, error in found if error is not None]
        if specs and len(refused) == len(found):
            raise refused[0]
    if not out and not edits:
        raise refused[0]
    return out


def guidance_weight(model: Model, weight: float | None, usual: float) -> float:
    """The guidance weight of a run: the one that was chosen, else ``usual``; 1 for a model without guidance.

    Raises:
        InputError: a weight for a model without guidance, or one that is not a number.
    """
    if weight is not None and not conditioned(model):
        raise InputError(
            f"it goes with prompts, and the model {model.name!r} has no text encoder.", parameter="guidance"
        )
    return Guidance((usual if model.text else 1.0) if weight is None else weight).weight


class _CalledError(Exception):
    """The network would have been called."""


class _Uncalled(ModelWrapper):
    """A model whose network must not be called."""

    def forward(self, x: torch.Tensor, node: Node, cond: Conditioning, call: Call) -> torch.Tensor:
        """Raises the error that ``refusal`` waits for."""
        raise _CalledError
