"""One process, or one group of them, writes into a folder at a time."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .foreign import told

LOCK = ".ddim-lock"


@contextmanager
def only_process(folder: Path, doing: str = "training into", setting: str = "output.folder") -> Iterator[None]:
    """Keeps other processes from writing into ``folder`` while the block runs.

    The folder is made if there is none, and is gone again where the block wrote nothing.

    Args:
        folder: where to.
        doing: what the other process is then said to be doing.
        setting: what to change for another folder.

    Raises:
        InputError: another process is in such a block, or the folder cannot be written.
    """
    new, file = not folder.exists(), folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"Cannot write into {folder}: {told(error)}") from None
    try:
        if not _locked(handle):
            raise InputError(f"Another process is {doing} {folder}; wait for its end or choose another {setting}.")
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()
                if new:
                    folder.rmdir()  # only if it is empty
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock is ours, or cannot be had on this platform or file system.

    It is a POSIX lock: it ends with this process, even by SIGKILL, whereas a worker that outlives its parent by
    some seconds would go on holding one of flock's.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return os.fstat(handle).st_nlink > 0  # 0: the process that had it removed it just now
