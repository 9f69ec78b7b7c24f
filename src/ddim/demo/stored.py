"""Tables that take too long for a page in two minutes: as ``ddim evaluate`` measured them, with their command.

They are the files of ``docs/results``. A checkout reads them there; a wheel carries copies in ``ddim/demo/results``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NAMES = (
    "leaderboard-emoji",
    "table1-fashion",
    "table2-fashion",
    "table2-exact-fashion",
    "consistency-fashion",
)
"""The files, without ``.json``. ``pyproject.toml`` puts the same ones into the wheel."""


class Stored(NamedTuple):
    """A stored table: its rows, and what was written beside them (``command``, ``machine``, ``images`` ...)."""

    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def stored(name: str, model: Mapping[str, Any]) -> Stored | None:
    """A table of ``NAMES``, or None if another model was measured, or the file is not there.

    Args:
        name: one of ``NAMES``.
        model: the facts of the model on the page; its ``fingerprint`` must be that of the table.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "results", here.parents[3] / "docs" / "results"):
        file = folder / f"{name}.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            table = Stored(found["about"], found["rows"])
            return table if table.about.get("fingerprint") == model["fingerprint"] else None
    return None
