"""What the server holds: its limits, its folder, the models in memory, and the sessions of the pages."""

import shutil
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import DDIMError, InputError, UnknownName, out_of_memory
from ..models import bundled_models, load
from ..models.captioner import Captioner
from .limits import Limits
from .watched import Watched

if TYPE_CHECKING:
    from .jobs import Job
    from .pictures import Upload

MOST_SESSIONS = 200
"""Pages whose files are kept; beyond, those that were not used for the longest time are closed."""
MOST_UPLOADS = 8
"""Pictures of a page that are kept; beyond, those that were not used for the longest time are deleted."""
WAIT = 10.0
"""The longest time in seconds that the end of the server waits for jobs to stop."""


@dataclass(eq=False)
class Session:
    """What one open page has: a folder, and what its jobs left behind.

    Attributes:
        folder: its files; nobody else's are there.
        stop: set by the button Stop.
        kept: what a stopped job left for the next one, by what it was made with.
        used: when it was last used, in seconds.
        job: the job of it that runs now, or None.
        wanted: the tabs whose button was pressed, and whose job has not begun.
        closed: whether the page is gone, and no file may come any more.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    kept: dict[Any, Any] = field(default_factory=dict[Any, Any])
    used: float = field(default_factory=time.monotonic)
    job: "Job | None" = None
    wanted: set[str] = field(default_factory=set[str])
    closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _uploads: "OrderedDict[Any, Upload]" = field(default_factory=lambda: OrderedDict[Any, "Upload"]())
    _results: dict[str, list[Path]] = field(default_factory=dict[str, list[Path]])
    _tab: str = ""

    def begin(self, tab: str) -> None:
        """Begins a job of a tab: deletes what its earlier jobs left. What the page shows are Gradio's copies."""
        with self._lock:
            old = self._results.pop(tab, [])
            self._tab = tab
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)

    def known(self, source: Any) -> "Upload | None":
        """Returns the picture that was taken from a source, and None if it was not, or was deleted."""
        with self._lock:
            found = self._uploads.get(source)
            if found is None or not found.path.is_file():
                return None
            self._uploads.move_to_end(source)
            return found

    def remember(self, source: Any, upload: "Upload") -> None:
        """Keeps a picture for ``known``, and deletes old ones; not during a job, which may need them."""
        with self._lock:
            self._uploads[source] = upload
            while len(self._uploads) > MOST_UPLOADS and self.job is None:
                shutil.rmtree(self._uploads.popitem(last=False)[1].path.parent, ignore_errors=True)

    def new_folder(self, *, result: bool = True) -> Path:
        """Makes an empty folder for files that belong together.

        Args:
            result: whether they are results of the job that runs now, which the next job of its tab deletes.

        Raises:
            DDIMError: the page was closed.
        """
        folder = self.folder / uuid.uuid4().hex[:12]
        with self._lock:
            if self.closed:
                raise DDIMError("The page was closed.")
            folder.mkdir(parents=True)
            if result:
                self._results.setdefault(self._tab, []).append(folder)
        return folder

    def place(self, name: str) -> Path:
        """Returns a path for a new file with this name, in a folder of its own."""
        return self.new_folder() / name

    def close(self) -> None:
        """Stops the job, and deletes the files. A job that still runs may write more; call this again at its end."""
        with self._lock:
            self.closed = True
        self.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Desk:
    """The server's models and sessions, in a folder that is removed when it closes.

    Args:
        models: the names of the models that the menu offers first; the first one is loaded at the beginning.
        loading: the keyword arguments of ``ddim.load``.
        limits: what a page may ask for.
        any_model: whether a page may name any folder or hub id, and not only the models of the menu.
        captioner: the folder or hub id of a model that describes pictures; None for none.

    Raises:
        InputError: the folder has no model that describes pictures.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        loading: dict[str, Any] | None = None,
        limits: Limits | None = None,
        *,
        any_model: bool = True,
        captioner: str | None = None,
    ) -> None:
        self.limits, self.any_model, self.loading = limits or Limits(), any_model, loading or {}
        self.captioner = None if captioner is None else Captioner(captioner, self.loading.get("device"))
        self.menu = list(dict.fromkeys([*models, *bundled_models()]))
        self.root = Path(tempfile.mkdtemp(prefix="ddim-studio-"))
        self._models: OrderedDict[str, Watched] = OrderedDict()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.RLock()
        self._loading = threading.Lock()  # held while a model loads, which must keep no page waiting that has one
        self._closing: list[Session] = []

    @property
    def served(self) -> Path:
        """Gradio's folder of uploads and of what a page shows."""
        return self.root / "served"

    def uploaded(self, path: str) -> Path:
        """Returns the path of a file that a browser uploaded or got.

        Gradio checks the paths of values that are marked as files; a request may leave out the mark.

        Raises:
            InputError: it is none; the sentence does not tell whether there is such a file elsewhere.
        """
        found = Path(path)
        if not found.resolve().is_relative_to(self.served.resolve()) or not found.is_file():
            raise InputError("the file is not there any more; drop the picture again.", parameter="images")
        return found

    # --- models -----------------------------------------------------------------------------------------------------

    def model(self, name: str | None) -> Watched:
        """Returns a model by name, and loads it if it is not in memory.

        Raises:
            InputError: there is no such model, or the page may not name it.
            DDIMError: its files are broken.
        """
        name = (name or "").strip()
        if not name:
            raise InputError("it is missing; choose one from the menu.", parameter="model")
        if name not in self.menu and not self.any_model:
            raise UnknownName("model", name, self.menu, hint="This page offers only these.")
        found = self.in_memory(name)
        if found is not None:
            return found
        with self._loading:
            found = self.in_memory(name)  # another page may have loaded it
            return self._loaded(name) if found is None else found

    def in_memory(self, name: str | None) -> Watched | None:
        """Returns a model by name if it is in memory, and None if it is not; loads nothing."""
        name = (name or "").strip()
        with self._lock:
            found = self._models.get(name)
            if found is not None:
                self._models.move_to_end(name)
            return found

    def _loaded(self, name: str) -> Watched:
        """Loads a model, which then takes the place of another one."""
        try:
            made = load(name, **self.loading)
        except Exception as error:
            if not out_of_memory(error) or not self._models:
                raise
            made = None
        if made is None:  # out of the block, whose error holds on to what was loaded
            self._leave_at_most(self.limits.keep_models - 1)
            made = load(name, **self.loading)
        self._leave_at_most(self.limits.keep_models - 1)
        with self._lock:
            self._models[name] = Watched(made)
            if name not in self.menu:
                self.menu.append(name)
            return self._models[name]

    def _leave_at_most(self, count: int) -> None:
        """Forgets models that were not used for longest, until so many are left."""
        with self._lock:
            while len(self._models) > count:
                self._models.popitem(last=False)

    @property
    def loaded(self) -> list[str]:
        """The names of the models in memory, the one that was used last first."""
        with self._lock:
            return list(reversed(self._models))

    # --- sessions ---------------------------------------------------------------------------------------------------

    def session(self, key: str | None) -> Session:
        """Returns the session of a page by its key, and begins it if it is new."""
        name = key or "local"
        with self._lock:
            if name not in self._sessions:
                while len(self._sessions) >= MOST_SESSIONS:
                    self.close_session(next(iter(self._sessions)))
                self._sessions[name] = Session(self.root / "sessions" / uuid.uuid4().hex)
            self._sessions.move_to_end(name)
            session = self._sessions[name]
            session.used = time.monotonic()
            return session

    def close_session(self, key: str | None) -> None:
        """Ends a session: stops its job and deletes its files."""
        with self._lock:
            session = self._sessions.pop(key or "local", None)
            if session is None:
                return
            self._closing = [one for one in self._closing if one.job is not None]
            self._closing.append(session)
        session.close()

    @property
    def sessions(self) -> int:
        """The number of open sessions."""
        return len(self._sessions)

    def close(self) -> None:
        """Ends all sessions, waits ten seconds at most for their jobs, and deletes everything that was made."""
        for key in list(self._sessions):
            self.close_session(key)
        latest = time.monotonic() + WAIT
        for job in [session.job for session in self._closing]:
            if job is not None:
                job.wait(max(0.0, latest - time.monotonic()))
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
