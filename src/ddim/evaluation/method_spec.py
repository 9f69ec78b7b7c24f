"""Inversions with their options, as tables name them, and which of them a model supports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._utils.errors import InputError
from ..core.conditioning import Conditioning
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.path import Node
from ..inversion import inversion_names, make_inversion
from ..models.base import Model
from ..models.wrapper import ModelWrapper
from ..pipelines.common import Spacing, conditioned
from ..pipelines.invert import invert

VARIANTS = {"ddim": ("ddim iterations=5",), "null-text": ("null-text start=prompt",)}
"""Variants that are measured beside a method when all methods are."""


@dataclass(frozen=True)
class MethodSpec:
    """An inversion with those of its options that differ from their defaults."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any] | None = None) -> "MethodSpec":
        """A method with options, whose values may be texts.

        Raises:
            InputError: the method or an option is unknown, or a value is out of its range.
        """
        chosen, usual = make_inversion(name, options).options, make_inversion(name).options
        return cls(name, tuple((key, value) for key, value in sorted(chosen.items()) if value != usual.get(key)))

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
    def options_text(self) -> str:
        """The options as ``iterations=5``. It is the same however they were written."""
        return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options)

    @property
    def title(self) -> str:
        """The method with its options, such as ``ddim iterations=5``."""
        return " ".join(part for part in (self.method, self.options_text) if part)


def all_methods() -> list[MethodSpec]:
    """Every registered inversion, each followed by its ``VARIANTS``."""
    return [MethodSpec.parse(text) for name in inversion_names() for text in (name, *VARIANTS.get(name, ()))]


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
    model: Model, spec: MethodSpec, steps: int, guidance: float, spacing: Spacing | None = None
) -> InputError | None:
    """The error that ``ddim.invert`` raises for a model and these settings; None if it accepts them.

    The network is not called.
    """
    picture = torch.zeros(1, *model.picture)
    try:
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
) -> list[tuple[MethodSpec, float, int]]:
    """The combinations of methods, guidance weights and steps that a model accepts.

    Args:
        model: the model.
        specs: the methods; if there are none, all that accept the model.
        steps: numbers of steps.
        weights: guidance weights.
        spacing: as for ``ddim.invert``.

    Raises:
        InputError: one of the ``specs`` is refused in every combination, or no method accepts the steps.
    """
    out: list[tuple[MethodSpec, float, int]] = []
    refused: list[InputError] = []
    for spec in specs or all_methods():
        found = [(weight, s, refusal(model, spec, s, weight, spacing)) for weight in weights for s in steps]
        out += [(spec, weight, s) for weight, s, refused in found if refused is None]
        refused = [error for *_, error in found if error is not None]
        if specs and len(refused) == len(found):
            raise refused[0]
    if not out:
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
