# SPDX-License-Identifier: Apache-2.0
"""inotify(7) by ctypes: what happened to the files of one directory. Source: include/uapi/linux/inotify.h."""

import ctypes
import os
import select
import struct
from pathlib import Path
from typing import NamedTuple

CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000

_WATCHED = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_ONLYDIR = 0x01000000
_HEADER = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Happened(NamedTuple):
    """Attributes: mask: the bits above; name: the file's, or "" where it is about the directory."""

    mask: int
    name: str


class DirectoryWatch:
    """Watches one directory, not those below it. Raises OSError where it is not there."""

    def __init__(self, directory: Path) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), directory)
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _WATCHED | _ONLYDIR), directory)
        except OSError:
            os.close(self._fd)
            raise

    def wait(self, wake_fd: int) -> list[Happened]:
        """Blocks until something happened, or `wake_fd` becomes readable, and returns what did."""
        poll = select.poll()  # select() takes no descriptor above 1023
        for fd in (self._fd, wake_fd):
            poll.register(fd, select.POLLIN)
        poll.poll()
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        happened, offset = [], 0
        while offset < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            happened.append(Happened(mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))))
            offset += length
        return happened

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int, directory: Path) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(directory))
    return result
