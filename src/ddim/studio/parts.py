"""The parts that the tabs share: the picture, the status line, and the run of a job."""

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from .._utils.errors import DDIMError
from .desk import Desk, Session
from .errors import sentence_of
from .jobs import Job, Progress
from .pictures import Upload, taken

EVENT = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of every event. Values come as the browser sends them: Gradio would answer a wrong one with its own error."""
W = TypeVar("W", bound=Callable[[Job], Any])
QUEUE = {**EVENT, "concurrency_id": "model", "concurrency_limit": 1}
"""Of every event that calls a network: one at a time, in the order in which they were asked for."""
AT_ONCE = {**EVENT, "queue": False}
"""Of every event that takes no time."""


def picture(label: str, elem_id: str) -> gr.Image:
    """Returns a place to drop or paste a picture, or to choose a file; ``upload_of`` reads its value."""
    return gr.Image(
        label=label,
        elem_id=elem_id,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        buttons=[],
        height=300,
        placeholder="Drop a picture here, paste one, or press Enter to choose a file",
    )


def lines_of(label: str, elem_id: str, visible: bool = True) -> gr.Textbox:
    """Returns a field with lines of a command or of Python, to copy."""
    return gr.Textbox(
        label=label,
        elem_id=elem_id,
        elem_classes="lines",
        lines=1,
        max_lines=24,
        interactive=False,
        buttons=["copy"],
        visible=visible,
    )


def status(text: str = "", kind: str = "", progress: Progress | None = None, notes: Sequence[str] = ()) -> str:
    """Returns the status line as HTML, which screen readers announce.

    Args:
        text: the sentence.
        kind: ``good``, ``bad`` or empty.
        progress: the bar, while something runs.
        notes: warnings below it.
    """
    bar = ""
    if progress is not None:
        value = f' value="{progress.done}" max="{progress.total}"' if progress.total else ""
        bar = f'<progress aria-label="progress"{value}></progress>'
    more = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    listed = f"<ul>{more}</ul>" if more else ""
    return f'<div class="status {kind}" role="status" aria-live="polite">{html.escape(text)}{bar}{listed}</div>'


def progress_text(progress: Progress) -> str:
    """Returns what a job does now, how far it is, and how long it will take."""
    if not progress.total:
        return f"{progress.text} …"
    left = "" if progress.left is None else f", about {progress.left:.0f} s left"
    return f"{progress.text}: step {progress.done} of {progress.total}{left}"


def numbers(facts: Sequence[tuple[str, str]]) -> str:
    """Returns figures with their names as HTML."""
    cells = "".join(
        f"<div><b>{html.escape(value)}</b><small>{html.escape(name)}</small></div>" for name, value in facts
    )
    return f'<div class="numbers">{cells}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as HTML."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def decibels(value: float) -> str:
    """Returns a PSNR as text."""
    return "∞ dB (equal)" if value == float("inf") else f"{value:.1f} dB"


def upload_of(desk: Desk, session: Session, picture: Any) -> Upload:
    """Returns a picture of the page, from the value that its field sent.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = None if picture is None else picture["path"]
    return taken(session, path and desk.uploaded(path), desk.limits)


def session_of(desk: Desk, request: gr.Request | None) -> Session:
    """Returns the session of the page that sent a request."""
    return desk.session(None if request is None else request.session_hash)


def on_go(
    desk: Desk, tab: str, triggers: Sequence[Callable[..., Any]], line: Any, job: Callable[..., Any], **how: Any
) -> None:
    """Ties the button that begins a job to it.

    A second press while the job runs does nothing. Gradio itself would drop a press that comes between the last update
    of a job and its end, so that it is asked to send the last press again, and the session knows whether it counts.

    Args:
        desk: the server.
        tab: the name of the tab.
        triggers: the events that begin the job.
        line: the status line.
        job: a generator of updates.
        how: ``inputs`` and ``outputs`` of the job.
    """

    def failed(request: gr.Request) -> str:
        is_wanted(session_of(desk, request), tab)
        return not_taken(desk)

    def wants(request: gr.Request) -> Any:
        session = session_of(desk, request)
        if session.job is not None:
            return gr.skip()
        session.stop.clear()
        session.wanted.add(tab)
        return status("Waiting for its turn …")

    for trigger in triggers:
        trigger(wants, None, [line], **AT_ONCE)
        begun = trigger(job, **how, trigger_mode="always_last", **QUEUE)
        begun.failure(failed, None, [line], **AT_ONCE)


def not_taken(desk: Desk) -> str:
    """Returns the status for an event that the queue did not take."""
    most = desk.limits.queue
    return status(f"It was not taken: {most} jobs wait already, or the page has lost its server. Try again.", "bad")


def is_wanted(session: Session, tab: str) -> bool:
    """Whether the button of a tab was pressed since its last job began; that job begins now."""
    wanted = tab in session.wanted
    session.wanted.discard(tab)
    return wanted


def refused(error: BaseException) -> str:
    """Returns the status for an error. Raises it again if it is none that a page causes."""
    if not isinstance(error, (DDIMError, OSError)):
        raise error
    return status(sentence_of(error), "bad")


def run(
    session: Session,
    tab: str,
    work_of: Callable[[Session], W],
    *,
    said: Callable[[Any], Any],
    show: Callable[[Progress, W], Any],
    end: Callable[[Job, W], Any],
) -> Iterator[Any]:
    """Runs a job for a page, and yields what its components become.

    Args:
        session: the page.
        tab: the name under which ``on_go`` tied a button to the job; a press that does not count changes nothing.
        work_of: makes the work; an error of it is said in the status line.
        said: makes an update of the status line alone.
        show: makes an update of the progress.
        end: makes the last update, from the ended job.
    """
    if not is_wanted(session, tab):
        yield said(gr.skip())
        return
    try:
        work = work_of(session)
    except Exception as error:
        yield said(refused(error))
        return
    session.begin(tab)
    job = session.job = Job(work, session.stop)
    try:
        for progress in job.updates():
            yield show(progress, work)
    finally:
        session.job = None
        if session.closed:
            session.close()  # of what the job wrote meanwhile
    try:
        update = end(job, work)
    except Exception as error:
        update = said(refused(error))
    yield update


def file_button(words: str, elem_id: str) -> gr.DownloadButton:
    """Returns a button that downloads a file, as soon as there is one."""
    return gr.DownloadButton(words, visible=False, size="sm", min_width=90, elem_id=elem_id)


def file_update(path: Path | str | None) -> Any:
    """Returns the update of a download button, which is hidden without a file."""
    return gr.update(value=None if path is None else str(path), visible=path is not None)
