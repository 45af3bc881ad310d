# SPDX-License-Identifier: Apache-2.0
"""The server reads what the launcher sends, and no more than that."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import protocol
from cni.errors import InputError

MAGIC = 0x31494E43


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The launcher's end and the server's."""
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def request(variables: bytes, text: bytes, magic: int = MAGIC) -> bytes:
    return struct.pack("=III", magic, len(variables), len(text)) + variables + text


def test_receive_of_request_gives_variables_text_and_descriptor(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """The descriptor comes through open, so no path needs to be trusted or found."""
    (tmp_path / "netns").write_text("inside")
    fd = os.open(tmp_path / "netns", os.O_RDONLY)
    data = request(b"CNI_COMMAND=ADD\0CNI_ARGS=A=1;B=2\0", b"{}")
    socket.send_fds(ends[0], [data[:12]], [fd])
    os.close(fd)
    ends[0].sendall(data[12:])
    call = protocol.receive(ends[1], 5)
    assert call.variables == {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=1;B=2"}
    assert call.text == b"{}"
    assert call.netns_fd is not None
    assert os.read(call.netns_fd, 10) == b"inside"
    os.close(call.netns_fd)


def test_receive_without_descriptor_has_none(ends: tuple[socket.socket, socket.socket]) -> None:
    """A namespace that cannot be opened is for the verb to judge."""
    ends[0].sendall(request(b"CNI_COMMAND=DEL\0", b""))
    assert protocol.receive(ends[1], 5).netns_fd is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        request(b"CNI_COMMAND=ADD\0", b"{}")[:-1],
        struct.pack("=III", MAGIC, 1 << 20, 1),
        struct.pack("=III", MAGIC, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_receive_of_nonsense_is_refused(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    """Neither a wrong start, nor a short request, nor a length beyond the limit is waited for or believed."""
    ends[0].sendall(data)
    ends[0].shutdown(socket.SHUT_WR)
    with pytest.raises(InputError):
        protocol.receive(ends[1], 5)


def test_receive_of_slow_request_ends_at_its_time(ends: tuple[socket.socket, socket.socket]) -> None:
    """A caller that stops talking does not keep a thread."""
    ends[0].sendall(request(b"CNI_COMMAND=ADD\0", b"{}")[:20])
    with pytest.raises(InputError, match="timed out"):
        protocol.receive(ends[1], 0.05)


def test_peer_uid_is_the_callers(ends: tuple[socket.socket, socket.socket]) -> None:
    """The kernel vouches for who is at the other end."""
    assert protocol.peer_uid(ends[1]) == os.getuid()
