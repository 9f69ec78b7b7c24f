"""The tab Edit."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..editing.editors import EDITORS
from ..models.base import Model
from . import menus
from .describing import DescribeWork
from .desk import Desk, Session
from .editing import EditOutcome, EditWork, comparable
from .fields import Words, sample, whole
from .jobs import Job, Progress
from .parts import (
    AT_ONCE,
    decibels,
    file_button,
    file_update,
    lines_of,
    numbers,
    on_go,
    picture,
    progress_text,
    refused,
    run,
    session_of,
    status,
    upload_of,
)
from .pictures import Upload, canvas, mask_from, write_shown
from .requests import EditRequest
from .tab import JobTab


class EditTab(JobTab):
    """The tab Edit: components, and what they do. The arguments are those of ``JobTab``."""

    name = prefix = "edit"

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        super().__init__(desk, model)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._inputs()
            with gr.Column(scale=6, min_width=300):
                self._results()
        self._events()

    # --- components -------------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        self.picture = picture("Picture", "edit-picture")
        self.sample = gr.Button("Use a sample picture", size="sm", elem_id="edit-sample")
        with gr.Accordion("Mask: paint what may change", open=False, elem_id="edit-mask-part") as self.mask_part:
            self.mask = gr.ImageEditor(
                label="Mask",
                elem_id="edit-mask",
                type="pil",
                sources=[],
                layers=False,
                transforms=[],
                brush=gr.Brush(default_size=48, colors=["#e8590c"], color_mode="fixed"),
                buttons=[],
                height=420,
            )
            gr.Markdown("Without a stroke the whole picture may change.", elem_classes="note")
        self.words = Words("edit", describe=self.desk.captioner is not None)
        self.method = gr.Dropdown([], label="Method", elem_id="edit-method")
        self.strength = gr.Slider(0, 1, 1, step=0.01, label="Strength", elem_id="edit-strength")
        self.guidance, self.steps, self.seed = self.settings()
        with gr.Accordion("More", open=False):
            self.attention = gr.Dropdown([], label="Attention", elem_id="edit-attention")
            self.negative = gr.Textbox(label="Negative prompt", elem_id="edit-negative")
        self.buttons("Edit")

    def _results(self) -> None:
        self.status_and_preview("Drop a picture, say what it shows and what it is to show.", height=420)
        self.slider = gr.ImageSlider(
            label="Before | after",
            interactive=False,
            visible=False,
            max_height=520,
            elem_id="edit-slider",
            format="png",
            buttons=["fullscreen"],
        )
        self.numbers = gr.HTML(elem_id="edit-numbers")
        with gr.Row():
            self.png = file_button("PNG", "edit-png")
            self.code = file_button("Code file", "edit-code")
            self.about = file_button("JSON", "edit-json")
            self.mask_file = file_button("Mask", "edit-mask-file")
        with gr.Accordion("The same again", open=True, visible=False, elem_id="edit-again") as self.again:
            self.command = lines_of("Command", "edit-command")
            self.python = lines_of("Python", "edit-python")
        self.results = [
            *(self.status, self.preview, self.slider, self.numbers, self.png, self.code, self.about, self.mask_file),
            *(self.again, self.command, self.python),
        ]

    # --- events -----------------------------------------------------------------------------------------------------

    def _events(self) -> None:
        self.picture.change(self._on_picture, [self.picture], [self.mask, self.status], **AT_ONCE)
        self.mask_part.expand(self._on_mask, [self.picture, self.mask], [self.mask], **AT_ONCE)
        filled = [self.picture, self.words.source_prompt, self.words.prompt]
        self.sample.click(sample, [self.model], filled, **AT_ONCE)
        if self.words.describe is not None:
            outputs = [self.status, self.words.source_prompt]
            on_go(
                *(self.desk, "describe", [self.words.describe.click], self.status, self._describe),
                **{"inputs": [self.picture], "outputs": outputs},
            )
        self.fitted = [self.steps, self.guidance, self.strength, self.attention, self.words.source_prompt]
        self.method.input(self._on_method, [self.model, self.method], self.fitted, **AT_ONCE)
        asked = [
            *(self.model, self.picture, self.mask, *self.words.parts),
            *(self.method, self.strength, self.guidance, self.steps, self.seed, self.attention, self.negative),
        ]
        self.begins(self._edit, asked, self.words.prompt.submit)

    def _on_picture(self, picture: Any, request: gr.Request) -> tuple[Any, Any]:
        """Puts a new picture under the brush, or says why it cannot be read."""
        if picture is None:
            return None, gr.skip()
        try:
            upload = upload_of(self.desk, session_of(self.desk, request), picture)
            height, width = upload.size
            return canvas(upload), status(f"{upload.name}: {width} x {height} pixels.")
        except Exception as error:
            return None, refused(error)

    def _on_mask(self, picture: Any, mask: Any, request: gr.Request) -> Any:
        """Puts the picture under the brush again when that comes into sight, so that it fits; not under strokes."""
        try:
            upload = upload_of(self.desk, session_of(self.desk, request), picture)
            return gr.skip() if self._painted(mask, upload) else canvas(upload)
        except Exception as error:
            refused(error)
            return gr.skip()

    def _describe(self, picture: Any, request: gr.Request) -> Iterator[Any]:
        """Writes what a picture shows into its field, and yields the status line and that field."""
        yield from run(
            session_of(self.desk, request),
            "describe",
            lambda session: DescribeWork(self.desk, upload_of(self.desk, session, picture)),
            said=lambda line: (line, gr.skip()),
            show=lambda at, _: (status(progress_text(at), progress=at), gr.skip()),
            end=lambda job, _: (
                status(job.problem or "Described.", "" if job.stopped else "bad" if job.problem else "good"),
                gr.skip() if job.result is None else job.result,
            ),
        )

    def _painted(self, mask: Any, upload: Upload) -> Any:
        """Returns the mask that a browser sent, as ``mask_from`` does.

        Gradio itself would decode the layers, their background and both together, whatever their size.
        """
        if mask is None:
            return None
        if mask.get("id") is None:
            layers = [str(self.desk.uploaded(layer["path"])) for layer in mask["layers"] or ()]
        else:
            sent = self.mask.blob_storage.pop(mask["id"], None)
            layers = [layer for layer in (sent.layers if sent else ()) if layer is not None]
        return mask_from(layers, upload, self.desk.limits)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        method = menus.usual_method(model)
        return {
            **self.words.updates(model),
            self.method: gr.update(choices=menus.method_menu(model), value=method),
            **dict(zip(self.fitted, self._fitted(model, method), strict=True)),
            self.negative: gr.update(visible=menus.takes_negative(model)),
        }

    def _on_method(self, name: str, method: str) -> tuple[Any, ...]:
        model = self.desk.in_memory(name)  # loading takes its turn among the jobs
        return (gr.skip(),) * len(self.fitted) if model is None else self._fitted(model, method)

    def _fitted(self, model: Model, method: str) -> tuple[Any, ...]:
        """Returns what the components ``fitted`` become for a method."""
        own, kinds = menus.usual(model, method), menus.attention_menu(model, method)
        needless = method in EDITORS and not EDITORS[method].needs
        return (
            gr.update(value=own.steps, interactive=not own.fixed_steps),
            gr.update(value=own.guidance, visible=own.guidance is not None),
            gr.update(value=own.strength),
            gr.update(choices=kinds, value=kinds[0] if kinds else None, visible=bool(kinds)),
            gr.update(visible=model.text, label="What it shows" + (" (may stay empty)" if needless else "")),
        )

    def _edit(
        self,
        model: str,
        picture: Any,
        mask: Any,
        source_prompt: str,
        prompt: str,
        source_label: float | None,
        label: float | None,
        method: str,
        strength: float | None,
        guidance: float | None,
        steps: float | None,
        seed: float | None,
        attention: str | None,
        negative: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Edits a picture, and yields its progress and its result."""

        def work_of(session: Session) -> EditWork:
            upload = upload_of(self.desk, session, picture)
            asked = EditRequest(
                *(model, source_prompt or "", prompt or "", whole(source_label), whole(label), method, strength),
                *(guidance, whole(steps), whole(seed), attention or "", negative or ""),
            )
            return EditWork(self.desk, session, asked, upload, self._painted(mask, upload))

        yield from self.job(request, work_of, self._going, self._over)

    def _going(self, progress: Progress, work: EditWork, session: Session) -> list[Any]:
        return self.updated(*self.progress(progress), gr.update(visible=False))

    def _over(self, job: Job, work: EditWork, session: Session) -> list[Any]:
        return self.problem(job, work.keep(job)) if job.result is None else self.made(job.result, job.notes, session)

    def made(self, result: EditOutcome, notes: list[str], session: Session) -> list[Any]:
        """Returns the updates that show a result."""
        before, after = (
            write_shown(session, one, f"{k}.png")
            for k, one in zip(("before", "after"), comparable(result.before, result.after), strict=True)
        )
        figures = numbers(
            [
                ("reconstruction, PSNR", decibels(result.reconstruction_psnr)),
                ("edit against source, PSNR", decibels(result.edit_psnr)),
                ("bytes kept", f"{100 * result.kept:.1f} %"),
                ("network calls", f"{result.calls:g}"),
                ("seconds", f"{result.seconds:.1f}"),
            ]
        )
        return [
            status("Done.", "good", notes=notes),
            gr.update(visible=False, value=None),
            gr.update(value=(before, after), visible=True),
            figures,
            *(file_update(path) for path in (result.png, result.code, result.about, result.mask)),
            gr.update(visible=True),
            result.repeat.command,
            result.python,
        ]
