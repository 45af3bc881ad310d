# SPDX-License-Identifier: Apache-2.0
"""What XDP saves: the time of a small UDP packet that a node forwards to a backend on another one, and of one that its
deny list drops, against TC's on the same veth device, in turns.

Frames come as from a NIC, without an skb behind them: the far end of the device sends what a program there writes, in a
test run with live frames (5.18). TC has the skb made first, by GRO's way into the stack. What is sent on is dropped at
the far end, by XDP as well: a veth device loses what its peer sends by XDP where it has no program of its own.
"""

import ctypes
import json
import os
import socket
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from scapy.packet import Packet

from bpf import attach, bpftool, features, syscall
from bpf.abi import Device, DeviceKey, DropReason, FrontendFlag, Remote, RemoteKey
from bpf.address import packed, prefix_bits
from bpf.tests import datapath, kernel
from bpf.tests.datapath import UDP_PROTOCOL, V4, V6, Datapath, Family, expected, mac, udp
from bpf.tests.kernel import Programs
from controller.tests.space import Space
from e2e.bench import rounds
from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.tool import BenchError
from e2e.lab import offloads

TITLE = "XDP against TC: small UDP packets, forwarded to another node's backend, and dropped by the deny list"
TC = "calico-ebpf without XDP"
FORWARDED, DROPPED = "forwarded", "denied"
ROUNDS, WARM_UP = 12, 1
WARMING, FRAMES = 1_000, 500_000
# Of the frames so many are to be seen again; a full ring loses some.
LEAST = 0.5
SETTLE_S = 0.05
# 1.3 times the packets a second.
LIMIT = 1 / 1.3

NODE_MAC, FAR_MAC = "02:00:00:00:00:e0", "02:00:00:00:00:f0"
DENIED = {V4: ("198.18.7.7", ("198.18.7.0", 24)), V6: ("2001:db8:7::7", ("2001:db8:7::", 48))}

_LIVE_FRAMES, _PROG_TEST_RUN = 2, 10
_BATCH = 64
FRAME_BYTES = 128

GENERATOR = """
#include <linux/bpf.h>
__attribute__((section("xdp"))) int generate(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data;
	static const unsigned char frame[] = {%s};

	if (start + sizeof(frame) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(start, frame, sizeof(frame));
	return XDP_TX;
}
"""
SINK = '__attribute__((section("xdp"))) int sink(void *frame) { return 1; }'


def run() -> Outcome:
    """Raises BenchError."""
    if features.kernel()[0] < features.XDP_FRAGS:
        raise BenchError("this kernel sends no live frames: 5.18 does")
    outcome = Outcome(TITLE)
    node, far = Space(), Space()
    try:
        with _loaded(node) as programs, tempfile.TemporaryDirectory(dir="/sys/fs/bpf") as pins:
            pair = Pair(node, far, programs, Path(pins))
            for family in (V4, V6):
                _measure(outcome, pair, family)
    finally:
        node.close()
        far.close()
    return outcome


def _measure(outcome: Outcome, pair: "Pair", family: Family) -> None:
    series = {name: Series(f"{name}, {family.name}", "ns a packet") for name in (FORWARDED, DROPPED)}
    pair.begin(family)
    turns = {OURS: lambda: pair.turn(family, xdp=True), TC: lambda: pair.turn(family, xdp=False)}
    rounds.play(turns, series, ROUNDS, WARM_UP)
    for one in series.values():
        outcome.series.append(one)
        outcome.compare(one, TC, bar=LIMIT)


@contextmanager
def _loaded(node: Space) -> Iterator[Programs]:
    """The programs, on maps of their own."""
    programs = node.run(lambda: kernel.load(*datapath.load_arguments(features.kernel()[0])))
    try:
        yield programs
    finally:
        node.run(lambda: kernel.unload(programs))


