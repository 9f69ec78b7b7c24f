"""The tab Interpolate."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..models.base import Model
from . import menus
from .desk import Desk, Session
from .fields import Words, number, sample, whole
from .mixing import Mixed, MixWork
from .parts import AT_ONCE, decibels, file_button, file_update, lines_of, numbers, picture, status, upload_of
from .pictures import write_shown
from .requests import EditRequest
from .tab import JobTab


class InterpolateTab(JobTab):
    """The tab Interpolate: the way from one picture to another. The arguments are those of ``JobTab``."""

    name, prefix = "interpolate", "mix"

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        super().__init__(desk, model)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Row():
                    self.first = picture("From", "mix-first")
                    self.second = picture("To", "mix-second")
                self.sample = gr.Button("Use two sample pictures", size="sm", elem_id="mix-sample")
                self.words = Words("mix", targets=False)
                self.method = gr.Dropdown([], label="Inversion", elem_id="mix-method")
                with gr.Row():
                    self.frames = number("Frames", "mix-frames", 7)
                    self.steps = self.steps_field()
                self.buttons("Interpolate")
            with gr.Column(scale=7, min_width=300):
                self.status_and_preview(
                    "Pictures between two, along the arc between their latents. Both have one prompt, which may stay "
                    "empty."
                )
                self.gallery = gr.Gallery(
                    label="Frames",
                    show_label=False,
                    visible=False,
                    columns=3,
                    object_fit="contain",
                    elem_id="mix-gallery",
                    height="auto",
                    format="png",
                    buttons=["download", "fullscreen"],
                )
                self.numbers = gr.HTML(elem_id="mix-numbers")
                self.png = file_button("Strip, PNG", "mix-png")
                self.command = lines_of("Command", "mix-command", visible=False)
                self.python = lines_of("Python", "mix-python", visible=False)
        self._events()

    def _events(self) -> None:
        def two(name: str) -> tuple[str, str]:
            return sample(name)[0], sample(name, 1)[0]

        self.sample.click(two, [self.model], [self.first, self.second], **AT_ONCE)
        asked = [
            *(self.model, self.first, self.second, self.words.source_prompt, self.words.source_label, self.method),
            *(self.frames, self.steps),
        ]
        self.results = [self.status, self.preview, self.gallery, self.numbers, self.png, self.command, self.python]
        self.begins(self._mix, asked)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        return {
            **self.words.updates(model),
            self.method: gr.update(choices=menus.inversion_menu(model), value="bdia"),
            self.steps: gr.update(value=min(model.info.steps, 20)),
        }

    def _mix(
        self,
        model: str,
        first: Any,
        second: Any,
        source_prompt: str,
        source_label: float | None,
        method: str,
        frames: float | None,
        steps: float | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Interpolates between two pictures, and yields the progress and the result."""

        def work_of(session: Session) -> MixWork:
            uploads = [upload_of(self.desk, session, one) for one in (first, second)]
            asked = EditRequest(
                model, source_prompt or "", source_label=whole(source_label), method=method, steps=whole(steps)
            )
            return MixWork(self.desk, session, asked, uploads[0], uploads[1], whole(frames))

        yield from self.job(request, work_of)

    def made(self, result: Mixed, notes: list[str], session: Session) -> list[Any]:
        """Returns the updates that show an interpolation."""
        count = len(result.frames)
        tiles = [
            (write_shown(session, frame, f"{k + 1:02d}.png"), f"{k + 1} of {count}")
            for k, frame in enumerate(result.frames)
        ]
        figures = numbers(
            [
                ("first frame, PSNR", decibels(result.ends[0])),
                ("last frame, PSNR", decibels(result.ends[1])),
                ("calls a frame", f"{result.calls:g}"),
                ("seconds", f"{result.seconds:.1f}"),
            ]
        )
        return [
            status("Done.", "good", notes=notes),
            gr.update(visible=False, value=None),
            gr.update(value=tiles, visible=True),
            figures,
            file_update(result.strip),
            gr.update(value=result.command, visible=True),
            gr.update(value=result.python, visible=True),
        ]
