"""The tab Interpolate."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..models.base import Model
from . import menus
from .desk import Desk, Session
from .fields import Words, sample, whole
from .jobs import Job, Progress
from .mixing import MOST_FRAMES, Mixed, MixWork
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
    upload_of,
)
from .pictures import shown, write_shown
from .requests import EditRequest


class InterpolateTab:
    """The tab Interpolate: the way from one picture to another.

    Args:
        desk: the server.
        model: the component with the name of the model.
    """

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        self.desk, self.model = desk, model
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Row():
                    self.first = picture("From", "mix-first")
                    self.second = picture("To", "mix-second")
                self.sample = gr.Button("Use two sample pictures", size="sm", elem_id="mix-sample")
                self.words = Words("mix", targets=False)
                self.method = gr.Dropdown([], label="Inversion", elem_id="mix-method")
                with gr.Row():
                    self.frames = gr.Number(
                        7,
                        label="Frames",
                        show_label=False,
                        precision=0,
                        minimum=2,
                        maximum=MOST_FRAMES,
                        elem_id="mix-frames",
                        min_width=90,
                    )
                    self.steps = gr.Number(label="Steps", precision=0, minimum=1, elem_id="mix-steps", min_width=90)
                with gr.Row():
                    self.go = gr.Button("Interpolate", variant="primary", elem_id="mix-go", min_width=120)
                    self.halt = gr.Button("Stop", elem_id="mix-stop", min_width=90)
            with gr.Column(scale=7, min_width=300):
                self.status = gr.HTML(
                    status(
                        "Pictures between two, along the arc between their latents. Both have one prompt, which may "
                        "stay empty."
                    ),
                    elem_id="mix-status",
                )
                self.preview = gr.Image(
                    label="What the network predicts now",
                    interactive=False,
                    visible=False,
                    buttons=[],
                    height=260,
                    format="png",
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
                self.png = gr.DownloadButton("Strip, PNG", visible=False, size="sm", elem_id="mix-png")
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
        on_go(self.desk, "interpolate", [self.go.click], self.status, self._mix, inputs=asked, outputs=self.results)
        self.halt.click(self._stop, None, None, **AT_ONCE)

    def _stop(self, request: gr.Request) -> None:
        stop(self.desk, request)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        works = [one for one in menus.inversions(model) if one.why_not is None]
        return {
            **self.words.updates(model),
            self.method: gr.update(choices=[(one.label, one.name) for one in works], value="bdia"),
            self.steps: gr.update(value=min(model.info.steps, 20), maximum=self.desk.limits.steps),
        }

    def _mix(
        self,
        model: str,
        first: str | None,
        second: str | None,
        source_prompt: str,
        source_label: float | None,
        method: str,
        frames: float | None,
        steps: float | None,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Interpolates between two pictures, and yields the progress and the result."""
        session = session_of(self.desk, request)
        if not is_wanted(session, "interpolate"):
            yield [gr.skip()] * len(self.results)
            return
        try:
            uploads = [upload_of(self.desk, session, path) for path in (first, second)]
        except Exception as error:
            yield self._said(refused(error))
            return
        asked = EditRequest(
            model, source_prompt or "", source_label=whole(source_label), method=method, steps=whole(steps)
        )
        work = MixWork(self.desk, session, asked, uploads[0], uploads[1], whole(frames) or 0)

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

    def _shown(self, mixed: Mixed, notes: list[str], session: Session) -> list[Any]:
        count = len(mixed.frames)
        tiles = [
            (write_shown(session, frame, f"{k + 1:02d}.png"), f"{k + 1} of {count}")
            for k, frame in enumerate(mixed.frames)
        ]
        figures = numbers(
            [
                ("first frame, PSNR", decibels(mixed.ends[0])),
                ("last frame, PSNR", decibels(mixed.ends[1])),
                ("calls a frame", f"{mixed.calls:g}"),
                ("seconds", f"{mixed.seconds:.1f}"),
            ]
        )
        return [
            status("Done.", "good", notes=notes),
            gr.update(visible=False, value=None),
            gr.update(value=tiles, visible=True),
            figures,
            file_update(mixed.strip),
            gr.update(value=mixed.command, visible=True),
            gr.update(value=mixed.python, visible=True),
        ]
