"""Names for temporary files, and the removal of temporary files whose process has died."""

import hashlib
import os
import platform
import re
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

_OURS = re.compile(r"\.ddim-([0-9a-f]{12})-(\d+)-[0-9a-f]{8}\.tmp")
DAY = 24 * 3600.0


def temporary_beside(target: Path) -> Path:
    """Returns a new, short name in the target's folder; it encodes this machine and process for ``remove_stale``."""
    return target.with_name(f".ddim-{_machine_id()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def remove_stale(folder: Path) -> None:
    """Removes temporary files of ``temporary_beside`` from ``folder`` if the process that made them is dead.

    Whether a process on another machine, in another container or before the last reboot still runs cannot be known;
    its files are removed once they are a day old. No other files are touched, and errors are ignored.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            named = _OURS.fullmatch(entry.name)
            if named is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                if _is_dead(named[1], int(named[2]), time.time() - entry.stat().st_mtime):
                    os.unlink(entry.path)


def _is_dead(machine: str, pid: int, age: float) -> bool:
    """Whether the process is dead, as far as can be known; ``age`` is the file's age in seconds."""
    if machine != _machine_id() or os.name != "posix":  # on Windows, os.kill(pid, 0) would send a real signal
        return age > DAY
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is alive but belongs to another user, or the number is no process id
        return False
    return False


@cache
def _machine_id() -> str:
    """Identifies the scope in which process ids are unique: this machine since its last boot, and this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]
