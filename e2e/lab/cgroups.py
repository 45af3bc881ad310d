# SPDX-License-Identifier: Apache-2.0
"""Control groups: one in cgroup2 for every process of a space, and for a machine's also one in each v1 hierarchy.

By the cgroup2 group all processes of a lab are found. A machine's groups become the roots of its own hierarchies, in
which kubelet and the container runtime make theirs; its own processes sit in the leaf `init` then, since cgroup2 allows
controllers only where no process is.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from e2e.lab.errors import LabError

LEAF = "init"
MOUNTS = Path("/proc/self/mounts")


@dataclass(frozen=True)
class Hierarchy:
    """A v1 hierarchy: where it is mounted, and the options that mount the same one elsewhere."""

    point: Path
    options: str


def cgroup2() -> Path:
    """The host's cgroup2 mount. Raises LabError."""
    for point, kind, _ in _mounts():
        if kind == "cgroup2":
            return point
    raise LabError("no cgroup2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`")


def hierarchies() -> list[Hierarchy]:
    """The host's v1 hierarchies; none where cgroup2 has all controllers."""
    controllers = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]}
    found: list[Hierarchy] = []
    for point, kind, options in _mounts():
        chosen = [word for word in options.split(",") if word in controllers or word.startswith("name=")]
        if kind == "cgroup" and chosen and all(point != other.point for other in found):
            none = ["none"] if chosen[0].startswith("name=") else []
            found.append(Hierarchy(point, ",".join([*none, *chosen])))
    return found


def delegate(group: Path) -> None:
    """Makes a machine's groups, and lets it have every controller that there is. Namespaces come next, then `settle`.

    Args:
        group: the machine's in cgroup2.
    """
    group.mkdir(parents=True)
    for twin in _twins(group):
        twin.mkdir(parents=True, exist_ok=True)
        if (twin / "cpuset.cpus").exists():
            _hand_down_cpuset(twin)
    for above in _from_root(group)[:-1]:
        offered = (above / "cgroup.controllers").read_text().split()
        (above / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in offered))


def settle(group: Path, pid: int) -> None:
    """Moves the process that holds a machine's namespaces to the leaf, where all others will join it."""
    (group / LEAF).mkdir()
    (group / LEAF / "cgroup.procs").write_text(str(pid))


def join(group: Path) -> None:
    """Moves the calling process into a group, and into those of the same name in the v1 hierarchies."""
    leaf = group / LEAF
    _enter(leaf if leaf.exists() else group)
    for twin in _twins(group):
        if twin.exists():
            _enter(twin)


def kill(group: Path, timeout_s: float = 60) -> None:
    """Kills every process of a group and of those below it, and removes them and their twins. Missing is no error.

    Raises:
        LabError: a process would not die.
    """
    deadline = time.monotonic() + timeout_s
    while group.exists() or any(twin.exists() for twin in _twins(group)):
        for top in (group, *_twins(group)):
            for directory, _, _ in os.walk(top, topdown=False):
                _empty(Path(directory))
        if time.monotonic() > deadline:
            raise LabError(f"{group}: still in use {timeout_s:.0f} s after its processes were killed")
        time.sleep(0.01)


def kill_below(group: Path, timeout_s: float = 60) -> None:
    """Kills what runs in groups below a machine's, its leaf excepted, and removes these groups.

    Raises:
        LabError: a process would not die.
    """
    for below in sorted(group.iterdir()):
        if below.is_dir() and below.name != LEAF:
            kill(below, timeout_s)


def drop(group: Path) -> None:
    """Removes a group without processes and its twins, unless others are below them."""
    for directory in (group, *_twins(group)):
        with suppress(OSError):
            directory.rmdir()


def _empty(directory: Path) -> None:
    for pid in _members(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(OSError):  # EBUSY while the killed are going
        directory.rmdir()


def _members(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:  # gone meanwhile
        return []


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text("0")


def _twins(group: Path) -> list[Path]:
    """The directories of the same name in the v1 hierarchies."""
    relative = group.relative_to(cgroup2())
    return [hierarchy.point / relative for hierarchy in hierarchies()]


def _from_root(group: Path) -> list[Path]:
    """A group and those above it, the hierarchy's root first."""
    root = cgroup2()
    return [root, *reversed([root / above for above in group.relative_to(root).parents][:-1]), group]


def _hand_down_cpuset(group: Path) -> None:
    """A new group of cpuset has neither processors nor memory, and takes no process until it has."""
    for above in reversed([group, *group.parents]):
        for name in ("cpuset.cpus", "cpuset.mems"):
            own, given = above / name, above.parent / name
            if given.exists() and not own.read_text().strip():
                own.write_text(given.read_text())


def _mounts() -> Iterator[tuple[Path, str, str]]:
    """(mount point, file system, options) of each mount."""
    for line in MOUNTS.read_text().splitlines():
        _, point, kind, options, *_ = line.split(" ")
        yield Path(point), kind, options
