# SPDX-License-Identifier: Apache-2.0
"""bpf(2) by ctypes: for the CNI path, which must not fork, and for what bpftool's batch cannot do.

Three-line wrappers around one caller; every failure is an OSError that names the command. Imports the standard library
alone. Source: include/uapi/linux/bpf.h, union bpf_attr.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_NR_BPF, _NR_MEMBARRIER = {"x86_64": (321, 324), "aarch64": (280, 283)}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _OBJ_PIN, _OBJ_GET = 0, 1, 2, 3, 6, 7
_PROG_TEST_RUN, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO = 10, 13, 15
_MAP_LOOKUP_BATCH = 24
_LINK_CREATE, _LINK_UPDATE = 28, 29
_ITER_CREATE, _TRACE_ITER = 33, 28
_MEMBARRIER_CMD_GLOBAL = 1
# What a kernel takes at most to see that all its programs have ended, on all but the most loaded of machines.
RCU_S = 0.1

# What an insertion says for want of room: in the map, or in memory.
FULL = (errno.E2BIG, errno.ENOSPC, errno.ENOMEM)

# Entries asked for at once of a hash map. A bucket is answered whole: too few for one, and the kernel says ENOSPC.
BATCH_ENTRIES = 4096

ANY, NOEXIST, EXIST = 0, 1, 2
CHECKSUM_COMPLETE = 4  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE: the packet comes as from a NIC that has summed it up


class MapInfo(NamedTuple):
    map_type: int
    map_id: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int


class TestRun(NamedTuple):
    """What a program made of a packet: its return value, the packet, the context."""

    verdict: int
    packet: bytes
    context: bytes


def map_create(shape: MapInfo, name: str) -> int:
    """Creates a map and returns its descriptor.

    Args:
        shape: its `map_id` does not matter.
    """
    _raise_memlock()
    attr = struct.pack(
        "=IIIIIII16s",
        shape.map_type,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.map_flags,
        0,
        0,
        name.encode()[:15],
    )
    return _bpf(_MAP_CREATE, attr, f"creating map {name}")


def map_info(fd: int) -> MapInfo:
    return MapInfo(*struct.unpack_from("=IIIIII", _info(fd, 24)))


def program_id(fd: int) -> int:
    return int(struct.unpack_from("=II", _info(fd, 8))[1])


def program_by_id(number: int) -> int | None:
    """A descriptor of the program with this id; None: there is none."""
    try:
        return _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", number), "program by id")
    except FileNotFoundError:
        return None


@contextmanager
def opened_by_id(number: int) -> Iterator[int | None]:
    """The same, closed after a `with` block."""
    fd = program_by_id(number)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, or None where it has none."""
    key_buffer, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_size)
    attr = struct.pack("=IxxxxQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value), 0)
    try:
        _bpf(_MAP_LOOKUP, attr, "map lookup")
    except FileNotFoundError:
        return None
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Writes an entry. Raises OSError: E2BIG or ENOSPC where the map is full, EEXIST or ENOENT as `flags` say."""
    key_buffer, buffer = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    attr = struct.pack("=IxxxxQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(buffer), flags)
    _bpf(_MAP_UPDATE, attr, "map update")


def map_delete(fd: int, key: bytes) -> bool:
    """Deletes an entry; returns whether there was one."""
    buffer = ctypes.create_string_buffer(key, len(key))
    try:
        _bpf(_MAP_DELETE, struct.pack("=IxxxxQQQ", fd, ctypes.addressof(buffer), 0, 0), "map delete")
    except FileNotFoundError:
        return False
    return True


def map_entries(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a map without per-CPU values, half a million a second: flows are too many for bpftool's JSON.

    Entries that come or go meanwhile may be missed. Raises OSError: of other errnos, EINVAL and ENOTSUPP (524) where
    this type of map cannot be read so.
    """
    count = BATCH_ENTRIES
    # A position is a bucket's number in a hash map, and a key elsewhere.
    size = max(key_size, 4)
    position, after = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    begin = True
    while True:
        keys, values = ctypes.create_string_buffer(count * key_size), ctypes.create_string_buffer(count * value_size)
        where = 0 if begin else ctypes.addressof(position)
        places = (where, ctypes.addressof(after), ctypes.addressof(keys), ctypes.addressof(values))
        attr = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *places, count, fd, 0, 0), 64)
        last = False
        try:
            _call(_MAP_LOOKUP_BATCH, attr, "map lookup")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                count *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            last = True
        (found,) = struct.unpack_from("=I", attr, 32)
        yield from zip(_pieces(keys, key_size, found), _pieces(values, value_size, found), strict=True)
        if last:
            return
        begin, position, after = False, after, position


