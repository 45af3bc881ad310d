# SPDX-License-Identifier: Apache-2.0
"""Short connections from one outside client through a NodePort, and straight to its backend in turn, source ports used
again as soon as the client's kernel lets it: none hangs, fails, or reaches anything else.

At the backend both are for one address and port, from one port of the client's. The client routes pods' addresses by
their own nodes. Ports of which it keeps no TIME_WAIT (the server closes first, or both reset) come from a range so
narrow that each is back within a fraction of a second; the others are back after a second (`tcp_tw_reuse`). Who waits
longer than ten seconds for anything has failed.
"""

import time
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from e2e.bench.connect import core
from e2e.bench.contenders import IN_FORCE_S, Ours
from e2e.bench.lab import BenchLab
from e2e.bench.objects import PORT, TARGET_PORT
from e2e.bench.outcome import Outcome
from e2e.bench.tool import BenchError, Tool
from e2e.lab import addresses, network, source
from e2e.lab.addresses import Dual
from e2e.lab.node import Node
from e2e.lab.source import Source
from e2e.lab.space import Space

TITLE = "Short connections through a NodePort and straight to its backend in turn, source ports used again at once"
# By either name, where the backend is on the entry node, and on another: there two nodes' flows have to agree.
CONNECTIONS = {"local": 50_000, "remote": 250_000}
# Who closes, and from which ports.
MANNERS = {"server": "32768 33279", "reset": "32768 33279", "client": "32768 60999", "hasty": "32768 60999"}
ANSWER_S = 600.0

HANDOVERS, FAMILIES = ("l2", "vxlan"), ("IPv4", "IPv6")
# The Services: which way answers return, and which node has the backend: the entry node, or the other one.
SERVICES = list(product(("entry", "direct"), CONNECTIONS))
FIRST_SERVICE, FIRST_NODE_PORT = 150, 30150


class Met(NamedTuple):
    """What the tool tells of connections: how many were in vain, answered by another server or as another connection,
    and opened by more than one SYN; the slowest; the last failure; how often there was no port yet."""

    failed: float
    wrong: float
    repeated: float
    slowest_us: float
    errno: float
    waited: float


def run() -> Outcome:
    """Raises LabError, BenchError."""
    outcome = Outcome(TITLE)
    for handover in HANDOVERS:
        with BenchLab("reuse") as lab:
            ours, services = Ours(handover=handover), lab.directory_source()
            ours.set_up(lab, 2, services)
            outcome.versions |= ours.versions()
            _prepare(lab.client, ours.nodes)
            for number, (back, place) in enumerate(SERVICES):
                family = FAMILIES[(number // 2 + number + HANDOVERS.index(handover)) % 2]
                name = f"{handover}, return {back}, {place} backend, {family}"
                _state(outcome, name, 2 * CONNECTIONS[place], _play(lab.client, ours.nodes, services, number, family))
    return outcome


def _prepare(client: Space, nodes: Sequence[Node]) -> None:
    """Has the client reach pods straight, and use ports in TIME_WAIT again."""
    for node in nodes:
        network.route(client, node.address, addresses.pod_ranges(node.index))
    client.run("sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1")


def _play(client: Space, nodes: Sequence[Node], services: Source, number: int, family: str) -> list[Met]:
    """Makes a Service with its backend, and has the client ask it, manner by manner."""
    back, place = SERVICES[number]
    entry = nodes[0]
    node = entry if place == "local" else nodes[1]
    pod = node.add_pod(f"server-{number}", serve=False)
    _expose(services, number, back, pod.address, node.name)
    names = (_pick(entry.address, family), FIRST_NODE_PORT + number), (_pick(pod.address, family), TARGET_PORT)
    met = []
    with Tool(pod.space, "reuse", "server", str(TARGET_PORT), str(number), cpu=core()) as server:
        server.answer()
        with _start(client, number, *names) as tool:
            for manner, ports in MANNERS.items():
                client.run("sysctl", "-qw", f"net.ipv4.ip_local_port_range={ports}")
                asked = str(2 * CONNECTIONS[place] // len(MANNERS))
                met.append(Met(*tool.ask(manner, asked, timeout_s=ANSWER_S)))
    return met


def _expose(services: Source, number: int, back: str, backend: Dual, node: str) -> None:
    """Makes a Service whose answers return that way."""
    name = f"reuse-{number}"
    manifest = source.service(name, addresses.service(FIRST_SERVICE + number), PORT, TARGET_PORT)
    manifest["metadata"]["annotations"] = {"calico-ebpf.io/return": back}
    slices = source.endpoints(name, [(backend, node)], TARGET_PORT)
    services.apply(name, [source.reached_from_outside(manifest, FIRST_NODE_PORT + number), *slices])


def _start(client: Space, identity: int, *names: tuple[str, int]) -> Tool:
    """A client of the server with that identity, once it gets through by either name. Raises BenchError."""
    deadline = time.monotonic() + IN_FORCE_S
    arguments = [str(part) for name in names for part in name]
    tool = Tool(client, "reuse", "client", str(identity), *arguments, cpu=core())
    while Met(*tool.ask("server", str(len(names)))).failed:
        if time.monotonic() > deadline:
            raise BenchError(f"{client.name}: not in force after {IN_FORCE_S} s")
        time.sleep(0.2)
    return tool


def _state(outcome: Outcome, name: str, count: int, met: Sequence[Met]) -> None:
    asked = f"{name}: of {count:,}"
    outcome.state(f"{asked} failed", "", sum(one.failed for one in met), bar=0)
    outcome.state(f"{asked} answered wrongly", "", sum(one.wrong for one in met), bar=0)
    outcome.state(f"{asked} needed a second SYN", "", sum(one.repeated for one in met))
    outcome.state(f"{name}: slowest", "ms", max(one.slowest_us for one in met) / 1000)


def _pick(address: Dual, family: str) -> str:
    return address.v6 if family == "IPv6" else address.v4
