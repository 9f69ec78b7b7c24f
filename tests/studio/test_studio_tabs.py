"""The other tabs, other models and other ways to give a picture, in a real browser."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studio_pages import CAT, download, fill, go, put, said, show

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr


def figures(page: Any, numbers: str) -> dict[str, str]:
    """The figures below a result, by name."""
    cells = page.locator(f"#{numbers} .numbers > div").all()
    return {cell.locator("small").inner_text(): cell.locator("b").inner_text() for cell in cells}


def choose(page: Any, model: str) -> None:
    """Types a model into the menu, and presses Enter."""
    page.fill("#model input", model)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")


def photograph(path: Path) -> torch.Tensor:
    """A picture in a file as a model of 32 x 32 pixels takes it."""
    return read_images([path], (3, 32, 32), resize=True)


# --- tabs ------------------------------------------------------------------------------------------------------------


def test_compare_has_a_row_and_a_command_for_each_method(open_page: Any, photo: Path):
    page = open_page()
    show(page, "Compare")
    fill(page, photo, "compare")
    chosen = page.locator("#compare-methods .token")
    assert chosen.count() == 3
    page.click("#compare-methods input")
    page.keyboard.press("Backspace")
    page.keyboard.press("Escape")
    assert chosen.count() == 2
    assert "Done" in go(page, "compare")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#compare-table tbody tr").all()]
    assert [row[0] for row in rows] == ["direct", "bdia"]
    for _, reconstruction, edit, kept, calls, seconds in rows:
        assert "dB" in reconstruction
        assert "dB" in edit
        assert kept.endswith("%")
        assert float(calls) >= 6
        assert float(seconds) >= 0
    commands = page.input_value("#compare-commands textarea").splitlines()
    assert [re.search(r"--method (\S+)", line)[1] for line in commands] == ["direct", "bdia"]  # type: ignore[index]
    assert all(line.startswith("ddim edit photo.png ") for line in commands)
    page.wait_for_function("document.querySelectorAll('#compare-gallery img').length >= 3")


def test_trajectory_shows_the_way_and_the_round_trip(open_page: Any, photo: Path, tmp_path: Path):
    page = open_page()
    show(page, "Trajectory")
    fill(page, photo, "trip")
    page.fill("#trip-guidance input", "1")
    assert "Done" in go(page, "trip")
    shown = figures(page, "trip-numbers")
    assert shown["round trip, PSNR"] == shown["the autoencoder alone"]  # bdia is exact
    assert float(shown["latent's spread / noise's"]) > 0
    page.wait_for_selector("#trip-strip img")
    assert page.locator("#trip-slider img").count() == 2
    assert page.locator("#trip-table tbody tr").count() >= 4
    code = ddim.LatentCode.load(download(page, "#trip-code", tmp_path))
    assert code.method == "bdia"
    assert float(shown["latent's mean"]) == pytest.approx(float(code.x.mean()), abs=6e-4)
    assert Image.open(download(page, "#trip-png", tmp_path)).width > 100
    assert "ddim invert photo.png" in page.input_value("#trip-command textarea")


def test_interpolate_begins_and_ends_at_the_pictures(open_page: Any, photo: Path, tmp_path: Path):
    other = tmp_path / "other.png"
    Image.open(photo).rotate(180).save(other)
    page = open_page()
    show(page, "Interpolate")
    put(page, "mix-first", photo)
    put(page, "mix-second", other)
    page.fill("#mix-from textarea", CAT)
    page.fill("#mix-frames input", "3")
    page.fill("#mix-steps input", "3")
    assert "Done" in go(page, "mix")
    page.wait_for_function("document.querySelector('#mix-gallery')?.innerText.includes('3 of 3')")
    shown = figures(page, "mix-numbers")
    strip = Image.open(download(page, "#mix-png", tmp_path)).convert("RGB")
    frames = np.asarray(strip, dtype=np.float32)[2:34] / 255  # a sheet has a white line of 2 pixels around each image
    ends = [torch.from_numpy(frames[:, x : x + 32]).permute(2, 0, 1)[None] for x in (2, strip.width - 34)]
    found = [float(psnr(photograph(path), end)[0]) for path, end in zip((photo, other), ends, strict=True)]
    said_so = [float(shown[name].split()[0]) for name in ("first frame, PSNR", "last frame, PSNR")]
    assert found == pytest.approx(said_so, abs=0.1)
    assert "ddim interpolate photo.png other.png" in page.input_value("#mix-command textarea")


def test_a_round_trip_is_stopped(open_page: Any, server: Any, photo: Path):
    page = open_page()
    show(page, "Trajectory")
    fill(page, photo, "trip", steps=50)
    server.pause = 0.05
    page.click("#trip-go")
    said(page, "step 2", "step 3", "step 4", prefix="trip")
    page.click("#trip-stop")
    assert "Stopped" in said(page, "Stopped", "Done", prefix="trip")
    server.pause = 0.0
    page.fill("#trip-steps input", "2")
    assert "Done" in go(page, "trip")


# --- models ----------------------------------------------------------------------------------------------------------


def test_another_model_is_loaded_by_its_folder_and_takes_classes(open_page: Any, photo: Path, classes: str):
    page = open_page()
    show(page, "Models")
    assert "prompts" in page.inner_text("#models-facts")
    choose(page, classes)
    page.wait_for_function("document.querySelector('#models-facts').innerText.includes('5 classes')")
    assert "8 x 8" in page.inner_text("#model-status")
    assert classes in page.inner_text("#models-memory")
    works = page.locator("#models-works .names span").all_inner_texts()
    assert {"ddim", "bdia"} <= set(works)
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#models-works tbody tr").all()]
    assert {"null-text"} <= {name for _, name, _ in rows}
    assert all(why for _, _, why in rows)
    assert not {name for _, name, _ in rows} & set(works)
    show(page, "Edit")
    page.wait_for_selector("#edit-from-label input")
    assert not page.is_visible("#edit-from textarea")
    put(page, "edit-picture", photo)
    page.fill("#edit-steps input", "3")
    page.fill("#edit-from-label input", "1")
    page.fill("#edit-to-label input", "5")
    sentence = go(page)
    assert sentence.startswith("The class to edit to: ")
    page.fill("#edit-to-label input", "2")
    assert "Done" in go(page)
    command = page.input_value("#edit-command textarea")
    assert "--from-label 1" in command
    assert "--to-label 2" in command


def test_a_model_that_does_not_exist_is_one_sentence(open_page: Any):
    page = open_page()
    choose(page, "emojy")
    page.wait_for_selector("#model-status .bad")
    sentence = page.inner_text("#model-status")
    assert "emojy" in sentence
    assert "emoji" in sentence
    assert "Traceback" not in sentence
    assert "\n" not in sentence.strip()


WIDE = """() => [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect()
    return box.width && box.height && box.right > innerWidth + 1 && one.checkVisibility() && !one.closest('.scroll')
}).map(one => `${one.tagName} ${one.id} ${one.className} ${one.getBoundingClientRect().right}`)"""
"""What goes beyond the right edge. A container cuts it off, so that the width of the document does not show it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone(scheme: str, open_page: Any, photo: Path):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert ("dark" in page.evaluate("document.body.className")) == (scheme == "dark")

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(WIDE) == []

    fill(page, photo)
    assert "Done" in go(page)
    page.wait_for_selector("#edit-slider img")
    fits()
    for tab, prefix in (("Compare", "compare"), ("Trajectory", "trip")):
        show(page, tab)
        fill(page, photo, prefix)
        assert "Done" in go(page, prefix)
        fits()
    show(page, "Interpolate")
    put(page, "mix-first", photo)
    put(page, "mix-second", photo)
    page.fill("#mix-steps input", "2")
    assert "Done" in go(page, "mix")
    fits()
    show(page, "Models")
    page.wait_for_selector("#models-works table")
    fits()


