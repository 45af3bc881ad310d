# SPDX-License-Identifier: Apache-2.0
"""Where everything of a layout is pinned on a node.

Below `<bpffs>/calico-ebpf/v<ABI_VERSION>`, a link to `v<ABI_VERSION>-S`, where S is a digest of the maps' sizes: maps
of other sizes are another layout.

    maps/NAME               each map of bpf/maps.h and bpf/table.h, and `layout`, which describes them (bpf/upgrade.py)
    programs -> programs-D  a link that is switched atomically; D is a digest of the objects and their constants
    links/NAME              attachments to the cgroup
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bpf import syscall
from bpf.abi import AbiVersion
from bpf.errors import NotLoadedError


class Pins:
    """Args:
    bpffs: the mount point, /sys/fs/bpf.
    layout: the name of another layout than that which this version has in force.
    """

    def __init__(self, bpffs: Path, layout: str = f"v{AbiVersion.VERSION}") -> None:
        self._bpffs = bpffs
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
        return closed_after(self.open_map(name))

    def opened_program(self, name: str) -> AbstractContextManager[int]:
        """The same as open_program, closed after a `with` block."""
        return closed_after(self.open_program(name))

    def sized(self, sizes: Mapping[str, int]) -> "Pins":
        """Those of the same version with maps of these sizes."""
        digest = hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()[:8]
        return Pins(self._bpffs, f"{self._link.name}-{digest}")

    def in_force(self) -> "Pins | None":
        """Those that the version's link leads to."""
        return Pins(self._bpffs, os.readlink(self._link)) if self._link.is_symlink() else None

    def in_force_now(self) -> bool:
        """Whether the version's link leads to these, which have programs."""
        return self.programs.is_symlink() and (self.root.is_symlink() or self.entered())

    def entered(self) -> bool:
        """Whether the version's link leads to these."""
        return self._link.is_symlink() and os.readlink(self._link) == self.root.name

    def enter(self) -> None:
        """Has the version's link lead to these, from one moment to the next."""
        replace_link(self._link, self.root.name)

    def others(self) -> list["Pins"]:
        """Those of the other layouts of which anything is pinned."""
        own = self.root.resolve()
        found = (path for path in self.root.parent.glob("v*") if not path.is_symlink() and path != own)
        return [Pins(self._bpffs, path.name) for path in found]

    def remove(self) -> None:
        """Removes every pin of these, and the link to them; what is attached stays."""
        if self.entered():
            self._link.unlink()
        shutil.rmtree(self.root)

    @property
    def _link(self) -> Path:
        return self.root.with_name(self.root.name.partition("-")[0])


def replace_link(link: Path, target: str) -> None:
    """Has a link lead elsewhere, or makes it, in one step."""
    new = link.with_name(f"{link.name}-next")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.rename(link)


def _open(pin: Path) -> int:
    try:
        return syscall.obj_get(pin)
    except FileNotFoundError as error:
        raise NotLoadedError(f"{pin}: not there; has a calico-ebpf daemon run on this node?") from error


@contextmanager
def closed_after(fd: int) -> Iterator[int]:
    """A descriptor that is closed whatever happens in a `with` block."""
    try:
        yield fd
    finally:
        os.close(fd)
