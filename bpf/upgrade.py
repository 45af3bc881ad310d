# SPDX-License-Identifier: Apache-2.0
"""Takes over from another layout, of a version that is older or newer, or of maps with other sizes: its maps, and what
is attached.

Beside the maps of a layout stands one more, `layout`, of a single entry: JSON that names the fields of all of them. So
each version reads what any other left, also what was not yet written when it was made:

- a map whose fields and size are the same is pinned here as well, and goes on as it is;
- the entries of another are copied field by field, by name: a field that is new is 0, one that is gone is left out;
- what counts per CPU begins at 0, as after a boot.

Hence a field that comes to mean something else comes to have another name.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from sys import byteorder
from typing import Any

from bpf import attach, bpftool, syscall
from bpf.abi import FIELDS, MAPS, MapSpec, StateIndex
from bpf.pins import Pins
from bpf.syscall import MapInfo

DESCRIPTION = "layout"

# enum bpf_map_type
HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH = 1, 2, 5, 6, 9

# Filters are replaced by as many messages at once as a socket's buffer holds in any case.
MESSAGES_AT_ONCE = 128

# For who takes over and dies of it.
HOLD_NS = 30_000_000_000

# Of a struct's fields: name -> offset and size in bytes.
Fields = Mapping[str, tuple[int, int]]


def predecessor(pins: Pins) -> Pins | None:
    """The layout that is in force, if it is another one, and describes itself: of one that does not, nothing can be
    taken over, and programs that are attached are better off with its maps than with empty ones."""
    found = [
        other
        for other in pins.others()
        if other.programs.is_symlink() and other.map(DESCRIPTION).exists() and not _never_entered(other, pins)
    ]

    def in_force(other: Pins) -> tuple[bool, int]:
        """One to which no link leads was never entered, or has lost it; of others the last one."""
        return other.entered(), other.programs.lstat().st_mtime_ns

    return max(found, key=in_force, default=None)


def _never_entered(other: Pins, pins: Pins) -> bool:
    """Whether it is the half copy of a take-over from `pins`, which was killed just before it was to be in force."""
    if other.entered() or not pins.in_force_now():
        return False
    return other.programs.lstat().st_mtime_ns > pins.programs.lstat().st_mtime_ns


def describe(pins: Pins) -> None:
    """Pins the description of this version's maps, unless it is there."""
    pin = pins.map(DESCRIPTION)
    if pin.exists():
        return
    text = json.dumps({name: _shape(spec, _size(pins, name)) for name, spec in MAPS.items()}).encode()
    fd = syscall.map_create(MapInfo(ARRAY, 0, 4, len(text), 1, 0), DESCRIPTION)
    try:
        syscall.map_update(fd, bytes(4), text)
        syscall.obj_pin(fd, pin)
    finally:
        os.close(fd)


def share(before: Pins, pins: Pins, sizes: Mapping[str, int]) -> None:
    """Pins here the maps of another layout that are the same in this one, but for those that stand here.

    Args:
        sizes: map name to max_entries, where it differs from bpf/maps.h.
    """
    theirs = _description(before)
    for name, spec in MAPS.items():
        ours = _shape(spec, sizes.get(name, spec.max_entries))
        if theirs.get(name) == ours and not pins.map(name).exists():
            with before.opened_map(name) as fd:
                syscall.obj_pin(fd, pins.map(name))