# --- pictures --------------------------------------------------------------------------------------------------------


def transfer(page: Any, photo: Path) -> Any:
    """A DataTransfer of the browser with a picture in it, as a drop or a paste brings it."""
    data = base64.b64encode(photo.read_bytes()).decode()
    return page.evaluate_handle(
        "data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)); const made = new DataTransfer();"
        " made.items.add(new File([bytes], 'dropped.png', { type: 'image/png' })); return made }",
        data,
    )


def test_a_picture_is_dropped(open_page: Any, photo: Path):
    page = open_page()
    page.dispatch_event("#edit-picture button", "drop", {"dataTransfer": transfer(page, photo)})
    assert "dropped.png: 96 x 64 pixels" in said(page, "pixels")


def test_a_picture_is_pasted_from_the_clipboard(open_page: Any, photo: Path):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        "async data => { const made = await fetch('data:image/png;base64,' + data);"
        " await navigator.clipboard.write([new ClipboardItem({ 'image/png': await made.blob() })]) }",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    page.get_by_label("Paste from clipboard").first.click()
    assert "96 x 64 pixels" in said(page, "pixels")


def test_a_turned_picture_with_transparency_and_its_files(open_page: Any, tmp_path: Path):
    picture = tmp_path / "turned.png"
    image = Image.new("RGBA", (40, 70), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(picture, exif=exif)
    page = open_page()
    fill(page, picture)
    assert "turned.png: 70 x 40 pixels" in page.inner_text("#edit-status")
    assert "Done" in go(page)
    page.wait_for_function("document.querySelectorAll('#edit-slider img').length === 2")
    assert (
        page.locator("#edit-slider").get_by_role("slider").count()
        or page.locator("#edit-slider .handle, #edit-slider .outer").count()
    )
    kept = tmp_path / "kept"
    kept.mkdir()
    edited = Image.open(download(page, "#edit-png", kept))
    assert (edited.mode, edited.size) == ("RGBA", (70, 40))
    assert (np.asarray(edited)[..., 3] == np.asarray(image.rotate(270, expand=True))[..., 3]).all()
    code = ddim.LatentCode.load(download(page, "#edit-code", kept))
    assert code.method == "direct"
    assert code.grid.steps == 3
    about = json.loads(download(page, "#edit-json", kept).read_text())
    assert about["command"] == page.input_value("#edit-command textarea")
    assert about["python"] == page.input_value("#edit-python textarea")
