"""A lock file, so that only one process (or one group of processes) writes into a folder at a time."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .error_text import reason_of
from .errors import InputError

LOCK = ".ddim-lock"


@contextmanager
def only_process(folder: Path, doing: str = "training into", setting: str = "output.folder") -> Iterator[None]:
    """Locks ``folder`` against other processes that use this function, while the block runs.

    Missing folders are created, and are removed again if the block wrote nothing into them.

    Args:
        folder: the folder to lock.
        doing: what the other process does with the folder, for the error message.
        setting: the parameter that chooses the folder, for the error message.

    Raises:
        InputError: another process holds the lock, or the folder cannot be written.
    """
    new, file = [path for path in (folder, *folder.parents) if not path.exists()], folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"Cannot write into {folder}: {reason_of(error)}") from None
    try:
        if not _locked(handle):
            raise InputError(
                f"Another process is {doing} {folder}; wait until it has finished, or choose another {setting}."
            )
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()
                for path in new:
                    path.rmdir()  # fails, and is ignored, if the folder is not empty
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Tries to lock an open file. Also True if this platform or file system has no locks.

    A POSIX lock (``lockf``) belongs to this process alone and ends with it, even after SIGKILL. A ``flock`` lock would
    be inherited by worker processes, and stay held while a worker outlives its parent by some seconds.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    # No links: the previous holder deleted the file after we had opened it, so others may lock a new file of that name.
    return os.fstat(handle).st_nlink > 0
