"""Names under which files are written before they take their own, and what dead processes left under such names."""

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
    """A name that nothing has yet, in the target's folder; it says which process it is of, and is short."""
    return target.with_name(f".ddim-{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def remove_stale(folder: Path) -> None:
    """Removes files in ``folder`` with names of ``temporary_beside`` whose process is dead.

    Of a process on another machine, in another container, or before the last start of this one nothing is known: its
    file goes when it is a day old. Nothing else is touched, and what cannot be removed stays.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            named = _OURS.fullmatch(entry.name)
            if named is None or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                if _is_dead(named[1], int(named[2]), time.time() - entry.stat().st_mtime):
                    os.unlink(entry.path)


def _is_dead(place: str, pid: int, age: float) -> bool:
    if place != _place() or os.name != "posix":  # elsewhere than there, signal 0 is a real one
        return age > DAY
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it lives, and is another user's; or it is no number of a process
        return False
    return False


@cache
def _place() -> str:
    """Where process numbers mean the same processes: this machine since it was started, this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]