class Pair:
    """The node's device `up0`, with our programs, and its far end `far0`, which sends frames and drops what comes."""

    def __init__(self, node: Space, far: Space, programs: Programs, pins: Path) -> None:
        self._node, self._far, self._programs, self._pins = node, far, programs.programs, pins
        self._datapath = Datapath(kernel.here, programs)
        node.ip(f"link add up0 address {NODE_MAC} type veth peer name far0 netns {far.path}")
        for space, device in ((node, "up0"), (far, "far0")):
            space.ip("link set lo up")
            space.ip(f"link set {device} up")
        node.run(lambda: offloads.switch("up0", "gro", True))
        self._up = node.run(lambda: socket.if_nametoindex("up0"))
        self._far_index = far.run(lambda: socket.if_nametoindex("far0"))
        for one in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            node.run(lambda one=one: Path("/proc/sys/net", one).write_text("1"))  # type: ignore[misc]
        node.run(self._attach_hooks)
        far.ip(f"link set far0 xdpdrv pinned {self._program('sink', SINK)}")
        self._know_devices()

    def begin(self, family: Family) -> None:
        """Has a flow be there, answered, for a Service whose backend is on the other node; and a range be denied."""
        length = 32 if family is V4 else 128
        self._node.ip(f"address add {family.node}/{24 if family is V4 else 64} dev up0 nodad")
        self._node.ip(f"neigh replace {family.other_node} lladdr {FAR_MAC} dev up0 nud permanent")
        maps = self._datapath
        maps.node(family.node, own=True)
        for prefix in (family.remote_range, (family.other_node, length)):
            key = RemoteKey(prefix_bits(packed(prefix[0]), prefix[1]), packed(prefix[0]))
            node = packed(family.other_node)
            maps.write("remotes", key.pack(), Remote(node, node, self._up, 0, 0).pack())
        number = 1 if family is V4 else 2
        backends = [(family.remote, 8080)]
        maps.service(family.balancer, 80, UDP_PROTOCOL, backends, number=number, flags=FrontendFlag.EXTERNAL)
        maps.deny(DENIED[family][1])
        self._send(self._question(family, family.outside), 1)
        self._send(self._generator(udp(family, (family.remote, 8080), (family.outside, 5000))), 1)

    def turn(self, family: Family, xdp: bool) -> dict[str, list[float]]:
        """Nanoseconds a packet, forwarded and denied, with the XDP program or without."""
        self._node.run(lambda: self._set_xdp(xdp))
        forwarded = self._timed(self._question(family, family.outside), self._sent)
        dropped = self._timed(self._question(family, DENIED[family][0]), self._dropped)
        return {FORWARDED: [forwarded], DROPPED: [dropped]}

    def _timed(self, program: Path, count: Callable[[], int]) -> float:
        """Raises BenchError: what was to be counted was not."""
        self._send(program, WARMING)
        before = count()
        took_s = self._send(program, FRAMES)
        time.sleep(SETTLE_S)
        counted = count() - before
        if counted < LEAST * FRAMES:
            raise BenchError(f"of {FRAMES} frames {counted} came through")
        return took_s * 1e9 / counted

    def _sent(self) -> int:
        """Packets that the node has sent to the far end."""
        (link,) = json.loads("".join(self._far.ip("-j -s link show far0")))
        return int(link["stats64"]["rx"]["packets"])

    def _dropped(self) -> int:
        return self._datapath.dropped(DropReason.DENIED, self._up)

    def _question(self, family: Family, client: str) -> Path:
        return self._generator(udp(family, (client, 5000), (family.balancer, 80)))

    def _generator(self, packet: Packet) -> Path:
        """The pin of a program that writes this packet, as from a router to the node."""
        frame = bytes(expected(packet, eth_src=datapath.ROUTER_MAC, eth_dst=NODE_MAC))
        frame += bytes(-len(frame) % 4)
        name = f"generate-{zlib.crc32(frame):08x}"
        found = self._pins / name
        return found if found.exists() else self._program(name, GENERATOR % ", ".join(map(str, frame)))

    def _program(self, name: str, source: str) -> Path:
        pin = self._pins / name
        with tempfile.TemporaryDirectory() as scratch:
            made = kernel.compiled(source, Path(scratch))
            subprocess.run(["bpftool", "prog", "load", made, pin], check=True, stderr=subprocess.DEVNULL)
        return pin

    def _send(self, generator: Path, count: int) -> float:
        """Sends frames from the far end to the node; returns the seconds that it took, the node's work included."""
        program = syscall.obj_get(generator)
        try:
            return self._far.run(lambda: _run_live(program, count, self._far_index))
        finally:
            os.close(program)

    def _attach_hooks(self) -> None:
        with IPRoute() as netlink:
            attach.add_clsact(netlink, self._up)
            for hook in ("from_netdev", "to_netdev"):
                attach.attach_device(netlink, self._up, hook, self._programs[hook])

    def _know_devices(self) -> None:
        for ifindex, address in ((self._up, mac(NODE_MAC)), (0, bytes(6))):
            value = Device(packed(V4.node), packed(V6.node), 1500, 0, address)
            self._datapath.write("devices", DeviceKey(ifindex).pack(), value.pack())

    def _set_xdp(self, wanted: bool) -> None:
        if wanted != bool(bpftool.xdp_programs()):
            program = self._programs[attach.XDP_PROGRAM]
            with IPRoute() as netlink:
                if wanted:
                    attach.attach_xdp(netlink, self._up, program)
                else:
                    attach.detach_xdp(netlink, self._up, program)


def _run_live(program: int, count: int, ifindex: int) -> float:
    """Sends what the program makes of so many frames (BPF_F_TEST_XDP_LIVE_FRAMES) out of a device, in its namespace."""
    data = ctypes.create_string_buffer(FRAME_BYTES)
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, FRAME_BYTES, 0, ifindex, 0, 0))
    places = ctypes.addressof(data), 0, count, 0, len(context) - 1, 0, ctypes.addressof(context), 0
    attr = struct.pack("=4I2Q4I2Q3I", program, 0, FRAME_BYTES, 0, *places, _LIVE_FRAMES, 0, _BATCH)
    began = time.perf_counter()
    syscall._call(_PROG_TEST_RUN, ctypes.create_string_buffer(attr, len(attr)), "live frames")
    return time.perf_counter() - began
