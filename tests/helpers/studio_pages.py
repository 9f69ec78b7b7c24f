"""What browser tests of the studio do on a page: they fill in a tab, press its buttons and read what it says."""

from pathlib import Path
from typing import Any

CAT, TIGER = "a cat on a mat", "a tiger on a mat"


def show(page: Any, tab: str) -> None:
    """Opens a tab by its name."""
    page.get_by_role("tab", name=tab, exact=True).click()


def put(page: Any, field: str, photo: Path) -> None:
    """Gives a picture to a field by its id, and waits until it is there."""
    page.set_input_files(f"#{field} input[type=file]", photo)
    page.wait_for_selector(f"#{field} img")


def fill(page: Any, photo: Path, prefix: str = "edit", steps: int = 3) -> None:
    """Gives a picture, its words, steps and guidance to a tab, as far as it has fields for them."""
    put(page, f"{prefix}-picture", photo)
    if prefix == "edit":
        page.wait_for_function("document.querySelector('#edit-status').innerText.includes('pixels')")
    values = {"from textarea": CAT, "to textarea": TIGER, "steps input": steps, "guidance input": 3}
    for name, value in values.items():
        field = page.locator(f"#{prefix}-{name}")
        if field.count() and field.is_visible():
            field.fill(str(value))


def said(page: Any, *words: str, prefix: str = "edit") -> str:
    """Waits until the status of a tab says one of these, or that something is wrong, and returns all of it."""
    page.wait_for_function(
        "([status, words]) => document.querySelector(status + ' .bad') || "
        "words.some(word => document.querySelector(status).innerText.includes(word))",
        arg=[f"#{prefix}-status", list(words)],
    )
    return page.inner_text(f"#{prefix}-status")


def go(page: Any, prefix: str = "edit", *words: str) -> str:
    """Presses the button of a tab, and returns what the status says at the end, or with one of these words."""
    status = f"#{prefix}-status"
    page.evaluate("status => { document.querySelector(status + ' .status').dataset.old = '' }", status)
    page.click(f"#{prefix}-go")
    page.wait_for_function("status => !document.querySelector(status + ' [data-old]')", arg=status)
    return said(page, *(words or ("Done", "Stopped")), prefix=prefix)


def download(page: Any, button: str, folder: Path) -> Path:
    """Presses a download button, and returns the file in a folder."""
    with page.expect_download() as caught:
        page.click(button)
    path = folder / caught.value.suggested_filename
    caught.value.save_as(path)
    return path
