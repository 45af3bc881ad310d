# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest: calls functions that the other end of a virtio port names, and tells what they returned.

A message is its length in 4 bytes, big endian, and a pickle: (function, arguments), and (result, what went wrong or
""). Ends when the other end is gone.
"""

import os
import pickle
import struct
import time
import traceback
from pathlib import Path

PATIENCE_S = 20


def main() -> None:
    port = _open()
    _send(port, ("ready", ""))
    while (message := _receive(port)) is not None:
        try:
            function, arguments = pickle.loads(message)
            answer = (function(*arguments), "")
        except BaseException:
            answer = (None, traceback.format_exc())
        _send(port, answer)


def _open() -> int:
    """The port, once it is there."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for path in Path("/dev").glob("vport*p1"):
            return os.open(path, os.O_RDWR)
        time.sleep(0.05)
    raise TimeoutError("no virtio port")


def _send(port: int, answer: object) -> None:
    data = pickle.dumps(answer)
    rest = memoryview(struct.pack(">I", len(data)) + data)
    while rest:
        rest = rest[os.write(port, rest) :]


def _receive(port: int) -> bytes | None:
    header = _read(port, 4)
    return _read(port, struct.unpack(">I", header)[0]) if header else None


def _read(port: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = os.read(port, size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


if __name__ == "__main__":
    main()
