# SPDX-License-Identifier: Apache-2.0
"""Takes out of the maps what the programs have noted of a pod that is gone: its device's drops, its address's flows;
and ends the host's connections to it.

Device indexes do not come back, so each would keep its entries for ever; addresses do, and an established flow lives
for hours, so the next pod would meet the flows of the one before.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from socket import IPPROTO_TCP

from bpf import sockdiag, syscall
from bpf.abi import MAPS, DropCount, DropKey, DropReason, Flow
from bpf.pins import Pins

# Of `drops`: stands for all devices that are gone.
GONE = 0
# A TCP connection that its owner has not closed, or whose last data have not arrived.
OPEN = sockdiag.ESTABLISHED | sockdiag.SYN_SENT | sockdiag.FIN_WAIT_1 | sockdiag.CLOSE_WAIT | sockdiag.LAST_ACK
POSSIBLE = Path("/sys/devices/system/cpu/possible")


def fold_drops(pins: Pins, ifindex: int) -> None:
    """Adds a device's drops to those of all devices that are gone. One thread at a time.

    Raises:
        NotLoadedError, OSError.
    """
    size = MAPS["drops"].value_size * _cpus()
    with pins.opened_map("drops") as fd:
        for reason in DropReason:
            key, sum_key = (DropKey(reason, index).pack() for index in (ifindex, GONE))
            counted = syscall.map_lookup(fd, key, size)
            if counted is None:
                continue
            before = syscall.map_lookup(fd, sum_key, size) or bytes(size)
            syscall.map_delete(fd, key)  # first: it makes room in a map that is full
            syscall.map_update(fd, sum_key, _added(before, counted))


def delete_flows(pins: Pins, gone: Mapping[bytes, int]) -> int:
    """Deletes the flows of addresses, those that began before the address's time; returns how many entries.

    Half a million entries take a second: not for the path of a call.

    Args:
        gone: packed address to nanoseconds of CLOCK_MONOTONIC.

    Raises:
        NotLoadedError, OSError.
    """
    deleted = 0
    with pins.opened_map("flows") as fd:
        for key, value in syscall.map_entries(fd, MAPS["flows"].key_size, MAPS["flows"].value_size):
            # The twin's key stands first in the value: behind a Service only one of the two has the backend's address.
            ends = {key[:16], key[16:32], value[:16], value[16:32]} & gone.keys()
            if ends and Flow.unpack(value).created_ns < max(gone[end] for end in ends):
                deleted += syscall.map_delete(fd, key)
    return deleted


def close_connections(gone: Container[bytes]) -> int:
    """Closes this network namespace's TCP connections to addresses; returns how many.

    The kernel finds no route to a pod that is gone, tells nobody, and sends again for a quarter of an hour.

    Raises:
        OSError: EOPNOTSUPP where the kernel closes no sockets.
    """
    return sum(sockdiag.close(one) for one in sockdiag.connected(IPPROTO_TCP, OPEN) if one.destination[0] in gone)


def _added(one: bytes, other: bytes) -> bytes:
    """The values of each CPU, added up."""
    size = MAPS["drops"].value_size
    parts = []
    for start in range(0, len(one), size):
        a, b = (DropCount.unpack(value[start : start + size]) for value in (one, other))
        parts.append(DropCount(a.packets + b.packets, a.octets + b.octets).pack())
    return b"".join(parts)


def _cpus() -> int:
    """For how many CPUs the kernel keeps values: "0-3", or "0,2-5"."""
    return int(POSSIBLE.read_text(encoding="ascii").strip().replace("-", ",").split(",")[-1]) + 1
