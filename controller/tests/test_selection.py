# SPDX-License-Identifier: Apache-2.0
"""The kernel's choice, packet by packet: the real programs, on maps that a whole controller made of objects at random,
do with each packet what the model of selection says, and with many of them all that it says.
"""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.layers.sctp import SCTP
from scapy.packet import Packet

from bpf import attach, features, loader
from bpf.abi import SocketKey, SocketSide
from bpf.address import text
from bpf.pins import Pins
from bpf.tests import datapath as dp
from bpf.tests import kernel
from bpf.tests.datapath import Datapath, Result, expected
from bpf.tests.test_cgroup import cgroup
from controller import mapread
from controller.maps import Op
from controller.model import REQUIRED, EndpointSlice, Service
from controller.source import Synced
from controller.tests import strategies
from controller.tests.fakes import FakeMaps
from controller.tests.objects import changed, decoded_node, node
from controller.tests.pipeline import LO, Pipeline
from controller.tests.selection import Asked, Client, Cluster, Outcome, Verdict, met_at, outcomes
from controller.tests.strategies import (
    CLUSTER_IPS,
    NODE_IPS,
    NODE_PORTS,
    OUTSIDE_IPS,
    OWN,
    PODS,
    PORTS,
    PROTOCOLS,
    RANGES,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("no_files")]

BUILD: dict[str, Callable[..., Packet]] = {"TCP": dp.tcp, "UDP": dp.udp, "SCTP": dp.sctp}
SO_COOKIE = 57  # not in socket
OUTSIDE = {4: "203.0.113.200", 6: "2001:db8:ffff::9"}
SERVICE_CIDRS = ("198.51.100.0/26", "2001:db8:5::/122")
# For each backend that may be chosen: of eight, one is missed by all of them once in sixty million times.
PACKETS = 20


class KernelMaps(FakeMaps):
    """Maps that stand in the kernel as well."""

    def __init__(self, datapath: Datapath) -> None:
        super().__init__()
        self._datapath = datapath

    def clear(self) -> None:
        for name in self.maps.keys() - {"state"}:
            for key in self.maps[name]:
                self._datapath.delete(name, key)

    def _run(self, op: Op) -> None:
        super()._run(op)
        if op.value is None:
            self._datapath.delete(op.map, op.key)
        else:
            self._datapath.write(op.map, op.key, op.value)


class Question(NamedTuple):
    """Who asks for what."""

    client: Client
    asked: Asked

    @property
    def source(self) -> str:
        """The client's address."""
        own = NODE_IPS[OWN][0 if self.asked.family == 4 else 1]
        pod = next(iter(PODS[self.asked.family]))
        return {Client.POD: pod, Client.HOST: own}.get(self.client, OUTSIDE[self.asked.family])


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Services and slices, one of each name; the other nodes are there whole, or not at all."""
    services = draw(st.lists(strategies.services(), min_size=1, max_size=2, unique_by=_name))
    slices = draw(st.lists(strategies.slices(), min_size=4, max_size=5, unique_by=_name))
    names = [OWN, *draw(st.sampled_from([("near", "routed")] * 3 + [("near",), ()]))]
    nodes = [node(one, [*NODE_IPS[one]], [*RANGES[one]]) for one in names]
    nodes[0]["metadata"]["labels"] = {"topology.kubernetes.io/zone": draw(st.sampled_from("ab"))}
    cidrs = draw(st.sampled_from([(), SERVICE_CIDRS]))
    return Cluster(OWN, services, slices, [*map(decoded_node, nodes)], cidrs)


def _name(obj: Service | EndpointSlice) -> str:
    return obj.metadata.name


@st.composite
def questions(draw: st.DrawFn, cluster: Cluster) -> list[Question]:
    """Most of them are about what a Service has; the others about any address with any port. The kernel need not have
    SCTP for processes of the host.
    """
    addresses = [*CLUSTER_IPS[4], *CLUSTER_IPS[6], *OUTSIDE_IPS[4], *OUTSIDE_IPS[6]]
    nodes = [address for name in (OWN, "near") for address in NODE_IPS[name]]
    asked = [Asked(address, port, protocol) for address in nodes for port in NODE_PORTS for protocol in PROTOCOLS]
    asked += [Asked(address, port, protocol) for address in addresses for port in PORTS for protocol in PROTOCOLS]
    likely = [one for one in asked if met_at(cluster, one)] or asked
    one = st.builds(
        Question, st.sampled_from(Client), st.sampled_from(likely * (len(asked) // len(likely) * 4) + asked)
    ).filter(lambda question: (question.client, question.asked.protocol) != (Client.HOST, "SCTP"))
    return draw(st.lists(one, min_size=8, max_size=8, unique=True))


class ThisNode(NamedTuple):
    """The node under test: its programs with their pins, and a process of its own."""

    datapath: Datapath
    pins: Pins
    process: ProcessPoolExecutor


@pytest.fixture(scope="module")
def this_node() -> Iterator[ThisNode]:
    """In a network namespace where everything is routed out of lo, which is the underlay."""
    version = features.kernel()[0]
    with dp.routed_namespace(), cgroup() as group:
        config, sizes = dp.load_arguments(version)
        programs = kernel.load(config._replace(host_netns_cookie=loader.netns_cookie()), sizes | {"sockets": 65536})
        try:
            pins = Pins(Path(programs.directory) / "bpffs")
            attach.attach_cgroup(pins, group)
            with ProcessPoolExecutor(1, get_context("fork"), _join, (group,)) as process:
                yield ThisNode(Datapath(kernel.here, programs), pins, process)
        finally:
            kernel.unload(programs)


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


# The host process's sockets, open until it makes others.
_sockets: list[socket.socket] = []


def _connect(asked: Asked, times: int) -> list[int]:
    """Begins to connect so many sockets; their cookies."""
    while _sockets:
        _sockets.pop().close()
    for _ in range(times):
        kind = socket.SOCK_STREAM if asked.protocol == "TCP" else socket.SOCK_DGRAM
        _sockets.append(socket.socket(socket.AF_INET if asked.family == 4 else socket.AF_INET6, kind))
        _sockets[-1].setblocking(False)
        _sockets[-1].connect_ex(asked[:2])
    return [int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little") for one in _sockets]


@contextmanager
def compiled(datapath: Datapath, cluster: Cluster, run_dir: Path) -> Iterator[None]:
    """The maps as the controller makes them of a cluster, and this node's pods."""
    datapath.reset()
    for pods in PODS.values():
        for address in (one for one, name in pods.items() if name == OWN):
            datapath.pod(address, LO, dp.POD_MAC, dp.HOST_MAC)
    maps = KernelMaps(datapath)
    try:
        pipeline = Pipeline(maps, run_dir, service_cidrs=tuple(cluster.service_cidrs))
        pipeline.tell(map(changed, [*cluster.services, *cluster.slices, *cluster.nodes]))
        pipeline.tell(map(Synced, REQUIRED))
        pipeline.settle()
        yield
    finally:
        maps.clear()


