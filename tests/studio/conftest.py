"""A server with a tiny model, and a browser: Debian's Chromium, driven by Playwright."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_blip
import tiny_text

from ddim.studio.desk import Desk
from ddim.studio.limits import Limits

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 120_000
"""The longest wait for the page, in milliseconds: machines that test are busy."""


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model that takes prompts; its pictures have 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model of five classes; its pictures have 8 x 8 pixels in colour."""
    folder = tmp_path_factory.mktemp("models") / "classes"
    return str(tiny.pipeline_folder(folder, tiny.unet(channels=3, classes=5)))


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny BLIP, which says words in no order."""
    return str(tiny_blip.folder(tmp_path_factory.mktemp("models") / "blip"))


@pytest.fixture
def desk(words: str) -> Iterator[Desk]:
    """A server's state with the tiny model, without a page."""
    with Desk([words], limits=Limits(max_megabytes=1, max_megapixels=1, max_steps=40)) as made:
        yield made


class Server:
    """A running page.

    Attributes:
        desk: its state.
        url: its address.
    """

    def __init__(self, desk: Desk, url: str) -> None:
        self.desk, self.url = desk, url
        self.pause = 0.0
        model = desk.model(desk.menu[0])
        forward = model.model.forward

        def slowly(*args: Any) -> Any:
            time.sleep(self.pause)
            return forward(*args)

        model.model.forward = slowly  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def server(words: str, captioner: str) -> Iterator[Server]:
    """The page, in this process."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ddim[studio]'")
    from ddim.studio.page import build, launch

    limits = Limits(max_megabytes=1, queue=4, max_steps=200)
    with Desk([words], limits=limits, captioner=captioner) as made:
        page = build(made)
        yield Server(made, launch(page, made))
        page.close(verbose=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; the test is skipped without it, or without Playwright."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt install chromium, or set CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """A function that opens the page for another user; it fails the test if a script of the page fails."""
    contexts, errors = [], []

    def opened(**settings: Any) -> Any:
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("#edit-go")
        page.wait_for_function("document.querySelector('#edit-method input')?.value.includes('direct')")
        return page

    yield opened
    server.pause = 0.0
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of 96 x 64 pixels."""
    from PIL import Image

    path = tmp_path / "photo.png"
    image = Image.new("RGB", (96, 64))
    image.putdata([(2 * x, 3 * y, (x * y) % 256) for y in range(64) for x in range(96)])
    image.save(path)
    return path
