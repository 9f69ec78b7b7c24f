"""Reads JSON files, and writes files atomically: after a crash a file is either complete or absent."""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from .error_text import reason_of
from .errors import InputError, NotWritten
from .temporary import remove_stale, temporary_beside


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes bytes to a file atomically: to a temporary file beside it, which is then renamed.

    The first call for a folder also removes temporary files that killed processes left in it.

    Args:
        path: the file; missing parent folders are created, and an existing file is replaced.
        data: its whole content.

    Returns:
        ``path`` as a ``Path``.

    Raises:
        NotWritten: the folder cannot be written or the disk is full; no temporary file is left behind.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(os.path.abspath(target.parent))
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())  # without it a power cut could leave an empty file under the final name
        os.replace(temporary, target)
    except OSError as error:
        raise NotWritten(f"{target} could not be written: {reason_of(error)}") from None
    finally:  # after a success the temporary name no longer exists; after an error or Ctrl-C it may
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


@cache
def _tidy(folder: str) -> None:
    """Removes stale temporary files from a folder, once per process."""
    remove_stale(Path(folder))


def read_json(file: Path, kind: str = "config") -> dict[str, Any]:
    """Reads a JSON file whose top level is an object.

    Args:
        file: the file.
        kind: what the file should be, for the error message.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep
        raise InputError(f"{file} is not readable JSON: {reason_of(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is JSON, but not a {kind}.")
    return content
