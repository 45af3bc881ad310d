# SPDX-License-Identifier: Apache-2.0
"""Malformed frames on the wire, from outside, from a pod, and into the overlay, while good traffic goes on: nothing of
them comes out anywhere, and each is counted, by us or, where it is for the node itself, by the kernel.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from e2e.lab import addresses, network, runtime
from e2e.lab.addresses import Dual
from e2e.lab.runtime import Pod, tool
from e2e.lab.space import Space
from e2e.lab.taps import SETTLE_S
from e2e.tests.load import load
from e2e.tests.outside import BALANCER_IP, CLIENT, NODE_PORT, SERVICES, Outside, drops, target
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

MODE = "vxlan-entry"
pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.parametrize("mode", [MODE])]

# Who sends malformed packets from outside; nobody answers.
ROUGH = Dual("192.0.2.66", "2001:db8:66::66")
PAYLOAD = b"unless it is whole, it is for nobody"
OVERLAY_PORT, PODS_VNI, HANDOVER_VNI = 4789, 206, 207
OVERLAY_MACS = "02:ce:00:00:00:02", "02:ce:00:00:00:01"
UNREADABLE = ("truncated", "bad_header")
RATE, SECONDS = 200, 2

Spoil = Callable[[Packet, Packet], Packet]
LIES: dict[str, list[Spoil]] = {
    "IPv4": [
        lambda ip, udp: IP(src=ip.src, dst=ip.dst, ihl=15) / udp,
        lambda ip, udp: IP(src=ip.src, dst=ip.dst, len=20) / udp,
        lambda ip, udp: IP(src=ip.src, dst=ip.dst, len=0xFFFF) / udp,
        lambda ip, _: IP(src=ip.src, dst=ip.dst, flags="MF", proto=6) / bytes(8),
        lambda ip, _: IP(src=ip.src, dst=ip.dst, frag=1, proto=6) / bytes(16),
        lambda ip, _: IP(src=ip.src, dst=ip.dst, frag=8191) / bytes(64),
    ],
    "IPv6": [
        lambda ip, udp: IPv6(src=ip.src, dst=ip.dst, plen=4) / udp,
        lambda ip, udp: IPv6(src=ip.src, dst=ip.dst, plen=0xFFFF) / udp,
        lambda ip, udp: ip / IPv6ExtHdrDestOpt(len=255) / udp,
        lambda ip, _: ip / IPv6ExtHdrFragment(m=1, nh=6) / bytes(8),
        lambda ip, _: ip / IPv6ExtHdrFragment(offset=1, nh=6) / bytes(16),
        lambda ip, udp: ip / IPv6ExtHdrFragment(m=1) / IPv6ExtHdrFragment() / udp,
        lambda ip, udp: chained(ip, 7) / udp,
    ],
}
BOTH_LIES: list[Spoil] = [
    lambda ip, udp: ip / UDP(sport=udp.sport, dport=udp.dport, len=7) / PAYLOAD,
    lambda ip, udp: ip / UDP(sport=udp.sport, dport=udp.dport, len=0xFFFF) / PAYLOAD,
    lambda ip, udp: ip / TCP(sport=udp.sport, dport=udp.dport, dataofs=4),
    lambda ip, udp: ip / TCP(sport=udp.sport, dport=udp.dport, dataofs=15),
]


def chained(ip: Packet, count: int) -> Packet:
    for _ in range(count):
        ip = ip / IPv6ExtHdrDestOpt()
    return ip


def header(source: str, destination: str) -> Packet:
    packet: Packet = (IPv6 if ":" in source else IP)(src=source, dst=destination)
    return packet


def whole(source: str, destination: str, port: int) -> Packet:
    return header(source, destination) / UDP(sport=40000, dport=port) / PAYLOAD


def malformed(source: str, destination: str, port: int, shortest: int = 0) -> list[bytes]:
    """Packets from one to the other of which none can be read: cut at every byte from the shortest on, and lies."""
    packet = bytes(whole(source, destination, port))
    family = "IPv6" if ":" in source else "IPv4"
    udp = UDP(sport=40000, dport=port) / PAYLOAD
    lies = [bytes(spoil(header(source, destination), udp)) for spoil in LIES[family] + BOTH_LIES]
    return [packet[:length] for length in range(shortest, len(packet))] + lies


def mac(space: Space) -> str:
    return space.run("cat", f"/sys/class/net/{network.DEVICE}/address").stdout.strip()


def framed(source: str, destination: str, packets: Sequence[bytes | Packet]) -> list[bytes]:
    """In frames between two MACs. What a packet says of its version may be missing."""
    kinds = {4: 0x800, 6: 0x86DD}
    first = [bytes(packet)[:1] for packet in packets]
    kind = kinds[max(byte[0] >> 4 for byte in first if byte)]
    return [bytes(Ether(src=source, dst=destination, type=kind)) + bytes(packet) for packet in packets]


@pytest.fixture(autouse=True)
def _plain_switch(outside: Outside) -> None:
    """What joins the nodes reads no IP headers: a bridge with br_netfilter does, and drops what it does not like."""
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        path = f"/proc/sys/net/bridge/{name}"
        outside.lab.switch.run("sh", "-c", f"test ! -e {path} || echo 0 > {path}")


def send(where: Space, frames: Sequence[bytes]) -> None:
    where.run(*tool("frames", "send", network.DEVICE), stdin="".join(frame.hex() + "\n" for frame in frames))


@contextmanager
def heard(places: Mapping[str, tuple[Space, str]], sender: Dual) -> Iterator[dict[str, list[Packet]]]:
    """Frames that have an address of the sender's in them anywhere, by place: a space and a device. Filled in at the
    end."""
    holding = [word for address in sender if address for word in ("--holding", ip_address(address).packed.hex())]
    taps = {name: space.start(*tool("frames", "listen", device, *holding)) for name, (space, device) in places.items()}
    found: dict[str, list[Packet]] = {}
    try:
        for tap in taps.values():
            assert tap.stdout
            assert tap.stdout.readline() == "ready\n"
        yield found
        time.sleep(SETTLE_S)
    finally:
        for name, tap in taps.items():
            tap.terminate()
            found[name] = [Ether(bytes.fromhex(line)) for line in tap.communicate()[0].split()]


def places(outside: Outside) -> dict[str, tuple[Space, str]]:
    """Where anything might come out: the backends' pods, the other node, the router."""
    pods = {name: (outside.pod(name).space, runtime.INTERFACE) for name in ("web-1", "web-2")}
    router = {"router": (outside.lab.switch, network.BRIDGE)}
    return pods | router | {"node2": (outside.node(2).space, network.DEVICE)}


