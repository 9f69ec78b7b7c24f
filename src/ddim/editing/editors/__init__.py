"""The registry of editors. To add one, write a module and add one line here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._utils.registry import Registry, build

if TYPE_CHECKING:
    from .base import Editor

EDITORS: "Registry[Editor]" = Registry(
    {
        "flow-edit": "editing.editors.flow_edit:FlowEdit",
        "flow-align": "editing.editors.flow_align:FlowAlign",
        "dvrf": "editing.editors.dvrf:DVRF",
        "chord-edit": "editing.editors.chord_edit:ChordEdit",
        "turbo-edit": "editing.editors.turbo_edit:TurboEdit",
        "ledits++": "editing.editors.ledits:Ledits",
        "uni-edit": "editing.editors.uni_edit:UniEdit",
        "dna-edit": "editing.editors.dna_edit:DNAEdit",
        "steer-flow": "editing.editors.steer_flow:SteerFlow",
        "rf-inversion": "editing.editors.rf_inversion:RFInversionEdit",
        "instruct": "editing.editors.instruct:Instruct",
        "velo-edit": "editing.editors.velo_edit:VeloEdit",
    }
)
"""All editors by name. An editor may have the name of its inversion."""


def make_editor(method: "str | Editor", options: Mapping[str, Any] | None = None) -> "Editor | None":
    """Makes an editor by name; None if no editor has this name.

    Args:
        method: a name, or an ``Editor``, which is returned unchanged.
        options: the options of an editor that is chosen by name.

    Raises:
        InputError: an option is unknown, a value is out of range, or there are options besides an ``Editor``.
    """
    if isinstance(method, str):
        return build(EDITORS[method], method, options) if method in EDITORS else None
    from ..._utils.errors import InputError
    from .base import Editor

    if not isinstance(method, Editor):
        return None
    if options:
        raise InputError("they apply to the name of a method; an editor has its own.", parameter="options")
    return method
