# SPDX-License-Identifier: Apache-2.0
"""The built-in allocator, on host-local's files, so that either can take over from the other at any time.

    <directory>/<network>/<address>             holds "<container id>\\r\\n<interface>"
    <directory>/<network>/last_reserved_ip.<n>  the address given out last of range set n: they are taken in turn
    <directory>/<network>/lock                  flock(2), held while the others change
    <directory>/<network>/.draft                a reservation before it gets its name, which it gets with its content

Source: containernetworking/plugins, plugins/ipam/host-local.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from cni.errors import ExhaustedError, NodeError
from cni.ranges import Address, RangeSet, candidates, describe

_LAST = "last_reserved_ip."
_DRAFT = ".draft"


class Reservations:
    """The addresses of one network.

    Args:
        directory: of all networks, /var/lib/cni/networks.
        network: its name.
    """

    def __init__(self, directory: Path, network: str) -> None:
        self._directory = directory / network

    def allocate(self, container_id: str, ifname: str, range_sets: Sequence[RangeSet]) -> list[Address]:
        """Reserves an address of each range set, or none.

        Raises:
            ExhaustedError: a range set has none left.
            NodeError: the files cannot be written.
        """
        owner = _owner(container_id, ifname)
        given: list[Address] = []
        with self._locked():
            try:
                taken = set(os.listdir(self._directory))
                for index, range_set in enumerate(range_sets):
                    given.append(self._reserve(owner, index, range_set, taken))
            except BaseException:
                for address in given:
                    self._path(str(address)).unlink()
                raise
        return given

    def release(self, container_id: str, ifname: str, addresses: Sequence[str]) -> None:
        """Gives addresses back, those that are (still) this interface's."""
        owners = _owners(container_id, ifname)
        with self._locked():
            for address in addresses:
                if self._read(address) in owners:
                    self._path(address).unlink(missing_ok=True)

    def find(self, container_id: str, ifname: str) -> list[str]:
        """The addresses of an interface: every file is read, so this is for when they are not known otherwise."""
        owners = _owners(container_id, ifname)
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return [name for name in names if _is_address(name) and self._read(name) in owners]

    def _reserve(self, owner: bytes, index: int, range_set: RangeSet, taken: set[str]) -> Address:
        last = self._directory / f"{_LAST}{index}"
        for address in candidates(range_set, _address(last)):
            name = str(address)
            if name not in taken or self._is_torn(name):
                last.write_text(name, encoding="ascii")  # first: what fails after it costs the turn, not the address
                self._create(name, owner)
                return address
        raise ExhaustedError(f"no address is left in {describe(range_set)}", f"reservations: {self._directory}")

    def _create(self, name: str, owner: bytes) -> None:
        draft = self._path(_DRAFT)
        draft.write_bytes(owner)
        os.link(draft, self._path(name))
        draft.unlink()

    def _is_torn(self, name: str) -> bool:
        """Takes away a file that is empty: whoever made it, host-local say, was killed before it wrote its owner."""
        path = self._path(name)
        if path.stat().st_size:
            return False
        path.unlink()
        return True

    def _read(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes().strip()
        except FileNotFoundError:
            return b""

    def _path(self, name: str) -> Path:
        return self._directory / name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the network's lock; errors of the file system within become NodeError."""
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._path(_DRAFT).unlink(missing_ok=True)  # of a process that was killed
                yield
            finally:
                os.close(fd)
        except OSError as error:
            raise NodeError(f"reserving addresses: {error}") from error


def _owner(container_id: str, ifname: str) -> bytes:
    return f"{container_id}\r\n{ifname}".encode()


def _owners(container_id: str, ifname: str) -> tuple[bytes, bytes]:
    """What a reservation of this interface holds; earlier versions of host-local wrote the container alone."""
    return _owner(container_id, ifname), container_id.encode()


def _address(path: Path) -> Address | None:
    try:
        return ip_address(path.read_text(encoding="ascii").strip())
    except (FileNotFoundError, ValueError):
        return None  # the turn is lost, no more


def _is_address(name: str) -> bool:
    return name not in ("lock", _DRAFT) and not name.startswith(_LAST)
