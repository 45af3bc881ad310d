# SPDX-License-Identifier: Apache-2.0
"""Where everything of a layout is pinned on a node.

Below `<bpffs>/calico-ebpf/v<ABI_VERSION>`:

    maps/NAME               each map of bpf/maps.h and bpf/table.h, and `layout`, which describes them (bpf/upgrade.py)
    programs -> programs-D  a link that is switched atomically; D is a digest of the objects and their constants
    links/NAME              attachments to the cgroup
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bpf import syscall
from bpf.abi import AbiVersion
from bpf.errors import NotLoadedError


class Pins:
    """Args:
    bpffs: the mount point, /sys/fs/bpf.
    layout: the name of another layout than this version's.
    """

    def __init__(self, bpffs: Path, layout: str = f"v{AbiVersion.VERSION}") -> None:
        self.root = bpffs / "calico-ebpf" / layout
        self.maps = self.root / "maps"
        self.programs = self.root / "programs"
        self.links = self.root / "links"

    def map(self, name: str) -> Path:
        return self.maps / name

    def program(self, name: str) -> Path:
        return self.programs / name

    def open_map(self, name: str) -> int:
        """A descriptor of a pinned map. Raises NotLoadedError."""
        return _open(self.map(name))

    def open_program(self, name: str) -> int:
        """A descriptor of a pinned program. Raises NotLoadedError."""
        return _open(self.program(name))

    def opened_map(self, name: str) -> AbstractContextManager[int]:
        """The same as open_map, closed after a `with` block."""
        return _closed_after(self.open_map(name))

    def opened_program(self, name: str) -> AbstractContextManager[int]:
        """The same as open_program, closed after a `with` block."""
        return _closed_after(self.open_program(name))

    def others(self) -> list["Pins"]:
        """Those of the other layouts of which anything is pinned."""
        bpffs = self.root.parent.parent
        found = (path.name for path in self.root.parent.glob("v*") if path != self.root)
        return [Pins(bpffs, name) for name in found]


def _open(pin: Path) -> int:
    try:
        return syscall.obj_get(pin)
    except FileNotFoundError as error:
        raise NotLoadedError(f"{pin}: not there; has a calico-ebpf daemon run on this node?") from error


@contextmanager
def _closed_after(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
