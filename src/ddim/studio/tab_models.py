"""The tab Models."""

import html
from typing import Any

import gradio as gr

from ..models.base import Model
from . import menus
from .desk import Desk
from .parts import table


class ModelsTab:
    """The tab Models: what is loaded, and what works on it.

    Args:
        desk: the server.
        model: the component with the name of the model.
    """

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        self.desk, self.model = desk, model
        more = (
            "A folder in the diffusers format, a hub id or a file works too: type it into the menu Model above."
            if desk.any_model
            else "This page offers the models of the menu above only."
        )
        gr.Markdown(f"The menu Model above loads another model. {more}", elem_classes="note")
        self.memory = gr.HTML(elem_id="models-memory")
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self.facts = gr.HTML(elem_id="models-facts")
            with gr.Column(scale=7, min_width=300):
                self.works = gr.HTML(elem_id="models-works")

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        facts = [[name, str(value)] for name, value in menus.about_model(model).items()]
        rows = menus.capability_rows(model)
        lacking = [[kind, name, why] for kind, name, works, why in rows if works == "no"]
        loaded = ", ".join(html.escape(name) for name in self.desk.loaded)
        return {
            self.memory: f'<p class="note">In memory: {loaded}.</p>',
            self.facts: table(["model", model.name], facts),
            self.works: _works(rows) + table(["kind", "does not work", "why not"], lacking),
        }


def _works(rows: list[list[str]]) -> str:
    """Returns the names of what works as HTML, by kind."""
    kinds = dict.fromkeys(row[0] for row in rows)
    parts: list[str] = []
    for kind in kinds:
        names = [html.escape(name) for other, name, works, _ in rows if (other, works) == (kind, "yes")]
        spans = "".join(f"<span>{name}</span>" for name in names)
        parts.append(f'<h3 class="kind">{kind.capitalize()}s</h3><div class="names">{spans or "none"}</div>')
    return "".join(parts) + "<br>"
