"""What other libraries and files say: their errors on one line, names in any bytes, and JSON that people may have
touched."""

import json
from pathlib import Path
from typing import Any

from .errors import InputError


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of an error, cut, without a stop at its end; its kind where it says nothing."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line[:longest].rstrip(". ") or type(error).__name__


def one_line(error: BaseException, longest: int = 300) -> str:
    """All of an error's text on one line, cut; its kind where it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def readable(name: object) -> str:
    """A name that can be shown and written anywhere: bytes of a file's name that are no UTF-8 as ``\\xe9``."""
    text = str(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a UTF-16 pair, which no file's name gives
        return text.encode("utf-8", "backslashreplace").decode()


def read_json(file: Path, kind: str = "config") -> dict[str, Any]:
    """A JSON object; ``kind`` says in a sentence what it should be.

    Raises:
        InputError: a file that is not to be read, is no JSON, or JSON of another kind.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets in brackets, thousands deep
        why = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise InputError(f"{file} is not readable JSON: {why}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is JSON, but no {kind}.")
    return content
