"""The files that ``ddim edit`` writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .._utils.errors import DDIMError, InputError, Interrupted
from . import options as o
from .failure import code_and_sentence
from .files import CODE, PNG
from .film import Film
from .repeat import repeat
from .session import keep_partial, partial_beside

if TYPE_CHECKING:
    from ..inversion.latent_code import LatentCode


class EditFiles:
    """The files that an edit writes.

    Args:
        page: the strip's file; the others are named after it.
        strip: what each image of the strip shows.
        rows: images that are edited.
        edits: how many edits are pasted into their photographs.
        each: whether every image of the strip gets its own file.
        saves: whether the code of the image is saved while the edit runs.
        film: the files of a film, if it is one.
    """

    def __init__(
        self, page: Path, strip: Sequence[str], rows: int, edits: int, each: bool, saves: bool, film: Film | None
    ) -> None:
        self.page, self.rows, self.film = page, rows, film
        self.code = page.with_name(f"{page.with_suffix('').name}{CODE}") if saves else None
        self.about = page.with_suffix(".json")
        self.saved = False
        digits = len(str(rows))
        names = [f"{n:0{digits}d}-{k}_{what}{PNG}" for n in range(rows) for k, what in enumerate(strip)]
        ends = [f"_photo{k + 1:0{len(str(edits))}d}" for k in range(edits)] if edits > 1 else ["_photo"] * edits
        self.photographs = [page.with_name(f"{page.with_suffix('').name}{end}{PNG}") for end in ends]
        singles = [page.with_suffix("") / name for name in names] if film is None else film.singles
        self.singles = singles if each else []

    @property
    def written(self) -> list[Path]:
        """All files that the edit writes."""
        more = [*([self.code] if self.code else []), *([self.film.file] if self.film else [])]
        return [self.page, self.about, *self.singles, *self.photographs, *more]

    def save(self, code: "LatentCode") -> None:
        """Saves the code of an image that was inverted."""
        if self.code is not None:
            code.save(self.code)
            self.saved = True

    @contextmanager
    def kept_code(self, invert_words: Mapping[str, object], going_on: Mapping[str, object]) -> Iterator[None]:
        """Around the edit: removes the code's file at the end; after an error, keeps it and says how to go on.

        Args:
            invert_words: parameters of ``ddim invert`` that differ from the running command's.
            going_on: parameters that an edit of the code must have in addition.
        """
        try:
            yield
        except Interrupted as stopped:  # during the inversion
            assert self.code is not None
            command = repeat("ddim invert", out=None, **invert_words)
            raise keep_partial(stopped, partial_beside(self.code), command) from None
        except (Exception, KeyboardInterrupt) as error:
            if not self.saved:
                raise
            idle = dict.fromkeys(("from_", "from_label", *o.INVERSION))  # which the code has already
            kept = f"The inverted code is in {self.code}"
            again = repeat(source=self.code, **{**idle, **going_on})
            kept += "." if isinstance(error, InputError) else f": {again} goes on."
            if isinstance(error, DDIMError):
                error.hint = " ".join(part for part in (error.hint, kept) if part)
                raise
            kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DDIMError
            raise kind(f"{code_and_sentence(error)[1]} {kept}") from error
        if self.saved and self.code is not None:
            self.code.unlink()
