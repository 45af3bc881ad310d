# SPDX-License-Identifier: Apache-2.0
"""Closes the host's connected UDP sockets whose backend is no more: they were translated when they connected, and would
send to where nobody answers for as long as they last. Who has one gets an error, and connects anew.

The kernel tells the connected ones, the map `sockets` which backend each was given, and `backends` whether that is
still one. TCP needs none of it: it ends by itself, and lasts while its backend terminates. In pods' namespaces, whose
sockets are translated with `connect_time: all` alone, nothing is closed.

Source: include/uapi/linux/inet_diag.h, sock_diag(7).
"""

import errno
import threading
import time
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, IPPROTO_UDP, inet_pton
from struct import unpack
from typing import Any

import structlog
from pyroute2 import DiagSocket
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.diag import SOCK_DESTROY, inet_diag_req
from pyroute2.netlink.exceptions import NetlinkError

from bpf import syscall
from bpf.abi import MAPS, BackendKey, SocketKey, SocketPeer, SocketSide
from bpf.address import packed
from bpf.errors import BpfError
from bpf.pins import Pins

log = structlog.get_logger()

# A socket that was given a backend just before it went stands among the connected ones a moment later.
AGAIN_S = 1.0
_CONNECTED = 1 << 1  # TCP_ESTABLISHED, of UDP as well


def start(pins: Pins, gone: threading.Event) -> None:
    """Starts the thread, which looks whenever `gone` says that backends went."""
    threading.Thread(target=_run, args=(pins, gone), name="sockets", daemon=True).start()


def close_stale(pins: Pins) -> int:
    """Closes those of the caller's network namespace; returns how many.

    Raises:
        BpfError: a map cannot be opened.
        OSError, NetlinkError: the kernel refused; EOPNOTSUPP where it closes no sockets (CONFIG_INET_DIAG_DESTROY).
    """
    closed = 0
    with _diag() as diag, pins.opened_map("sockets") as sockets, pins.opened_map("backends") as backends:
        for found in _connected(diag):
            if _is_stale(found, sockets, backends):
                closed += _close(diag, found)
    return closed


def _run(pins: Pins, gone: threading.Event) -> None:
    while gone.wait():
        gone.clear()
        for pause_s in (0, AGAIN_S):
            time.sleep(pause_s)
            try:
                closed = close_stale(pins)
            except (BpfError, OSError, NetlinkError) as error:
                log.error("sockets-not-closed", error=str(error))
                break
            if closed:
                log.info("sockets-closed", sockets=closed)


def _diag() -> Any:
    diag = DiagSocket()
    diag.bind()
    return diag


def _connected(diag: Any) -> Iterator[Any]:
    for family in (AF_INET, AF_INET6):
        yield from diag.get_sock_stats(family=family, states=_CONNECTED, protocol=IPPROTO_UDP)


def _is_stale(found: Any, sockets: int, backends: int) -> bool:
    address, cookie = packed(found["idiag_dst"]), found["idiag_cookie"]
    key = SocketKey(cookie, address, found["idiag_dport"], IPPROTO_UDP, SocketSide.BACKEND)
    known = syscall.map_lookup(sockets, key.pack(), MAPS["sockets"].value_size)
    if not known:
        return False
    backend = BackendKey(SocketPeer.unpack(known).backend_id)
    return syscall.map_lookup(backends, backend.pack(), MAPS["backends"].value_size) is None


def _close(diag: Any, found: Any) -> bool:
    """False: it has gone meanwhile."""
    family = found["idiag_family"]
    addresses = {name: _words(family, found[name]) for name in ("idiag_src", "idiag_dst")}
    same = {name: found[name] for name in ("idiag_sport", "idiag_dport", "idiag_if", "idiag_cookie")}
    try:
        _destroy(diag, family, **addresses, **same)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return False
    return True


def _destroy(diag: Any, family: int, **fields: Any) -> None:
    request = inet_diag_req()
    request["sdiag_family"], request["sdiag_protocol"], request["idiag_states"] = family, IPPROTO_UDP, _CONNECTED
    for name, value in fields.items():
        request[name] = value
    tuple(diag.nlm_request(request, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK))


def _words(family: int, address: str) -> tuple[int, ...]:
    return unpack("!4I", inet_pton(family, address).ljust(16, b"\0"))
