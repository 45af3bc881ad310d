# SPDX-License-Identifier: Apache-2.0
"""A node whose system is an older Debian without Python: what is installed on it is the bundle.

The lab's node has this machine's files. The older system is a directory on it; each of our commands enters that, with
the node's own /proc, /sys (BPF and control groups), /run (network namespaces of pods) and settings.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from e2e.lab import runtime
from e2e.lab.node import COMMAND, Node
from hack.cache import cache, digest, kept
from hack.image import archive, build, place
from hack.image.apt import Selection, unpack
from hack.image.runtime import NATIVE

SYSTEM = "/opt/system"
# The oldest C library that is promised: 2.31.
PACKAGES = Selection(
    *("bullseye", NATIVE, ("base-files", "coreutils", "dash", "libc-bin")),
    closure=True,
    left_out=("debconf", "debianutils", "dpkg", "perl-base", "tar"),
)
SHARED = ("/dev", "/proc", "/run", "/sys", "/etc/calico-ebpf")
# Mounts of its own: pods' network namespaces are mounted while the node is up, and each command sees those of its time.
ENTER = f"""#!/bin/sh
exec unshare --mount sh -c '
    for path in {" ".join(SHARED)}; do
        mkdir -p {SYSTEM}$path && mount -n --rbind $path {SYSTEM}$path || exit
    done
    exec chroot {SYSTEM} "$@"' sh %s "$@"
"""


class OldNode(Node):
    """A node of the lab with such a system."""

    def install(self, settings: Mapping[str, object]) -> None:
        """Puts the bundle at its place in the older system, and the launcher and loopback into CNI_BIN there."""
        super().install(settings)
        system = self.space.path(SYSTEM)
        system.mkdir()
        subprocess.run(["tar", "--directory", system, "--extract", "--file", _system()], check=True)
        shutil.copytree(build.installed(NATIVE), system, symlinks=True, dirs_exist_ok=True)
        shutil.copytree(system / place.LIBRARY / "current/cni", f"{system}{runtime.CNI_BIN}")
        for name in ("calico-ebpf", "loopback"):
            self._put(f"{runtime.CNI_BIN}/{name}", (ENTER % f"{runtime.CNI_BIN}/{name}").encode(), 0o755)
        self._put(COMMAND, (ENTER % COMMAND).encode(), 0o755)
        self._put("/usr/local/bin/inside", (ENTER % "").encode(), 0o755)

    def inside(self, *argv: str) -> str:
        """What a command of the older system prints. Raises LabError."""
        return self.space.run("inside", *argv).stdout


def _system() -> Path:
    """The older system as a tar file, in the cache: made first when it is missing. Raises CommandError."""
    return kept(cache() / "rootfs" / f"{PACKAGES.suite}-{NATIVE}-{digest(PACKAGES)}.tar", _pack)


def _pack(scratch: Path) -> Path:
    unpack(PACKAGES.fetched(), scratch / "root")
    archive.pack(scratch / "root", scratch / "root.tar")
    return scratch / "root.tar"
