"""The page in a real browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studio_pages import CAT, TIGER, download, fill, go, said


def test_an_edit_with_a_painted_mask(open_page: Any, photo: Path, tmp_path: Path):
    page = open_page(viewport={"width": 1280, "height": 1400})
    fill(page, photo)
    page.click("#edit-mask-part button")
    canvas = page.wait_for_selector("#edit-mask canvas")
    page.wait_for_timeout(1500)  # the canvas is scaled to its place
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=8)
    page.mouse.up()
    page.click("#edit-go")
    assert "Done" in said(page, "Done")
    assert "--mask photo_mask.png" in page.input_value("#edit-command textarea")
    assert "--crop" not in page.input_value("#edit-command textarea")
    after, mask = download(page, "#edit-png", tmp_path), download(page, "#edit-mask-file", tmp_path)
    assert after.name == "photo_direct.png"
    source, edited = (np.asarray(Image.open(path).convert("RGB")) for path in (photo, after))
    painted = np.asarray(Image.open(mask)) > 0
    assert painted.shape == source.shape[:2]
    assert 0.01 < painted.mean() < 0.6
    assert (source[~painted] == edited[~painted]).all()
    assert (source[painted] != edited[painted]).any()


def test_a_stopped_edit_keeps_what_was_tuned_and_goes_on(open_page: Any, server: Any, photo: Path):
    page = open_page()
    fill(page, photo)
    page.click("#edit-method input")
    page.get_by_role("option", name="null-text").click()
    page.fill("#edit-steps input", "3")
    server.pause = 0.05
    page.click("#edit-go")
    said(page, "tuning step 2", "step 5", "step 6")
    page.click("#edit-stop")
    assert "is kept" in said(page, "Stopped")
    server.pause = 0.0
    page.click("#edit-go")
    assert "Done" in said(page, "Done")


def test_two_users_at_once_do_not_see_each_other(open_page: Any, server: Any, photo: Path, tmp_path: Path):
    other = tmp_path / "other.png"
    Image.open(photo).rotate(180).save(other)
    pages = [open_page(), open_page()]
    for page, picture in zip(pages, (photo, other), strict=True):
        fill(page, picture)
    server.pause = 0.05
    for page in pages:
        page.click("#edit-go")
    for page in pages:
        assert "Done" in said(page, "Done")
    commands = [page.input_value("#edit-command textarea") for page in pages]
    assert "photo.png" in commands[0]
    assert "other.png" in commands[1]
    edges = np.r_[0:16, 80:96]  # the model edits the 64 columns between them
    for page, own, others in zip(pages, (photo, other), (other, photo), strict=True):
        edited = np.asarray(Image.open(download(page, "#edit-png", tmp_path)))[:, edges]
        source, foreign = (np.asarray(Image.open(path))[:, edges] for path in (own, others))
        assert (edited == source).all()
        assert not (edited == foreign).all()


def test_a_broken_picture_is_one_sentence(open_page: Any, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    page = open_page()
    page.set_input_files("#edit-picture input[type=file]", broken)
    sentence = said(page, "broken.png")
    assert "Traceback" not in sentence
    assert "ddim-studio-" not in sentence
    page.click("#edit-go")  # the sentence of before goes, and comes back
    page.wait_for_function(
        "() => { const text = document.querySelector('#edit-status').innerText;"
        " window.waited ||= text.includes('Waiting'); return window.waited && text.includes('broken.png') }"
    )


def test_missing_words_are_one_sentence(open_page: Any, photo: Path):
    page = open_page()
    fill(page, photo)
    page.fill("#edit-to textarea", "")
    page.click("#edit-go")
    assert "What it is to show" in said(page, "missing")


def test_a_job_that_the_server_does_not_take_is_one_sentence(open_page: Any, photo: Path):
    page = open_page()
    fill(page, photo)
    full = {"detail": "Queue is full. Max size is 4 and size is 4."}
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json=full))
    page.click("#edit-go")
    assert "4 jobs wait" in said(page, "jobs wait")
    page.unroute("**/queue/join*")
    assert "Done" in go(page)


def test_the_keyboard_is_enough(open_page: Any, photo: Path):
    page = open_page()

    def to(selector: str) -> None:
        """Presses Tab until something inside of ``selector`` has the focus."""
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.querySelector(s)?.contains(document.activeElement)", selector):
                return
        pytest.fail(f"Tab does not lead to {selector}")

    with page.expect_file_chooser() as chooser:
        to("#edit-picture")
        page.keyboard.press("Enter")
    chooser.value.set_files(photo)
    said(page, "pixels")
    for selector, text in (("#edit-from", CAT), ("#edit-to", TIGER), ("#edit-steps", "3")):
        to(selector)
        page.keyboard.press("Control+A")
        page.keyboard.type(text)
    to("#edit-go")
    page.keyboard.press("Enter")
    assert "Done" in said(page, "Done")


def test_nothing_comes_from_another_server(browser: Any, server: Any):
    context = browser.new_context()
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#edit-go", timeout=120_000)
    context.close()
    assert len(asked) > 5
    assert not [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
