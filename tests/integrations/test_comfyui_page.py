"""The workflows in ComfyUI's own page, in a real browser."""

from collections.abc import Iterator
from typing import Any

import comfy_page
import pytest
from comfy_server import NAMES, Server, stored_workflow


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    pytest.importorskip("playwright", reason="the page is driven by Playwright")
    if comfy_page.CHROMIUM is None:
        pytest.skip("there is no Chromium; apt install chromium, or set CHROMIUM to its path")
    with comfy_page.opened(server) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_the_page_knows_every_node_and_makes_the_workflow_for_the_api(page: Any, name: str) -> None:
    comfy_page.load(page, comfy_page.stored_graph(name))
    assert comfy_page.unknown(page) == []
    made, wanted = comfy_page.for_the_api(page), stored_workflow(name)
    assert made.keys() == wanted.keys()
    for number, node in wanted.items():
        assert made[number]["class_type"] == node["class_type"]
        assert made[number]["inputs"].items() >= node["inputs"].items()


def test_a_node_that_does_not_exist_is_seen(page: Any) -> None:
    graph = comfy_page.stored_graph("round_trip")
    graph["nodes"][4]["type"] = "DDIMInvertNot"
    comfy_page.load(page, graph)
    assert comfy_page.unknown(page) == ["DDIMInvertNot"]


@pytest.mark.parametrize("name", ["round_trip", "edit_with_mask"])
def test_a_workflow_that_the_page_runs_shows_that_it_is_exact(page: Any, name: str) -> None:
    comfy_page.load(page, comfy_page.emoji_graph(name))
    comfy_page.run(page)
    shown = "() => app.graph._nodes.filter(n => n.type == 'PreviewAny').map(n => n.widgets[0].value)"
    (sentence,) = page.evaluate(shown)
    assert sentence == "exact: all 1024 numbers are equal to the bit"


def test_the_pictures_between_two_pictures_are_shown(page: Any) -> None:
    comfy_page.load(page, comfy_page.emoji_graph("between_two_pictures"))
    comfy_page.run(page)
    shown = "() => app.graph._nodes.find(n => n.type == 'PreviewImage').images?.length"
    page.wait_for_function(f"{shown[6:]} == 8")
