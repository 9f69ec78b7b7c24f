"""The tab Compare."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..models.base import Model
from . import menus
from .comparing import MOST, CompareWork
from .desk import Desk, Session
from .editing import comparable
from .fields import Words, sample, whole
from .jobs import Job, Progress
from .parts import AT_ONCE, decibels, lines_of, picture, status, table, upload_of
from .pictures import write_shown
from .requests import EditRequest
from .tab import JobTab


class CompareTab(JobTab):
    """The tab Compare: one picture, several methods. The arguments are those of ``JobTab``."""

    name = prefix = "compare"

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        super().__init__(desk, model)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.picture = picture("Picture", "compare-picture")
                self.sample = gr.Button("Use a sample picture", size="sm", elem_id="compare-sample")
                self.words = Words("compare")
                self.methods = gr.Dropdown(
                    [], label=f"Methods, up to {MOST}", multiselect=True, elem_id="compare-methods", max_choices=MOST
                )
                self.guidance, self.steps, self.seed = self.settings()
                self.own = gr.Checkbox(False, label="Each method at its own usual guidance", elem_id="compare-own")
                self.buttons("Compare")
            with gr.Column(scale=6, min_width=300):
                self.status_and_preview("The same edit by several methods: what each keeps, and what it costs.")
                self.gallery = gr.Gallery(
                    label="Edits",
                    show_label=False,
                    visible=False,
                    columns=3,
                    object_fit="contain",
                    elem_id="compare-gallery",
                    format="png",
                    buttons=["download", "fullscreen"],
                    height="auto",
                )
                self.table = gr.HTML(elem_id="compare-table")
                self.commands = lines_of("Commands", "compare-commands", visible=False)
        self._events()

    def _events(self) -> None:
        filled = [self.picture, self.words.source_prompt, self.words.prompt]
        self.sample.click(sample, [self.model], filled, **AT_ONCE)
        self.results = [self.status, self.preview, self.gallery, self.table, self.commands]
        asked = [
            *(self.model, self.picture, *self.words.parts),
            *(self.methods, self.guidance, self.steps, self.seed, self.own),
        ]
        self.begins(self._compare, asked)

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the components become for a model."""
        menu = menus.method_menu(model)
        names = [name for _, name in menu]
        first = [name for name in (menus.usual_method(model), "bdia", "edit-friendly", "flow-edit") if name in names]
        own = menus.usual(model, menus.usual_method(model))
        return {
            **self.words.updates(model),
            self.methods: gr.update(choices=menu, value=list(dict.fromkeys(first))[:3]),
            self.guidance: gr.update(value=own.guidance, visible=own.guidance is not None),
            self.steps: gr.update(value=min(own.steps, 20)),
        }

    def _compare(
        self,
        model: str,
        picture: Any,
        source_prompt: str,
        prompt: str,
        source_label: float | None,
        label: float | None,
        methods: list[str],
        guidance: float | None,
        steps: float | None,
        seed: float | None,
        own: bool,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Edits a picture by several methods, and yields the progress and the results."""
        told = 0

        def work_of(session: Session) -> CompareWork:
            upload = upload_of(self.desk, session, picture)
            words = (source_prompt or "", prompt or "", whole(source_label), whole(label))
            asked = EditRequest(model, *words, guidance=guidance, steps=whole(steps), seed=whole(seed))
            return CompareWork(self.desk, session, asked, methods or [], upload, own_guidance=own)

        def show(progress: Progress, work: CompareWork, session: Session) -> list[Any]:
            nonlocal told
            line, preview = self.progress(progress)
            preview = gr.skip() if progress.preview is None else preview
            if len(work.entries) == told:
                return self.updated(line, preview)
            told = len(work.entries)
            return [line, preview, *self._entries(work, session)]

        yield from self.job(request, work_of, show, self._over)

    def _over(self, job: Job, work: CompareWork, session: Session) -> list[Any]:
        kind = "" if job.stopped else "bad" if job.problem else "good"
        line = status(job.problem or "Done.", kind, notes=job.notes)
        return [line, gr.update(visible=False, value=None), *self._entries(work, session)]

    def _entries(self, work: CompareWork, session: Session) -> list[Any]:
        """Returns the gallery, the table and the commands of what was made so far."""
        made = [entry.made for entry in work.entries if entry.made is not None]
        tiles = []
        if made:
            before = comparable(made[0].before, made[0].after)[0]
            tiles.append((write_shown(session, before, "source.png"), "source"))
        for entry in work.entries:
            if entry.made is not None:
                after = comparable(entry.made.before, entry.made.after)[1]
                tiles.append((write_shown(session, after, f"{entry.method}.png"), entry.method))
        heads = ["method", "reconstruction", "edit against source", "bytes kept", "calls", "seconds"]
        rows = [
            [e.method, e.problem, "", "", "", ""]
            if e.made is None
            else [
                e.method,
                decibels(e.made.reconstruction_psnr),
                decibels(e.made.edit_psnr),
                f"{100 * e.made.kept:.1f} %",
                f"{e.made.calls:g}",
                f"{e.made.seconds:.1f}",
            ]
            for e in work.entries
        ]
        commands = gr.update(value=work.commands, visible=bool(work.commands))
        return [gr.update(value=tiles, visible=bool(tiles)), table(heads, rows) if rows else "", commands]
