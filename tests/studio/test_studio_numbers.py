"""Numbers on the page: one that does not fit is one sentence, on every tab and before any work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import names, refused
from studio_pages import CAT, TIGER, fill, go, put, show

from ddim.core.slerp import check_frames
from ddim.studio.comparing import CompareWork
from ddim.studio.desk import Desk, Session
from ddim.studio.editing import EditWork
from ddim.studio.fields import whole
from ddim.studio.jobs import Job
from ddim.studio.mixing import MOST_FRAMES, MixWork
from ddim.studio.pictures import Upload, taken
from ddim.studio.requests import EditRequest
from ddim.studio.travelling import TripWork

WORKS: dict[str, Callable[[Desk, Session, EditRequest, Upload], Any]] = {
    "edit": EditWork,
    "compare": lambda desk, session, asked, upload: CompareWork(desk, session, asked, ["direct", "bdia"], upload),
    "trajectory": TripWork,
    "interpolate": lambda desk, session, asked, upload: MixWork(desk, session, asked, upload, upload, 3),
}
NUMBERS = [
    *(("steps", value, "Steps") for value in (None, 0, -1, 3.7, 41, 10**9, "many")),
    *(("seed", value, "Seed") for value in (None, -1, 0.5, 2**63)),
    *(("guidance", value, "Guidance") for value in (None, float("inf"), "much")),
    *(("strength", value, "Strength") for value in (None, -0.1, 1.5)),
]
ELSEWHERE = {
    "compare": {"strength"},
    "trajectory": {"strength", "label"},
    "interpolate": {"strength", "guidance", "seed", "label"},
}
"""Fields that a tab does not have."""
ROWS = [(tab, *row) for tab in WORKS for row in NUMBERS if row[0] not in ELSEWHERE.get(tab, ())]
CLASSES = [
    *(("source_label", value, "Its class") for value in (None, 5, -1, 1.5)),
    *(("label", value, "The class to edit to") for value in (None, 5, -1, 1.5)),
]
CLASS_ROWS = [(tab, *row) for tab in WORKS for row in CLASSES if row[0] not in ELSEWHERE.get(tab, ())]


def problem(desk: Desk, photo: Path, tab: str, request: EditRequest) -> str:
    """What a tab says about a request; the network is not asked."""
    session = desk.session("someone")
    model = desk.model(request.model)
    job = Job(WORKS[tab](desk, session, request, taken(session, photo, desk.limits)))
    list(job.updates())
    assert job.result is None
    assert model.calls(1) == 0
    return job.problem


def held(sentence: str, label: str, value: Any) -> None:
    """Holds a sentence to the label of the field, and to the value, if it has one."""
    assert sentence.startswith(f"{label}: ")
    assert "\n" not in sentence
    assert "Unexpected" not in sentence
    assert value is None or names(sentence, repr(value))
    assert value is not None or "missing" in sentence


@pytest.mark.parametrize(("tab", "name", "value", "label"), ROWS)
def test_a_number_that_does_not_fit_is_one_sentence(
    tab: str, name: str, value: Any, label: str, desk: Desk, photo: Path
):
    right = EditRequest(desk.menu[0], CAT, TIGER, method="bdia", guidance=3.0, steps=3)
    held(problem(desk, photo, tab, replace(right, **{name: value})), label, value)


@pytest.mark.parametrize(("tab", "name", "value", "label"), CLASS_ROWS)
def test_a_class_that_does_not_fit_is_one_sentence(
    tab: str, name: str, value: Any, label: str, classes: str, photo: Path
):
    with Desk([classes]) as desk:
        right = EditRequest(classes, source_label=1, label=2, method="bdia", guidance=1.0, steps=3)
        held(problem(desk, photo, tab, replace(right, **{name: value})), label, value)


@pytest.mark.parametrize("value", [None, 1, 0, -3, 2.5, MOST_FRAMES + 1])
def test_frames_that_do_not_fit_are_one_sentence(value: Any, desk: Desk, photo: Path):
    session = desk.session("someone")
    upload = taken(session, photo, desk.limits)
    job = Job(MixWork(desk, session, EditRequest(desk.menu[0], method="bdia", steps=3), upload, upload, value))
    list(job.updates())
    held(job.problem, "Frames", value)
    with refused("frames", 2.5):
        check_frames(2.5)  # type: ignore[arg-type]


def test_each_method_of_a_comparison_may_have_its_own_guidance(desk: Desk, photo: Path):
    session = desk.session("someone")
    asked = EditRequest(desk.menu[0], CAT, TIGER, guidance=None, steps=2)
    upload = taken(session, photo, desk.limits)
    job = Job(CompareWork(desk, session, asked, ["direct"], upload, own_guidance=True))
    list(job.updates())
    assert job.result is not None, job.problem


def test_numbers_of_fields():
    assert [whole(value) for value in (3, 3.0, 1e22)] == [3, 3, 10**22]
    assert all(isinstance(whole(value), int) for value in (3, 3.0, 1e22))
    assert [whole(value) for value in (None, 3.7, "3", True)] == [None, 3.7, "3", True]


def test_the_page_says_what_does_not_fit(open_page: Any, photo: Path):
    page = open_page()

    def says(prefix: str, field: str, value: str, label: str) -> None:
        """Fills in one wrong number, reads the sentence, and puts the right one back."""
        box = page.locator(f"#{prefix}-{field} input[type=number]")
        before = box.input_value()
        box.fill(value)
        sentence = go(page, prefix)
        assert sentence.startswith(f"{label}: "), sentence
        assert (value or "missing") in sentence
        box.fill(before)

    fill(page, photo)
    for field, value, label in [
        ("steps", "3.7", "Steps"),
        ("steps", "201", "Steps"),
        ("steps", "", "Steps"),
        ("seed", "-1", "Seed"),
        ("guidance", "", "Guidance"),
    ]:
        says("edit", field, value, label)
    show(page, "Compare")
    fill(page, photo, "compare")
    says("compare", "steps", "0", "Steps")
    says("compare", "seed", "0.5", "Seed")
    show(page, "Trajectory")
    fill(page, photo, "trip")
    says("trip", "seed", "", "Seed")
    says("trip", "steps", "1000", "Steps")
    show(page, "Interpolate")
    put(page, "mix-first", photo)
    put(page, "mix-second", photo)
    says("mix", "frames", "1", "Frames")
    says("mix", "frames", "99", "Frames")
    says("mix", "steps", "2.5", "Steps")
