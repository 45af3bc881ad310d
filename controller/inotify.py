# SPDX-License-Identifier: Apache-2.0
"""inotify(7) by ctypes: what happened to the files of one directory. Source: include/uapi/linux/inotify.h."""

import ctypes
import errno
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger()

CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000

# How often it is looked whether a directory has come, and at a file that cannot be watched.
RETRY_S = 5.0
# What says that there is no such directory, yet.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR)

_WATCHED = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_ONLYDIR = 0x01000000
_GONE = DELETE_SELF | MOVE_SELF | IGNORED
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


def follow(thread: str, directory: Path, changed: Callable[[], None], name: str = "") -> None:
    """Starts a thread of that name, which calls `changed` at first and whenever something may have happened to the file
    `name` of a directory, or to any; the directory may come later, and again. Where the kernel gives no watch, as where
    the node has no more of them, anything may have happened every RETRY_S."""
    threading.Thread(target=_follow, args=(directory, changed, name), name=thread, daemon=True).start()


def _follow(directory: Path, changed: Callable[[], None], name: str) -> None:
    never, _kept = os.pipe()
    blind = False
    while True:
        try:
            watching = DirectoryWatch(directory)
        except OSError as error:
            if error.errno not in NOT_THERE:
                if not blind:
                    log.warning("not-watched", directory=str(directory), error=str(error), looking_every_s=RETRY_S)
                blind = True
                changed()
            time.sleep(RETRY_S)
            continue
        blind = False
        changed()  # it may have come before the watch
        while not _gone(happened := watching.wait(never)):
            if not name or any(one.name in (name, "") for one in happened):
                changed()
        watching.close()
        changed()


def _gone(happened: list[Happened]) -> bool:
    """Whether the directory is."""
    return any(one.mask & _GONE for one in happened)


def _checked(result: int, directory: Path) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(directory))
    return result
