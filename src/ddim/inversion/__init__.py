"""The registry of inversions. To add one, write a module and add one line here.

Every reversible solver is an inversion too, and needs no line.
"""

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
        "rf-solver": "inversion.rf_solver:RFSolver",
        "fireflow": "inversion.fireflow:FireFlowInversion",
        "uni-inv": "inversion.uni_inv:UniInv",
        "null-text": "inversion.null_text:NullText",
        "negative-prompt": "inversion.negative_prompt:NegativePrompt",
        "prox-npi": "inversion.prox_npi:ProxNPI",
        "renoise": "inversion.renoise:ReNoise",
        "spd": "inversion.spd:SPDInversion",
        "direct": "inversion.direct:DirectInversion",
        "direct-edit": "inversion.direct_edit:DirectEdit",
        "edit-friendly": "inversion.edit_friendly:EditFriendly",
        "rf-inversion": "inversion.rf_inversion:RFInversion",
        **REVERSIBLE.lines,
    }
)
"""All inversions by name."""


def inversion_names() -> list[str]:
    """Returns the names of all inversions."""
    return list(INVERSIONS)


def make_inversion(method: "str | Inversion", options: Mapping[str, Any] | None = None) -> "Inversion":
    """Makes an inversion by name. An ``Inversion`` is returned unchanged.

    Args:
        method: one of ``inversion_names()``, or an ``Inversion``.
        options: the options of a method that is chosen by name, such as ``{"iterations": 5}`` or ``{"gamma": 0.96}``.

    Raises:
        InputError: the name or an option is unknown, a value is out of range, or there are options besides an
            ``Inversion``, which has its own.
    """
    if not isinstance(method, str):
        return _checked_instance(method, options)
    if method in INVERSIONS:
        return build(INVERSIONS[method], method, options)
    if method in SOLVERS:
        raise InputError(
            f"{method!r} cannot be inverted; use one of: {', '.join(inversion_names())}.", parameter="method"
        )
    raise UnknownName("method", method, inversion_names())


def _checked_instance(method: object, options: Mapping[str, Any] | None) -> "Inversion":
    from ..core.contracts import Inversion

    if not isinstance(method, Inversion):
        raise InputError(
            f"a {type(method).__name__} is neither a method's name nor an inversion; use one of: "
            f"{', '.join(inversion_names())}.",
            parameter="method",
        )
    if options:
        raise InputError("they apply to the name of a method; an inversion object has its own.", parameter="options")
    return method
