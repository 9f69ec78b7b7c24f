"""One picture edited by several methods, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .._utils.errors import DDIMError, InputError, out_of_memory
from ..pipelines.capabilities import check_class_edit, check_prompt_edit
from .desk import Desk, Session
from .editing import EditOutcome, EditWork
from .errors import sentence_of
from .jobs import Job
from .menus import usual
from .pictures import Upload
from .requests import EditRequest

MOST = 8
"""The most methods that are compared at once."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What one method made.

    Attributes:
        method: its name.
        made: the edit; None if it did not work.
        problem: why not, as a sentence.
    """

    method: str
    made: EditOutcome | None
    problem: str = ""


@dataclass(eq=False)
class CompareWork:
    """A comparison that a job runs. A method that does not work does not stop the others.

    Args:
        desk: the server.
        session: the page.
        request: the settings of all edits; each method has its own usual strength, and fixed steps if it fixes them.
        methods: the names of the methods.
        upload: the picture.
        own_guidance: whether each method has its own usual guidance, in place of that of the request.

    Attributes:
        entries: what was made so far.
    """

    desk: Desk
    session: Session
    request: EditRequest
    methods: Sequence[str]
    upload: Upload
    own_guidance: bool = False
    entries: list[Entry] = field(default_factory=list[Entry], init=False)

    def __call__(self, job: Job) -> list[Entry]:
        """Makes the edits.

        Raises:
            InputError: no method or too many are chosen, a prompt is missing, or a number does not fit; all this is
                checked before any work.
            DDIMError: the model cannot edit, or no method worked; ``entries`` then says why.
            KeyboardInterrupt: it was stopped; ``entries`` has what was made.
        """
        if not self.methods:
            raise InputError("none is chosen; choose two or more.", parameter="method")
        if len(self.methods) > MOST:
            raise InputError(f"{len(self.methods)} are chosen; choose {MOST} or fewer.", parameter="method")
        model = self.desk.model(self.request.model)
        (check_prompt_edit if model.text else check_class_edit)(model)
        for method in self.methods:
            replace(self.request, method=method).check_words(model)
        self.request.check_numbers(model, self.desk.limits.max_steps, guidance=not self.own_guidance)
        for k, method in enumerate(self.methods):
            own = usual(model, method)
            guidance = own.guidance if self.own_guidance else self.request.guidance
            asked = replace(self.request, method=method, strength=own.strength, guidance=guidance)
            job.title = f"{method} ({k + 1} of {len(self.methods)})"
            try:
                made = EditWork(self.desk, self.session, asked, self.upload)(job)
                self.entries.append(Entry(method, made))
            except Exception as error:
                if not (isinstance(error, DDIMError | OSError) or out_of_memory(error)):
                    raise
                self.entries.append(Entry(method, None, sentence_of(error)))
        job.title = ""
        if all(entry.made is None for entry in self.entries):
            raise DDIMError("none of them worked; the table says why.", parameter="method")
        return self.entries

    @property
    def commands(self) -> str:
        """The lines of the command that make the same edits."""
        return "\n".join(entry.made.repeat.command for entry in self.entries if entry.made is not None)
