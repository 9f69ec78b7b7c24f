"""The cores that a process may use, on control groups and affinities that are not this machine's."""

import os
from pathlib import Path

import pytest

from ddim._utils import cores
from ddim._utils.cores import cpu_quota, usable_cores

MOUNT_1 = "33 24 0:29 {top} {point} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
MOUNT_2 = "42 35 0:30 {top} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = "22 28 0:21 / /proc rw - proc proc rw\n31 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


def machine(root: Path, group: str, mount: str, files: dict[str, str]) -> Path:
    """A file system with the files that the kernel shows: which group this process is in, and its limits."""
    own = root / "proc" / "self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(f"7:cpuset:/elsewhere\n{group}\n")
    (own / "mountinfo").write_text(f"{OTHERS}{mount}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def version_2(root: Path, own: str, files: dict[str, str], top: str = "/") -> Path:
    return machine(root, f"0::{own}", MOUNT_2.format(top=top, point="/sys/fs/cgroup"), files)


def version_1(root: Path, own: str, quotas: dict[str, tuple[int, int]], top: str = "/") -> Path:
    files = {}
    for folder, (quota, period) in quotas.items():
        files[f"cpu/{folder}/cpu.cfs_quota_us"] = str(quota)
        files[f"cpu/{folder}/cpu.cfs_period_us"] = str(period)
    return machine(root, f"4:cpu,cpuacct:{own}", MOUNT_1.format(top=top, point="/sys/fs/cgroup/cpu"), files)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("/", {"cpu.max": "150000 100000"}, 1.5),  # a container with its own view of the groups
        ("/", {"cpu.max": "max 100000"}, None),
        ("/", {}, None),  # the root group of a machine has no such file
        ("/user.slice/a.scope", {"user.slice/a.scope/cpu.max": "50000 100000"}, 0.5),
        ("/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3.0),  # a limit of a group above
        ("/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3.0),
        ("/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
        ("/a/b", {"a/other/cpu.max": "100000 100000"}, None),  # a neighbour's
        ("/docker/0123", {"cpu.max": "200000 100000"}, 2.0),  # a container whose path is that of the host
        ("/../sibling", {"cpu.max": "200000 100000"}, 2.0),
        ("/", {"cpu.max": "nonsense"}, None),
        ("/", {"cpu.max": "100000 0"}, None),
    ],
)
def test_version_2(own: str, files: dict[str, str], quota: float | None, tmp_path: Path):
    assert cpu_quota(version_2(tmp_path, own, files)) == quota


@pytest.mark.parametrize(
    ("own", "quotas", "quota"),
    [
        ("/", {"": (150_000, 100_000)}, 1.5),
        ("/", {"": (-1, 100_000)}, None),
        ("/a/b", {"": (-1, 100_000), "a": (250_000, 50_000), "a/b": (-1, 100_000)}, 5.0),
        ("/a/b", {"a": (250_000, 50_000), "a/b": (100_000, 50_000)}, 2.0),
    ],
)
def test_version_1(own: str, quotas: dict[str, tuple[int, int]], quota: float | None, tmp_path: Path):
    assert cpu_quota(version_1(tmp_path, own, quotas)) == quota


def test_a_mount_that_shows_a_part_of_the_groups(tmp_path: Path):
    """Docker without a namespace: the path is that of the host, and the mount point shows the container's group."""
    docker = version_1(
        tmp_path / "1", "/docker/01/own", {"own": (100_000, 100_000), "": (200_000, 100_000)}, "/docker/01"
    )
    assert cpu_quota(docker) == 1.0
    docker = version_2(tmp_path / "2", "/docker/01", {"cpu.max": "200000 100000"}, "/docker/01")
    assert cpu_quota(docker) == 2.0


def test_both_versions_at_once(tmp_path: Path):
    """systemd's hybrid mode: the cpu controller belongs to version 1, and version 2 has no limits."""
    root = version_1(tmp_path, "/a", {"a": (200_000, 100_000)})
    own = root / "proc/self"
    (own / "cgroup").write_text((own / "cgroup").read_text() + "0::/a\n")
    mount = MOUNT_2.format(top="/", point="/sys/fs/cgroup/unified")
    (own / "mountinfo").write_text((own / "mountinfo").read_text() + f"{mount}\n")
    assert cpu_quota(root) == 2.0


def test_a_system_without_control_groups(tmp_path: Path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "count"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 6.0, 2), (1, None, 1), (1, 0.1, 1)],
)
def test_affinity_and_quota(affinity: int, quota: float | None, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cores, "_quota_of_this_process", lambda: quota)
    assert usable_cores() == count


def test_without_affinities_all_cores_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores, "_quota_of_this_process", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_a_changed_affinity_is_seen():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_names_of_other_mounts_may_be_in_any_bytes(tmp_path: Path):
    root = version_2(tmp_path, "/", {"cpu.max": "150000 100000"})
    mounts = root / "proc/self/mountinfo"
    odd = b"50 1 0:40 / /media/caf\xe9 rw - ext4 /dev/sda rw\n51 1 0:41 / relative rw - cgroup2 cgroup2 rw\n"
    mounts.write_bytes(odd + mounts.read_bytes())
    assert cpu_quota(root) == 1.5


def test_a_space_in_the_path_of_a_mount_is_read(tmp_path: Path):
    mount = MOUNT_2.format(top="/", point="/sys/fs/cgroup/of\\040mine")
    root = machine(tmp_path, "0::/", mount, {"of mine/cpu.max": "50000 100000"})
    assert cpu_quota(root) == 0.5


def test_an_affinity_that_may_not_be_read_is_all_cores(monkeypatch: pytest.MonkeyPatch):
    def refused(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refused, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(cores, "_quota_of_this_process", lambda: None)
    assert usable_cores() == 5
