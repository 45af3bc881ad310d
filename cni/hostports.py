# SPDX-License-Identifier: Apache-2.0
"""Host ports in the Service maps: a frontend, one slot, and one backend, the pod, so that no packet's way has a look-up
for them. They stand beside the controller's entries, which has none of their ids and passes them over.

Written backend first and frontend last, and deleted the other way round. Of those who want one address, port and
protocol a Service comes first, as with kube-proxy; among pods the one that came last: the other is being replaced, and
its DEL spares what is no longer its own.
"""

from collections.abc import Mapping
from contextlib import suppress

from bpf import syscall
from bpf.abi import (
    MAPS,
    Backend,
    BackendKey,
    Frontend,
    FrontendFlag,
    FrontendKey,
    Node,
    NodeFlag,
    NodeKey,
    Slot,
    SlotKey,
)
from bpf.address import packed, text
from bpf.errors import NotLoadedError
from cni.datapath import Datapath
from cni.errors import DifferenceError, NodeError, TryAgainError
from cni.portmap import HostPort, identity

# Of every node, whatever its addresses are: the controller writes it with those.
OWN_ADDRESS = NodeKey(packed("127.0.0.1")).pack()
FLAGS = FrontendFlag.EXTERNAL | FrontendFlag.HOST_PORT

Maps = Mapping[str, int]


class HostPorts:
    """Threads may share one. `owner` is the hash of the pod's container id."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath

    def require_node(self) -> None:
        """Raises TryAgainError where the programs have not been told this node's addresses yet."""
        with self._datapath.maps() as maps:
            value = syscall.map_lookup(maps["nodes"], OWN_ADDRESS, MAPS["nodes"].value_size)
        if not value or not Node.unpack(value).flags & NodeFlag.OWN:
            raise TryAgainError("this node's addresses are not known yet", "the controller has not written them")

    def open(self, port: HostPort, owner: int) -> None:
        """Has a host port lead to its pod, whichever pod it led to before, unless it is a Service's.

        Raises:
            NodeError: a map is full; or the id is another's, which is no other container's then.
        """
        with self._datapath.maps() as maps:
            held = _frontend(maps, port.key)
            if held is None or held.flags & FrontendFlag.HOST_PORT:
                _enter(maps, port, owner, held)

    def is_met(self, port: HostPort) -> bool:
        """Whether anything is met where a host port should be; also while nothing is loaded."""
        with suppress(NotLoadedError), self._datapath.maps() as maps:
            return _frontend(maps, port.key) is not None
        return True

    def restore(self, port: HostPort, owner: int) -> bool:
        """Opens a host port again where nothing is met; returns whether. Raises NodeError."""
        with self._datapath.maps() as maps:
            if _frontend(maps, port.key) is not None:
                return False
            _enter(maps, port, owner, None)
            return True

    def close(self, port: HostPort, owner: int) -> None:
        """Deletes what a pod has of a host port."""
        number = port.identity(owner)
        with suppress(NotLoadedError), self._datapath.maps() as maps:
            held = _frontend(maps, port.key)
            if held and held.service_id == number:
                syscall.map_delete(maps["frontends"], port.key.pack())
            if _backend(maps, number) == port.backend:
                _delete_target(maps, number)

    def check(self, port: HostPort, owner: int) -> None:
        """Raises DifferenceError where a host port does not lead to its pod."""
        number = port.identity(owner)
        with self._datapath.maps() as maps:
            slot = syscall.map_lookup(maps["slots"], SlotKey(number, 0).pack(), MAPS["slots"].value_size)
            found = _frontend(maps, port.key), slot, _backend(maps, number)
        if found != (_value(number), Slot(number).pack(), port.backend):
            by = "a Service" if found[0] and not found[0].flags & FrontendFlag.HOST_PORT else "nothing of this pod's"
            raise DifferenceError(f"{port.mapping}: {by} is met at {text(port.key.address)}")

    def purge(self) -> int:
        """Deletes host ports that lead to no pod, or to an address that has become another's; returns how many."""
        deleted = 0
        with self._datapath.maps() as maps:
            entries = syscall.map_entries(maps["frontends"], MAPS["frontends"].key_size, MAPS["frontends"].value_size)
            for key, value in list(entries):
                frontend = Frontend.unpack(value)
                if frontend.flags & FrontendFlag.HOST_PORT and not self._is_owned(maps, key, frontend.service_id):
                    syscall.map_delete(maps["frontends"], key)
                    _delete_target(maps, frontend.service_id)
                    deleted += 1
        return deleted

    def _is_owned(self, maps: Maps, key: bytes, number: int) -> bool:
        backend = _backend(maps, number)
        pod = self._datapath.pod(text(backend.address)) if backend else None
        if not backend or not pod:
            return False
        return identity(key, backend.address, pod.container_hash) == number


def _enter(maps: Maps, port: HostPort, owner: int, held: Frontend | None) -> None:
    """Writes a host port's entries, and deletes the slot and the backend of the one that is `held`."""
    number = port.identity(owner)
    try:
        _claim(maps, port, number)
        syscall.map_update(maps["slots"], SlotKey(number, 0).pack(), Slot(number).pack())
        with suppress(FileExistsError):  # a Service has come
            flags = syscall.ANY if held else syscall.NOEXIST
            syscall.map_update(maps["frontends"], port.key.pack(), _value(number).pack(), flags)
    except OSError as error:
        full = error.errno in syscall.FULL
        hint = "the settings frontends_max, slots_max and backends_max" if full else ""
        raise NodeError(f"the Service maps take no entry for {port.mapping}: {error.strerror}", hint) from error
    if held and held.service_id != number:
        _delete_target(maps, held.service_id)


def _claim(maps: Maps, port: HostPort, number: int) -> None:
    """Writes the backend, unless it stands there already. Raises OSError; NodeError: the id is another's."""
    try:
        syscall.map_update(maps["backends"], BackendKey(number).pack(), port.backend.pack(), syscall.NOEXIST)
    except FileExistsError as error:
        if _backend(maps, number) != port.backend:
            raise NodeError(f"{port.mapping}: its id is taken", "that of another sandbox will not be") from error


def _delete_target(maps: Maps, number: int) -> None:
    syscall.map_delete(maps["slots"], SlotKey(number, 0).pack())
    syscall.map_delete(maps["backends"], BackendKey(number).pack())


def _value(number: int) -> Frontend:
    return Frontend(service_id=number, slot_count=1, local_count=1, cluster_start=0, flags=FLAGS, affinity_s=0)


def _frontend(maps: Maps, key: FrontendKey) -> Frontend | None:
    value = syscall.map_lookup(maps["frontends"], key.pack(), MAPS["frontends"].value_size)
    return Frontend.unpack(value) if value else None


def _backend(maps: Maps, number: int) -> Backend | None:
    value = syscall.map_lookup(maps["backends"], BackendKey(number).pack(), MAPS["backends"].value_size)
    return Backend.unpack(value) if value else None
