"""Inversions with their options, as tables name them: read from text, and asked whether a model is for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._utils.errors import InputError
from ..core.conditioning import Conditioning
from ..core.denoiser import Call
from ..core.path import Node
from ..inversion import inversion_names, make_inversion
from ..models.base import Model
from ..models.wrapper import ModelWrapper
from ..pipelines.common import Spacing
from ..pipelines.invert import invert

VARIANTS = {"ddim": ("ddim iterations=5",), "null-text": ("null-text start=prompt",)}
"""What is measured beside a method as it comes, without being asked for."""


@dataclass(frozen=True)
class Way:
    """An inversion with those of its options that are not as they come."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def told(self) -> str:
        """``iterations=5``; the same however it was written."""
        return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options)

    @property
    def title(self) -> str:
        """``ddim iterations=5``."""
        return " ".join(part for part in (self.method, self.told) if part)


def way(name: str, options: Mapping[str, Any] | None = None) -> Way:
    """A method with options, which may be texts.

    Raises:
        InputError: an unknown method or option, or a value out of range.
    """
    given, plain = make_inversion(name, options).options, make_inversion(name).options
    return Way(name, tuple((k, v) for k, v in sorted(given.items()) if v != plain.get(k)))


def way_of(text: str) -> Way:
    """``ddim iterations=5`` as a ``Way``.

    Raises:
        InputError: what ``way`` raises, or an option that is not KEY=VALUE.
    """
    name, *pairs = text.split() or [""]
    options = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not key or not value:
            raise InputError(
                f"{text!r} is no method with options; write for example 'ddim iterations=5'.", parameter="method"
            )
        options[key.replace("-", "_")] = value
    return way(name, options)


def all_ways() -> list[Way]:
    """Every registered method, each followed by its variants."""
    return [way_of(text) for name in inversion_names() for text in (name, *VARIANTS.get(name, ()))]


def refusal(model: Model, one: Way, steps: int, guidance: float, spacing: Spacing | None = None) -> InputError | None:
    """Why a method does not take a model, a weight, S or a spacing; None where it does. Asks no network."""
    picture = torch.zeros(1, *model.picture)
    try:
        invert(
            _Unasked(model),
            picture,
            steps=steps,
            method=one.method,
            options=dict(one.options),
            spacing=spacing,
            guidance=guidance if model.text else None,
        )
    except InputError as error:
        return error
    except _AskedError:
        pass
    return None


def taken(
    model: Model,
    given: Sequence[Way],
    steps: Sequence[int],
    weights: Sequence[float],
    spacing: Spacing | None = None,
) -> list[tuple[Way, float, int]]:
    """Those of all combinations that ``refusal`` has nothing against, by method, weight and steps.

    Args:
        model: to invert with.
        given: methods that were asked for by name; none are all there are, without those that do not take the model.
        steps: S.
        weights: of guidance.
        spacing: as ``invert`` takes it.

    Raises:
        InputError: a given method is refused everywhere, or steps that no method takes.
    """
    out: list[tuple[Way, float, int]] = []
    refused: list[InputError] = []
    for one in given or all_ways():
        found = [(w, s, refusal(model, one, s, w, spacing)) for w in weights for s in steps]
        out += [(one, w, s) for w, s, refused in found if refused is None]
        refused = [error for *_, error in found if error is not None]
        if given and len(refused) == len(found):
            raise refused[0]
    if not out:
        raise refused[0]
    return out


class _AskedError(Exception):
    """The network would have been asked."""


class _Unasked(ModelWrapper):
    """A model whose network is not to be asked."""

    def forward(self, x: torch.Tensor, node: Node, cond: Conditioning, call: Call) -> torch.Tensor:
        """Raises what ``refusal`` waits for."""
        raise _AskedError
