# SPDX-License-Identifier: Apache-2.0
"""The pinned programs and the map of pods, as the CNI plugin uses them; their descriptors are kept for the next pod.

The plugin is the one writer of that map; its entries in those of Services are the business of `hostports`. Whoever
replaces what is pinned need not tell: each use looks first.
"""

import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from bpf import address as addresses
from bpf import node, syscall
from bpf.abi import MAPS, Pod, PodKey
from bpf.errors import NotLoadedError
from bpf.settings import Settings
from cni import traces
from cni.errors import NodeError

# The hooks of a pod link, with bpf.attach's parents of them.
HOOKS = ("from_pod", "to_pod")
USED_MAPS = ("pods", "frontends", "slots", "backends", "nodes")


class Pinned(NamedTuple):
    """Descriptors of what is pinned, and `identity`, which changes when it is replaced."""

    identity: tuple[str, int]
    programs: dict[str, int]
    maps: dict[str, int]

    def close(self) -> None:
        for fd in (*self.programs.values(), *self.maps.values()):
            os.close(fd)


class Datapath:
    """Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pins = node.pins(settings)
        self._pinned: Pinned | None = None
        self._followed: tuple[str, int] | None = None
        self._gone: dict[bytes, int] = {}
        self._lock = threading.RLock()

    @contextmanager
    def programs(self) -> Iterator[dict[str, int]]:
        """Descriptors of the programs by hook, loaded if they are not; other threads wait meanwhile.

        Raises:
            BpfError: they cannot be loaded.
        """
        with self._lock:
            try:
                pinned = self._open()
            except NotLoadedError:
                if node.other_layout_in_force(self._settings):
                    raise
                node.load_datapath(self._settings, replace=False)
                pinned = self._open()
            yield pinned.programs

    @contextmanager
    def maps(self) -> Iterator[dict[str, int]]:
        """Descriptors of USED_MAPS; other threads wait meanwhile. Raises NotLoadedError, BpfError."""
        with self._lock:
            yield self._open().maps

    @contextmanager
    def following(self) -> Iterator[dict[str, int]]:
        """As `programs`, for who gives them to every pod link; `replaced` compares with these."""
        with self.programs() as programs:
            yield programs
            self._followed = self._open().identity

    def replaced(self) -> bool:
        """Whether what is pinned is other than what `following` gave last."""
        with self._lock:
            try:
                return self._followed is not None and self._followed != self._identity()
            except NotLoadedError:
                return False

    def set_pod(self, address: str, pod: Pod) -> bool:
        """Writes a pod's entry; returns whether the address was another container's, of which nobody knows any longer.

        Raises:
            NodeError: the map is full.
        """
        with self._lock:
            before = self.pod(address)
            try:
                syscall.map_update(self._open().maps["pods"], _key(address), pod.pack())
            except OSError as error:
                full = error.errno in syscall.FULL
                hint = "the setting pods_max" if full else ""
                raise NodeError(f"the map of pods takes no entry for {address}: {error.strerror}", hint) from error
            return before is not None and before.container_hash != pod.container_hash

    def pod(self, address: str) -> Pod | None:
        """A pod's entry; None where it has none, or nothing is loaded."""
        with self._lock:
            try:
                value = syscall.map_lookup(self._open().maps["pods"], _key(address), MAPS["pods"].value_size)
            except NotLoadedError:
                return None
            return Pod.unpack(value) if value else None

    def delete_pod(self, address: str, container_hash: int) -> int | None:
        """Deletes an address's entry if it is this container's: it may be a newer pod's by now.

        Returns:
            The device index of the link that it led to.
        """
        with self._lock:
            pod = self.pod(address)
            if pod is None or pod.container_hash != container_hash:
                return None
            syscall.map_delete(self._open().maps["pods"], _key(address))
            return pod.ifindex

    def forget(self, ifindex: int, gone: Sequence[str]) -> None:
        """To be called when a link and its addresses are gone: their flows are deleted by `delete_flows`, later."""
        with self._lock, suppress(NotLoadedError):
            traces.fold_drops(self._pins, ifindex)
            now = time.monotonic_ns()
            self._gone.update({addresses.packed(address): now for address in gone})

    def delete_flows(self) -> int:
        """Deletes the flows of addresses that are gone, in one walk for all; returns how many entries there were."""
        with self._lock:
            gone, self._gone = self._gone, {}
        if not gone:
            return 0
        self._close_connections(gone)
        with suppress(NotLoadedError):
            return traces.delete_flows(self._pins, gone)
        return 0

    def _close_connections(self, gone: Iterable[bytes]) -> None:
        """Ends the host's connections to addresses that nobody has now. Raises OSError."""
        nobodys = {address for address in gone if not self.pod(addresses.text(address))}
        try:
            traces.close_connections(nobodys)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise

    def _open(self) -> Pinned:
        """What is pinned. What another version's layout knows of pods is taken over before it is asked or changed; but
        not by a process that was here before: then it is the older one, and about to end. What another process
        has taken over is finished here where it died of that.

        Raises:
            NotLoadedError: nothing is, or such a layout has taken over.
            BpfError: it could not be taken over.
        """
        if not self._pinned and node.other_layout_in_force(self._settings):
            node.load_datapath(self._settings, replace=False)
        identity = self._identity()
        if self._pinned is None or self._pinned.identity != identity:
            if node.takeover_unfinished(self._settings):
                node.load_datapath(self._settings, replace=False)
            programs = {hook: self._pins.open_program(hook) for hook in HOOKS}
            fresh = Pinned(identity, programs, {name: self._pins.open_map(name) for name in USED_MAPS})
            if self._pinned:
                self._pinned.close()
            self._pinned = fresh
        return self._pinned

    def _identity(self) -> tuple[str, int]:
        try:
            return os.readlink(self._pins.programs), os.stat(self._pins.map("pods")).st_ino
        except FileNotFoundError as error:
            raise NotLoadedError(f"{self._pins.root}: nothing is loaded there") from error


def container_hash(container_id: str) -> int:
    """Whose entry it is: the first 8 bytes of the id's SHA-256, as they stand in memory."""
    return int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:8], sys.byteorder)


def _key(address: str) -> bytes:
    return PodKey(addresses.packed(address)).pack()
