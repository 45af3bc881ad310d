# SPDX-License-Identifier: Apache-2.0
"""Closes the host's connected UDP sockets whose backend is no more: they were translated when they connected, and would
send to where nobody answers for as long as they last. Who has one gets an error, and connects anew.

The kernel tells the connected ones, the map `sockets` which backend each was given, and `backends` whether that is
still one. TCP needs none of it: it ends by itself, and lasts while its backend terminates. In pods' namespaces, whose
sockets are translated with `connect_time: all` alone, nothing is closed.
"""

import threading
import time
from socket import IPPROTO_UDP

import structlog

from bpf import sockdiag, syscall
from bpf.abi import MAPS, BackendKey, SocketKey, SocketPeer, SocketSide
from bpf.errors import BpfError
from bpf.pins import Pins
from bpf.sockdiag import Socket

log = structlog.get_logger()

# A socket that was given a backend just before it went stands among the connected ones a moment later.
AGAIN_S = 1.0


def start(pins: Pins, gone: threading.Event) -> None:
    """Starts the thread, which looks whenever `gone` says that backends went."""
    threading.Thread(target=_run, args=(pins, gone), name="sockets", daemon=True).start()


def close_stale(pins: Pins) -> int:
    """Closes those of the caller's network namespace; returns how many.

    Raises:
        BpfError: a map cannot be opened.
        OSError: the kernel refused; EOPNOTSUPP where it closes no sockets (CONFIG_INET_DIAG_DESTROY).
    """
    closed = 0
    with pins.opened_map("sockets") as sockets, pins.opened_map("backends") as backends:
        for found in sockdiag.connected(IPPROTO_UDP):
            if _is_stale(found, sockets, backends):
                closed += sockdiag.close(found)
    return closed


def _run(pins: Pins, gone: threading.Event) -> None:
    while gone.wait():
        gone.clear()
        for pause_s in (0, AGAIN_S):
            time.sleep(pause_s)
            try:
                closed = close_stale(pins)
            except (BpfError, OSError) as error:
                log.error("sockets-not-closed", error=str(error))
                break
            if closed:
                log.info("sockets-closed", sockets=closed)


def _is_stale(found: Socket, sockets: int, backends: int) -> bool:
    key = SocketKey(found.cookie, *found.destination, found.protocol, SocketSide.BACKEND)
    known = syscall.map_lookup(sockets, key.pack(), MAPS["sockets"].value_size)
    if not known:
        return False
    backend = BackendKey(SocketPeer.unpack(known).backend_id)
    return syscall.map_lookup(backends, backend.pack(), MAPS["backends"].value_size) is None
