# SPDX-License-Identifier: Apache-2.0
"""Reads a whole pinned map in a few system calls, by BPF_MAP_LOOKUP_BATCH (kernel 5.6); by bpftool where that fails.

bpftool's dump of 100,000 entries takes 2 s of CPU, and parsing it 250 MB and half a second of the interpreter's lock.
Source: include/uapi/linux/bpf.h, union bpf_attr.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from typing import NamedTuple

from bpf import bpftool, syscall
from bpf.loader import Pins

_NR_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_MAP_LOOKUP_BATCH = 24
_ENTRIES = 4096
_ENOTSUPP = 524  # the kernel's own, not in errno

_ATTR = struct.Struct("=QQQQIIQQ")
_libc = ctypes.CDLL(None, use_errno=True)


class _Part(NamedTuple):
    keys: bytes
    values: bytes
    entries: int
    last: bool


def read(pins: Pins, name: str) -> dict[bytes, bytes]:
    """Every entry of a pinned map, which is not one per CPU.

    Raises:
        NotLoadedError: it is not pinned.
        BpftoolError: it had to be read by bpftool, which failed.
    """
    fd = pins.open_map(name)
    try:
        info = syscall.map_info(fd)
        entries: dict[bytes, bytes] = {}
        for part in _parts(fd, info):
            keys, values = memoryview(part.keys), memoryview(part.values)
            for index in range(part.entries):
                key = keys[index * info.key_size : (index + 1) * info.key_size]
                entries[bytes(key)] = bytes(values[index * info.value_size : (index + 1) * info.value_size])
        return entries
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP):
            raise
        return dict(bpftool.dump(pins.map(name)))
    finally:
        os.close(fd)


def _parts(fd: int, info: syscall.MapInfo) -> Iterator[_Part]:
    count, started = min(_ENTRIES, info.max_entries), False
    # A position is a bucket's number in a hash map, and a key elsewhere.
    position = ctypes.create_string_buffer(max(info.key_size, 4))
    while True:
        keys, values = (ctypes.create_string_buffer(count * size) for size in (info.key_size, info.value_size))
        pointers = (ctypes.addressof(one) for one in (position, keys, values))
        attr = bytearray(_ATTR.pack(ctypes.addressof(position) if started else 0, *pointers, count, fd, 0, 0))
        failure = _call(attr)
        if failure == errno.ENOSPC and count < info.max_entries:
            count = min(2 * count, info.max_entries)  # a bucket holds more than that
            continue
        if failure not in (0, errno.ENOENT):
            raise OSError(failure, f"reading a map: {os.strerror(failure)}")
        started = True
        yield _Part(keys.raw, values.raw, _ATTR.unpack(attr)[4], failure == errno.ENOENT)
        if failure == errno.ENOENT:
            return


def _call(attr: bytearray) -> int:
    """Returns the errno, or 0; `count` in `attr` is then the number of entries read."""
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    result = _libc.syscall(_NR_BPF, _MAP_LOOKUP_BATCH, ctypes.byref(buffer), len(attr))
    return ctypes.get_errno() if result < 0 else 0
