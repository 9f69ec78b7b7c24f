"""The tab Trajectory."""

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..inversion import INVERSIONS
from ..models.base import Model
from . import menus
from .desk import Desk, Session
from .fields import Words, sample, whole
from .parts import AT_ONCE, decibels, file_button, file_update, lines_of, numbers, picture, status, table, upload_of
from .pictures import write_shown
from .requests import EditRequest
from .tab import JobTab
from .travelling import Station, Trip, TripWork


class TrajectoryTab(JobTab):
    """The tab Trajectory: a picture to noise and back. The arguments are those of ``JobTab``."""

    name, prefix = "trajectory", "trip"

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        super().__init__(desk, model)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self.picture = picture("Picture", "trip-picture")
                self.sample = gr.Button("Use a sample picture", size="sm", elem_id="trip-sample")
                self.words = Words("trip", targets=False)
                self.method = gr.Dropdown([], label="Inversion", elem_id="trip-method")
                self.guidance, self.steps, self.seed = self.settings(guidance=1)
                self.buttons("There and back")
            with gr.Column(scale=7, min_width=300):
                self.status_and_preview("The way of a picture to noise and back, and what is lost on it.")
                self.slider = gr.ImageSlider(
                    label="Picture | round trip",
                    interactive=False,
                    visible=False,
                    max_height=340,
                    format="png",
                    buttons=["fullscreen"],
                    elem_id="trip-slider",
                )
                self.numbers = gr.HTML(elem_id="trip-numbers")
                self.strip = gr.Image(
                    label="Trajectory",
                    show_label=False,
                    interactive=False,
                    visible=False,
                    format="png",
                    buttons=["fullscreen"],
                    elem_id="trip-strip",
                )
                self.table = gr.HTML(elem_id="trip-table")
                with gr.Row():
                    self.png = file_button("Strip, PNG", "trip-png")
                    self.code = file_button("Code file", "trip-code")
                self.command = lines_of("Command", "trip-command", visible=False)
        self._events()

    def _events(self) -> None:
        self.sample.click(
            lambda name: sample(name)[:2], [self.model], [self.picture, self.words.source_prompt], **AT_ONCE
        )
        asked = [
            *(self.model, self.picture, self.words.source_prompt, self.words.source_label),
            *(self.method, self.guidance, self.steps, self.seed),
        ]
        self.results = [
            *(self.status, self.preview, self.slider, self.numbers, self.strip, self.table, self.png, self.code),
            self.command,
        ]
        self.begins(self._travel, asked)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        return {
            **self.words.updates(model),
            self.method: gr.update(choices=menus.inversion_menu(model), value="bdia"),
            self.guidance: gr.update(visible=menus.takes_guidance(model) and not menus.takes_embedded(model)),
            self.steps: gr.update(value=model.info.steps),
        }

    def _travel(
        self,
        model: str,
        picture: Any,
        source_prompt: str,
        source_label: float | None,
        method: str,
        guidance: float | None,
        steps: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Inverts and reconstructs a picture, and yields the progress and the result."""

        def work_of(session: Session) -> TripWork:
            upload = upload_of(self.desk, session, picture)
            asked = EditRequest(
                model,
                source_prompt or "",
                source_label=whole(source_label),
                method=method or next(iter(INVERSIONS)),
                guidance=guidance,
                steps=whole(steps),
                seed=whole(seed),
            )
            return TripWork(self.desk, session, asked, upload)

        yield from self.job(request, work_of)

    def made(self, result: Trip, notes: list[str], session: Session) -> list[Any]:
        """Returns the updates that show a round trip."""
        pair = (
            write_shown(session, result.source, "picture.png"),
            write_shown(session, result.reconstruction, "back.png"),
        )
        figures = numbers(
            [
                ("round trip, PSNR", decibels(result.psnr)),
                ("the autoencoder alone", decibels(result.limit)),
                ("latent's mean", f"{result.mean:+.3f}"),
                ("latent's spread / noise's", f"{result.std:.3f}"),
                ("latent's excess kurtosis", f"{result.kurtosis:+.2f}"),
                ("calls there, back", f"{result.calls[0]:g}, {result.calls[1]:g}"),
                ("seconds there, back", f"{result.seconds[0]:.1f}, {result.seconds[1]:.1f}"),
            ]
        )
        rows = [_row("to noise", one) for one in result.back] + [_row("back", one) for one in result.forth]
        details = html.escape("The stations in numbers")
        stations = table(["way", "t", "sigma / alpha", "spread of the sample"], rows)
        return [
            status("Done.", "good", notes=notes),
            gr.update(visible=False, value=None),
            gr.update(value=pair, visible=True),
            figures,
            gr.update(value=str(result.strip), visible=True),
            '<p class="note">From top to bottom: the samples on the way to noise, what the network predicts there, the '
            "samples on the way back, and the predictions.</p>"
            f"<details><summary>{details}</summary>{stations}</details>",
            file_update(result.strip),
            file_update(result.code),
            gr.update(value=result.repeat.command, visible=True),
        ]


def _row(way: str, one: Station) -> list[str]:
    return [way, f"{one.t:g}", f"{one.noise:.3g}", f"{one.std:.3f}"]
