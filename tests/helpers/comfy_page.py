"""ComfyUI's page in Debian's Chromium, driven by Playwright: loads workflows, runs them, and takes pictures of them."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comfy_server import NODES, Server, in_place

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT = 120_000
"""The longest wait for the page, in milliseconds: machines that test are busy."""

SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
SETTINGS |= {"Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}
"""The page without the dialog of a first visit, and with the nodes alone on its canvas."""

Graph = dict[str, Any]


@contextlib.contextmanager
def opened(server: Server, size: tuple[int, int] = (1280, 720)) -> Iterator[Any]:
    """The page of a server, without a workflow; of (width, height) pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.set_default_timeout(WAIT)
            server.post("/settings", SETTINGS)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_function("!!window.app?.graph && 'DDIMInvert' in LiteGraph.registered_node_types")
            yield page
        finally:
            browser.close()


def stored_graph(name: str) -> Graph:
    """A workflow for the page, as the package has it."""
    graph: Graph = json.loads((NODES / "example_workflows" / f"{name}.json").read_text())
    return graph


def emoji_graph(name: str) -> Graph:
    """A workflow for the page, with the emoji model in place of its checkpoint, and prompts of emoji."""
    graph = stored_graph(name)
    for node in graph["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            title = "Load emoji (in place of Load Checkpoint)"
            node |= {"type": "LoadEmojiForTests", "title": title, "widgets_values": [0.0, "float32"]}
        elif values := node.get("widgets_values"):
            node["widgets_values"] = [in_place(value) for value in values]
    return graph


def load(page: Any, graph: Graph) -> None:
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_function("count => app.graph._nodes.length == count", arg=len(graph["nodes"]))


def unknown(page: Any) -> list[str]:
    """The classes of the nodes that the page shows and does not know."""
    script = "() => app.graph._nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])"
    return page.evaluate(script)


def for_the_api(page: Any) -> dict[str, Any]:
    """The workflow that the page shows, as it sends it to the API."""
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def run(page: Any) -> None:
    """Runs the workflow that the page shows, and waits for its end."""
    page.evaluate(
        """async () => {
            const ended = new Promise((done, failed) => {
                app.api.addEventListener('execution_success', done)
                app.api.addEventListener('execution_error', e => failed(new Error(e.detail.exception_message)))
            })
            await app.queuePrompt(0)
            await ended
        }"""
    )


def picture(page: Any, file: Path, margin: int = 36) -> None:
    """Writes the nodes as a picture, at a pixel of the page for a unit of the canvas, with a margin around them."""
    left, top, right, bottom = page.evaluate(
        """() => {
            const sides = app.graph._nodes.map(n => n.getBounding())
            const [x, y] = [0, 1].map(k => Math.min(...sides.map(s => s[k])))
            const [right, bottom] = [0, 1].map(k => Math.max(...sides.map(s => s[k] + s[k + 2])))
            const canvas = app.canvas.canvas.getBoundingClientRect()
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [160 - x, 120 - y]
            app.canvas.deselectAll()
            app.canvas.draw(true, true)
            return [160 + canvas.x, 120 + canvas.y, 160 + canvas.x + right - x, 120 + canvas.y + bottom - y]
        }"""
    )
    page.add_style_tag(content="div[class*=toast], div[class*=toolbar] { visibility: hidden }")
    page.wait_for_timeout(2000)  # until the widgets have followed the canvas
    clip = {"x": left - margin, "y": top - margin, "width": right - left + 2 * margin}
    page.screenshot(path=file, clip={**clip, "height": bottom - top + 2 * margin})
