# SPDX-License-Identifier: Apache-2.0
"""Writes the archive that a kernel unpacks as its first root file system.

Source: Documentation/driver-api/early-userspace/buffer-format.rst, format "newc"; archives may follow each other.
"""

import os
import stat
from pathlib import Path, PurePosixPath
from types import TracebackType

DIRECTORY = stat.S_IFDIR | 0o755


class Archive:
    """An archive being written; parents of what is added are made as needed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._known = {"/"}
        self._number = 0

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entry("/TRAILER!!!", 0, 0, b"")
        self._file.close()

    def directory(self, path: str) -> None:
        for parent in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
            if str(parent) not in self._known:
                self._known.add(str(parent))
                self._entry(str(parent), DIRECTORY, 0, b"")

    def write(self, path: str, content: bytes, mtime_s: int = 0) -> None:
        """A file, which may be executed, unless one of that path was added before."""
        if path in self._known:
            return
        self.directory(os.path.dirname(path))
        self._known.add(path)
        self._entry(path, stat.S_IFREG | 0o755, mtime_s, content)

    def copy(self, source: Path, path: str) -> None:
        """A file under its time of change, by which Python knows compiled modules to be new enough."""
        self.write(path, source.read_bytes(), int(source.stat().st_mtime))

    def tree(self, source: Path, path: str, without: frozenset[str] = frozenset()) -> None:
        """A directory with all that is in it, but for what bears one of the names `without`."""
        for item in sorted(source.iterdir()):
            if item.name in without:
                continue
            if item.is_dir():
                self.tree(item, f"{path}/{item.name}", without)
            else:
                self.copy(item, f"{path}/{item.name}")

    def _entry(self, path: str, mode: int, mtime_s: int, content: bytes) -> None:
        name = path.lstrip("/").encode() + b"\0"
        self._number += 1
        fields = (self._number, mode, 0, 0, 1, mtime_s, len(content), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._file.write(_padded(header + name) + _padded(content))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
