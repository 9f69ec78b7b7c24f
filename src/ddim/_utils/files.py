"""Files that appear whole or not at all."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import DDIMError
from .foreign import told
from .temporary import remove_stale, temporary_beside


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes bytes under a temporary name beside the target and renames: whole or not at all.

    A process's first file in a folder removes what killed processes left there.

    Raises:
        DDIMError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(os.path.abspath(target.parent))
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise DDIMError(f"{target} could not be written: {told(error)}") from None
    finally:  # gone already when all went well; also after Ctrl-C
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


@cache
def _tidy(folder: str) -> None:
    remove_stale(Path(folder))
