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
from .jobs import Job, Progress
from .parts import (
    AT_ONCE,
    decibels,
    file_update,
    is_wanted,
    lines_of,
    numbers,
    on_go,
    picture,
    progress_text,
    refused,
    run,
    session_of,
    status,
    stop,
    table,
    upload_of,
)
from .pictures import shown, write_shown
from .requests import EditRequest
from .travelling import Station, Trip, TripWork


class TrajectoryTab:
    """The tab Trajectory: a picture to noise and back.

    Args:
        desk: the server.
        model: the component with the name of the model.
    """

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        self.desk, self.model = desk, model
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self.picture = picture("Picture", "trip-picture")
                self.sample = gr.Button("Use a sample picture", size="sm", elem_id="trip-sample")
                self.words = Words("trip", targets=False)
                self.method = gr.Dropdown([], label="Inversion", elem_id="trip-method")
                with gr.Row():
                    self.guidance = gr.Number(1, label="Guidance", elem_id="trip-guidance", min_width=90)
                    self.steps = gr.Number(label="Steps", precision=0, minimum=1, elem_id="trip-steps", min_width=90)
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="trip-seed", min_width=90)
                with gr.Row():
                    self.go = gr.Button("There and back", variant="primary", elem_id="trip-go", min_width=120)
                    self.halt = gr.Button("Stop", elem_id="trip-stop", min_width=90)
            with gr.Column(scale=7, min_width=300):
                self.status = gr.HTML(
                    status("The way of a picture to noise and back, and what is lost on it."), elem_id="trip-status"
                )
                self.preview = gr.Image(
                    label="What the network predicts now",
                    interactive=False,
                    visible=False,
                    buttons=[],
                    height=260,
                    format="png",
                )
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
                    self.png = gr.DownloadButton("Strip, PNG", visible=False, size="sm", min_width=90)
                    self.code = gr.DownloadButton("Code file", visible=False, size="sm", min_width=90)
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
        on_go(self.desk, "trajectory", [self.go.click], self.status, self._travel, inputs=asked, outputs=self.results)
        self.halt.click(self._stop, None, None, **AT_ONCE)

    def _stop(self, request: gr.Request) -> None:
        stop(self.desk, request)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        works = [one for one in menus.inversions(model) if one.why_not is None]
        return {
            **self.words.updates(model),
            self.method: gr.update(choices=[(one.label, one.name) for one in works], value="bdia"),
            self.guidance: gr.update(visible=menus.takes_guidance(model) and not menus.takes_embedded(model)),
            self.steps: gr.update(value=model.info.steps, maximum=self.desk.limits.steps),
        }

    def _travel(
        self,
        model: str,
        picture: str | None,
        source_prompt: str,
        source_label: float | None,
        method: str,
        guidance: float | None,
        steps: float | None,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Inverts and reconstructs a picture, and yields the progress and the result."""
        session = session_of(self.desk, request)
        if not is_wanted(session, "trajectory"):
            yield [gr.skip()] * len(self.results)
            return
        try:
            upload = upload_of(self.desk, session, picture)
        except Exception as error:
            yield self._said(refused(error))
            return
        asked = EditRequest(
            model,
            source_prompt or "",
            source_label=whole(source_label),
            method=method or next(iter(INVERSIONS)),
            guidance=guidance,
            steps=whole(steps),
            seed=whole(seed) or 0,
        )
        work = TripWork(self.desk, session, asked, upload)

        def show(progress: Progress) -> list[Any]:
            seen = progress.preview
            preview = gr.update(visible=False) if seen is None else gr.update(value=shown(seen), visible=True)
            return [status(progress_text(progress), progress=progress), preview, *[gr.skip()] * (len(self.results) - 2)]

        def end(job: Job) -> list[Any]:
            if job.result is None:
                return self._said(status(job.problem, "" if job.stopped else "bad", notes=job.notes))
            return self._shown(job.result, job.notes, session)

        yield from run(session, work, show, end)

    def _said(self, line: str) -> list[Any]:
        return [line, gr.update(visible=False), *[gr.skip()] * (len(self.results) - 2)]

    def _shown(self, trip: Trip, notes: list[str], session: Session) -> list[Any]:
        pair = (write_shown(session, trip.source, "picture.png"), write_shown(session, trip.reconstruction, "back.png"))
        figures = numbers(
            [
                ("round trip, PSNR", decibels(trip.psnr)),
                ("the autoencoder alone", decibels(trip.limit)),
                ("latent's mean", f"{trip.mean:+.3f}"),
                ("latent's spread / noise's", f"{trip.std:.3f}"),
                ("latent's excess kurtosis", f"{trip.kurtosis:+.2f}"),
                ("calls there, back", f"{trip.calls[0]:g}, {trip.calls[1]:g}"),
                ("seconds there, back", f"{trip.seconds[0]:.1f}, {trip.seconds[1]:.1f}"),
            ]
        )
        rows = [_row("to noise", one) for one in trip.back] + [_row("back", one) for one in trip.forth]
        details = html.escape("The stations in numbers")
        stations = table(["way", "t", "sigma / alpha", "spread of the sample"], rows)
        return [
            status("Done.", "good", notes=notes),
            gr.update(visible=False, value=None),
            gr.update(value=pair, visible=True),
            figures,
            gr.update(value=str(trip.strip), visible=True),
            '<p class="note">From top to bottom: the samples on the way to noise, what the network predicts there, the '
            "samples on the way back, and the predictions.</p>"
            f"<details><summary>{details}</summary>{stations}</details>",
            file_update(trip.strip),
            file_update(trip.code),
            gr.update(value=trip.repeat.command, visible=True),
        ]


def _row(way: str, one: Station) -> list[str]:
    return [way, f"{one.t:g}", f"{one.noise:.3g}", f"{one.std:.3f}"]
