"""The registry of inversions: adding one is a file and a line here. Every reversible solver is one by itself."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._utils.errors import InputError, UnknownName
from .._utils.registry import Registry, build
from ..solvers import REVERSIBLE, SOLVERS

if TYPE_CHECKING:
    from ..core.contracts import Inversion

INVERSIONS: "Registry[Inversion]" = Registry(
    {
        "ddim": "inversion.ddim:DDIMInversion",
        "heun": "inversion.heun:HeunInversion",
        "null-text": "inversion.null_text:NullText",
        "negative-prompt": "inversion.negative_prompt:NegativePrompt",
        "direct": "inversion.direct:DirectInversion",
        "edit-friendly": "inversion.edit_friendly:EditFriendly",
        **REVERSIBLE.lines,
    }
)
"""Every inversion by its name."""


def inversion_names() -> list[str]:
    """Every method that ``make_inversion`` knows."""
    return list(INVERSIONS)


def make_inversion(method: "str | Inversion", options: Mapping[str, Any] | None = None) -> "Inversion":
    """An inversion by name; one that is an inversion already stays as it is.

    Args:
        method: one of ``inversion_names()``, or an ``Inversion``.
        options: its fields, such as ``{"iterations": 5}`` or ``{"gamma": 0.96}``; they go with a name.

    Raises:
        InputError: an unknown name or option, a value out of range, options beside a method that has its own.
    """
    if not isinstance(method, str):
        return _as_it_is(method, options)
    if method in INVERSIONS:
        return build(INVERSIONS[method], method, options)
    if method in SOLVERS:
        raise InputError(
            f"{method!r} cannot be inverted; use one of: {', '.join(inversion_names())}.", parameter="method"
        )
    raise UnknownName("method", method, inversion_names())


def _as_it_is(method: object, options: Mapping[str, Any] | None) -> "Inversion":
    from ..core.contracts import Inversion

    if not isinstance(method, Inversion):
        raise InputError(
            f"a {type(method).__name__} is neither a method's name nor an inversion; use one of: "
            f"{', '.join(inversion_names())}.",
            parameter="method",
        )
    if options:
        raise InputError("they go with a method's name; an inversion object has its own.", parameter="options")
    return method