def obj_pin(fd: int, path: Path) -> None:
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(buffer), fd, 0), f"pinning {path}")


def obj_get(path: Path) -> int:
    """The descriptor of what is pinned at `path`. Raises FileNotFoundError where nothing is."""
    buffer = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(buffer), 0, 0), f"opening {path}")


def link_create(program_fd: int, target_fd: int, attach_type: int) -> int:
    """Attaches a program, to a cgroup say, and returns the link's descriptor (kernel 5.7)."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program_fd, target_fd, attach_type, 0), "attaching a program")


def link_cgroup(link_fd: int) -> int:
    """The id of the cgroup that a link is attached to, its directory's inode number; 0: that cgroup is gone (kernel
    5.8)."""
    return int(struct.unpack_from("=16xQ", _info(link_fd, 24))[0])


def link_update(link_fd: int, program_fd: int) -> None:
    """Replaces a link's program with another, atomically."""
    _bpf(_LINK_UPDATE, struct.pack("=IIII", link_fd, program_fd, 0, 0), "replacing an attached program")


def await_programs() -> None:
    """Returns when every run of a program that had begun has ended, some 20 ms later: they count as readers of RCU, and
    membarrier(2) waits for those. A kernel that has CPUs without ticks (nohz_full) refuses it: there it is slept."""
    if _libc.syscall(_NR_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0):
        time.sleep(RCU_S)


@contextmanager
def map_iterator(program_fd: int, map_fd: int) -> Iterator[int]:
    """A descriptor from which is read what an iterator program writes of a map's entries, one after the other."""
    info = ctypes.create_string_buffer(struct.pack("=I", map_fd), 4)
    attr = struct.pack("=IIIIQI", program_fd, 0, _TRACE_ITER, 0, ctypes.addressof(info), len(info))
    link = _bpf(_LINK_CREATE, attr, "attaching an iterator")
    try:
        iterator = _bpf(_ITER_CREATE, struct.pack("=II", link, 0), "starting an iterator")
        try:
            yield iterator
        finally:
            os.close(iterator)
    finally:
        os.close(link)


def program_test_run(fd: int, packet: bytes, context: bytes = b"", repeat: int = 1, flags: int = 0) -> TestRun:
    """Runs a TC or XDP program on a packet (BPF_PROG_TEST_RUN) in the caller's network namespace.

    Args:
        context: a struct __sk_buff of 192 bytes, or nothing; of its fields the kernel takes `mark`, `ifindex`, `cb`,
            and few others.

    Raises:
        OSError: with CHECKSUM_COMPLETE EBADMSG where the packet left has another sum than the kernel believes.
    """
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(65536)
    ctx_in = ctypes.create_string_buffer(context, max(len(context), 1))
    ctx_out = ctypes.create_string_buffer(max(len(context), 1))
    attr = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQI",
            fd,
            0,
            len(packet),
            len(data_out),
            ctypes.addressof(data_in),
            ctypes.addressof(data_out),
            repeat,
            0,
            len(context),
            len(context),
            ctypes.addressof(ctx_in) if context else 0,
            ctypes.addressof(ctx_out) if context else 0,
            flags,
        )
    )
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    _call(_PROG_TEST_RUN, buffer, "test run")
    _, verdict, _, size_out = struct.unpack_from("=IIII", attr)
    return TestRun(verdict, data_out.raw[:size_out], ctx_out.raw[: len(context)])


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    _bpf(_OBJ_GET_INFO, struct.pack("=IIQ", fd, len(buffer), ctypes.addressof(buffer)), "object info")
    return buffer.raw[:size]


def _pieces(buffer: "ctypes.Array[ctypes.c_char]", size: int, count: int) -> list[bytes]:
    data = buffer.raw
    return [data[start : start + size] for start in range(0, count * size, size)]


def _bpf(command: int, attr: bytes, what: str) -> int:
    return _call(command, ctypes.create_string_buffer(attr, max(len(attr), 64)), what)


def _call(command: int, attr: "ctypes.Array[ctypes.c_char]", what: str) -> int:
    result: int = _libc.syscall(_NR_BPF, command, ctypes.byref(attr), len(attr))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _raise_memlock() -> None:
    """Before 5.11 maps count as locked memory; later kernels ignore the limit, and so may a missing capability."""
    with suppress(ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
