"""What other libraries and files say: their errors on one line, names in any bytes, and JSON that people may have
touched."""

import ctypes
import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from .errors import InputError

_ENDS = " .:;,"


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of an error that says something, cut, as the middle of a sentence: without a stop at its end.

    Of what the system says, the reason alone; of a line that ends in a colon, the next one too; the error's kind where
    it says nothing.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.rstrip(_ENDS)
    lines = [line.strip() for line in _shown(error).splitlines() if line.strip(_ENDS)]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said[:longest].rstrip(_ENDS) or type(error).__name__


def one_line(error: BaseException, longest: int = 300) -> str:
    """All of an error's text on one line, cut; its kind where it says nothing."""
    return " ".join(_shown(error).split())[:longest] or type(error).__name__


def _shown(error: BaseException) -> str:
    """What an error says, with classes by their names and without what a terminal does not show."""
    said = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", str(error))
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in said)


def readable(name: object) -> str:
    """A name that can be shown and written anywhere: bytes of a file's name that are no UTF-8 as ``\\xe9``."""
    text = str(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a UTF-16 pair, which no file's name gives
        return text.encode("utf-8", "backslashreplace").decode()


def told(error: BaseException, longest: int = 200) -> str:
    """``first_line`` as the end of a sentence: with one stop, or what the line ends in instead."""
    return ended(first_line(error, longest))


def ended(text: str) -> str:
    """A text with one stop at its end, or with the question or exclamation mark that it has."""
    bare = text.rstrip(_ENDS)
    return bare if bare.endswith(("!", "?")) else f"{bare}."


@cache
def hush_decoders() -> None:
    """libtiff, which Pillow carries, writes what it finds wrong with a file on stderr; Pillow raises it too."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # a Pillow that was built without it
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def read_json(file: Path, kind: str = "config") -> dict[str, Any]:
    """A JSON object; ``kind`` says in a sentence what it should be.

    Raises:
        InputError: a file that is not to be read, is no JSON, or JSON of another kind.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets in brackets, thousands deep
        raise InputError(f"{file} is not readable JSON: {told(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is JSON, but no {kind}.")
    return content
