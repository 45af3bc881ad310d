# SPDX-License-Identifier: Apache-2.0
"""Tells the TCP and UDP packets that pass a device, each as a line of JSON, until it is ended.

    {"at": 81.0231, "way": "out", "src": "10.244.1.2", "sport": 40000, "dst": "10.96.0.10", "dport": 80, "flags": "S",
     "ttl": 64, "src_mac": "02:ce:…", "dst_mac": "02:ce:…"}

`way` is `in`, `out`, or `past` for a frame that is another's and was only seen. Both families, the ports asked for on
either side. Of what is inside VXLAN these are the inner headers, and "outer" tells {"src", "dst", "vni"}. Imports the
standard library alone.
"""

import argparse
import json
import socket
import struct
import time

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 3, 0x0800, 0x86DD
ETHERNET, UDP_HEADER, VXLAN_HEADER = 14, 8, 8
TCP, UDP = 6, 17
FLAGS = "FSRPAU"
AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6
WAYS = {socket.PACKET_OUTGOING: "out", socket.PACKET_OTHERHOST: "past"}


def parse(frame: bytes, overlay_port: int) -> dict[str, object] | None:
    """What a frame carries; None where it is neither TCP nor UDP."""
    kind = int.from_bytes(frame[12:14])
    if kind == ETH_P_IP:
        protocol, ttl, header, family, addresses = frame[23], frame[22], (frame[14] & 15) * 4, AF_INET, frame[26:34]
    elif kind == ETH_P_IPV6:
        protocol, ttl, header, family, addresses = frame[20], frame[21], 40, AF_INET6, frame[22:54]
    else:
        return None
    inner = frame[ETHERNET + header :]
    if protocol not in (TCP, UDP) or len(inner) < UDP_HEADER:
        return None
    half = len(addresses) // 2
    src, dst = socket.inet_ntop(family, addresses[:half]), socket.inet_ntop(family, addresses[half:])
    sport, dport = struct.unpack_from("!HH", inner)
    if protocol == UDP and dport == overlay_port:
        found = parse(inner[UDP_HEADER + VXLAN_HEADER :], 0)
        vni = int.from_bytes(inner[UDP_HEADER + 4 : UDP_HEADER + 7])
        return found and found | {"outer": {"src": src, "dst": dst, "vni": vni}}
    return {
        "src": src,
        "sport": sport,
        "dst": dst,
        "dport": dport,
        "flags": _flags(inner) if protocol == TCP else "udp",
        "ttl": ttl,
        "src_mac": frame[6:12].hex(":"),
        "dst_mac": frame[:6].hex(":"),
    }


def _flags(segment: bytes) -> str:
    return "".join(letter for bit, letter in enumerate(FLAGS) if segment[13] & 1 << bit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("--port", type=int, action="append", required=True, help="tell packets of these ports alone")
    parser.add_argument("--overlay-port", type=int, default=4789)
    arguments = parser.parse_args()
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    tap.bind((arguments.device, 0))
    print("ready", flush=True)
    while True:
        frame, sender = tap.recvfrom(65536)
        packet = parse(frame, arguments.overlay_port)
        if packet and {packet["sport"], packet["dport"]} & set(arguments.port):
            way = WAYS.get(sender[2], "in")
            print(json.dumps({"at": time.monotonic(), "way": way, **packet}), flush=True)


if __name__ == "__main__":
    main()
