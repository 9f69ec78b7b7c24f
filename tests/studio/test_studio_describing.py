"""The button that describes a picture."""

from pathlib import Path
from typing import Any

import pytest
import tiny_blip
from refusals import refused
from studio_pages import put, said

from ddim.data.images import flatten, open_image
from ddim.models.captioner import Captioner
from ddim.studio.describing import DescribeWork
from ddim.studio.desk import Desk
from ddim.studio.jobs import Job
from ddim.studio.pictures import taken


def test_the_work_says_what_the_captioner_says(words: str, captioner: str, photo: Path):
    with Desk([words], captioner=captioner) as desk:
        upload = taken(desk.session("someone"), photo, desk.limits)
        job = Job(DescribeWork(desk, upload))
        seen = [at.text for at in job.updates()]
        assert job.result == Captioner(captioner).describe(flatten(open_image(photo), "RGB"))
        assert seen
        stopped = Job(DescribeWork(desk, upload))
        stopped.stop.set()
        list(stopped.updates())
        assert stopped.stopped


def test_a_model_that_says_nothing_is_one_sentence(words: str, photo: Path, tmp_path: Path):
    with Desk([words], captioner=str(tiny_blip.folder(tmp_path / "silent", seed=10))) as desk:
        job = Job(DescribeWork(desk, taken(desk.session("someone"), photo, desk.limits)))
        list(job.updates())
        assert job.problem.startswith("Describe it: ")


def test_a_folder_without_such_a_model_is_refused_at_the_beginning(words: str):
    with refused("captioner", words):
        Desk([words], captioner=words)


def test_the_button_is_there_only_if_it_was_asked_for(words: str, captioner: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ddim[studio]'")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # ``build`` sets it, and another page may run in this process
    from ddim.studio.page import build

    for asked in (None, captioner):
        with Desk([words], captioner=asked) as desk:
            ids = {one["props"].get("elem_id") for one in build(desk).config["components"]}
            assert ("edit-describe" in ids) == (asked is not None)
            assert "edit-from" in ids


def test_the_button_fills_the_field(open_page: Any, captioner: str, photo: Path):
    page = open_page()
    page.click("#edit-describe")
    assert "missing" in said(page, "missing")
    put(page, "edit-picture", photo)
    page.wait_for_function("document.querySelector('#edit-status').innerText.includes('pixels')")
    page.click("#edit-describe")
    assert "Described" in said(page, "Described")
    expected = Captioner(captioner).describe(flatten(open_image(photo), "RGB"))
    page.wait_for_function(
        "words => document.querySelector('#edit-from textarea').value === words", arg=expected, timeout=20_000
    )
