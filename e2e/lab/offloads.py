# SPDX-License-Identifier: Apache-2.0
"""Switches a device's offloads, as ethtool does: `offloads.py eth0 gro=on tx=off`.

Imports the standard library alone.
"""

import ctypes
import fcntl
import socket
import struct
import sys

_SIOCETHTOOL = 0x8946
# ETHTOOL_STXCSUM, ETHTOOL_SGRO
COMMANDS = {"tx": 0x17, "gro": 0x2C}


def switch(device: str, offload: str, wanted: bool) -> None:
    """Switches an offload of a device of the caller's namespace. Raises OSError.

    Args:
        offload: `tx`, checksums of what is sent; or `gro`, with which a veth device polls, as hardware does.
    """
    value = ctypes.create_string_buffer(struct.pack("=II", COMMANDS[offload], wanted))
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sQ16x", device.encode(), ctypes.addressof(value)))


if __name__ == "__main__":
    for word in sys.argv[2:]:
        name, _, value = word.partition("=")
        switch(sys.argv[1], name, value == "on")
