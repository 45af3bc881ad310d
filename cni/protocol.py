# SPDX-License-Identifier: Apache-2.0
"""What the launcher and the server say to each other: one request and one answer, then the server hangs up.

    request: magic, bytes of variables, bytes of input (u32 each, native order); NAME=VALUE\\0 …; the input
             the descriptor of CNI_NETNS, if it could be opened, comes with the first byte (SCM_RIGHTS)
    answer:  exit status, bytes of output (u32 each); the output

cni/launcher.c holds the other end.
"""

import os
import socket
import struct
import time
from typing import NamedTuple

from cni.errors import InputError

LIMIT_BYTES = 1 << 20
_MAGIC = 0x31494E43
_REQUEST = struct.Struct("=III")
_ANSWER = struct.Struct("=II")
_CREDENTIALS = struct.Struct("=iII")


class Call(NamedTuple):
    """A request; `netns_fd` is the caller's to close."""

    variables: dict[str, str]
    text: bytes
    netns_fd: int | None


def peer_uid(connection: socket.socket) -> int:
    """The user on whose behalf the other end was opened."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def receive(connection: socket.socket, timeout_s: float) -> Call:
    """Reads a request, in `timeout_s` at most.

    Raises:
        InputError: it is malformed, too long or too slow.
    """
    deadline = time.monotonic() + timeout_s
    netns_fd = None
    try:
        connection.settimeout(timeout_s)
        start, fds, _, _ = socket.recv_fds(connection, _REQUEST.size, 1)
        netns_fd = fds[0] if fds else None
        header = start + _receive_exactly(connection, _REQUEST.size - len(start), deadline)
        magic, variables_bytes, input_bytes = _REQUEST.unpack(header)
        if magic != _MAGIC or variables_bytes + input_bytes > LIMIT_BYTES:
            raise InputError("not a request of the launcher")
        data = _receive_exactly(connection, variables_bytes + input_bytes, deadline)
        return Call(_variables(data[:variables_bytes]), data[variables_bytes:], netns_fd)
    except (InputError, OSError) as error:
        if netns_fd is not None:
            os.close(netns_fd)
        raise error if isinstance(error, InputError) else InputError(f"reading a request: {error}") from error


def answer(connection: socket.socket, status: int, output: bytes) -> None:
    """Raises OSError where the launcher is gone, or does not read."""
    connection.sendall(_ANSWER.pack(status, len(output)) + output)


def _receive_exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    parts = []
    while size:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(size)
        if not part:
            raise InputError("the request ends early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _variables(data: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(item).partition("=") for item in data.split(b"\0") if item)
    return {name: value for name, _, value in pairs}
