# SPDX-License-Identifier: Apache-2.0
"""Frames as they are, by AF_PACKET: what is sent may be malformed, and what is seen is told byte by byte.

    python -I -S frames.py send eth0 < FRAMES          a frame in hexadecimal on each line
    python -I -S frames.py send eth0 --left < FRAMES   before each what is left to a device: struct virtio_net_hdr
    python -I -S frames.py listen eth0 --holding c0000242 --holding …

`listen` prints `ready`, and then every frame that comes in or goes out and has one of these strings of bytes in it,
with its VLAN tag where it has one, until it is ended. Imports the standard library alone.
"""

import argparse
import socket
import struct
import sys

ETH_P_ALL = 3
# <linux/if_packet.h>: the kernel takes a tag out of the frame, and tells it aside
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, STATUS_VLAN_VALID = 263, 8, 15, 0x10
TAG_AT = 12


def send(device: str, left: bool) -> None:
    """Sends each frame of standard input; `left`: they say what is left to a device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, left)
        out.bind((device, 0))
        for line in sys.stdin:
            out.send(bytes.fromhex(line))


def listen(device: str, wanted: list[bytes]) -> None:
    """Prints frames that have any of the wanted strings in them."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        tap.bind((device, 0))
        print("ready", flush=True)
        while True:
            frame, ancillary, _, _ = tap.recvmsg(65536, 256)
            if any(string in frame for string in wanted):
                print(_tagged(frame, ancillary).hex(), flush=True)


def _tagged(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """A frame as it was on the wire: struct tpacket_auxdata ends in the tag and its type."""
    for _, kind, data in ancillary:
        status, tag, protocol = struct.unpack("=I12xHH", data)
        if kind == PACKET_AUXDATA and status & STATUS_VLAN_VALID:
            return frame[:TAG_AT] + struct.pack("!HH", protocol, tag) + frame[TAG_AT:]
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["send", "listen"])
    parser.add_argument("device")
    parser.add_argument("--left", action="store_true")
    parser.add_argument("--holding", type=bytes.fromhex, action="append", default=[])
    arguments = parser.parse_args()
    if arguments.command == "send":
        send(arguments.device, arguments.left)
    else:
        listen(arguments.device, arguments.holding)


if __name__ == "__main__":
    main()
