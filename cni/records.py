# SPDX-License-Identifier: Apache-2.0
"""What was made for each interface of a container, and the lock that lets one process at a time change it.

    <run_dir>/state/lock           a byte of it, chosen by the container id, is locked while a verb is carried out
    <run_dir>/state/links/<link>   JSON: the record of the interface whose host end has that name

A record is written before anything is made, and marked complete when all is: an incomplete one that nobody holds the
lock for was left by a process that died, and the next ADD or DEL clears it away. Records live as long as what they
tell of: not over a reboot.
"""

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cni.errors import NodeError
from cni.portmap import PortMapping

# struct flock of a 64-bit Linux: type, whence, start, length, pid
_FLOCK = struct.Struct("@hhqqi4x")


class Record(NamedTuple):
    """An interface of a container.

    Attributes:
        pod: "namespace/name", or "" where the runtime did not tell it.
        addresses: those it has, in text form; in an incomplete record perhaps not all.
        port_mappings: the host ports that it was asked for.
    """

    container_id: str
    ifname: str
    network: str
    pod: str
    addresses: tuple[str, ...] = ()
    complete: bool = False
    port_mappings: tuple[PortMapping, ...] = ()


class Records:
    """The records of one node."""

    def __init__(self, run_dir: Path) -> None:
        self._lock = run_dir / "state" / "lock"
        self._directory = run_dir / "state" / "links"

    def read(self, link: str) -> Record | None:
        """The record of a link; one that cannot be understood counts as incomplete."""
        try:
            fields = json.loads((self._directory / link).read_bytes())
            addresses = tuple(fields["addresses"])
            # Those of earlier versions know of no host ports.
            mapped = tuple(PortMapping(*one) for one in fields.get("port_mappings", ()))
            return Record(**{**fields, "addresses": addresses, "port_mappings": mapped})
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError):
            return Record("", "", "", "")

    def write(self, link: str, record: Record) -> None:
        """Raises NodeError."""
        try:
            draft = self._draft(link)
            draft.write_text(json.dumps(record._asdict()), encoding="utf-8")
            draft.rename(self._directory / link)
        except OSError as error:
            raise NodeError(f"recording {link}: {error}") from error

    def remove(self, link: str) -> None:
        """Removes a record, and what a process has left that was killed while it wrote one."""
        self._draft(link).unlink(missing_ok=True)
        (self._directory / link).unlink(missing_ok=True)

    def links(self) -> list[str]:
        """The names of the links that have a record."""
        try:
            return sorted(name for name in os.listdir(self._directory) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def _draft(self, link: str) -> Path:
        return self._directory / f".{link}"

    @contextmanager
    def locked(self, container_id: str) -> Iterator[int]:
        """Keeps other threads and processes from the same container; gives the lock's descriptor.

        An open-file-description lock: unlike those of a process it holds between threads as well, and unlike flock(2)
        it needs no file for each container. A child that inherits the descriptor holds it, too: what a killed process
        had begun is not cleared away while a child of it is still at work.

        Raises:
            NodeError: the lock's file cannot be made.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NodeError(f"locking {self._lock}: {error}") from error
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _byte(container_id), 1, 0))
            yield fd
        finally:
            os.close(fd)


def _byte(container_id: str) -> int:
    return int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:7], "big")
