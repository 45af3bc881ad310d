# SPDX-License-Identifier: Apache-2.0
"""Reads the pinned maps for the commands, and says in words what stands there. Nothing here needs a daemon."""

import gc
import socket
from collections.abc import Iterable
from typing import Any

from bpf import abi, address, bpftool, syscall
from bpf.errors import KernelError
from bpf.pins import Pins

LRU_HASH = 9
HASHES = (1, LRU_HASH)
UNSPECIFIED = (address.packed("0.0.0.0"), address.packed("::"))
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def raw_entries(pins: Pins, name: str) -> Iterable[tuple[bytes, bytes]]:
    """Every entry of a pinned map; a per-CPU value is that of all CPUs joined.

    Raises:
        NotLoadedError: it is not there.
    """
    spec = abi.MAPS[name]
    with pins.opened_map(name) as fd:
        try:
            if spec.map_type not in HASHES:
                return list(bpftool.dump(pins.map(name)))
            return list(syscall.map_entries(fd, spec.key_size, spec.value_size))
        except OSError as error:
            raise KernelError(f"reading {pins.map(name)}: {error}") from error


def max_entries(pins: Pins, name: str) -> int:
    """How many entries a pinned map takes. Raises NotLoadedError."""
    with pins.opened_map(name) as fd:
        return syscall.map_info(fd).max_entries


def entries(pins: Pins, name: str) -> list[tuple[Any, Any]]:
    """Every entry of a pinned map as the classes of bpf.abi. Not for per-CPU maps."""
    spec = abi.MAPS[name]
    key, value = getattr(abi, spec.key), getattr(abi, spec.value)
    gc.disable()  # nothing here is garbage, and looking for it takes half the time of a full flow table
    try:
        return [(key.unpack(raw_key), value.unpack(raw_value)) for raw_key, raw_value in raw_entries(pins, name)]
    finally:
        gc.enable()


def per_cpu(value: bytes, size: int) -> list[bytes]:
    """The values of each CPU of an entry whose value is `size` bytes."""
    return [value[start : start + size] for start in range(0, len(value), size)]


def protocol_name(protocol: int) -> str:
    return PROTOCOLS.get(protocol, str(protocol))


def endpoint(packed: bytes, port: int) -> str:
    """192.0.2.1:80, or [2001:db8::1]:80."""
    text = address.text(packed)
    return f"{text}:{port}" if address.is_v4(packed) else f"[{text}]:{port}"


def frontend_text(packed: bytes, port: int, flags: int) -> str:
    """As `endpoint`; what stands under the unspecified address is met at any node's, and a host port at this one's."""
    if packed not in UNSPECIFIED:
        return endpoint(packed, port)
    node = "this-node" if flags & abi.FrontendFlag.HOST_PORT else "any-node"
    return f"{node}:{port}" if address.is_v4(packed) else f"[{node}]:{port}"


def mac(packed: bytes) -> str:
    return packed.hex(":")


def device_name(ifindex: int) -> str:
    """The name of a device of this network namespace; "" for one that is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""
