"""The documented table of schedulers: it has every option of every class, and is what the code says today."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import scheduler_table
from scheduler_table import FILE, NUMBERS, SAMPLERS, VALUES, Row, markdown, rows

from ddim.models.scheduler_fields import IGNORED, SCHEDULERS, UNSUPPORTED, fields_read_by

TABLE = 7
"""The cells of a row of the first table, of which the last are measured."""


@pytest.fixture(scope="module")
def every() -> list[Row]:
    return list(rows())


def test_every_option_of_every_class_is_in_it(every: list[Row]):
    listed = {(row.kind, row.option) for row in every}
    for kind, fields in SCHEDULERS.items():
        signature = inspect.signature(getattr(diffusers, kind).__init__).parameters
        options = {k for k, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
        for option in options | set(fields):  # some classes are stand-ins without options, because they need scipy
            assert (kind, option) in listed, f"{option} of {kind} is not in the table: give it a value in VALUES"


def test_every_scheduler_of_diffusers_is_read_or_named_as_refused():
    known = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert known <= set(SCHEDULERS) | set(UNSUPPORTED)
    assert not set(SCHEDULERS) & set(UNSUPPORTED)
    assert set(UNSUPPORTED) <= known


def test_every_option_that_is_read_has_values():
    for kind, fields in SCHEDULERS.items():
        for option in fields:
            assert option in VALUES or (option in IGNORED and option not in fields_read_by(kind)), option


def numbers(line: str) -> tuple[str, list[float | None]]:
    """A line of a table without its measurements, and those."""
    cells = [cell.strip() for cell in line.split(" | ")]
    if len(cells) != TABLE or cells[-1].startswith(("---", NUMBERS[-1])):
        return line, []
    told = [cell.removesuffix(" |").strip() for cell in cells[-len(NUMBERS) :]]
    return " | ".join(cells[: -len(NUMBERS)]), [None if cell == "–" else float(cell) for cell in told]


def test_the_page_says_what_the_code_does(every: list[Row]):
    stored, now = (text.split("\n\ncommand: ")[0].splitlines() for text in (FILE.read_text("utf-8"), markdown(every)))
    for one, other in zip(stored, now, strict=True):
        (settled, before), (again, after) = numbers(one), numbers(other)
        assert settled == again
        for a, b in zip(before, after, strict=True):
            assert (a is None) is (b is None), one
            assert a is None or b is None or b <= 4 * a + 2e-6, (one, other)  # last bits differ between machines


KNOWN = {
    ("timestep_spacing", "linspace"),
    ("final_sigmas_type", "sigma_min"),
    ("rescale_betas_zero_snr", True),  # diffusers ends at a signal of 2e-4, and we at none
}
LIMITS = {"clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
WRONG = {"ddim": ("heun", {}), "heun": ("ddim", {}), "lcm": ("tcd", {}), "tcd": ("lcm", {}), "dpm++2m": ("ddim", {})}
"""Solver -> another one, which does not make the same steps."""


def alike(row: Row) -> bool:
    """Whether the samples of a row are measured, and the page names no cause for which they differ."""
    if row.sample is None or (row.option, row.value) in KNOWN:
        return False
    if (row.kind, row.value) == ("HeunDiscreteScheduler", "squaredcos_cap_v2"):  # float32 in diffusers
        return False
    return row.kind != "TCDScheduler" or row.option not in LIMITS


def allowed(row: Row) -> float:
    """How far the samples of a row may lie apart: as far as a start that is disturbed as much moves, up to 1e-3."""
    assert row.moves is not None
    rounding = 1e-3 if row.value == "squaredcos_cap_v2" else 1e-5  # of x / alpha of 2e4 in float32
    return min(rounding + 5 * row.moves, 1e-3)


def test_samples_agree_as_far_as_their_grids_do(every: list[Row]):
    """But for the causes that the page names."""
    measured = [row for row in every if alike(row)]
    assert len(measured) > 180
    for row in measured:
        assert row.sample is not None
        assert row.sample <= allowed(row), row


def test_another_solver_is_seen_on_every_row(every: list[Row], monkeypatch: pytest.MonkeyPatch):
    for kind, (name, options) in SAMPLERS.items():
        wrong = ("ddim", {"eta": 0.9}) if options else WRONG[name]
        monkeypatch.setitem(scheduler_table.SAMPLERS, kind, wrong)
    for row in filter(alike, every):
        other = scheduler_table.compared(row.kind, row.option, row.value)
        assert other.sample is not None
        assert other.sample > allowed(row), other


def test_a_sampler_that_differs_is_seen(monkeypatch: pytest.MonkeyPatch):
    """The comparison fails for another solver, another grid and another timestep."""
    kind = "FlowMatchEulerDiscreteScheduler"
    assert scheduler_table.compared(kind, "shift", 3.0).sample < 1e-5
    monkeypatch.setitem(scheduler_table.SAMPLERS, kind, ("heun", {}))
    assert scheduler_table.compared(kind, "shift", 3.0).sample > 1e-3
    monkeypatch.undo()
    read = scheduler_table.read_schedule
    monkeypatch.setattr(scheduler_table, "read_schedule", lambda config: read({**config, "shift": 2.9}))
    assert scheduler_table.compared(kind, "shift", 3.0).sample > 1e-4
    assert scheduler_table.compared(kind, "shift", 3.0).grid > 1e-2
    monkeypatch.setattr(scheduler_table, "read_schedule", lambda config: replace(read(config), clock="sigma"))
    assert scheduler_table.compared(kind, "shift", 3.0).sample > 1e-2
