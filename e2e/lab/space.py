# SPDX-License-Identifier: Apache-2.0
"""A space: namespaces held by one process, a cgroup2 group for every process in them, and how to run things there.

A node's space has its own network, mount, UTS and cgroup namespaces, so that what belongs on a node sits at its
standard path and is seen nowhere else. Everything ends with the holder, and the holder ends with the lab's process.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from e2e.lab import cgroups
from e2e.lab.errors import LabError as LabError

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1

UNSHARE = ("unshare", "--net", "--mount", "--uts", "--cgroup", "--propagation", "private")

# Directories in which a node may write as it likes: the host's are seen through, and never changed.
OVERLAID = ("/etc", "/opt", "/var/lib", "/var/log", "/usr/local")

# Run as the holder, in new namespaces: $1 the lab's directory, $2 the space's name, $3 the cgroup2 mount point, $4 what
# else to do.
HOLDER = f"""
set -e
hostname "$2"
scratch="$1/scratch"
mount -n -t tmpfs tmpfs "$scratch"
for target in {" ".join(OVERLAID)}; do
    upper="$scratch/upper$target" work="$scratch/work$target"
    mkdir -p "$upper" "$work"
    mount -n -t overlay overlay -o "lowerdir=$target,upperdir=$upper,workdir=$work" "$target"
done
# Nobody asks the host's name servers: they are not reached, and each question would wait for them.
: > /etc/resolv.conf
mkdir "$scratch/run"
mount -n -t tmpfs tmpfs "$scratch/run"
mkdir "$scratch/run/netns"
mkdir -p "$scratch/run${{1#/run}}"
mount -n --bind "$1" "$scratch/run${{1#/run}}"
mount -n --move "$scratch/run" /run
mount -n -t sysfs sysfs /sys
if [ "$3" != /sys/fs/cgroup ]; then
    mount -n -t tmpfs tmpfs /sys/fs/cgroup
    mkdir -p "$3"
fi
mount -n -t cgroup2 cgroup2 "$3"
mount -n -t bpf bpf /sys/fs/bpf
ip link set lo up
eval "$4"
echo ready
exec sleep infinity
"""


@dataclass
class Space:
    """Namespaces, by the process that holds them.

    Attributes:
        name: also the host name in it.
        pid: the holder's.
        group: the cgroup2 directory, as the host sees it, of all processes of the space.
        keep: processes outlive the one that starts them.
        netns: a network namespace below its /run/netns, in place of its own: a pod's.
    """

    name: str
    pid: int
    group: Path
    keep: bool = False
    netns: str = ""

    def command(self, argv: Sequence[str], directory: Path | None = None) -> list[str]:
        """The command line that runs `argv` in the space; `directory`: of the host's, where to run it."""
        net = f"--net={self.path('/run/netns')}/{self.netns}" if self.netns else "--net"
        where = [f"--wd={directory}"] if directory else []
        return ["nsenter", "-t", str(self.pid), *where, net, "--mount", "--uts", "--cgroup", "--", *argv]

    def run(
        self,
        *argv: str,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
        check: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command to its end.

        Raises:
            LabError: it failed, and `check` is set; the message carries what it said.
        """
        process = subprocess.run(
            self.command(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env=env,
            timeout=timeout_s,
            preexec_fn=self._join,
            check=False,
        )
        if check and process.returncode:
            said = (process.stderr.strip() or process.stdout.strip())[-2000:]
            raise LabError(f"{self.name}: {' '.join(argv)}: exit status {process.returncode}: {said}")
        return process

    def start(
        self, *argv: str, log: Path | None = None, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[str]":
        """Starts a command that ends with the caller's process, at the latest. Call it from the main thread.

        Args:
            log: file that gets its output; without it, standard output is a pipe.
            stdin: its standard input, as for Popen.
        """
        with open(log or os.devnull, "a", encoding="utf-8") as output:
            return subprocess.Popen(
                self.command(argv),
                stdin=stdin,
                stdout=output if log else subprocess.PIPE,
                stderr=output if log else subprocess.PIPE,
                text=True,
                env=env,
                start_new_session=True,
                preexec_fn=self._join if self.keep else self._join_and_bind,
            )

    def sandbox(self, netns: str) -> "Space":
        """The space of a pod: a network namespace of its own, and a cgroup below the node's."""
        return replace(self, group=self.group / netns, netns=netns)

    def path(self, inside: str) -> Path:
        """How the host sees a path of the space."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def _join(self) -> None:
        cgroups.join(self.group)

    def _join_and_bind(self) -> None:
        cgroups.join(self.group)
        die_with_parent()


def hold(name: str, group: Path, lab_dir: Path, keep: bool, preparation: str = "") -> Space:
    """Makes a space.

    Args:
        group: is made, and holds every process of the space.
        lab_dir: below /run; seen at the same path in the space.
        keep: the space outlives the caller's process.
        preparation: more shell commands for its holder.

    Raises:
        LabError: a namespace or a mount was refused; the message carries what was said.
    """
    group.mkdir(parents=True, exist_ok=True)
    space = Space(name, 0, group, keep)
    process = subprocess.Popen(
        [*UNSHARE, "sh", "-c", HOLDER, "sh", str(lab_dir), name, str(cgroups.cgroup2()), preparation],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=space._join if keep else space._join_and_bind,
    )
    if not process.stdout or process.stdout.readline().strip() != "ready":
        raise LabError(f"space {name}: {process.communicate()[1].strip()}")
    space.pid = process.pid
    return space


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
