# SPDX-License-Identifier: Apache-2.0
"""One source port, used for a Service and for its backend in turn, right after each close, however that comes about.

The hard part is that both are the same five-tuple at the backend. Beside it runs the ideal: the same client and server
joined by a veth pair of their own, with an address that nftables rewrites without state, to a second port of the
server, so that nothing can be mistaken. The client keeps no TIME_WAIT, so that it can use its port again; the server
does. A hasty client may come again while the server holds the last connection: then TCP itself stalls for a second.
"""

import json
import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from e2e.lab import addresses, network, source
from e2e.lab.reuse import MANNERS
from e2e.lab.runtime import Pod, tool
from e2e.lab.space import Space
from e2e.tests.outside import MODES, Exposed, Outside
from e2e.tests.stage import FAMILIES, PORT, Stage, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("REUSE_ROUNDS", "3000"))
MARGIN_MS = 200
TCP_STALL_MS = 1000
SERVER_PORT, IDEAL_PORT = 8090, 8091
REUSED = addresses.service(20)
OUTSIDE_ROUNDS = ROUNDS // 20
REUSED_OUTSIDE = Exposed(36, ["reused"], "Cluster")

# client, server and virtual address of the ideal
IDEAL = {
    "IPv4": ("198.51.100.1", "198.51.100.2", "203.0.113.10", "24", "ip"),
    "IPv6": ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::10", "64", "ip6"),
}


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize(("client", "family"), [("ask-1", "IPv4"), ("ask-2", "IPv6")])
def test_source_port_reused_for_service_and_backend_is_never_mistaken(
    reuse: Stage, client: str, family: str, manner: str
) -> None:
    """No wrong answer, and no stall of over 200 ms more than the ideal's worst; across nodes and on one node."""
    asker = reuse.pod(client).space
    direct, service = pick(reuse.pod("reused").address, family), pick(REUSED, family)
    ideal = _ask(asker, manner, (IDEAL[family][2], PORT), (IDEAL[family][1], SERVER_PORT))
    ours = _ask(asker, manner, (service, PORT), (direct, SERVER_PORT))
    print(f"\n{client} {family} {manner}\n  ideal {ideal}\n  ours  {ours}")
    assert ours["wrong"] == []
    assert ideal["wrong"] == []
    own_stall_ms = TCP_STALL_MS if manner == "hasty" else 0
    assert ours["slowest_ms"] <= max(ideal["slowest_ms"], own_stall_ms) + MARGIN_MS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("entry", "family"), [(1, "IPv4"), (1, "IPv6"), (2, "IPv4")])
def test_source_port_reused_for_node_port_and_pod_is_never_mistaken(
    outside: Outside, reused_outside: Pod, entry: int, family: str
) -> None:
    """Nor from outside, through a NodePort and straight to the pod: whoever has closed, a SYN opens a connection,
    though the pod has the last one in TIME_WAIT: where that stood in its way, half of them were sent twice. On a busy
    machine some are all the same, and a hasty client may have to send another."""
    node_port = pick(outside.node(entry).address, family), REUSED_OUTSIDE.node_port
    pod = pick(reused_outside.address, family), SERVER_PORT
    for manner in MANNERS:
        report = _ask(outside.client, manner, node_port, pod, rounds=OUTSIDE_ROUNDS)
        assert (manner, report["wrong"]) == (manner, [])
        assert manner == "hasty" or report["syns_repeated"] <= OUTSIDE_ROUNDS // 20, (manner, report)


@pytest.fixture
def reused_outside(outside: Outside) -> Iterator[Pod]:
    """A server on node2 behind a NodePort, to which the client has a route of its own; it keeps no TIME_WAIT."""
    node = outside.node(2)
    pod = node.add_pod("reused", serve=False)
    _serve(pod, SERVER_PORT)
    outside.expose_outside("reused", REUSED_OUTSIDE, port=SERVER_PORT)
    network.route(outside.client, node.address, addresses.pod_ranges(node.index))
    buckets = outside.client.run("sysctl", "-n", "net.ipv4.tcp_max_tw_buckets").stdout.strip()
    outside.client.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
    for entry, family in product(outside.lab.nodes, FAMILIES):
        address = pick(entry.address, family)
        wait(lambda a=address: _is_open(outside.client, a, REUSED_OUTSIDE.node_port))  # type: ignore[misc]
    yield pod
    outside.client.run("sysctl", "-qw", f"net.ipv4.tcp_max_tw_buckets={buckets}")
    for prefix in addresses.pod_ranges(node.index):
        outside.client.run("ip", "route", "delete", prefix)
    outside.source.delete("reused")
    node.remove_pod("reused")


@pytest.fixture(scope="module")
def reuse(_stages: Any) -> Iterator[Stage]:
    """The stage with a server on node2 for this, its Service, and an ideal way to it from each client."""
    stage: Stage = _stages("directory")
    server = stage.node(2).add_pod("reused", serve=False)
    _serve(server, SERVER_PORT, IDEAL_PORT)
    backends = [(server.address, "node2")]
    slices = source.endpoints("reused", backends, SERVER_PORT)
    stage.source.apply("reused", [source.service("reused", REUSED, PORT, SERVER_PORT), *slices])
    for client, family in (("ask-1", "IPv4"), ("ask-2", "IPv6")):
        _make_ideal(stage.pod(client), server, family)
    wait(lambda: _is_open(stage.place("ask-1"), REUSED.v4, PORT))
    yield stage
    stage.source.delete("reused")
    for client in ("ask-1", "ask-2"):
        stage.pod(client).space.run("ip", "link", "delete", "ideal0")
    stage.node(2).remove_pod("reused")


def _serve(pod: Pod, *ports: int) -> None:
    process = pod.space.start(*tool("reuse", "serve", *map(str, ports)))
    assert process.stdout
    assert process.stdout.readline() == "ready\n"


def _is_open(asker: Space, address: str, port: int) -> bool:
    """Whether the server is reached; it closes what is no question of its own."""
    return names(ask(asker, "tcp", address, port)) == {"closed without an answer"}


def _ask(asker: Space, manner: str, *targets: tuple[str, int], rounds: int = ROUNDS) -> dict[str, Any]:
    named = [f"[{address}]:{port}" for address, port in targets]
    process = asker.run(*tool("reuse", "ask", *named, "--manner", manner, "--rounds", str(rounds)), timeout_s=240)
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def _make_ideal(client: Pod, server: Pod, family: str) -> None:
    near, far, virtual, prefix, word = IDEAL[family]
    far_netns = server.node.path(f"/run/netns/{server.netns}")
    far_device = f"ideal-{family.lower()}"
    client.space.run(*f"ip link add ideal0 type veth peer name {far_device} netns {far_netns}".split())
    for pod, device, address in ((client, "ideal0", near), (server, far_device, far)):
        pod.space.run(*f"ip address add {address}/{prefix} dev {device}".split(), *(["nodad"] if ":" in far else []))
        pod.space.run("ip", "link", "set", device, "up")
    client.space.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
    client.space.run("ip", "route", "add", virtual, "via", far, "dev", "ideal0")
    rewrite = f"""
    table {word} ideal {{
        chain out {{
            type filter hook output priority raw;
            {word} daddr {virtual} tcp dport {PORT} notrack {word} daddr set {far} tcp dport set {IDEAL_PORT}
        }}
        chain in {{
            type filter hook prerouting priority raw;
            {word} saddr {far} tcp sport {IDEAL_PORT} notrack {word} saddr set {virtual} tcp sport set {PORT}
        }}
    }}
    """
    client.space.run("nft", "-f", "-", stdin=rewrite)
