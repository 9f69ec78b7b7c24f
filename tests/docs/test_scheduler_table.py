"""The documented table of schedulers: it has every option of every class, and is what the code says today."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import scheduler_table
from scheduler_table import FILE, VALUES, Row, markdown, rows

from ddim.models.scheduler_fields import IGNORED, SCHEDULERS, UNSUPPORTED, fields_read_by

TABLE, NUMBERS = 7, 3
"""The cells of a row of the first table, and how many of them are measured."""


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
    if len(cells) != TABLE or cells[-1].startswith(("---", "a start")):
        return line, []
    told = [cell.removesuffix(" |").strip() for cell in cells[-NUMBERS:]]
    return " | ".join(cells[:-NUMBERS]), [None if cell == "–" else float(cell) for cell in told]


def test_the_page_says_what_the_code_does(every: list[Row]):
    stored, now = (text.split("\n\ncommand: ")[0].splitlines() for text in (FILE.read_text("utf-8"), markdown(every)))
    for one, other in zip(stored, now, strict=True):
        (settled, before), (again, after) = numbers(one), numbers(other)
        assert settled == again
        for a, b in zip(before, after, strict=True):
            assert (a is None) is (b is None), one
            assert a is None or b is None or b <= 4 * a + 2e-6, (one, other)  # last bits differ between machines


def test_samples_agree_as_far_as_their_grids_do(every: list[Row]):
    """Within what a start as far apart moves, but for the causes that the page names."""
    known = {("timestep_spacing", "linspace"), ("final_sigmas_type", "sigma_min")}
    known |= {("rescale_betas_zero_snr", True)}  # diffusers ends at a signal of 2e-4, and we at none
    limits = {"clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
    measured = [row for row in every if row.sample is not None and (row.option, row.value) not in known]
    measured = [row for row in measured if row.kind != "TCDScheduler" or row.option not in limits]
    assert len(measured) > 100
    for row in measured:
        assert row.moves is not None
        assert row.sample <= 1e-5 + 5 * row.moves, row


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
