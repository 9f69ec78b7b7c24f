"""Counts the CPU cores that this process may use: by its affinity, and by the CPU quota of its control groups."""

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath


def usable_cores() -> int:
    """Returns the number of cores that this process may use, at least 1.

    It is the number of cores in the affinity of the process (``taskset``, ``os.sched_setaffinity``), but at most the
    CPU quota of its control groups, rounded down (``docker run --cpus``, limits of Kubernetes, ``CPUQuota=`` of
    systemd). Above the quota, the kernel stops all threads of a process for a part of every period, so a fraction of a
    core is left unused.

    The number does not depend on what else the machine does. The quota is read once per process.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this system, or not allowed
        cores = os.cpu_count() or 1
    quota = _quota_of_this_process()
    return cores if quota is None else max(1, min(cores, int(quota)))


@cache
def _quota_of_this_process() -> float | None:
    return cpu_quota(Path("/"))


def cpu_quota(root: Path) -> float | None:
    """Returns the CPU quota of this process in cores, or None if there is no limit or no control group.

    A quota of any group above the own one counts too, so the smallest one is returned. Both versions of control groups
    are read (version 1: ``cpu.cfs_quota_us``; version 2: ``cpu.max``). In a container, where the path of the own group
    may be that outside of the container, the group at the mount point is the own one.

    Args:
        root: the root of the file system.
    """
    try:
        # Names of mounts may be in any bytes.
        groups, mounts = (
            (root / "proc/self" / name).read_text(errors="surrogateescape").splitlines()
            for name in ("cgroup", "mountinfo")
        )
    except OSError:
        return None
    paths: dict[str, str] = {}  # file system type -> path of the own group
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    quotas: list[float] = []
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind or kind[0] not in paths:
            continue
        if kind[0] == "cgroup" and "cpu" not in kind[-1].split(","):  # the last field names the controllers
            continue
        top, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
        if point.is_absolute():
            quotas += _quotas(root / point.relative_to("/"), _below(PurePosixPath(paths[kind[0]]), top))
    return min(quotas, default=None)


def _unescaped(field: str) -> str:
    """Returns a path of mountinfo, where a space is written as ``\\040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _below(path: PurePosixPath, top: PurePosixPath) -> PurePosixPath:
    """Returns the path of a group below a mount point that shows the group ``top``, or ``.`` if it is not there."""
    return path.relative_to(top) if path.is_relative_to(top) and ".." not in path.parts else PurePosixPath(".")


def _quotas(mount: Path, group: PurePosixPath) -> list[float]:
    """Returns the quotas of a group and of all groups above it, up to the mount point."""
    found = [_quota_in(mount / folder) for folder in (group, *group.parents)]
    return [quota for quota in found if quota is not None]


def _quota_in(folder: Path) -> float | None:
    """Returns the quota in the folder of one group, or None if it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or the word "max"
        return None
    return cores if cores > 0 else None  # version 1 writes -1 for no limit
