"""The documented table of what works is that of models of each kind, tiny and random."""

from collections.abc import Callable

import capability_table
import pytest
import tiny
import tiny_flow
import tiny_sdxl
import tiny_text
from capability_table import KINDS

import ddim
from ddim import FAMILIES
from ddim.models.base import Model
from ddim.pipelines.capabilities import CONTROLS

MADE: dict[str, Callable[[], Model]] = {
    "pixel model": tiny.model,
    "pixel model, x0": lambda: tiny.model(prediction_type="sample"),
    "classes": lambda: tiny.model(classes=3),
    "SD 1, 2": tiny_text.model,
    "SDXL": lambda: ddim.load(tiny_sdxl.pipeline()),
    "SD 3, 3.5": tiny_flow.FAMILIES["sd3"].model,
    "FLUX.1 dev": tiny_flow.FAMILIES["flux dev"].model,
    "FLUX.1 schnell": tiny_flow.FAMILIES["flux schnell"].model,
    "FLUX.1 de-distilled": tiny_flow.FAMILIES["flux de-distilled"].model,
    "FLUX.1 Kontext": tiny_flow.FAMILIES["flux kontext"].model,
    "FLUX.2 klein": tiny_flow.FAMILIES["flux2 klein"].model,
    "FLUX.2 klein base": tiny_flow.FAMILIES["flux2 base"].model,
    "Chroma": tiny_flow.FAMILIES["chroma"].model,
    "Qwen-Image": tiny_flow.FAMILIES["qwen-image"].model,
    "Z-Image": tiny_flow.FAMILIES["z-image"].model,
    "Lumina 2": tiny_flow.FAMILIES["lumina2"].model,
    "Sana": tiny_flow.FAMILIES["sana"].model,
}


def works(table: dict[str, dict[str, str | None]]) -> dict[str, dict[str, bool]]:
    return {kind: {name: reason is None for name, reason in reasons.items()} for kind, reasons in table.items()}


@pytest.mark.parametrize("title", KINDS)
def test_a_column_is_that_of_a_model_of_its_kind(title: str):
    model = MADE[title]()
    assert works(ddim.capabilities(capability_table.example(title))) == works(ddim.capabilities(model))
    assert isinstance(model, capability_table.example(title).adapter)


def test_every_family_has_a_column():
    assert {FAMILIES[kind] for kind in FAMILIES} == {capability_table.example(title).adapter for title in KINDS}


def test_the_table_has_a_row_for_everything_and_a_reason_for_every_no():
    table = capability_table.table()
    head, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert head.count("|") == len(KINDS) + 2
    assert len(rows) == len(ddim.SOLVERS) + len(ddim.INVERSIONS) + len(ddim.EDITORS) + len(CONTROLS)
    notes = [line for line in table.splitlines() if line[:1].isdigit()]
    cells = {cell.strip() for row in rows for cell in row.split("|")[2:-1]}
    assert cells == {"yes", *(f"no ({number})" for number in range(1, len(notes) + 1))}
    assert all(note.endswith(".") for note in notes)
    assert not any(repr(title) in table for title in KINDS)


def test_the_usual_strengths_are_those_of_the_editors():
    head, _, *rows = capability_table.strengths().splitlines()
    titles = [cell.strip() for cell in head.split("|")[2:-1]]
    assert "SD 3, 3.5" in titles
    assert "pixel model" not in titles
    for row, (name, kind) in zip(rows, ddim.EDITORS.items(), strict=True):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[0] == f"`{name}`"
        for title, cell in zip(titles, cells[1:], strict=True):
            model = MADE[title]()
            works = ddim.capabilities(model)["editors"][name] is None
            assert cell == (f"{kind().usual(model.info).strength:.3g}" if works else "–")