def counted(outside: Outside, reasons: Sequence[str] = UNREADABLE) -> int:
    return sum(drops(outside.node(1)).get(reason, 0) for reason in reasons)


@contextmanager
def good_traffic(outside: Outside) -> Iterator[None]:
    """New connections through a hand-over and lasting ones, none of which fails meanwhile."""
    address, port = target(outside.node(1), SERVICES["both"], NODE_PORT, "IPv4")
    with load(outside.client, address, port, SECONDS, rate=RATE) as answered:
        yield
    assert answered == {"web-1", "web-2"}


def kernel_counts(where: Space) -> int:
    """Frames that the kernel found shorter than their packets, both families."""
    lines = where.run("cat", "/proc/net/netstat", "/proc/net/snmp6").stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("IpExt:"))
    found = dict(zip(names[1:], map(int, values[1:]), strict=True))
    found |= {name: int(value) for name, value in (line.split() for line in lines if line.startswith("Ip6"))}
    return found["InTruncatedPkts"] + found["Ip6InTruncatedPkts"]


def _from(source: str, packets: Sequence[Packet]) -> list[Packet]:
    """Datagrams of a sender, without what answers them."""
    family = IPv6 if ":" in source else IP
    return [packet for packet in packets if packet[family].src == source and UDP in packet]


