# SPDX-License-Identifier: Apache-2.0
"""Files that others read while they are written, and that outlive a loss of power: whole or not at all.

Without fsync(2) a file system may put the new name on the disk before the content. Any module may import this one.
"""

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file beside `path` and renames it there; directories are made. One writer at a time. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    with draft.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fchmod(handle.fileno(), mode)
        os.fsync(handle.fileno())
    rename(draft, path)


def link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link, in the place of what was there. Raises OSError."""
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    rename(draft, path)


def rename(source: Path, target: Path) -> None:
    """Renames within a file system; the new name is on the disk afterwards. Raises OSError."""
    source.rename(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sync(directory: Path) -> None:
    """Writes the whole file system of a directory to its disk, and no other one: sync(2) would hang with an NFS server
    that is gone. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    """A name that no container runtime takes for a network configuration's."""
    return path.with_name(f".{path.name}.new")
