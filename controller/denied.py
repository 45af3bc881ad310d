# SPDX-License-Identifier: Apache-2.0
"""The deny list: ranges from which nothing comes in from outside. A file in the state directory, one range a line, and
the map, which is made to say the same: by `calico-ebpf deny` at once, by the controller when it starts.
"""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf import files
from bpf.abi import MAPS, Denied, RemoteKey
from bpf.address import V4_PREFIX, text
from bpf.prefixes import parse_range, prefixes
from controller.errors import DenyListError
from controller.maps import Maps, Op

FILE_NAME = "denied"
LOCK_NAME = "denied.lock"
MAP = "denied"
RANGES_MAX = MAPS[MAP].max_entries


class DenyList:
    """The file of a node, which one process at a time changes: within `locked`."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self._lock = state_dir / LOCK_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds off others who change the list or apply it."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def read(self) -> list[str]:
        """The ranges; none where there is no file. Raises DenyListError."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise DenyListError(f"{self._path}: {error}") from error
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(checked(line))
            except ValueError as error:
                raise DenyListError(f"{self._path}:{number}: {error}") from error
        return found

    def write(self, ranges: Iterable[str]) -> None:
        """Raises DenyListError: there is no room for so many in the map."""
        wanted = sorted(set(ranges), key=entry)
        if len(wanted) > RANGES_MAX:
            raise DenyListError(f"{len(wanted)} ranges, and there is room for {RANGES_MAX}")
        files.write(self._path, "".join(f"{cidr}\n" for cidr in wanted).encode())


def checked(cidr: str) -> str:
    """A range in its shortest form; an address is the range that holds it alone.

    Raises:
        ValueError: it is none, or an IPv6 range that would take more than one entry.
    """
    found = str(parse_range(cidr))
    if len(prefixes([found])) > 1:
        raise ValueError(f"{cidr} holds ::ffff:0:0/96, which stands for IPv4: 2000::/3 is all that is routed")
    return found


def entry(cidr: str) -> bytes:
    """The key of a range in the map."""
    (prefix,) = prefixes([cidr])
    return RemoteKey(*prefix).pack()


def in_force(maps: Maps) -> set[str]:
    """The ranges that the map has. Raises BpfError."""
    return {shown(RemoteKey.unpack(key)) for key in maps.read(MAP)}


def apply(maps: Maps, ranges: Iterable[str]) -> None:
    """Makes the map hold these ranges and no others. Raises BpfError."""
    held, wanted = maps.read(MAP).keys(), {entry(cidr) for cidr in ranges}
    value = Denied(0).pack()
    maps.write([Op(MAP, key, None) for key in held - wanted])  # first: they may need the room
    maps.write([Op(MAP, key, value) for key in wanted - held])


def shown(key: RemoteKey) -> str:
    """A range as text."""
    return f"{text(key.address)}/{key.prefix_bits - (96 if key.address.startswith(V4_PREFIX) else 0)}"