@pytest.mark.parametrize("family", FAMILIES)
def test_from_outside(outside: Outside, family: str) -> None:
    """To pods, to load-balancer addresses, and through the node: dropped. To the node itself: the host's stack's."""
    rough, client, node = pick(ROUGH, family), outside.client, outside.node(1)
    macs = mac(client), mac(node.space)
    others = [(pick(outside.pod(name).address, family), runtime.PORT) for name in ("web-1", "web-2")]
    others += [target(node, SERVICES[name], BALANCER_IP, family) for name in ("near", "far")]
    others += [("198.18.0.7" if family == "IPv4" else "2001:db8:7::7", PORT)]
    own = [target(node, SERVICES[name], NODE_PORT, family) for name in ("near", "far")]
    frames = [frame for at in others for frame in framed(*macs, malformed(rough, *at))]
    short = [bytes(whole(rough, *at)) for at in own]
    cut = [packet[:length] for packet in short for length in range(len(header(rough, rough)), len(packet))]
    before, kernel_before = counted(outside), kernel_counts(node.space)
    with good_traffic(outside), heard(places(outside), ROUGH) as seen:
        send(client, frames + framed(*macs, cut))
        wait(lambda: counted(outside) >= before + len(frames))
        wait(lambda: kernel_counts(node.space) >= kernel_before + len(cut))
    assert not any(seen.values()), seen
    assert counted(outside) == before + len(frames)
    assert kernel_counts(node.space) == kernel_before + len(cut)
    with heard(places(outside), ROUGH) as seen:
        send(client, framed(*macs, [whole(rough, *at) for at in (*others[:4], *own)]))
    # the same, whole: to web-1 and web-2 by each of their three addresses
    assert [len(_from(rough, seen[name])) for name in ("web-1", "web-2")] == [3, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_pod(outside: Outside, family: str) -> None:
    """Wherever it is to go, the node itself included."""
    with rough_pod(outside) as (pod, macs):
        source, client = pick(pod.address, family), pick(CLIENT, family)
        at = [(pick(outside.pod(name).address, family), runtime.PORT) for name in ("web-1", "web-2")]
        at += [(pick(addresses.service(SERVICES[name].number), family), PORT) for name in ("near", "far")]
        at += [(pick(outside.node(1).address, family), PORT), (client, PORT)]
        frames = [frame for one in at for frame in framed(*macs, malformed(source, *one))]
        before = counted(outside)
        everywhere = places(outside) | {"client": (outside.client, network.DEVICE)}
        with good_traffic(outside), heard(everywhere, pod.address) as seen:
            send(pod.space, frames)
            wait(lambda: counted(outside) >= before + len(frames))
        assert not any(seen.values()), seen
        assert counted(outside) == before + len(frames)
        with heard(places(outside), pod.address) as seen:
            send(pod.space, framed(*macs, [whole(source, *one) for one in at[:4]]))
        assert [len(_from(source, seen[name])) for name in ("web-1", "web-2")] == [2, 2]


TAGS = [(5,), (0,), (0, 0), (5, 0), (0, 5), (0, 0, 0)]


def tagged(macs: tuple[str, str], tags: Sequence[int], packet: Packet) -> bytes:
    """In a frame with VLAN tags."""
    frame = Ether(src=macs[0], dst=macs[1])
    for number in tags:
        frame = frame / Dot1Q(vlan=number)
    return bytes(frame / packet)


@pytest.mark.parametrize("family", FAMILIES)
def test_tagged_frames_of_a_pod(outside: Outside, family: str) -> None:
    """A pod chooses no VLAN of the underlay; and behind tags that the kernel takes out it hides no other's address."""
    at = [(pick(outside.pod("web-2").address, family), runtime.PORT), (pick(CLIENT, family), PORT)]
    with rough_pod(outside) as (pod, macs):
        senders = Dual(pick(pod.address, family), pick(ROUGH, family))
        frames = [tagged(macs, tags, whole(sender, *one)) for tags in TAGS for sender in senders for one in at]
        before = counted(outside)
        everywhere = places(outside) | {"client": (outside.client, network.DEVICE)}
        with heard(everywhere, senders) as seen:
            send(pod.space, frames)
            wait(lambda: counted(outside) >= before + len(frames))
        assert not any(seen.values()), seen
        assert counted(outside) == before + len(frames)


@pytest.mark.parametrize("family", FAMILIES)
def test_tagged_frames_from_outside(outside: Outside, family: str) -> None:
    """Those of a VLAN are not the underlay's, even where they have its addresses; a tag of priority makes none."""
    rough, macs = pick(ROUGH, family), (mac(outside.client), mac(outside.node(1).space))
    at = [(pick(outside.pod("web-1").address, family), runtime.PORT)]
    at += [target(outside.node(1), SERVICES["near"], kind, family) for kind in (NODE_PORT, BALANCER_IP)]
    with heard(places(outside), ROUGH) as seen:
        send(outside.client, [tagged(macs, [number], whole(rough, *one)) for number in (5, 4095, 0) for one in at])
        assert names(ask(outside.client, "udp", *at[1])) == {"web-1"}  # it comes behind them
    assert len(_from(rough, seen["web-1"])) == len(at)
    assert not seen["node2"]


@contextmanager
def rough_pod(outside: Outside) -> Iterator[tuple[Pod, tuple[str, str]]]:
    """A pod of node1, and the MACs of its frames."""
    pod = outside.node(1).add_pod("rough", serve=False)
    try:
        (entry,) = pod.space.run("ip", "neigh", "show", "169.254.1.1").stdout.splitlines()
        yield pod, (mac(pod.space), entry.split()[entry.split().index("lladdr") + 1])
    finally:
        outside.node(1).remove_pod("rough")


@pytest.mark.parametrize("family", FAMILIES)
def test_into_the_overlay(outside: Outside, family: str) -> None:
    """From another node, with the network id of pods' packets and that of hand-overs: what is cut or lies is dropped.
    Of another network, from no node, out of a tunnel within the tunnel: whatever it is."""
    node, other = outside.node(1), outside.node(2)
    ends = other.address.v4, node.address.v4
    far, near = (pick(outside.pod(name).address, family) for name in ("web-2", "web-1"))
    rough = pick(ROUGH, family)

    def tunneled(inner: bytes, vni: int, outer: tuple[str, str] = ends) -> Packet:
        return IP(src=outer[0], dst=outer[1]) / UDP(sport=50000, dport=OVERLAY_PORT, chksum=0) / VXLAN(vni=vni) / inner

    def inside(packets: Sequence[bytes | Packet]) -> list[bytes]:
        return framed(*OVERLAY_MACS, packets)

    macs = mac(other.space), mac(node.space)
    shortest = len(header(far, near))  # what is shorter the tunnel's device drops
    unreadable = [tunneled(frame, PODS_VNI) for frame in inside(malformed(far, near, runtime.PORT, shortest))]
    handed_over = inside(malformed(rough, near, runtime.PORT, shortest))
    unreadable += [tunneled(frame, HANDOVER_VNI) for frame in handed_over]
    unreadable.append(tunneled(tagged(OVERLAY_MACS, [5], whole(far, near, runtime.PORT)), PODS_VNI))
    (good,) = inside([whole(rough, near, runtime.PORT)])
    foreign = [tunneled(good, vni) for vni in (0, 1, PODS_VNI - 1, HANDOVER_VNI + 1, 0xFFFFFF)]
    foreign += [tunneled(good, vni, (ROUGH.v4, ends[1])) for vni in (PODS_VNI, HANDOVER_VNI)]
    foreign += [tunneled(good, vni, (outside.pod("web-2").address.v4, ends[1])) for vni in (PODS_VNI, HANDOVER_VNI)]
    (twice,) = inside([tunneled(good, PODS_VNI, (outside.pod("web-2").address.v4, ends[1]))])
    foreign.append(tunneled(twice, PODS_VNI))
    before, foreign_before = counted(outside), counted(outside, ["not_a_node"])
    hops = {name: place for name, place in places(outside).items() if name not in ("node2", "web-2")}
    senders = Dual(far, rough)
    with good_traffic(outside), heard(hops, senders) as seen:
        send(other.space, framed(*macs, unreadable + foreign))
        wait(lambda: counted(outside) >= before + len(unreadable))
        wait(lambda: counted(outside, ["not_a_node"]) >= foreign_before + len(foreign))
    assert not any(seen.values()), seen
    assert counted(outside) == before + len(unreadable)
    assert counted(outside, ["not_a_node"]) == foreign_before + len(foreign)
    with heard(hops, ROUGH) as seen:
        send(other.space, framed(*macs, [tunneled(good, HANDOVER_VNI)]))
    assert len(_from(rough, seen["web-1"])) == 1
