"""What the tabs that run a job have in common."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gradio as gr

from .desk import Desk, Session
from .fields import number
from .jobs import Job, Progress
from .parts import AT_ONCE, W, on_go, progress_text, run, session_of, status
from .pictures import shown


class JobTab:
    """A tab with a button that begins a job, one that stops it, a status line and a preview.

    Args:
        desk: the server.
        model: the component with the name of the model.

    Attributes:
        name: the tab for the session, which counts the presses of its button.
        prefix: the beginning of the ids of its components.
        results: the components that a job changes: the status line, the preview, and what a tab adds.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    results: list[Any]

    def __init__(self, desk: Desk, model: gr.Dropdown) -> None:
        self.desk, self.model = desk, model

    # --- components -------------------------------------------------------------------------------------------------

    def steps_field(self) -> gr.Number:
        """Returns the field of the number of steps."""
        return number("Steps", f"{self.prefix}-steps")

    def settings(self, guidance: float | None = None) -> tuple[gr.Number, gr.Number, gr.Number]:
        """Returns the fields of guidance, which begins with a value, of steps and of the seed, in a row."""
        with gr.Row():
            weight = number("Guidance", f"{self.prefix}-guidance", guidance)
            steps = self.steps_field()
            seed = number("Seed", f"{self.prefix}-seed", 0)
        return weight, steps, seed

    def buttons(self, words: str) -> None:
        """Makes the button that begins the job, and the one that stops it."""
        with gr.Row():
            self.go = gr.Button(words, variant="primary", elem_id=f"{self.prefix}-go", min_width=120)
            self.halt = gr.Button("Stop", elem_id=f"{self.prefix}-stop", min_width=90)

    def status_and_preview(self, words: str, height: int = 260) -> None:
        """Makes the status line, which begins with a sentence, and below it the preview."""
        self.status = gr.HTML(status(words), elem_id=f"{self.prefix}-status")
        self.preview = gr.Image(
            label="What the network predicts now",
            interactive=False,
            visible=False,
            buttons=[],
            height=height,
            elem_id=f"{self.prefix}-preview",
            format="png",
        )

    # --- the job ----------------------------------------------------------------------------------------------------

    def begins(self, job: Callable[..., Any], inputs: list[Any], *more: Callable[..., Any]) -> None:
        """Ties the job to its button, and to more events, and the button Stop to the session."""
        on_go(self.desk, self.name, [self.go.click, *more], self.status, job, inputs=inputs, outputs=self.results)
        self.halt.click(self._stop, None, None, **AT_ONCE)

    def _stop(self, request: gr.Request) -> None:
        session_of(self.desk, request).stop.set()

    def job(
        self,
        request: gr.Request,
        work_of: Callable[[Session], W],
        show: "Callable[[Progress, W, Session], list[Any]] | None" = None,
        end: "Callable[[Job, W, Session], list[Any]] | None" = None,
    ) -> Iterator[list[Any]]:
        """Runs the job of a page, and yields what ``results`` become.

        Args:
            request: of the page.
            work_of: makes the work.
            show: makes an update of the progress; by default status line and preview.
            end: makes the last update from the ended job; by default its problem, or what ``made`` makes of its result.
        """
        session, shows, ends = session_of(self.desk, request), show or self._progress, end or self._ended
        yield from run(
            session,
            self.name,
            work_of,
            said=self.said,
            show=lambda at, work: shows(at, work, session),
            end=lambda job, work: ends(job, work, session),
        )

    def made(self, result: Any, notes: list[str], session: Session) -> list[Any]:
        """Returns the updates that show a result."""
        raise NotImplementedError

    def updated(self, *first: Any) -> list[Any]:
        """Returns updates of the first of the ``results``; the others stay as they are."""
        return [*first, *[gr.skip()] * (len(self.results) - len(first))]

    def said(self, line: str) -> list[Any]:
        """Returns the updates that only say something."""
        return self.updated(line, gr.update(visible=False))

    def problem(self, job: Job, more: str = "") -> list[Any]:
        """Returns the updates that say why a job has no result."""
        sentence = f"{job.problem} {more}".strip()
        return self.said(status(sentence, "" if job.stopped else "bad", notes=job.notes))

    def progress(self, progress: Progress) -> tuple[str, Any]:
        """Returns the updates of the status line and of the preview."""
        seen = progress.preview
        preview = gr.update(visible=False) if seen is None else gr.update(value=shown(seen), visible=True)
        return status(progress_text(progress), progress=progress), preview

    def _progress(self, progress: Progress, work: Any, session: Session) -> list[Any]:
        return self.updated(*self.progress(progress))

    def _ended(self, job: Job, work: Any, session: Session) -> list[Any]:
        return self.problem(job) if job.result is None else self.made(job.result, job.notes, session)