def found(this_node: ThisNode, question: Question, ports: Iterator[int], times: int) -> set[Outcome]:
    """What becomes of so many packets, or connections of a process of the host."""
    if question.client != Client.HOST:
        return {ask(this_node.datapath, question, next(ports)) for _ in range(times)}
    cookies = this_node.process.submit(_connect, question.asked, times).result()
    keys = map(SocketKey.unpack, mapread.read(this_node.pins, "sockets"))
    chosen = {key.cookie: (text(key.address), key.port) for key in keys if key.side == SocketSide.BACKEND}
    return {chosen.get(one) or ask(this_node.datapath, question, next(ports)) for one in cookies}


def ask(datapath: Datapath, question: Question, port: int) -> Outcome:
    """What becomes of a packet from a port of the client; the host's is one that its socket did not translate."""
    client, asked = question
    family = dp.V4 if asked.family == 4 else dp.V6
    packet = BUILD[asked.protocol](family, (question.source, port), asked[:2])
    if client in (Client.POD, Client.HOST):
        program = "from_pod" if client == Client.POD else "to_netdev"
        return outcome(datapath.run(program, packet, summed=False), asked)
    sender = dp.PEER_MAC if client == Client.HANDED_OVER else dp.ROUTER_MAC
    arriving = expected(packet, eth_src=sender, eth_dst="00:00:00:00:00:00")
    return outcome(datapath.run("from_netdev", arriving, summed=False), asked)


def outcome(result: Result, asked: Asked) -> Outcome:
    """What a program has done with a packet to `asked`."""
    packet = result.packet
    if result.verdict == dp.SHOT:
        return Verdict.DROPPED
    if ICMP in packet or ICMPv6DestUnreach in packet or (TCP in packet and "R" in packet[TCP].flags):
        return Verdict.REFUSED
    found = packet.payload.dst, next(packet[layer] for layer in (TCP, UDP, SCTP) if layer in packet).dport
    return Verdict.UNTRANSLATED if found == asked[:2] else found


class Memory:
    """Whom session affinity has given each client: of all that the model allows one, at any address of a Service port,
    for as long as it is allowed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._given: dict[tuple[object, ...], Outcome] = {}

    def expected(self, question: Question, chosen: set[Outcome], allowed: set[Outcome]) -> set[Outcome]:
        """What should have been chosen, given what was."""
        met = met_at(self._cluster, question.asked)
        if not met or met.service.spec.session_affinity != "ClientIP" or not any(map(_is_backend, allowed)):
            return allowed
        # a socket of the host, which has no address yet, is known by its namespace
        client = question.client if question.client == Client.HOST else question.source
        key = client, met.service.metadata.name, met.port.name, question.asked.family
        given = self._given.get(key)
        if given not in allowed:
            given = next(iter(chosen & allowed), None)
            self._given[key] = given
        return {given}


def _is_backend(outcome: Outcome) -> bool:
    return not isinstance(outcome, Verdict)


@settings(max_examples=settings().max_examples // 3)
@given(clusters().flatmap(lambda cluster: st.tuples(st.just(cluster), questions(cluster))))
def test_kernel_chooses_as_the_model_says(
    this_node: ThisNode, tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Cluster, list[Question]]
) -> None:
    """Each packet meets a backend or an end that the model allows; and with enough packets, each of them is met."""
    (cluster, questions), ports = drawn, count(1024)
    memory = Memory(cluster)
    with compiled(this_node.datapath, cluster, tmp_path_factory.getbasetemp()):
        for question in questions:
            allowed = outcomes(cluster, question.client, question.source, question.asked)
            times = PACKETS * len(allowed) if len(allowed) > 1 else 3
            chosen = found(this_node, question, ports, times)
            assert chosen == memory.expected(question, chosen, allowed), question