class Copying:
    """Copies the entries of the maps that are not shared, in rounds: the first all of them, but for keys that stand
    here (an LPM trie before 6.13 gives them up: of those the controller writes its own again); each later one what has
    come, changed or, of what daemons write, gone since. That takes as long as to read them, where few have.
    """

    def __init__(self, before: Pins, pins: Pins) -> None:
        self._before = before
        self._pins = pins
        self._theirs, self._ours = _description(before), _description(pins)
        # By map, of what was copied: hash of the key -> hash of the value, as they were written here.
        self._copied: dict[str, dict[int, int]] = {}

    def round(self) -> None:
        for name, spec in MAPS.items():
            known = name in self._theirs and self._theirs[name] != self._ours[name]
            if known and spec.map_type not in (PERCPU_HASH, PERCPU_ARRAY):
                self._copy(name, self._theirs[name], self._ours[name])

    def _copy(self, name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        key_of = converter(theirs["key"], ours["key"], ours["key_size"])
        value_of = converter(theirs["value"], ours["value"], ours["value_size"])
        copied = self._copied.setdefault(name, {})
        gone = set(copied)
        with self._pins.opened_map(name) as target:
            for their_key, their_value in _entries(self._before, name, theirs):
                key, value = key_of(their_key), value_of(their_value)
                known, content = hash(key), hash(value)
                gone.discard(known)
                if copied.get(known) == content:
                    continue
                # What an array holds is there from the beginning.
                keep = known not in copied and ours["type"] != ARRAY
                _write(target, key, value, syscall.NOEXIST if keep else syscall.ANY)
                copied[known] = content
            if gone and ours["type"] == HASH:
                self._remove(target, name, ours, {known: copied.pop(known) for known in gone})

    def _remove(self, target: int, name: str, ours: Mapping[str, Any], gone: Mapping[int, int]) -> None:
        """Removes what was copied and is gone since, but for what has been written here meanwhile. What programs write
        is left to expire: of flows some are gone in every round."""
        for key, value in list(_entries(self._pins, name, ours)):
            if gone.get(hash(key)) == hash(value):
                syscall.map_delete(target, key)


@contextmanager
def switching(before: Pins, programs: Path) -> Iterator[Callable[[Pins], None]]:
    """What replaces all that another layout has attached with the pinned `programs`: to the cgroup, and to devices.

    It is made ready here, so that it takes no time in which both layouts are at work. A filter whose program this
    version does not have stays, until who attaches programs takes it off. XDP goes before: TC does its work, until the
    controller, which knows where it is wanted, attaches it again.
    """
    _detach_xdp()
    held = {path.name: syscall.obj_get(path) for path in programs.iterdir()}
    try:
        messages = _replacements(held)

        def switch(pins: Pins) -> None:
            attach.move_cgroup(before, pins)
            _send(messages)
            syscall.await_programs()  # what the last run of theirs writes is copied as well

        yield switch
    finally:
        for fd in held.values():
            os.close(fd)


@contextmanager
def holding(*layouts: Pins) -> Iterator[None]:
    """Has the programs of these layouts drop what seems to be in the middle of an unknown connection, in place of
    letting it through or refusing it: its flow may be in the other layout."""
    _hold(layouts, time.monotonic_ns() + HOLD_NS)
    try:
        yield
    finally:
        syscall.await_programs()  # one that missed a flow before it was copied still has to see this
        _hold(layouts, 0)


def converter(theirs: Fields, ours: Fields, size: int) -> Callable[[bytes], bytes]:
    """What makes one of our structs, of `size` bytes, of another version's. A field of another size counts as new."""
    moves = [(place, theirs[name][0], length) for name, (place, length) in ours.items() if _alike(name, theirs, length)]

    def converted(data: bytes) -> bytes:
        made = bytearray(size)
        for place, start, length in moves:
            made[place : place + length] = data[start : start + length]
        return bytes(made)

    return converted


def overfull(pins: Pins, sizes: Mapping[str, int]) -> dict[str, int]:
    """The maps that hold more entries than these sizes would let them, with the sizes that they have; not those that
    forget what is old where there is no room."""
    found = {}
    for name, shape in _description(pins).items():
        smaller = name in sizes and shape["type"] != LRU_HASH and shape["entries"] > sizes[name]
        if smaller and any(islice(_entries(pins, name, shape), sizes[name], None)):
            found[name] = shape["entries"]
    return found


def _hold(layouts: Iterable[Pins], until_ns: int) -> None:
    key, value = int(StateIndex.TAKING_OVER_UNTIL_NS).to_bytes(4, byteorder), until_ns.to_bytes(8, byteorder)
    for layout in layouts:
        # One that does not know of it refuses connections.
        with suppress(OSError), layout.opened_map("state") as state:
            syscall.map_update(state, key, value)


def _alike(name: str, theirs: Fields, length: int) -> bool:
    return name in theirs and theirs[name][1] == length


def _size(pins: Pins, name: str) -> int:
    with pins.opened_map(name) as fd:
        return syscall.map_info(fd).max_entries


def _shape(spec: MapSpec, entries: int) -> dict[str, Any]:
    """A map as a description is read back."""
    structs = {"key": (spec.key, spec.key_size), "value": (spec.value, spec.value_size)}
    return {
        "type": spec.map_type,
        "entries": entries,
        "key_size": spec.key_size,
        "value_size": spec.value_size,
        **{
            side: {field: list(place) for field, place in FIELDS.get(struct, {"": (0, size)}).items()}
            for side, (struct, size) in structs.items()
        },
    }


def _description(pins: Pins) -> dict[str, Any]:
    """What a layout holds, as far as it is pinned; nothing where it does not say."""
    if not pins.map(DESCRIPTION).exists():
        return {}
    with pins.opened_map(DESCRIPTION) as fd:
        text = syscall.map_lookup(fd, bytes(4), syscall.map_info(fd).value_size)
    found: dict[str, Any] = json.loads(text or b"{}")
    return {name: shape for name, shape in found.items() if pins.map(name).exists()}


def _write(target: int, key: bytes, value: bytes, flags: int) -> None:
    """That the key stands there, or that there is no room in a map that is smaller now, is no error."""
    try:
        syscall.map_update(target, key, value, flags)
    except OSError as error:
        if error.errno not in (errno.EEXIST, *syscall.FULL):
            raise


def _entries(pins: Pins, name: str, shape: Mapping[str, Any]) -> Iterable[tuple[bytes, bytes]]:
    if shape["type"] not in (HASH, LRU_HASH):
        yield from bpftool.dump(pins.map(name))
        return
    with pins.opened_map(name) as fd:
        yield from syscall.map_entries(fd, shape["key_size"], shape["value_size"])


def _detach_xdp() -> None:
    """Takes our XDP program off this node's devices: it would go on dropping by maps that nobody writes any more. Not
    with the filters, while connections are held: drivers may reset their queues for it."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    ours = [item for item in bpftool.xdp_programs() if item["name"] == attach.XDP_PROGRAM]
    if not ours:
        return
    with IPRoute() as netlink:
        for item in ours:
            # What a driver does not let go of must not stop the rest: the controller replaces it.
            with syscall.opened_by_id(item["id"]) as program, suppress(NetlinkError):
                if program is not None:
                    attach.detach_xdp(netlink, item["ifindex"], program)


def _replacements(programs: Mapping[str, int]) -> list[bytes]:
    """The messages that give every filter of ours on this node's devices the program of its name."""
    from pyroute2 import IPBatch  # takes a tenth of a second, for which only an upgrade has a use

    batch, messages = IPBatch(), []
    for item in bpftool.filters():
        hook = item.get("name", "").removeprefix(attach.FILTER_PREFIX)
        if hook in programs:
            attach.attach_device(batch, item["ifindex"], hook, programs[hook])
            messages.append(bytes(batch.batch))
            batch.reset()
    return messages


def _send(messages: list[bytes]) -> None:
    """The kernel has done all of it when this returns; that a device has gone meanwhile is no loss."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        for start in range(0, len(messages), MESSAGES_AT_ONCE):
            netlink.send(b"".join(messages[start : start + MESSAGES_AT_ONCE]))
